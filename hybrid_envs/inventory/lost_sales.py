"""Lost sales: (s, S) policies with a largest order, tuned by simulation, and the optimum of one item."""

import numpy as np
import torch

from hybrid_envs.checks import check_array
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.inventory.env import HybridInventoryEnv, typical_lot
from hybrid_envs.inventory.order_up_to import OrderUpTo
from hybrid_envs.inventory.single_item import single_items
from hybrid_envs.search import Rule, search

SEARCH_ROWS, SEARCH_ITERATIONS = 2**8, 24
"""Scenarios behind each candidate, times items, and iterations of the search."""
TEST_SCENARIOS = 2**10
REACH = 3.0
"""Standard deviations of the demand of a lead time, and lot sizes, that the search spans."""
MAX_WORK = 2 * 10**7
"""Of one iteration: pairs of a state on hand and a next one, times what is on order and ordered."""
TOLERANCE, MAX_ITERATIONS = 1e-7, 20_000


class CappedSS(OrderUpTo):
    """
    Once the inventory position of any item is s_i or less, raise every item to S_i, but order at most c_i of it. Without caps
    it is an (s, S) policy, with s_i = S_i a capped base-stock policy (Xin, "Understanding the performance of capped base-stock
    policies in lost-sales inventory models", Operations Research 69, 2021).

    :param env: the problem
    :param reorder_point: s, scalar or shape ``(n_items,)``
    :param order_up_to: S, scalar or shape ``(n_items,)``
    :param cap: c, possibly infinite, scalar or shape ``(n_items,)``
    """

    def __init__(
        self,
        env: HybridInventoryEnv,
        reorder_point: float | np.ndarray,
        order_up_to: float | np.ndarray,
        cap: float | np.ndarray = np.inf,
    ):
        super().__init__(env, order_up_to)
        self.reorder_point = check_array("reorder_point", reorder_point, (env.n_items,))
        self.cap = np.broadcast_to(np.asarray(cap, dtype=np.float64), (env.n_items,))
        if not (self.cap > 0).all():
            raise ValueError(f"cap must be > 0, got {cap}")

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        return np.any((position <= self.reorder_point) & (position < self.order_up_to), axis=1)

    def orders(self, position: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is lacking, and no more than the cap."""
        regimes, quantities = super().orders(position, period)
        return regimes, np.minimum(quantities, self.cap)

    @classmethod
    def best(cls, env: HybridInventoryEnv, seed: int = 0) -> "CappedSS":
        """
        The best found by differential evolution on common scenarios, (s, S) and capped base-stock policies among them: items
        differ by their mean and deviation of demand and their lot size, beyond which they share three numbers. ``cost`` is
        estimated on other scenarios, and for demand data on windows of the same data.

        :param seed: of the search and its scenarios
        :raises ValueError: for instances that differ from scenario to scenario
        """
        env.instances.require_one(cls.__name__)
        demand = env.sample_noise(TEST_SCENARIOS, torch.Generator(env.device).manual_seed(seed)).double().cpu().numpy()
        mean, std, lot = demand.mean(axis=(0, 1)), demand.std(axis=(0, 1)), typical_lot(env)
        periods = env.params.lead_time + 1

        def levels(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            a, b, c = np.split(shares, 3, axis=-1)
            reorder_point = a * (periods * mean + REACH * np.sqrt(periods) * std)
            order_up_to = reorder_point + b * REACH * lot
            cap = np.where(c > 0.9, np.inf, 0.5 * mean + c * REACH * lot)
            if env.demand == "poisson":
                reorder_point, order_up_to = np.rint(reorder_point), np.rint(order_up_to)
                cap = np.maximum(np.rint(cap), 1.0)
            return reorder_point, order_up_to, cap

        def rules(shares: np.ndarray) -> Rule:
            policy = cls(env, 0.0, 0.0)
            policy.reorder_point, policy.order_up_to, policy.cap = levels(shares)  # one row of each for every state
            return policy.rule

        best = search(env, rules, 3, max(SEARCH_ROWS // env.n_items, 32), SEARCH_ITERATIONS, seed)
        policy = cls(env, *levels(best))
        policy.state_cost(evaluate(env, policy, TEST_SCENARIOS, seed + 1))
        return policy


class LostSalesOptimum(ReferencePolicy):
    """
    The optimum in the long run of one item with lost sales and Poisson demand, by relative value iteration over stock on hand
    and on order, in whole units. ``cost`` lies between bounds that agree to 1e-7.

    Whole units are no restriction. Stock on hand is the largest of differences of cumulative orders less whole numbers, so
    that costs have their kinks where two cumulative orders differ by a whole number. Rounded down with one common random
    shift, cumulative orders keep their expectation, and stay in the same piece, in which costs are linear.

    :param env: the problem
    :raises ValueError: for several items, backlog, demand that is not Poisson, h or u + m of 0, instances that differ from
        scenario to scenario, and where the states are too many
    """

    def __init__(self, env: HybridInventoryEnv):
        who, params = type(self).__name__, env.params
        env.instances.require_one(who)
        if env.n_items != 1 or not params.lost_sales or env.demand != "poisson":
            got = f"n_items = {env.n_items}, lost_sales = {params.lost_sales}, demand = {env.demand!r}"
            raise ValueError(f"{who}: it is for n_items = 1, lost_sales = True and demand = 'poisson', got {got}")
        for name, cost in (("holding_cost", params.holding_cost[0]), ("underage_cost + margin", params.shortage_cost[0])):
            if cost <= 0:
                raise ValueError(f"{who}: {name} = {cost} must be > 0")
        self.env = env
        (item,) = single_items(env)
        self.demand, self.fixed_cost = item.demand, params.fixed_cost + float(params.item_fixed_cost[0])
        mean = float(params.mean_demand[0])
        most_ordered = int(1.5 * env.action_scale[0] + 2 * mean)
        most_held = int(mean * (params.lead_time + 1) + most_ordered)
        while True:
            work = (most_held + 1) ** 2 * (most_ordered + 1) ** params.lead_time
            if work > MAX_WORK:
                raise ValueError(
                    f"{who}: {work:,} products in each iteration, more than {MAX_WORK:,}; the instance is too large"
                )
            self.order, self.cost = self._solve(item.period_cost(item.demand, np.arange(most_held + 1)), most_ordered)
            held, ordered = self._reached()
            if held < most_held and ordered < most_ordered:
                break
            most_held = int(1.4 * most_held) if held == most_held else most_held
            most_ordered = int(1.4 * most_ordered) if ordered == most_ordered else most_ordered
        self.cost -= float(params.margin[0] * params.mean_demand[0])  # a unit short costs its margin above

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stock = np.rint(observation[:, : self.env.lead_time].astype(np.float64) * self.env.params.mean_demand)
        index = np.clip(stock.astype(np.int64), 0, np.array(self.order.shape) - 1)
        quantity = self.order[tuple(index.T)]
        regime = (quantity > 0).astype(np.int64)
        return np.column_stack([regime, regime]) if self.env.itemised else regime, quantity[:, None].astype(np.float64)

    def _solve(self, running: np.ndarray, most_ordered: int) -> tuple[np.ndarray, float]:
        """
        :param running: holding and underage cost of a period by the stock on hand at its start, shape ``(most_held + 1,)``
        :return: the best order by stock on hand and on order, next arrival first, and the cost per period
        """
        most_held, orders = len(running) - 1, most_ordered + 1
        left = np.zeros((most_held + 1, most_held + 1))  # probabilities of what demand leaves, by what there was
        for stock in range(most_held + 1):
            law = self.demand[:stock]
            left[stock, stock - len(law) + 1 : stock + 1] = law[::-1]
            left[stock, 0] += 1 - law.sum()
        arrived = np.minimum(np.arange(orders)[:, None] + np.arange(most_held + 1), most_held)
        charge = self.fixed_cost * (np.arange(orders) > 0)
        on_order = (orders,) * (self.env.lead_time - 1)
        values = np.zeros((most_held + 1, *on_order))
        for _ in range(MAX_ITERATIONS):
            # by on hand, arrival, further arrivals and order; with a lead time of 1 the order is the arrival
            later = np.tensordot(left, values[arrived], axes=(1, 1)) + charge
            ahead = running.reshape(-1, *[1] * len(on_order)) + later.min(axis=-1)
            gain = ahead - values
            values = ahead - ahead.flat[0]
            if gain.max() - gain.min() <= TOLERANCE * gain.max():
                break
        else:
            raise RuntimeError(f"value iteration: bounds {gain.min()} and {gain.max()} after {MAX_ITERATIONS} iterations")
        return later.argmin(axis=-1), float(gain.min() + gain.max()) / 2

    def _reached(self) -> tuple[int, int]:
        """The most that is held and ordered in states that the policy reaches from empty shelves."""
        start = (0,) * self.env.lead_time
        met, ahead, most = {start}, [start], (0, 0)
        while ahead:
            state = ahead.pop()
            order = int(self.order[state])
            pipeline = (*state[1:], order)
            most = max(most[0], state[0]), max(most[1], order)
            for left in range(state[0] + 1):
                following = (min(left + pipeline[0], self.order.shape[0] - 1), *pipeline[1:])
                if following not in met:
                    met.add(following)
                    ahead.append(following)
        return most
