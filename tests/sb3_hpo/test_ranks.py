"""N processes that share a run end with the weights of one."""

from functools import cache

import numpy as np
import pytest

from tests.sb3_hpo.sharing import RUNS, Finished, all_finished, on_ranks

ALL = pytest.mark.slow
CASES = [
    pytest.param(3, True, 6, 1e-12),
    pytest.param(2, False, 6, 1e-5),
    *(pytest.param(n, double, 20, 1e-12 if double else 1e-5, marks=ALL) for n in (2, 3, 4) for double in (True, False)),
]
"""Ranks, whether in float64, iterations, and how near the weights are."""


@cache
def runs(n_ranks: int, double: bool, iterations: int) -> list[dict[str, Finished]]:
    return on_ranks(n_ranks, all_finished, iterations, double=double)


@pytest.mark.parametrize(("n_ranks", "double", "iterations", "tolerance"), CASES)
@pytest.mark.parametrize("name", RUNS)
def test_ranks_end_with_the_weights_of_one_process(
    name: str, n_ranks: int, double: bool, iterations: int, tolerance: float
) -> None:
    (one,) = (of_rank[name] for of_rank in runs(1, double, iterations))
    several = [of_rank[name] for of_rank in runs(n_ranks, double, iterations)]
    for it in several:
        assert np.linalg.norm(it.weights - one.weights) <= tolerance * np.linalg.norm(one.weights)
        assert np.array_equal(it.weights, several[0].weights)
        assert (it.steps, it.updates, it.stopped) == (one.steps, one.updates, one.stopped)
        assert it.statistics == pytest.approx(one.statistics, rel=1e3 * tolerance)
        assert np.array(it.episodes) == pytest.approx(np.array(one.episodes), rel=1e3 * tolerance)
    assert len(one.episodes) > 10


@pytest.mark.parametrize("name", ["HPO, inventory", "HybridPPO, inventory"])
def test_a_kl_stop_bites_in_these_runs(name: str) -> None:
    (one,) = runs(1, True, 6)
    assert 0 < one[name].stopped < 6
