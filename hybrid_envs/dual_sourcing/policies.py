"""Dual sourcing: the optimum of one item by dynamic programming, and the capped dual index policy for everything else."""

import math
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, poisson

from hybrid_envs.checks import check_array
from hybrid_envs.dual_sourcing.env import HybridDualSourcingEnv, lot_sizes
from hybrid_envs.evaluation import Policy, ReferencePolicy, evaluate
from hybrid_envs.search import Rule, search

TAIL = 1e-12
MAX_STATES = 500_000
TOLERANCE = 1e-8  # of the long-run cost, relative
DAMPING = 0.9  # of value iteration: without any, demand that never varies would make it cycle
MAX_ITERATIONS = 100_000
SEARCH_ROWS = 2**7  # scenarios behind each candidate of the policy search, times items
TEST_SCENARIOS = 2**10
REACH = 3.0  # standard deviations: how far below the mean the search begins, and how far above the newsvendor level it ends


class Grid(NamedTuple):
    """Where dynamic programming looks: stock on hand and orders in whole units."""

    low: int
    """Least stock on hand before demand that a decision may leave."""
    high: int
    """Most stock on hand."""
    most: int
    """Most that may be ordered from the regular source at once."""


@dataclass(frozen=True)
class DualSourcingProblem:
    """
    One item with independent, identically distributed integer demand.

    Integer orders are no restriction. Take any policy, and let A_t and R_t be all it has ordered from the expedited and the
    regular source up to period t. With one U uniform on [0, 1], order so that the totals become floor(A_t + U) and
    ceil(R_t - U) instead. Their expectations are A_t and R_t, any sum of the two is the original sum rounded up or down, and
    no source is used that was not used before. Costs are linear in stock between integers, so their expectation does not
    rise.
    """

    demand: np.ndarray
    """Probabilities of a period's demand 0, 1, 2, ... units."""
    holding_cost: float
    underage_cost: float
    premium: float
    regular_fixed_cost: float
    expedited_fixed_cost: float
    lead_time: int

    def solve(self) -> "DualSourcingTable":
        """
        The optimal policy of the long run, by relative value iteration. The grid is widened until no state that the policy
        can reach from empty shelves, and no order it places there, lies on a bound of it.

        :raises ValueError: if that takes more than 500,000 states
        """
        most_demand = len(self.demand) - 1
        mean = float(self.demand @ np.arange(most_demand + 1))
        lot = math.ceil(math.sqrt(2 * (self.regular_fixed_cost + self.expedited_fixed_cost) * mean / self.holding_cost))
        typical = math.ceil(mean + 4 * math.sqrt(mean)) + lot
        grid = Grid(-max(most_demand, 1), most_demand + self.lead_time * typical, typical)
        while True:
            table = self._iterate(grid)
            low, high, most = table.reached()
            tight = Grid(low <= grid.low, high >= grid.high, most >= grid.most)
            if not any(tight):
                return table
            grid = Grid(*(bound * (1 + full) for bound, full in zip(grid, tight, strict=True)))

    def n_states(self, grid: Grid) -> int:
        """
        :return: number of states on the grid: stock on hand, and what arrives in each of the ``lead_time - 1`` next periods
        """
        return (grid.high - grid.low + len(self.demand)) * (grid.most + 1) ** (self.lead_time - 1)

    def _iterate(self, grid: Grid) -> "DualSourcingTable":
        if (count := self.n_states(grid)) > MAX_STATES:
            raise ValueError(
                f"DualSourcingOptimum: lead_time = {self.lead_time} takes {count:,} states, more than {MAX_STATES:,}"
            )
        demand = np.arange(len(self.demand))
        lowest = grid.low - int(demand[-1])
        on_hand, orders = np.arange(lowest, grid.high + 1), np.arange(grid.most + 1)
        left = on_hand[:, None] - demand
        running = np.where(left > 0, self.holding_cost * left, -self.underage_cost * left) @ self.demand
        running[on_hand < grid.low] = math.inf  # such stock has to be raised before demand is met
        pipeline = (len(orders),) * (self.lead_time - 1)
        column = (-1, *(1,) * len(pipeline))  # the shape of what depends on the stock on hand alone
        running, price = running.reshape(column), self.premium * on_hand.reshape(column)
        setup = np.where(orders > 0, self.regular_fixed_cost, 0.0)
        arrived = np.arange(len(on_hand))[:, None] + orders  # stock before demand plus what arrives after it
        before = np.clip(np.arange(len(on_hand) + grid.most)[:, None] - demand, 0, len(on_hand) - 1)

        value = np.zeros((len(on_hand), *pipeline))
        for _ in range(MAX_ITERATIONS):
            later = np.zeros((len(before), *pipeline))  # expected value by stock + arrivals and by the pipeline after them
            for probability, column_before in zip(self.demand, before.T, strict=True):
                later += probability * value[column_before]
            # The newest order is the last of the pipeline; with a lead time of 1 it is what arrives.
            choice = later + setup if pipeline else later[arrived] + setup
            settled = running + (choice.min(axis=-1)[arrived] if pipeline else choice.min(axis=-1))  # nothing expedited
            least = np.minimum.accumulate((settled + price)[::-1], axis=0)[::-1]  # over this stock on hand and any higher one
            raised = least - price + self.expedited_fixed_cost
            update = np.minimum(settled, raised)
            gains = update - value
            if np.ptp(gains) <= TOLERANCE * max(1.0, abs(gains.min())):
                break
            value += DAMPING * gains
            value -= value.flat[0]
        else:
            raise ValueError(f"DualSourcingOptimum: value iteration has not converged after {MAX_ITERATIONS} iterations")

        rows = np.arange(len(on_hand)).reshape(column)
        stay = settled + price == least  # where no higher stock is better: the next such row is where to raise stock to
        best = np.minimum.accumulate(np.where(stay, rows, len(rows))[::-1], axis=0)[::-1]
        target = np.where(raised < settled, best, rows)
        newest = choice.argmin(axis=-1)
        newest = newest[arrived] if pipeline else newest  # by stock after expediting, and by the pipeline
        regular = np.take_along_axis(newest, target, axis=0)
        return DualSourcingTable(self, grid, lowest, float(gains.min()), on_hand[target], regular)


@dataclass(frozen=True)
class DualSourcingTable:
    """An optimal decision for every state: stock on hand, counted from ``lowest``, then what arrives in the next periods."""

    problem: DualSourcingProblem
    grid: Grid
    lowest: int
    cost: float
    """Per period in the long run."""
    stock_after: np.ndarray
    """What expediting raises the stock on hand to; as much as there is if nothing is expedited."""
    regular: np.ndarray
    """What is ordered from the regular source."""

    def orders(self, stock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param stock: on hand and on order, whole units, shape ``(batch, lead_time)``
        :return: what to order from the regular and from the expedited source, each of shape ``(batch,)``
        """
        state = (stock - np.eye(1, self.problem.lead_time, dtype=np.int64) * self.lowest).T
        known = tuple(np.clip(index, 0, size - 1) for index, size in zip(state, self.regular.shape, strict=True))
        return self.regular[known], np.maximum(self.stock_after[known] - stock[:, 0], 0)

    def reached(self) -> Grid:
        """
        :return: extremes of what the policy reaches from empty shelves: least stock before demand, most stock, largest order
        """
        state = np.zeros((1, self.problem.lead_time), dtype=np.int64)
        state[:, 0] = -self.lowest
        demand = np.flatnonzero(self.problem.demand)
        seen = np.zeros(self.regular.shape, dtype=bool)
        seen[tuple(state.T)] = True
        low, high, most = 0, 0, 0
        while len(state):
            after, regular = self.stock_after[tuple(state.T)], self.regular[tuple(state.T)]
            low, most = min(low, int(after.min())), max(most, int(regular.max()))
            on_order = np.column_stack([state[:, 1:], regular])
            stock = (after + on_order[:, 0])[:, None] - demand
            high = max(high, int(stock.max()), int(after.max()))
            if low <= self.grid.low or high >= self.grid.high:
                break
            following = np.repeat(on_order, len(demand), axis=0)
            following[:, 0] = stock.ravel() - self.lowest
            flat = np.unique(np.ravel_multi_index(tuple(following.T), seen.shape))
            flat = flat[~seen.ravel()[flat]]
            seen.ravel()[flat] = True
            state = np.column_stack(np.unravel_index(flat, seen.shape))
        return Grid(low, high, most)


class DualSourcingOptimum(ReferencePolicy):
    """
    The optimum in the long run of one item, or of several each of which chooses its sources by itself, over all policies and
    all orders, fractional ones included; see ``DualSourcingProblem``. ``cost`` is exact under uniform demand, and under
    Poisson demand whose tail of probability 1e-12 is cut off.

    :param env: the problem
    :raises ValueError: for several items that share a choice, for demand that is not uniform or Poisson, for costs h or u of
        0, and where the states are too many
    """

    def __init__(self, env: HybridDualSourcingEnv):
        self.mean_demand, self.lead_time, self.per_item = env.params.mean_demand, env.params.lead_time, env.per_item
        solved: dict[Any, DualSourcingTable] = {}  # items that are alike share one
        self.tables = []
        for item in range(env.n_items):
            problem = single_item(env, item)
            demand, *numbers = astuple(problem)
            key = (demand.tobytes(), *numbers)
            if key not in solved:
                solved[key] = problem.solve()
            self.tables.append(solved[key])
        self.cost = sum(table.cost for table in self.tables) / env.n_items

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = observation.astype(np.float64).reshape(-1, self.lead_time, len(self.mean_demand))
        stock = np.rint(scaled * self.mean_demand).astype(np.int64)
        orders = [table.orders(stock[..., item]) for item, table in enumerate(self.tables)]
        regular, expedited = (np.stack(of_source, axis=1) for of_source in zip(*orders, strict=True))
        regimes = (regular > 0) + 2 * (expedited > 0)
        return regimes if self.per_item else regimes[:, 0], np.column_stack([regular, expedited]).astype(np.float64)


class Levels(NamedTuple):
    """
    The parameters of a capped dual index policy: levels and caps of shape ``(..., n_items)``, least orders, which are sums
    over the items, of shape ``(..., 1)``, or of each item, where it chooses by itself, ``(..., n_items)``.
    """

    expedited_level: np.ndarray
    least_expedited: np.ndarray
    regular_level: np.ndarray
    cap: np.ndarray
    least_regular: np.ndarray


class CappedDualIndex(ReferencePolicy):
    """
    The capped dual index policy (Sun and Van Mieghem 2019), made to share fixed costs. Stock on hand is expedited up to
    ``expedited_level``. Then the inventory position (on hand and on order, with what was just expedited) is raised from the
    regular source up to ``regular_level``, by at most ``cap``. Each source is used once what is due from it adds up to its
    least order over the items, or for each item by itself, if it chooses by itself.

    :param env: the problem
    :param levels: the parameters; scalars are spread over the items
    :raises ValueError: naming the parameter, if its value is not allowed
    """

    def __init__(self, env: HybridDualSourcingEnv, levels: Levels):
        env.instances.require_one(type(self).__name__)
        self.mean_demand, self.lead_time, self.per_item = env.params.mean_demand, env.params.lead_time, env.per_item
        shape = (env.n_items,)
        choices = shape if env.per_item else (1,)
        self.levels = Levels(
            check_array("expedited_level", levels.expedited_level, shape),
            check_array("least_expedited", levels.least_expedited, choices, at_least=0.0),
            check_array("regular_level", levels.regular_level, shape),
            check_array("cap", levels.cap, shape, at_least=0.0),
            check_array("least_regular", levels.least_regular, choices, at_least=0.0),
        )

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = observation.astype(np.float64).reshape(-1, self.lead_time, len(self.mean_demand))
        stock = np.round(scaled * self.mean_demand, 3)  # integer stock is exactly integer again
        return capped_orders(stock, self.levels, self.per_item)

    @classmethod
    def best(cls, env: HybridDualSourcingEnv, seed: int = 0) -> "CappedDualIndex":
        """
        The best found by differential evolution on common scenarios. Items differ by their mean and deviation of demand and
        their newsvendor ratio; beyond that they share five numbers. ``cost`` is estimated on other scenarios.

        :param seed: of the search and its scenarios
        """
        family = _Family(env)

        def rules(shares: np.ndarray) -> Rule:
            levels = family.levels(shares)
            return lambda state: capped_orders(state.stock.double().cpu().numpy(), levels, env.per_item)

        best = search(env, rules, 5, max(SEARCH_ROWS // env.n_items, 16), iterations=24, seed=seed)
        policy = cls(env, Levels(*(level[0] for level in family.levels(best[None]))))
        policy.state_cost(evaluate(env, policy, TEST_SCENARIOS, seed + 1))
        return policy


class WholeUnits:
    """
    A policy with its orders rounded to whole units, for demand that comes in whole units. A trained policy is a little off
    the integers, where the costs have their kinks; with a large underage cost that little is most of what it loses.

    :param policy: anything with Stable-Baselines3's ``predict``
    """

    def __init__(self, policy: Policy):
        self.policy = policy

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        :return: as the policy's own ``predict``
        """
        actions, state = self.policy.predict(observation, *args, **kwargs)
        if isinstance(actions, tuple):
            return (actions[0], np.rint(actions[1])), state
        return [(regime, np.rint(point)) for regime, point in actions], state


def best_dual_sourcing(env: HybridDualSourcingEnv) -> ReferencePolicy | None:
    """
    :param env: the problem
    :return: the optimum where :class:`DualSourcingOptimum` solves the problem, else a tuned :class:`CappedDualIndex`; none is
        offered where instances differ from scenario to scenario
    """
    if env.instances.place:
        return None
    try:
        return DualSourcingOptimum(env)
    except ValueError:
        return CappedDualIndex.best(env)


def single_item(env: HybridDualSourcingEnv, item: int = 0) -> DualSourcingProblem:
    """
    :param env: the problem
    :param item: one of its items
    :return: the same for dynamic programming
    :raises ValueError: if several items share a choice, for demand that is not uniform or Poisson, for costs h or u of 0
    """
    env.instances.require_one("DualSourcingOptimum")
    params, mean = env.params, float(env.params.mean_demand[item])
    if env.n_items != 1 and not env.per_item:
        raise ValueError(f"DualSourcingOptimum: n_items = {env.n_items}; it replenishes one item")
    if env.demand not in ("uniform", "poisson"):
        raise ValueError(f"DualSourcingOptimum: demand = {env.demand!r}; it is for demand 'uniform' or 'poisson' only")
    for name, cost in (("holding_cost", params.holding_cost[item]), ("underage_cost", params.underage_cost[item])):
        if cost <= 0:
            raise ValueError(f"DualSourcingOptimum: {name} = {cost} must be > 0")
    if env.demand == "uniform":
        demand = np.ones(round(2 * mean) + 1)
    else:
        demand = poisson.pmf(np.arange(poisson.isf(TAIL, mean) + 1), mean)
    regular, expedited = params.item_fixed_costs[:, item].tolist()
    return DualSourcingProblem(
        demand / demand.sum(),
        float(params.holding_cost[item]),
        float(params.underage_cost[item]),
        float(params.premium[item]),
        regular,
        expedited,
        params.lead_time,
    )


def capped_orders(stock: np.ndarray, levels: Levels, per_item: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    :param stock: on hand and on order, shape ``(batch, lead_time, n_items)``
    :param levels: shared by the batch, or one set for each row
    :param per_item: whether each item chooses its sources by itself
    :return: regimes, shape ``(batch,)`` or ``(batch, n_items)``, and points, shape ``(batch, 2 * n_items)``
    """
    expedited = _once_due(np.maximum(levels.expedited_level - stock[:, 0], 0.0), levels.least_expedited, per_item)
    lacking = levels.regular_level - stock.sum(axis=1) - expedited
    regular = _once_due(np.clip(lacking, 0.0, levels.cap), levels.least_regular, per_item)
    if per_item:
        return (regular > 0) + 2 * (expedited > 0), np.concatenate([regular, expedited], axis=1)
    regimes = np.any(regular, axis=1).astype(np.int64) + 2 * np.any(expedited, axis=1)
    return regimes, np.concatenate([regular, expedited], axis=1)


def _once_due(quantities: np.ndarray, least: np.ndarray, per_item: bool) -> np.ndarray:
    """
    The quantities, shape ``(batch, n_items)``, in rows where they add up to ``least`` at least, or where each by itself
    reaches it; elsewhere 0.
    """
    return quantities * np.greater_equal(quantities if per_item else quantities.sum(axis=1, keepdims=True), least)


class _Family:
    """Capped dual index policies of one problem by five shares between 0 and 1."""

    def __init__(self, env: HybridDualSourcingEnv):
        params = env.params
        mean, std, periods = env.typical_demand, _deviation(env), params.lead_time + 1
        penalty = params.holding_cost + params.underage_cost
        ratio = np.where(penalty > 0, params.underage_cost / np.where(penalty > 0, penalty, 1.0), 0.5)
        reach = std * (2 * REACH + norm.ppf(np.clip(ratio, 0.01, 0.999)))
        regular_lot, expedited_lot = lot_sizes(replace(params, mean_demand=mean)).astype(np.float32).reshape(2, -1)
        # Levels: the least, and the distance to the largest
        self.expedited = mean - REACH * std, reach
        self.regular = periods * mean - REACH * math.sqrt(periods) * std, math.sqrt(periods) * reach + regular_lot
        self.cap = regular_lot + 2 * std
        least = expedited_lot + mean + 2 * std
        self.per_item, self.least_expedited = env.per_item, least if env.per_item else least.sum(keepdims=True)
        self.whole = env.demand in ("uniform", "poisson")

    def levels(self, shares: np.ndarray) -> Levels:
        """
        :param shares: shape ``(candidates, 5)``
        :return: levels with one row per candidate, integer where demand is
        """
        e, u, r, c, v = np.split(shares, 5, axis=1)
        expedited_level = self.expedited[0] + e * self.expedited[1]
        regular_level, cap = self.regular[0] + r * self.regular[1], c * self.cap
        if self.whole:
            expedited_level, regular_level, cap = map(np.rint, (expedited_level, regular_level, cap))
        largest = cap if self.per_item else cap.sum(axis=1, keepdims=True)
        return Levels(expedited_level, u * self.least_expedited, regular_level, cap, v * largest)


def _deviation(env: HybridDualSourcingEnv) -> np.ndarray:
    """Standard deviation of a period's demand, shape ``(n_items,)``."""
    if env.demand == "data":
        return env.demand_data.double().std(dim=(0, 1), unbiased=False).cpu().numpy()
    if env.demand == "uniform":
        return np.sqrt(((2 * env.params.mean_demand + 1) ** 2 - 1) / 12)
    return env.demand_std.double().cpu().numpy()
