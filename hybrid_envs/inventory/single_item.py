"""One item on its own: its demand on a lattice, and the exact costs of periodic and of (s, S) replenishment."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, poisson

from hybrid_envs.inventory.env import HybridInventoryEnv

TAIL = 1e-12
POINTS_PER_STD = 16  # of the lattice on which normal demand is discretised; costs then err by about 1e-3 relative or less
MOST_POINTS = 2_048  # of that lattice, up to the mean


@dataclass(frozen=True)
class SingleItem:
    """
    One item with backlogging and independent, identically distributed demand. Inventory positions y are counted in lattice
    units: y stands for ``y * step`` units of stock.
    """

    demand: np.ndarray
    """Probabilities of a period's demand 0, 1, 2, ... lattice units."""
    step: float
    """Units of stock per lattice unit: 1 for Poisson demand."""
    holding_cost: float
    underage_cost: float
    lead_time: int

    def demand_over(self, periods: int) -> np.ndarray:
        """
        :return: probabilities of the total demand of that many periods
        """
        total = np.ones(1)
        for _ in range(periods):
            total = np.convolve(total, self.demand)
        return total

    def exposure(self, review_period: int) -> np.ndarray:
        """
        What is ordered in a period covers those that are ``lead_time`` to ``lead_time + review_period - 1`` periods later.

        :return: probabilities of the demand that has left the inventory position when their costs are charged, their mean
        """
        totals = [self.demand_over(self.lead_time + k) for k in range(1, review_period + 1)]
        return np.mean([np.pad(total, (0, len(totals[-1]) - len(total))) for total in totals], axis=0)

    def period_cost(self, demand: np.ndarray, position: np.ndarray | int) -> np.ndarray:
        """
        :param demand: probabilities of the demand D that the position y has to cover
        :param position: y in lattice units
        :return: h E(y - D)^+ + u E(D - y)^+, shape of ``position``
        """
        n = len(demand)
        excess = np.concatenate([[0.0], np.cumsum(np.cumsum(demand))])  # E(y - D)^+ = Σ_{x<y} P(D <= x), y = 0..n
        overage = excess[np.clip(position, 0, n)] + np.maximum(np.asarray(position) - n, 0)
        underage = overage + demand @ np.arange(n) - position
        return self.step * (self.holding_cost * overage + self.underage_cost * underage)

    def periodic(self, review_period: int) -> tuple[int, float]:
        """
        Order every R periods.

        :return: the best order-up-to level in lattice units, and its cost per period without any fixed cost
        """
        mixture = self.exposure(review_period)
        ratio = self.underage_cost / (self.holding_cost + self.underage_cost)
        level = int(np.searchsorted(np.cumsum(mixture), min(ratio, 1 - TAIL)))
        return level, float(self.period_cost(mixture, level))

    def reorder_costs(self, max_fixed_cost: float, review_period: int = 1) -> "ReorderCosts":
        """
        Costs of every (s, S) policy that can be optimal.

        :param max_fixed_cost: the largest fixed cost that will be asked for
        :param review_period: R; the item can be ordered in every R-th period
        """
        # The optimum of cost c has G(s+1) <= c and G(S) <= c, G the expected cost of the periods a lead time ahead that a
        # review decides on (Zheng and Federgruen 1991, Lemma 1), so positions with G above the cost of any policy are out.
        bound, interval = math.inf, review_period
        while (cost := max_fixed_cost / interval + self.periodic(interval)[1]) < bound:
            bound, interval = cost, interval + review_period
        exposure = self.exposure(review_period)
        mean = exposure @ np.arange(len(exposure))
        low = math.floor(mean - bound / (self.underage_cost * self.step))  # G(y) >= u (E D - y) and >= h (y - E D)
        high = math.ceil(mean + bound / (self.holding_cost * self.step))
        positions = np.arange(low, high + 1)
        costs = self.period_cost(exposure, positions)
        positions, costs = positions[costs <= bound], costs[costs <= bound]

        # Expected number of reviews that a cycle spends j below S, j = 0, 1, ...: a renewal density
        n = len(positions)
        between = self.demand_over(review_period)
        demand = np.pad(between, (0, max(0, n - len(between))))
        stay = 1 - demand[0]
        visits = np.zeros(n)
        visits[0] = 1 / stay
        for j in range(1, n):
            visits[j] = demand[1 : j + 1] @ visits[j - 1 :: -1] / stay
        lengths = np.cumsum(visits)  # of the cycle, by S - s = 1..n

        running, levels = np.empty(n), np.empty(n, dtype=np.int64)
        per_cycle = np.zeros(n + 1)
        for j in range(n):  # S - s = j + 1; per_cycle[i] belongs to S = positions[j + i]
            per_cycle = per_cycle[1:] + visits[j] * costs[: n - j]
            best = int(np.argmin(per_cycle))
            running[j], levels[j] = per_cycle[best] / lengths[j], positions[j + best]
        return ReorderCosts(1 / lengths / review_period, running, levels, max_fixed_cost)


@dataclass(frozen=True)
class ReorderCosts:
    """
    The least cost per period of ordering once demand since the last order has reached Δ = 1, 2, ... lattice units, over all S:
    ``running + frequency * fixed_cost``. Arrays are indexed by Δ - 1.
    """

    frequency: np.ndarray
    """Orders per period."""
    running: np.ndarray
    """Holding and underage cost per period."""
    levels: np.ndarray
    """S."""
    max_fixed_cost: float
    """These costs hold the optimum up to this fixed cost."""

    def optimal_cost(self, fixed_cost: np.ndarray | float) -> np.ndarray:
        """
        :param fixed_cost: any shape, at most ``max_fixed_cost``
        :return: the least cost per period of any policy, same shape; concave in the fixed cost
        """
        fixed_cost = np.asarray(fixed_cost)[..., None]
        return (self.running + self.frequency * fixed_cost).min(axis=-1)

    def optimal_policy(self, fixed_cost: float) -> tuple[int, int]:
        """
        :return: (s, S): order up to S once the inventory position is s or less; in lattice units
        """
        best = int(np.argmin(self.running + self.frequency * fixed_cost))
        return int(self.levels[best]) - best - 1, int(self.levels[best])


def single_items(env: HybridInventoryEnv) -> list[SingleItem]:
    """
    The items of a joint problem with Poisson or normal demand, each on its own.

    :param env: the joint problem; checked by the caller
    """
    params = env.params
    costs = params.holding_cost, params.shortage_cost
    deviations = [float(std) for std in env.demand_std]
    return [single_item(env, *numbers) for numbers in zip(params.mean_demand, deviations, *costs, strict=True)]


def single_item(env: HybridInventoryEnv, mean: float, std: float, holding_cost: float, underage_cost: float) -> SingleItem:
    """
    :param env: says how demand is distributed, Poisson or normal, and the lead time
    :param mean: μ of this item
    :param std: of normal demand
    :param holding_cost: h
    :param underage_cost: u
    """
    met = mean / (1 - env.zero_share)
    demand, step = _poisson(met) if env.demand == "poisson" else _censored_normal(met, std)
    demand = (1 - env.zero_share) * demand
    demand[0] += env.zero_share
    return SingleItem(demand, step, holding_cost, underage_cost, env.params.lead_time)


def _poisson(mean: float) -> tuple[np.ndarray, float]:
    demand = poisson.pmf(np.arange(poisson.isf(TAIL, mean) + 1), mean)
    return demand / demand.sum(), 1.0


def _censored_normal(mean: float, std: float) -> tuple[np.ndarray, float]:
    """
    max(N(mean, std²), 0), rounded to a lattice that holds the mean.

    :raises ValueError: if demand is so regular, and yet not certain, that the lattice would be too long
    """
    if std == 0:
        return np.array([0.0, 1.0]), mean
    points = max(1, math.ceil(POINTS_PER_STD * mean / std))
    if points > MOST_POINTS:
        least = POINTS_PER_STD / MOST_POINTS
        raise ValueError(f"demand_std = {std:g} is below {least:g} of mean_demand = {mean:g}: exact costs need more, or 0")
    step = mean / points
    upper = step * (np.arange(math.ceil((mean + norm.isf(TAIL) * std) / step)) + 0.5)
    return np.diff(norm.cdf(upper, mean, std), prepend=0.0), step
