"""The search behind policies that are tuned by simulation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import differential_evolution

from hybrid_envs.core import HybridEnv
from hybrid_envs.spaces import HybridAction

Rule = Callable[[Any], tuple[np.ndarray, np.ndarray]]
"""From a batch of states to regimes, shape ``(batch,)``, and points, shape ``(batch, n)``."""


def search(
    env: HybridEnv, rules: Callable[[np.ndarray], Rule], n_shares: int, n_scenarios: int, iterations: int, seed: int
) -> np.ndarray:
    """
    The least mean figure of merit by differential evolution, all candidates on the same scenarios.

    :param env: the problem
    :param rules: from shares between 0 and 1, shape ``(batch, n_shares)``, to the rule that obeys in each row of a batch of
        states the shares of the same row
    :param n_shares: how many numbers are looked for
    :param n_scenarios: scenarios to judge a candidate by
    :param iterations: of the search, at most
    :param seed: of the search and its scenarios
    :return: the best shares found, shape ``(n_shares,)``
    """
    start, noise = env.sample_scenarios(n_scenarios, torch.Generator(env.device).manual_seed(seed))
    found = differential_evolution(
        lambda candidates: _mean_costs(env, rules, candidates.T, start, noise),
        [(0.0, 1.0)] * n_shares,
        maxiter=iterations,
        popsize=8,
        polish=False,
        vectorized=True,
        updating="deferred",
        rng=np.random.default_rng(seed),
    )
    return np.asarray(found.x)


@torch.no_grad()
def _mean_costs(
    env: HybridEnv, rules: Callable[[np.ndarray], Rule], candidates: np.ndarray, start: Any, noise: torch.Tensor
) -> np.ndarray:
    """Mean figure of merit of every row of candidates on the same scenarios, shape ``(candidates,)``."""
    n_candidates, n_scenarios = len(candidates), noise.shape[1]
    rule = rules(np.repeat(candidates, n_scenarios, axis=0))
    again = torch.arange(n_scenarios, device=env.device).repeat(n_candidates)
    state, costs = type(start)(*(field[again] for field in start)), []
    for of_period in noise:
        regimes, points = rule(state)
        point = torch.as_tensor(points, dtype=env.dtype, device=env.device)
        action = HybridAction(torch.as_tensor(regimes, device=env.device), point)
        result = env.step_torch(state, action, of_period[again])
        state = result.state
        costs.append(-result.reward.double())
    return env.figure_of_merit(torch.stack(costs)).view(n_candidates, n_scenarios).mean(dim=1).cpu().numpy()
