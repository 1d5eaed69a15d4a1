"""Joint replenishment: classical policies, the best of them, and a proven lower bound."""

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.inventory.single_item import single_items

SIMULATED_CYCLES = 2**16  # over all items
SPLIT_STEPS = 64  # of the fixed cost, per item, in the lower bound


class OrderUpTo(ReferencePolicy):
    """
    Whenever an order is due, raise the inventory position (on hand and on order, less backlog) of every item to its level.

    :param env: the problem
    :param order_up_to: levels S_i, scalar or shape ``(n_items,)``
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridInventoryEnv, order_up_to: float | np.ndarray):
        self.mean_demand = env.params.mean_demand
        self.lead_time = env.params.lead_time
        self.order_up_to = check_array("order_up_to", order_up_to, (env.n_items,))

    @abstractmethod
    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        """
        :param position: inventory positions, shape ``(batch, n_items)``
        :param period: shape ``(batch,)``
        :return: whether to order now, bool, shape ``(batch,)``
        """

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        position = self.inventory_position(observation)
        due = self.due(position, period)
        return due.astype(np.int64), np.maximum(self.order_up_to - position, 0.0) * due[:, None]

    def inventory_position(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: of the environment, shape ``(batch, d)``
        :return: shape ``(batch, n_items)``, to three decimals, so that integer stock is exactly integer again
        """
        n_items = len(self.mean_demand)
        scaled = observation[:, : self.lead_time * n_items].astype(np.float64).reshape(-1, self.lead_time, n_items)
        return np.round(scaled.sum(axis=1) * self.mean_demand, 3)


class PeriodicReview(OrderUpTo):
    """
    The (R, S) policy: in periods 0, R, 2R, ... order up to S.

    :param env: the problem
    :param review_period: R
    :param order_up_to: S, scalar or shape ``(n_items,)``
    """

    def __init__(self, env: HybridInventoryEnv, review_period: int, order_up_to: float | np.ndarray):
        super().__init__(env, order_up_to)
        self.review_period = check_count("review_period", review_period)

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return period % self.review_period == 0

    @classmethod
    def best(cls, env: HybridInventoryEnv) -> "PeriodicReview":
        """
        The best R up to the horizon, with the best S for it. ``cost`` is exact for the long run under Poisson demand, exact up
        to a fine discretisation under normal demand, and the mean over windows of the data for demand data.

        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        _require(env, cls.__name__)
        policies: list[PeriodicReview] = []
        for review_period in range(1, max(env.horizon - env.params.lead_time, 1) + 1):
            running, levels = _review_costs(env, review_period)
            policy = cls(env, review_period, levels)
            policy.cost = running + env.params.fixed_cost / review_period / env.n_items
            policies.append(policy)
            if running > min(policy.cost for policy in policies):
                break  # holding and underage cost only grow with R
        return min(policies, key=lambda policy: policy.cost)


class SingleItemSS(OrderUpTo):
    """
    The (s, S) policy of a single item: order up to S once the inventory position is s or less.

    :param env: the problem
    :param reorder_point: s
    :param order_up_to: S
    :raises ValueError: if there is more than one item
    """

    def __init__(self, env: HybridInventoryEnv, reorder_point: float, order_up_to: float):
        if env.n_items != 1:
            raise ValueError(f"SingleItemSS: n_items = {env.n_items}; it replenishes one item")
        super().__init__(env, order_up_to)
        self.reorder_point = float(check_array("reorder_point", reorder_point, ()))

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return position[:, 0] <= self.reorder_point

    @classmethod
    def best(cls, env: HybridInventoryEnv) -> "SingleItemSS":
        """
        The optimum of all policies in the long run (Zheng and Federgruen 1991), exact under Poisson demand, and exact up to a
        fine discretisation under normal demand.

        :raises ValueError: for more than one item, lost sales, demand data, and costs h or u of 0
        """
        _require(env, cls.__name__, exact=True)
        if env.n_items != 1:
            raise ValueError(f"SingleItemSS: n_items = {env.n_items}; it replenishes one item")
        (item,) = single_items(env)
        costs = item.reorder_costs(env.params.fixed_cost)
        s, S = costs.optimal_policy(env.params.fixed_cost)
        policy = cls(env, s * item.step, S * item.step)
        policy.cost = float(costs.optimal_cost(env.params.fixed_cost))
        return policy


class TotalDemandTrigger(OrderUpTo):
    """
    Order once the weighted demand since the last order reaches a threshold (a Q(s, S) policy without the clock). With backlog,
    the demand of item i since the last order is S_i less its inventory position.

    :param env: the problem
    :param threshold: θ
    :param order_up_to: S, scalar or shape ``(n_items,)``
    :param weights: of the items' demands, scalar or shape ``(n_items,)``
    :raises ValueError: for lost sales
    """

    def __init__(
        self, env: HybridInventoryEnv, threshold: float, order_up_to: float | np.ndarray, weights: float | np.ndarray = 1.0
    ):
        _require(env, type(self).__name__)
        super().__init__(env, order_up_to)
        self.threshold = float(check_array("threshold", threshold, (), above=0.0))
        self.weights = check_array("weights", weights, (env.n_items,), above=0.0)

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.greater_equal((self.order_up_to - position) @ self.weights, self.threshold)

    @classmethod
    def best(cls, env: HybridInventoryEnv, weights: float | np.ndarray = 1.0, seed: int = 0) -> "TotalDemandTrigger":
        """
        The best threshold with the best S for it, over simulated order cycles; ``cost`` is estimated on other cycles.

        :param weights: scalar or shape ``(n_items,)``
        :param seed: of the cycles
        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        weights = check_array("weights", weights, (env.n_items,), above=0.0)
        fit, test, review_period = _fit_and_test(env, cls.__name__, seed)
        scale = review_period * env.params.mean_demand @ weights

        def running(cycles: Cycles, threshold: float) -> np.ndarray:
            return np.less(cycles.since_order @ weights, threshold)

        threshold = _minimise(lambda theta: fit.cost(running(fit, theta))[0], 0.5 * scale, 1.5 * scale)
        policy = cls(env, threshold, fit.levels(running(fit, threshold)), weights)
        policy.cost, policy.half_width = test.cost(running(test, threshold), policy.order_up_to)
        return policy


class CanOrder(OrderUpTo):
    """
    The (s, c, S) policy: order once any item's inventory position is s_i or less, and then for every item at c_i or less.

    :param env: the problem
    :param reorder_point: s, scalar or shape ``(n_items,)``
    :param can_order: c, scalar or shape ``(n_items,)``
    :param order_up_to: S, scalar or shape ``(n_items,)``
    """

    def __init__(
        self,
        env: HybridInventoryEnv,
        reorder_point: float | np.ndarray,
        can_order: float | np.ndarray,
        order_up_to: float | np.ndarray,
    ):
        super().__init__(env, order_up_to)
        self.reorder_point = check_array("reorder_point", reorder_point, (env.n_items,))
        self.can_order = check_array("can_order", can_order, (env.n_items,))

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.any(position <= self.reorder_point, axis=1)

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        regimes, quantities = super().act(observation, period)
        return regimes, quantities * (self.inventory_position(observation) <= self.can_order)

    @classmethod
    def best(cls, env: HybridInventoryEnv, seed: int = 0) -> "CanOrder":
        """
        The best of a family over simulated order cycles: S_i - s_i is a multiple of the mean demand of a review period plus a
        multiple of its standard deviation. Every item joins an order (c = S), since that costs nothing beyond the fixed cost.
        ``cost`` is estimated on other cycles.

        :param seed: of the cycles
        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        fit, test, review_period = _fit_and_test(env, cls.__name__, seed)
        ratio = review_period / (env.params.lead_time + 1)  # exposure[0] is the demand of lead_time + 1 periods
        mean, std = ratio * fit.exposure[0].mean(axis=0), np.sqrt(ratio) * fit.exposure[0].std(axis=0)

        def running(cycles: Cycles, quantities: np.ndarray) -> np.ndarray:
            return np.all(cycles.since_order < quantities, axis=2)

        def quantities(safety: float) -> np.ndarray:
            return safety * std + mean * _minimise(lambda m: fit.cost(running(fit, m * mean + safety * std))[0], 0.5, 1.5)

        best = min((quantities(safety) for safety in range(4)), key=lambda q: fit.cost(running(fit, q))[0])
        levels = fit.levels(running(fit, best))
        policy = cls(env, levels - best, levels, levels)
        policy.cost, policy.half_width = test.cost(running(test, best), levels)
        return policy


def best_classical(env: HybridInventoryEnv, n_scenarios: int = 1024, seed: int = 0) -> OrderUpTo:
    """
    The best of the policies of this module, by simulation on common scenarios.

    :param env: the problem
    :param n_scenarios: scenarios of the comparison
    :param seed: of the scenarios
    :return: a policy whose ``cost`` is the mean figure of merit over these scenarios
    :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
    """
    policies: list[OrderUpTo] = [SingleItemSS.best(env)] if env.n_items == 1 and env.demand != "data" else []
    policies += [PeriodicReview.best(env), TotalDemandTrigger.best(env), CanOrder.best(env)]
    for policy in policies:
        policy.state_cost(evaluate(env, policy, n_scenarios, seed))
    return min(policies, key=lambda policy: policy.cost)


def lower_bound(env: HybridInventoryEnv) -> float:
    """
    A bound that no policy's long-run cost per item and period falls below, whatever it orders and observes.

    Split K into k_i >= 0. A joint policy orders at least as often as it orders item i, so it costs at least Σ_i c_i(k_i),
    where c_i(k) is the optimal cost of item i alone under fixed cost k. The c_i are concave, so that giving K out in small
    parts by marginal value finds the best split. A policy that stops ordering before the end of an episode can cost less than
    the long-run bound in the episode's last periods.

    :raises ValueError: for lost sales, demand data, and costs h or u of 0
    """
    _require(env, "lower_bound", exact=True)
    part = env.params.fixed_cost / (SPLIT_STEPS * env.n_items)
    parts = part * np.arange(SPLIT_STEPS * min(env.n_items, 8) + 1)  # no item takes more than 8 times the average
    costs = np.array([item.reorder_costs(parts[-1]).optimal_cost(parts) for item in single_items(env)])
    gains = np.sort(np.diff(costs, axis=1), axis=None)[::-1]
    return float(costs[:, 0].sum() + gains[: SPLIT_STEPS * env.n_items].sum()) / env.n_items


class Cycles:
    """
    Simulated order cycles: each starts with an order that raises all inventory positions to S, and ends with the next one.
    When to end is a function of the demand since the order, so cycles are alike, and a rule's long-run cost is its expected
    cost per cycle over the expected length of the cycle (renewal reward).

    :param env: the problem, with backlog
    :param max_length: periods after which a cycle ends anyway
    :param seed: of the demand
    """

    def __init__(self, env: HybridInventoryEnv, max_length: int, seed: int):
        self.params = env.params
        n_cycles = max(SIMULATED_CYCLES // env.n_items, 2048)  # more items average out more noise
        demand = _demand_windows(env, n_cycles, max_length + env.params.lead_time, seed)
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

    def cost(self, running: np.ndarray, levels: np.ndarray | None = None) -> tuple[float, float]:
        """
        :param running: as in :meth:`levels`
        :param levels: S; the best for these cycles unless given
        :return: cost per item and period, and the half width of its 95 % confidence interval (delta method for a ratio)
        """
        left = (self.levels(running) if levels is None else levels) - self.exposure[running]
        charges = np.zeros(running.shape)
        charges[running] = np.maximum(left, 0) @ self.params.holding_cost + np.maximum(-left, 0) @ self.params.underage_cost
        costs, lengths = self.params.fixed_cost + charges.sum(axis=0), running.sum(axis=0)
        mean = costs.sum() / lengths.sum()
        half_width = 1.96 * (costs - mean * lengths).std() / math.sqrt(len(costs)) / lengths.mean()
        n_items = len(self.params.holding_cost)
        return float(mean / n_items), float(half_width / n_items)


def _demand_windows(env: HybridInventoryEnv, n_windows: int, length: int, seed: int) -> np.ndarray:
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


def _review_costs(env: HybridInventoryEnv, review_period: int) -> tuple[float, np.ndarray]:
    """Holding and underage cost per item and period of ordering every ``review_period`` periods, and the best S for it."""
    if env.demand == "data":
        cycles = Cycles(env, review_period, seed=0)
        throughout = np.ones(cycles.since_order.shape[:2], dtype=bool)
        levels = cycles.levels(throughout)
        return cycles.cost(throughout, levels)[0] - env.params.fixed_cost / review_period / env.n_items, levels
    items = single_items(env)
    best, costs = zip(*(item.periodic(review_period) for item in items), strict=True)
    return sum(costs) / env.n_items, np.array(best) * [item.step for item in items]


def _require(env: HybridInventoryEnv, who: str, exact: bool = False) -> None:
    """Refuse problems that the solver named does not solve; ``exact``: those that need a known distribution of demand."""
    params = env.params
    if params.lost_sales:
        raise ValueError(f"{who}: lost_sales = True; it is for backlogged demand only")
    if env.demand == "data" and exact:
        raise ValueError(f"{who}: demand = 'data'; it is for demand 'poisson' or 'normal' only")
    if env.demand == "data" and env.horizon <= params.lead_time:
        raise ValueError(f"{who}: horizon = {env.horizon} must exceed lead_time = {params.lead_time}: no order would arrive")
    for name, cost in (("holding_cost", params.holding_cost), ("underage_cost", params.underage_cost)):
        if exact and not (cost > 0).all():
            raise ValueError(f"{who}: {name}[{np.argmin(cost)}] = {cost.min()} must be > 0")
    free = np.flatnonzero(params.holding_cost + params.underage_cost == 0)
    if len(free):
        raise ValueError(f"{who}: holding_cost[{free[0]}] = underage_cost[{free[0]}] = 0; one of them must be > 0")


def _fit_and_test(env: HybridInventoryEnv, who: str, seed: int) -> tuple[Cycles, Cycles, int]:
    """Cycles to choose parameters on, others to measure the choice on, and the length of the best periodic cycle."""
    _require(env, who)
    review_period = PeriodicReview.best(env).review_period
    max_length = 3 * review_period + 1
    if env.demand == "data":
        max_length = min(max_length, env.horizon - env.params.lead_time)
    return Cycles(env, max_length, seed), Cycles(env, max_length, seed + 1), review_period


def _minimise(cost: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser of a step function, unimodal but for its steps, by successively finer grids."""
    for _ in range(3):
        grid = np.linspace(low, high, 13)
        best = grid[int(np.argmin([cost(x) for x in grid]))]
        low, high = best - (grid[1] - grid[0]), best + (grid[1] - grid[0])
    return float(best)


def best_known(env: HybridInventoryEnv) -> ReferencePolicy | None:
    """
    :return: the best of the classical policies, chosen by simulation; none is offered for lost sales
    """
    return None if env.params.lost_sales else best_classical(env)
