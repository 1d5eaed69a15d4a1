"""Joint replenishment: classical policies, the best of them, and a proven lower bound."""

import math
from functools import cache

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.inventory.cycles import Cycles, minimise
from hybrid_envs.inventory.env import OBSERVED, HybridInventoryEnv
from hybrid_envs.inventory.item_orders import PeriodicSS, PerItemSS
from hybrid_envs.inventory.lost_sales import LostSalesOptimum
from hybrid_envs.inventory.order_up_to import OrderUpTo, inventory_position, placed, require
from hybrid_envs.inventory.single_item import single_item, single_items
from hybrid_envs.search import Rule, search

SPLIT_STEPS = 64  # of the fixed cost, per item, in the lower bound
SEARCH_ROWS, SEARCH_ITERATIONS = 2**8, 24  # of can-order levels: scenarios behind each candidate, times items
TEST_SCENARIOS = 2**10
LEVEL_REACH = 2.0  # standard deviations by which S may differ from the periodic policy's
SAFETY_REACH = 3.0
LOT_REACH = 2.0


class PeriodicReview(OrderUpTo):
    """
    The (R, S) policy with multiples: order in periods 0, R, 2R, ..., item i on every m_i-th of these orders, up to S_i.

    :param env: the problem
    :param review_period: R
    :param order_up_to: S, scalar or shape ``(n_items,)``
    :param multiples: m, integers of at least 1, scalar or shape ``(n_items,)``
    """

    def __init__(
        self,
        env: HybridInventoryEnv,
        review_period: int,
        order_up_to: float | np.ndarray,
        multiples: int | np.ndarray = 1,
    ):
        super().__init__(env, order_up_to)
        self.review_period = check_count("review_period", review_period)
        of_item = np.broadcast_to(multiples, (env.n_items,))
        self.multiples = np.array([check_count(f"multiples[{i}]", m) for i, m in enumerate(of_item.tolist())])

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return period % self.review_period == 0

    def joins(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.equal(period[:, None] // self.review_period % self.multiples, 0)

    @classmethod
    def best(cls, env: HybridInventoryEnv) -> "PeriodicReview":
        """
        :return: that of :meth:`of_each_period` that costs least in the long run
        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        return min(cls.of_each_period(env), key=lambda policy: policy.cost)

    @classmethod
    def of_each_period(cls, env: HybridInventoryEnv) -> "list[PeriodicReview]":
        """
        For R = 1, 2, ... up to the horizon, and as long as it may pay, the best multiples and S. ``cost`` is exact for the
        long run under Poisson demand, exact up to a fine discretisation under normal demand, and of demand data the mean over
        its windows; K counts in every R-th period, even if no multiple is 1.

        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        require(env, cls.__name__)
        item_fixed_cost, longest = env.params.item_fixed_cost, max(env.horizon - env.params.lead_time, 1)
        reviewed = cache(lambda interval: _review_costs(env, interval))
        policies: list[PeriodicReview] = []
        for review_period in range(1, longest + 1):
            running, levels = reviewed(review_period)
            if policies and running.mean() > min(policy.cost for policy in policies):
                break  # holding and underage cost only grow with R
            costs, multiples, m = running + item_fixed_cost / review_period, np.ones(env.n_items, dtype=np.int64), 1
            while (running < costs).any() and review_period * (m + 1) <= longest:
                m += 1
                running, larger = reviewed(review_period * m)
                rarely = running + item_fixed_cost / (review_period * m)
                better = rarely < costs
                costs, multiples = np.where(better, rarely, costs), np.where(better, m, multiples)
                levels = np.where(better, larger, levels)
            policy = cls(env, review_period, levels, multiples)
            policy.cost = float(costs.mean()) + env.params.fixed_cost / review_period / env.n_items
            policies.append(policy)
        return policies


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
        require(env, cls.__name__, exact=True)
        if env.n_items != 1:
            raise ValueError(f"SingleItemSS: n_items = {env.n_items}; it replenishes one item")
        (item,) = single_items(env)
        fixed_cost = env.params.fixed_cost + float(env.params.item_fixed_cost[0])
        costs = item.reorder_costs(fixed_cost)
        s, S = costs.optimal_policy(fixed_cost)
        policy = cls(env, s * item.step, S * item.step)
        policy.cost = float(costs.optimal_cost(fixed_cost))
        return policy


class InstanceSS(ReferencePolicy):
    """
    The (s, S) policy of a single item whose instance differs from scenario to scenario: in each row the optimum of the
    instance that is observed there, that of :class:`SingleItemSS`, computed when it is first met.

    :param env: the problem, with backlog, and Poisson or normal demand
    :raises ValueError: naming what keeps it from solving the problem
    """

    def __init__(self, env: HybridInventoryEnv):
        require(env, type(self).__name__, exact=True, differing=True)
        if env.n_items != 1:
            raise ValueError(f"InstanceSS: n_items = {env.n_items}; it replenishes one item")
        self.env = env
        self._constants = slice(env.lead_time, env.lead_time + len(OBSERVED) + len(env.observed_too))
        self._solved: dict[bytes, np.ndarray] = {}

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        position = inventory_position(self.env, observation)
        reorder_point, order_up_to, _ = np.hsplit(self.optima(observation), 3)
        due = position <= reorder_point
        return placed(self.env.itemised, due[:, 0], np.maximum(order_up_to - position, 0.0) * due)

    def optima(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: shape ``(batch, d)``
        :return: s, S and the long-run cost per period of each row's instance, shape ``(batch, 3)``
        """
        instances, rows = np.unique(observation[:, self._constants], axis=0, return_inverse=True)
        for instance in instances:
            if instance.tobytes() not in self._solved:
                self._solved[instance.tobytes()] = self._optimum(instance)
        return np.stack([self._solved[instance.tobytes()] for instance in instances])[rows.ravel()]

    def _optimum(self, instance: np.ndarray) -> np.ndarray:
        params = self.env.params
        numbers = {"fixed_cost": params.fixed_cost, "minor_fixed_cost": float(params.item_fixed_cost[0])}
        numbers |= zip((*OBSERVED, *self.env.observed_too), instance.astype(np.float64).tolist(), strict=True)
        mean = numbers["mean_demand"]
        std = numbers.get("demand_std", math.sqrt(mean) if self.env.poisson_like else float(self.env.demand_std[0]))
        item = single_item(self.env, mean, std, numbers["holding_cost"], numbers["underage_cost"])
        fixed_cost = numbers["fixed_cost"] + numbers["minor_fixed_cost"]
        costs = item.reorder_costs(fixed_cost)
        s, S = costs.optimal_policy(fixed_cost)
        return np.array([s * item.step, S * item.step, float(costs.optimal_cost(fixed_cost))])


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
        require(env, type(self).__name__)
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
        scale = review_period * env.typical_demand @ weights

        def running(cycles: Cycles, threshold: float) -> np.ndarray:
            return np.less(cycles.since_order @ weights, threshold)

        threshold = minimise(lambda theta: fit.cost(running(fit, theta))[0], 0.5 * scale, 1.5 * scale)
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

    def joins(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.less_equal(position, self.can_order)

    @classmethod
    def best(cls, env: HybridInventoryEnv, seed: int = 0) -> "CanOrder":
        """
        The best of a family: S_i - s_i is a multiple of the mean demand between two orders of the item plus a multiple of its
        standard deviation. Without minor costs it is found over simulated order cycles; every item joins an order (c = S),
        since that costs nothing beyond the fixed cost. With them, S_i - c_i is a multiple of the lot size √(2 k_i μ_i / h_i),
        S_i is that of the best :class:`PeriodicReview` plus a multiple of a standard deviation, and the four numbers are
        found by differential evolution on common scenarios. ``cost`` is estimated on other cycles or scenarios.

        :param seed: of the cycles or scenarios
        :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
        """
        if env.params.item_fixed_cost.any():
            return cls._searched(env, seed)
        fit, test, review_period = _fit_and_test(env, cls.__name__, seed)
        ratio = review_period / (env.params.lead_time + 1)  # exposure[0] is the demand of lead_time + 1 periods
        mean, std = ratio * fit.exposure[0].mean(axis=0), np.sqrt(ratio) * fit.exposure[0].std(axis=0)

        def running(cycles: Cycles, quantities: np.ndarray) -> np.ndarray:
            return np.all(cycles.since_order < quantities, axis=2)

        def quantities(safety: float) -> np.ndarray:
            return safety * std + mean * minimise(lambda m: fit.cost(running(fit, m * mean + safety * std))[0], 0.5, 1.5)

        best = min((quantities(safety) for safety in range(4)), key=lambda q: fit.cost(running(fit, q))[0])
        levels = fit.levels(running(fit, best))
        policy = cls(env, levels - best, levels, levels)
        policy.cost, policy.half_width = test.cost(running(test, best), levels)
        return policy

    @classmethod
    def _searched(cls, env: HybridInventoryEnv, seed: int) -> "CanOrder":
        params, periodic = env.params, PeriodicReview.best(env)
        demand = env.sample_noise(TEST_SCENARIOS, torch.Generator(env.device).manual_seed(seed)).double().cpu().numpy()
        mean, std = demand.mean(axis=(0, 1)), demand.std(axis=(0, 1))
        interval = periodic.review_period * periodic.multiples
        lot = np.sqrt(2 * params.item_fixed_cost * mean / np.maximum(params.holding_cost, 1e-2 * params.underage_cost))

        def levels(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            a, b, c, d = np.split(shares, 4, axis=-1)
            order_up_to = periodic.order_up_to + (2 * a - 1) * LEVEL_REACH * std * np.sqrt(params.lead_time + interval)
            reorder_point = order_up_to - 2 * b * interval * mean - SAFETY_REACH * c * std * np.sqrt(interval)
            can_order = order_up_to - LOT_REACH * d * lot
            if env.demand == "poisson":
                order_up_to, reorder_point, can_order = map(np.rint, (order_up_to, reorder_point, can_order))
            return reorder_point, can_order, order_up_to

        def rules(shares: np.ndarray) -> Rule:
            policy = cls(env, 0.0, 0.0, 0.0)
            policy.reorder_point, policy.can_order, policy.order_up_to = levels(shares)  # one row of each for every state
            return policy.rule

        best = search(env, rules, 4, max(SEARCH_ROWS // env.n_items, 32), SEARCH_ITERATIONS, seed)
        policy = cls(env, *levels(best))
        policy.state_cost(evaluate(env, policy, TEST_SCENARIOS, seed + 1))
        return policy


def best_classical(env: HybridInventoryEnv, n_scenarios: int = 1024, seed: int = 0) -> OrderUpTo:
    """
    The best of the classical policies, by simulation on common scenarios: of those that order every R-th period, too, the best
    R is the one that suits the episode, in whose figure one order more or less may count.

    :param env: the problem
    :param n_scenarios: scenarios of the comparison
    :param seed: of the scenarios
    :return: a policy whose ``cost`` is the mean figure of merit over these scenarios
    :raises ValueError: for lost sales, and for items that cost nothing to hold and to lack
    """
    policies: list[OrderUpTo] = [SingleItemSS.best(env)] if env.n_items == 1 and env.demand != "data" else []
    policies += [*PeriodicReview.of_each_period(env), TotalDemandTrigger.best(env), CanOrder.best(env)]
    if env.itemised and env.demand != "data" and (np.minimum(env.params.holding_cost, env.params.underage_cost) > 0).all():
        policies += [*PeriodicSS.of_each_period(env), PerItemSS.best(env)]
    for policy in policies:
        policy.state_cost(evaluate(env, policy, n_scenarios, seed))
    return min(policies, key=lambda policy: policy.cost)


def lower_bound(env: HybridInventoryEnv) -> float:
    """
    A bound that no policy's long-run cost per item and period falls below, whatever it orders and observes.

    Split K into K_i >= 0. A joint policy orders at least as often as it orders item i, so it costs at least
    Σ_i c_i(k_i + K_i), where c_i(f) is the optimal cost of item i alone under fixed cost f, and k_i its minor cost, 0 where
    there is none. The c_i are concave, so that giving K out in small parts by marginal value finds the best split. A policy
    that stops ordering before the end of an episode can cost less than the long-run bound in the episode's last periods.

    :raises ValueError: for lost sales, demand data, and costs h or u of 0
    """
    require(env, "lower_bound", exact=True)
    part = env.params.fixed_cost / (SPLIT_STEPS * env.n_items)
    parts = part * np.arange(SPLIT_STEPS * min(env.n_items, 8) + 1)  # no item takes more than 8 times the average
    fixed_costs = env.params.item_fixed_cost[:, None] + parts
    items = zip(single_items(env), fixed_costs, strict=True)
    costs = np.array([item.reorder_costs(own[-1]).optimal_cost(own) for item, own in items])
    gains = np.sort(np.diff(costs, axis=1), axis=None)[::-1]
    return float(costs[:, 0].sum() + gains[: SPLIT_STEPS * env.n_items].sum()) / env.n_items


def _review_costs(env: HybridInventoryEnv, review_period: int) -> tuple[np.ndarray, np.ndarray]:
    """Each item's holding and underage cost per period of ordering every ``review_period`` periods, and the best S for it."""
    if env.demand == "data":
        cycles = Cycles(env, review_period, seed=0)
        throughout = np.ones(cycles.since_order.shape[:2], dtype=bool)
        levels = cycles.levels(throughout)
        return cycles.item_costs(throughout, levels), levels
    items = single_items(env)
    best, costs = zip(*(item.periodic(review_period) for item in items), strict=True)
    return np.array(costs), np.array(best) * [item.step for item in items]


def _fit_and_test(env: HybridInventoryEnv, who: str, seed: int) -> tuple[Cycles, Cycles, int]:
    """Cycles to choose parameters on, others to measure the choice on, and the length of the best periodic cycle."""
    require(env, who)
    review_period = PeriodicReview.best(env).review_period
    max_length = 3 * review_period + 1
    if env.demand == "data":
        max_length = min(max_length, env.horizon - env.params.lead_time)
    return Cycles(env, max_length, seed), Cycles(env, max_length, seed + 1), review_period


def best_known(env: HybridInventoryEnv) -> ReferencePolicy | None:
    """
    :return: the best of the classical policies, chosen by simulation; where instances differ the optimum of each, for one
        item; for lost sales the optimum of one item, if it is small enough, else none
    """
    if env.instances.place:
        solvable = env.n_items == 1 and env.demand != "data" and not env.params.lost_sales
        return InstanceSS(env) if solvable else None
    if not env.params.lost_sales:
        return best_classical(env)
    try:
        return LostSalesOptimum(env)
    except ValueError:  # many items, another demand, or too many states
        return None
