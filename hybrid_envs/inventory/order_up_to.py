"""What replenishment policies with order-up-to levels share."""

from abc import abstractmethod

import numpy as np

from hybrid_envs.checks import check_array
from hybrid_envs.evaluation import ReferencePolicy
from hybrid_envs.inventory.env import HybridInventoryEnv


class OrderUpTo(ReferencePolicy):
    """
    Whenever an order is due, raise the inventory position (on hand and on order, less backlog) of every item that joins it to
    its level. Where the items on an order have fixed costs of their own, those that need nothing stay off it.

    :param env: the problem
    :param order_up_to: levels S_i, scalar or shape ``(n_items,)``
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridInventoryEnv, order_up_to: float | np.ndarray):
        self.mean_demand = env.params.mean_demand
        self.lead_time = env.params.lead_time
        self.itemised = env.itemised
        self.order_up_to = check_array("order_up_to", order_up_to, (env.n_items,))

    @abstractmethod
    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        """
        :param position: inventory positions, shape ``(batch, n_items)``
        :param period: shape ``(batch,)``
        :return: whether to order now, bool, shape ``(batch,)``
        """

    def joins(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        """
        As :meth:`due`.

        :return: which items would join an order now; all of them unless overridden; bool, shape ``(batch, n_items)``
        """
        return np.ones_like(position, dtype=bool)

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.orders(self.inventory_position(observation), period)

    def orders(self, position: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param position: inventory positions, shape ``(batch, n_items)``
        :param period: shape ``(batch,)``
        :return: regimes and points, as :meth:`act`
        """
        due = self.due(position, period)
        joins = due[:, None] & self.joins(position, period)
        quantities = np.maximum(self.order_up_to - position, 0.0) * joins
        if not self.itemised:
            return due.astype(np.int64), quantities
        on_order = quantities > 0
        return np.column_stack([on_order.any(axis=1), on_order]).astype(np.int64), quantities

    def inventory_position(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: of the environment, shape ``(batch, d)``
        :return: shape ``(batch, n_items)``, to three decimals, so that integer stock is exactly integer again
        """
        n_items = len(self.mean_demand)
        scaled = observation[:, : self.lead_time * n_items].astype(np.float64).reshape(-1, self.lead_time, n_items)
        return np.round(scaled.sum(axis=1) * self.mean_demand, 3)


def require(env: HybridInventoryEnv, who: str, exact: bool = False) -> None:
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
