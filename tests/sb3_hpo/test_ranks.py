"""N processes that share a run end with the weights of one."""

from functools import cache

import numpy as np
import pytest

from tests.sb3_hpo.sharing import RUNS, Finished, all_finished, on_ranks


@cache
def runs(n_ranks: int, double: bool) -> list[dict[str, Finished]]:
    return on_ranks(n_ranks, all_finished, double=double)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-5)])
@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_ranks_end_with_the_weights_of_one_process(n_ranks: int, double: bool, tolerance: float, name: str) -> None:
    (one,) = (of_rank[name] for of_rank in runs(1, double))
    several = [of_rank[name] for of_rank in runs(n_ranks, double)]
    for it in several:
        assert np.linalg.norm(it.weights - one.weights) <= tolerance * np.linalg.norm(one.weights)
        assert np.array_equal(it.weights, several[0].weights)
        assert (it.steps, it.updates, it.stopped) == (one.steps, one.updates, one.stopped)
        assert it.statistics == pytest.approx(one.statistics, rel=1e3 * tolerance)
        assert np.array(it.episodes) == pytest.approx(np.array(one.episodes), rel=1e3 * tolerance)
    assert len(one.episodes) > 20


def test_the_kl_stop_bites() -> None:
    (one,) = runs(1, True)
    assert 2 < one["HPO, inventory"].stopped < 20
