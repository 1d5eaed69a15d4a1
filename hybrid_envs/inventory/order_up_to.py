"""What replenishment policies with order-up-to levels share."""

from abc import abstractmethod

import numpy as np

from hybrid_envs.checks import check_array
from hybrid_envs.evaluation import ReferencePolicy
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.replenishment import StockState


class OrderUpTo(ReferencePolicy):
    """
    Whenever an order is due, raise the inventory position (on hand and on order, less backlog) of every item that joins it to
    its level. Where the items on an order have fixed costs of their own, those that need nothing stay off it.

    :param env: the problem
    :param order_up_to: levels S_i, scalar or shape ``(n_items,)``
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridInventoryEnv, order_up_to: float | np.ndarray):
        self.env = env
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
        return self.orders(inventory_position(self.env, observation), period)

    def orders(self, position: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param position: inventory positions, shape ``(batch, n_items)``
        :param period: shape ``(batch,)``
        :return: regimes and points, as :meth:`act`
        """
        due = self.due(position, period)
        joins = due[:, None] & self.joins(position, period)
        quantities = np.maximum(self.order_up_to - position, 0.0) * joins
        return placed(self.env.itemised, due, quantities)

    def rule(self, state: StockState) -> tuple[np.ndarray, np.ndarray]:
        """
        As :meth:`act`, from a batch of states. In :func:`~hybrid_envs.search.search` parameters have one row for each of them.

        :return: regimes and points
        """
        return self.orders(state.stock.sum(dim=1).double().cpu().numpy(), state.period.cpu().numpy())


def inventory_position(env: HybridInventoryEnv, observation: np.ndarray) -> np.ndarray:
    """
    :param observation: of the environment, shape ``(batch, d)``
    :return: shape ``(batch, n_items)``, to three decimals, so that integer stock is exactly integer again
    """
    stock = observation[:, : env.lead_time * env.n_items].astype(np.float64)
    return np.round(stock.reshape(-1, env.lead_time, env.n_items).sum(axis=1) * env.observed_mean_demand(observation), 3)


def placed(itemised: bool, due: np.ndarray, quantities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param itemised: whether the regime says which items are on an order
    :param due: whether there is an order, bool, shape ``(batch,)``
    :param quantities: 0 for items that are not on it, shape ``(batch, n_items)``
    :return: regimes and points
    """
    if not itemised:
        return due.astype(np.int64), quantities
    on_order = quantities > 0
    return np.column_stack([on_order.any(axis=1), on_order]).astype(np.int64), quantities


def require(env: HybridInventoryEnv, who: str, exact: bool = False, differing: bool = False) -> None:
    """
    Refuse problems that the solver named does not solve.

    :param exact: whether it needs a known distribution of demand
    :param differing: whether it solves instances that differ from scenario to scenario
    """
    params = env.params
    if not differing:
        env.instances.require_one(who)
    if params.lost_sales:
        raise ValueError(f"{who}: lost_sales = True; it is for backlogged demand only")
    if env.demand == "data" and exact:
        raise ValueError(f"{who}: demand = 'data'; it is for demand 'poisson' or 'normal' only")
    if env.demand == "data" and env.horizon <= params.lead_time:
        raise ValueError(f"{who}: horizon = {env.horizon} must exceed lead_time = {params.lead_time}: no order would arrive")
    for name, cost in (("holding_cost", params.holding_cost), ("underage_cost", params.underage_cost)):
        cost = np.atleast_1d(env.instances.least(name)) if name in env.instances.place else cost
        if exact and not (cost > 0).all():
            raise ValueError(f"{who}: {name}[{np.argmin(cost)}] = {cost.min()} must be > 0")
    free = np.flatnonzero(params.holding_cost + params.underage_cost == 0)
    if len(free):
        raise ValueError(f"{who}: holding_cost[{free[0]}] = underage_cost[{free[0]}] = 0; one of them must be > 0")
