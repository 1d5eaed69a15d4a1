"""Replenishment of items each of which has a fixed cost of its own: (s, S) policies item by item."""

import numpy as np

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import evaluate
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.inventory.order_up_to import OrderUpTo, require
from hybrid_envs.inventory.single_item import single_items

SCENARIOS = 2**9  # of the choice of a share of K, and as many others to state its cost


class PerItemSS(OrderUpTo):
    """
    Every item by itself: order item i up to S_i once its inventory position is s_i or less, whatever the others do.

    :param env: the problem
    :param reorder_point: s, scalar or shape ``(n_items,)``
    :param order_up_to: S, scalar or shape ``(n_items,)``
    """

    def __init__(self, env: HybridInventoryEnv, reorder_point: float | np.ndarray, order_up_to: float | np.ndarray):
        super().__init__(env, order_up_to)
        self.reorder_point = check_array("reorder_point", reorder_point, (env.n_items,))

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.any(position <= self.reorder_point, axis=1)

    def joins(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.less_equal(position, self.reorder_point)

    @classmethod
    def best(cls, env: HybridInventoryEnv, seed: int = 0) -> "PerItemSS":
        """
        The optimal (s, S) of each item alone under the fixed cost k_i + w K; the best w out of 1, 1/2, 1/4, ..., 1 / n_items
        by simulation on common scenarios. With w = 1 every item pays as if it were ordered alone, with 1 / n_items as if all
        were ordered together. ``cost`` is estimated on other scenarios.

        :param seed: of the scenarios
        :raises ValueError: for lost sales, demand data, and costs h or u of 0
        """
        require(env, cls.__name__, exact=True)
        K, k, items = env.params.fixed_cost, env.params.item_fixed_cost, single_items(env)
        solved = [item.reorder_costs(K + own) for item, own in zip(items, k, strict=True)]
        steps = [item.step for item in items]
        policies: list[PerItemSS] = []
        for share in 1 / np.minimum(2.0 ** np.arange(np.ceil(np.log2(env.n_items)) + 1), env.n_items):
            found = np.array([costs.optimal_policy(own + share * K) for costs, own in zip(solved, k, strict=True)])
            policy = cls(env, *(found.T * steps))
            policy.state_cost(evaluate(env, policy, SCENARIOS, seed))
            policies.append(policy)
        best = min(policies, key=lambda policy: policy.cost)
        best.state_cost(evaluate(env, best, SCENARIOS, seed + 1))
        return best


class PeriodicSS(OrderUpTo):
    """
    The P(s, S) policy (Viswanathan 1997): in periods 0, R, 2R, ... order each item whose inventory position is s_i or less up
    to S_i.

    :param env: the problem
    :param review_period: R
    :param reorder_point: s, scalar or shape ``(n_items,)``
    :param order_up_to: S, scalar or shape ``(n_items,)``
    """

    def __init__(
        self,
        env: HybridInventoryEnv,
        review_period: int,
        reorder_point: float | np.ndarray,
        order_up_to: float | np.ndarray,
    ):
        super().__init__(env, order_up_to)
        self.review_period = check_count("review_period", review_period)
        self.reorder_point = check_array("reorder_point", reorder_point, (env.n_items,))

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return period % self.review_period == 0

    def joins(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.less_equal(position, self.reorder_point)

    @classmethod
    def best(cls, env: HybridInventoryEnv) -> "PeriodicSS":
        """
        :return: that of :meth:`of_each_period` that costs least in the long run
        :raises ValueError: for lost sales, demand data, and costs h or u of 0
        """
        return min(cls.of_each_period(env), key=lambda policy: policy.cost)

    @classmethod
    def of_each_period(cls, env: HybridInventoryEnv) -> "list[PeriodicSS]":
        """
        For R = 1, 2, ... up to the horizon, and as long as it may pay, the optimal (s, S) of each item under its own fixed
        cost, of all policies that order it in these periods. ``cost`` is exact for the long run under Poisson demand and exact
        up to a fine discretisation under normal demand; K counts in every R-th period, even if no item is ordered in it.

        :raises ValueError: for lost sales, demand data, and costs h or u of 0
        """
        require(env, cls.__name__, exact=True)
        K, k, items = env.params.fixed_cost, env.params.item_fixed_cost, single_items(env)
        policies: list[PeriodicSS] = []
        for review_period in range(1, max(env.horizon - env.params.lead_time, 1) + 1):
            running = sum(item.periodic(review_period)[1] for item in items) / env.n_items
            if policies and running > min(policy.cost for policy in policies):
                break  # holding and underage cost only grow with R
            solved = [item.reorder_costs(own, review_period) for item, own in zip(items, k, strict=True)]
            found = np.array([costs.optimal_policy(own) for costs, own in zip(solved, k, strict=True)])
            policy = cls(env, review_period, *(found.T * [item.step for item in items]))
            of_items = sum(float(costs.optimal_cost(own)) for costs, own in zip(solved, k, strict=True))
            policy.cost = (of_items + K / review_period) / env.n_items
            policies.append(policy)
        return policies
