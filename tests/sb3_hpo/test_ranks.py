"""N processes that share a run end with the weights of one."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import hybrid_envs  # noqa: F401  registers the problems
from sb3_hpo import HPO
from tests.sb3_hpo.sharing import on_ranks, weights

NETS = {"net_arch": [8, 8]}


def hpo(iterations: int = 6) -> np.ndarray:
    env: Any = gym.make("HybridInventory-v0", n_items=2, horizon=5).unwrapped
    model = HPO("MlpPolicy", env, n_scenarios=7, n_epochs=2, seed=0, policy_kwargs=NETS, point_noise=0.1)
    return weights(model.learn(iterations * 5 * 7))


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_hpo_ends_with_the_weights_of_one_process(n_ranks: int) -> None:
    (one,) = on_ranks(1, hpo)
    several = on_ranks(n_ranks, hpo)
    for of_rank in several:
        assert of_rank == pytest.approx(one, rel=1e-5, abs=1e-6)
        assert np.array_equal(of_rank, several[0])
