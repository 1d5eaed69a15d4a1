"""Simulated order cycles, on which rules of when to order all items are tuned."""

import math
from collections.abc import Callable

import numpy as np
import torch

from hybrid_envs.inventory.env import HybridInventoryEnv

SIMULATED_CYCLES = 2**16  # over all items


class Cycles:
    """
    Simulated order cycles: each starts with an order of all items that raises their positions to S, and ends with the next
    one. When to end is a function of the demand since the order, so cycles are alike, and a rule's long-run cost is its
    expected cost per cycle over the expected length of the cycle (renewal reward).

    :param env: the problem, with backlog
    :param max_length: periods after which a cycle ends anyway
    :param seed: of the demand
    """

    def __init__(self, env: HybridInventoryEnv, max_length: int, seed: int):
        self.params = env.params
        self.order_cost = env.params.fixed_cost + env.params.item_fixed_cost.sum()
        n_cycles = max(SIMULATED_CYCLES // env.n_items, 2048)  # more items average out more noise
        demand = demand_windows(env, n_cycles, max_length + env.params.lead_time, seed)
        total = np.concatenate([np.zeros_like(demand[:1]), demand.cumsum(axis=0)])
        self.since_order = total[:max_length]
        """Demand of the first k periods, k = 0..max_length-1; shape ``(max_length, n_cycles, n_items)``."""
        self.exposure = total[env.params.lead_time + 1 :]
        """What has left S when the cost of period k + lead_time is charged, same shape."""

    def levels(self, running: np.ndarray) -> np.ndarray:
        """
        :param running: whether the cycle is still on k periods after its order, bool, shape ``(max_length, n_cycles)``
        :return: the best S: the newsvendor quantile u / (u + h) of the exposure, shape ``(n_items,)``
        """
        ratios = self.params.underage_cost / (self.params.underage_cost + self.params.holding_cost)
        exposure = self.exposure[running]
        return np.array([np.quantile(x, ratio, method="inverted_cdf") for x, ratio in zip(exposure.T, ratios, strict=True)])

    def item_costs(self, running: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """
        :param running: as in :meth:`levels`
        :param levels: S
        :return: holding and underage cost of each item per period, shape ``(n_items,)``
        """
        left = levels - self.exposure[running]
        held, short = np.maximum(left, 0).mean(axis=0), np.maximum(-left, 0).mean(axis=0)
        return held * self.params.holding_cost + short * self.params.underage_cost

    def cost(self, running: np.ndarray, levels: np.ndarray | None = None) -> tuple[float, float]:
        """
        :param running: as in :meth:`levels`
        :param levels: S; the best for these cycles unless given
        :return: cost per item and period, and the half width of its 95 % confidence interval (delta method for a ratio)
        """
        left = (self.levels(running) if levels is None else levels) - self.exposure[running]
        charges = np.zeros(running.shape)
        charges[running] = np.maximum(left, 0) @ self.params.holding_cost + np.maximum(-left, 0) @ self.params.underage_cost
        costs, lengths = self.order_cost + charges.sum(axis=0), running.sum(axis=0)
        mean = costs.sum() / lengths.sum()
        half_width = 1.96 * (costs - mean * lengths).std() / math.sqrt(len(costs)) / lengths.mean()
        n_items = len(self.params.holding_cost)
        return float(mean / n_items), float(half_width / n_items)


def demand_windows(env: HybridInventoryEnv, n_windows: int, length: int, seed: int) -> np.ndarray:
    """Demand of consecutive periods, shape ``(length, n_windows, n_items)``."""
    generator = torch.Generator(env.device).manual_seed(seed)
    if env.demand != "data":  # periods and scenarios are all alike
        n_scenarios = math.ceil(n_windows * length / env.horizon)
        periods = env.sample_noise(n_scenarios, generator).flatten(0, 1)[: n_windows * length]
        return periods.unflatten(0, (length, n_windows)).double().cpu().numpy()
    scenarios = env.demand_data.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(scenarios), size=n_windows)
    starts = rng.integers(env.horizon - length + 1, size=n_windows)
    return scenarios[rows, starts + np.arange(length)[:, None]]


def minimise(cost: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser of a step function, unimodal but for its steps, by successively finer grids."""
    for _ in range(3):
        grid = np.linspace(low, high, 13)
        best = grid[int(np.argmin([cost(x) for x in grid]))]
        low, high = best - (grid[1] - grid[0]), best + (grid[1] - grid[0])
    return float(best)
