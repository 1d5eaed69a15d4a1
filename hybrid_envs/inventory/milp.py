"""Perfect information: what joint replenishment would have cost if demand had been known, as a mixed-integer programme."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from hybrid_envs.checks import check_array
from hybrid_envs.inventory.env import HybridInventoryEnv


class PerfectOrders(NamedTuple):
    """What somebody would do who knew demand."""

    bound: float
    """No policy whatever costs less in total, what it earns subtracted."""
    cost: float
    """In total, of these orders; above the bound by no more than the solver's gap, unless the time ran out."""
    quantities: np.ndarray
    """Of each period, shape ``(periods, items)``."""


class PerfectReplenishment:
    """
    The least total cost of some periods of known demand, solved by HiGHS. Since costs are linear but for those of an order,
    some optimum serves every unit of demand from the last order that arrived before it, or the next one, or not at all. So an
    item's orders are a path through the periods in which they arrive, an arc from one to the next costs what holding and
    shortage between them cost, and what ties the paths of several items together is the joint fixed cost. Without minor costs
    all items take the same path.

    What is on hand or on order at the start is used as early as it can be: a unit is worth the same in every period, and
    keeping it costs.

    :param env: the problem
    :param gap: by which ``cost`` may exceed ``bound``, relatively
    :param time_limit: seconds per solution; the bound is valid even where it ends the search
    :raises ValueError: naming the argument, if its value is not allowed, and for instances that differ between scenarios
    """

    def __init__(self, env: HybridInventoryEnv, gap: float = 1e-4, time_limit: float = 20.0):
        env.instances.require_one(type(self).__name__)
        self.options = {
            "mip_rel_gap": float(check_array("gap", gap, (), at_least=0.0)),
            "time_limit": float(check_array("time_limit", time_limit, (), above=0.0)),
        }
        self.params, self.itemised = env.params, env.itemised

    def solve(self, demand: np.ndarray, stock: np.ndarray | None = None) -> PerfectOrders:
        """
        :param demand: of consecutive periods, shape ``(periods, items)``
        :param stock: on hand and on order at the start, as in the state, shape ``(lead_time, items)``; nothing unless given
        :raises RuntimeError: if the time ran out before any orders were found
        """
        params = self.params
        n_items, n_periods = len(params.mean_demand), len(demand)
        earned = float((demand * params.margin).sum())  # if nothing were short; what is short costs its margin below
        stock = np.zeros((params.lead_time, n_items)) if stock is None else stock
        lacking, held = self._without_orders(np.asarray(demand, dtype=np.float64), stock)
        ends = [0, *range(params.lead_time, n_periods), n_periods]  # before any arrival, arrivals, the end
        pairs = [(a, b) for a in range(len(ends) - 1) for b in range(a + 1, len(ends))]
        of_item = np.array([self._arc_cost(lacking, ends[a], ends[b], first=a == 0) for a, b in pairs])  # (arcs, items)
        if self.itemised:
            groups, own, joint = of_item.T, params.item_fixed_cost, params.fixed_cost
        else:
            groups, own, joint = of_item.sum(axis=1)[None], np.array([params.fixed_cost]), 0.0

        n_groups, n_arcs, n_arrivals = len(groups), len(pairs), len(ends) - 2
        leaving = np.array([a for a, _ in pairs])
        orders = leaving > 0
        costs = np.concatenate([(groups + own[:, None] * orders).ravel(), np.full(n_arrivals, joint)])
        nodes = np.arange(n_arrivals + 1)[:, None]  # each is left as often as it is reached, the first one once
        flow = (leaving == nodes).astype(np.float64) - (np.array([b for _, b in pairs]) == nodes)
        paths = sparse.hstack([sparse.kron(sparse.eye(n_groups), flow), sparse.csr_array((n_groups * len(nodes), n_arrivals))])
        tied = sparse.hstack(
            [
                sparse.kron(sparse.eye(n_groups), (leaving == nodes[1:]).astype(np.float64)),
                sparse.vstack([-sparse.eye(n_arrivals)] * n_groups),
            ]
        )
        source = np.tile(nodes[:, 0] == 0, n_groups).astype(np.float64)
        result = milp(
            costs,
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(paths, source, source), LinearConstraint(tied, -np.inf, 0.0)],
            options=self.options,
        )
        if result.x is None:
            raise RuntimeError(f"{type(self).__name__}: HiGHS found no orders in time: {result.message}")
        taken = result.x[: n_groups * n_arcs].reshape(n_groups, n_arcs) > 0.5
        quantities = np.zeros((n_periods, n_items))
        for group, arcs in enumerate(taken):
            members = [group] if self.itemised else list(range(n_items))
            for a, b in (pairs[k] for k in np.flatnonzero(arcs)):
                early, late = self._served(lacking, ends[a], ends[b], first=a == 0)
                if a > 0:
                    quantities[ends[a] - params.lead_time, members] += early[members]
                if ends[b] < n_periods and not params.lost_sales:
                    quantities[ends[b] - params.lead_time, members] += late[members]
        return PerfectOrders(held + result.mip_dual_bound - earned, held + result.fun - earned, quantities)

    def _without_orders(self, demand: np.ndarray, stock: np.ndarray) -> tuple[np.ndarray, float]:
        """The demand that stock does not meet, shape ``(periods, items)``, and the cost of holding stock until it does."""
        lacking, held = demand.copy(), 0.0
        lacking[0] += np.maximum(-stock[0], 0.0)  # backlog
        left = np.maximum(stock[0], 0.0)
        for t in range(len(demand)):
            if 0 < t < len(stock):
                left = left + stock[t]
                if not self.params.lost_sales:  # what arrives meets backlog first, which has waited at its cost
                    for earlier in range(t):
                        late = np.minimum(left, lacking[earlier])
                        held += (late * self.params.underage_cost).sum() * (t - earlier)
                        lacking[earlier] -= late
                        left = left - late
            met = np.minimum(left, lacking[t])
            lacking[t] -= met
            left = left - met
            held += (left * self.params.holding_cost).sum()
        return lacking, float(held)

    def _arc_cost(self, lacking: np.ndarray, start: int, end: int, first: bool) -> np.ndarray:
        """Of the demand between two arrivals, shape ``(items,)``."""
        early, late = self._unit_costs(start, end, first)
        return np.einsum("ti,ti->i", lacking[start:end], np.minimum(early, late))

    def _served(self, lacking: np.ndarray, start: int, end: int, first: bool) -> tuple[np.ndarray, np.ndarray]:
        """How much of it the arrival before it serves, and how much it does not, shape ``(items,)`` each."""
        early, late = self._unit_costs(start, end, first)
        ahead = early <= late
        return (lacking[start:end] * ahead).sum(axis=0), (lacking[start:end] * ~ahead).sum(axis=0)

    def _unit_costs(self, start: int, end: int, first: bool) -> tuple[np.ndarray, np.ndarray]:
        """Of a unit of demand between two arrivals: held for it, or not there in time, shape ``(end - start, items)`` each."""
        params, period = self.params, np.arange(start, end)[:, None]
        early = params.holding_cost * (period - start)
        waiting = np.ones_like(period) if params.lost_sales else end - period
        return np.full_like(early, np.inf) if first else early, params.shortage_cost * waiting
