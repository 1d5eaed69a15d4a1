"""Procurement: when to order how much of each item from a supplier with a minimum order, price breaks and truckloads."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from hybrid_envs.checks import check_array, check_count, check_switch
from hybrid_envs.core import Frame
from hybrid_envs.instances import Drawable, Table
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.piecewise import BoxAction, BoxProblem, PiecewiseEnv, Threshold
from hybrid_envs.rendering import draw_episode
from hybrid_envs.replenishment import StockState
from hybrid_envs.spaces import HybridAction

MIN_ORDER, TRUCK_CAPACITY, TRUCK_COST, DISCOUNT_QUANTITY = 10.0, 24.0, 10.0, 30.0
"""The defaults, for each item; about 10 units of it are demanded in a period."""


OF_WAREHOUSE = ("history", "calendar", "split", "split_shares", "dates", "resampled", "costs", "starting_stock")
"""Arguments that are passed on to :class:`HybridInventoryEnv`: how a file of sales is read, and what there is at the start."""
RENDER_MODE = inspect.Parameter("render_mode", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None)


class ProcurementProblem(BoxProblem[StockState]):
    """
    The problem as the supplier states it: a plain cost of the order b >= 0, with its jumps. Its page and its arguments are
    :class:`HybridProcurementEnv`'s. ``thresholds`` says where it jumps in an order: the total, or with
    ``per_item`` that of each item.
    """

    def __init__(
        self,
        n_items: int | None = None,
        *,
        mean_demand: Drawable | None = None,
        holding_cost: Drawable | None = None,
        underage_cost: Drawable | None = None,
        min_order: float | None = None,
        unit_prices: float | Sequence[float] = (4.0, 3.0),
        discount_quantities: float | Sequence[float] | None = None,
        truck_capacity: float | None = None,
        truck_cost: float | None = None,
        max_trucks: int = 3,
        per_item: bool = False,
        lead_time: int = 2,
        horizon: int = 100,
        demand: str | Path | np.ndarray = "poisson",
        instances: Table | None = None,
        **of_warehouse: Any,
    ):
        for name in of_warehouse:
            if name not in OF_WAREHOUSE:
                raise TypeError(f"{type(self).__name__} has no argument {name!r}")
        self.warehouse = HybridInventoryEnv(
            n_items,
            mean_demand=mean_demand,
            holding_cost=holding_cost,
            underage_cost=underage_cost,
            fixed_cost=0.0,
            lead_time=lead_time,
            horizon=horizon,
            demand=demand,
            instances=instances,
            **of_warehouse,
        )
        if self.warehouse.itemised:
            raise ValueError(
                "instances: unknown column 'minor_fixed_cost'; the fixed costs of procurement are those of trucks"
            )
        p = self.n_items = self.warehouse.n_items
        self.per_item = check_switch("per_item", per_item)
        shared_by = 1 if per_item else p
        min_order = MIN_ORDER * shared_by if min_order is None else min_order
        self.min_order = float(check_array("min_order", min_order, (), at_least=0.0))
        truck_capacity = TRUCK_CAPACITY * shared_by if truck_capacity is None else truck_capacity
        self.truck_capacity = float(check_array("truck_capacity", truck_capacity, (), above=0.0))
        truck_cost = TRUCK_COST * shared_by if truck_cost is None else truck_cost
        self.truck_cost = float(check_array("truck_cost", truck_cost, (), at_least=0.0))
        self.max_trucks = check_count("max_trucks", max_trucks)
        n_prices = np.size(unit_prices)
        prices = check_array("unit_prices", np.atleast_1d(unit_prices), (n_prices,), at_least=0.0)
        quantities = (
            DISCOUNT_QUANTITY * shared_by * np.arange(1, n_prices) if discount_quantities is None else discount_quantities
        )
        breaks = check_array("discount_quantities", np.atleast_1d(quantities), (n_prices - 1,), above=0.0)
        for name, values, trend in (("unit_prices", prices, -1), ("discount_quantities", breaks, 1)):
            if (trend * np.diff(values) <= 0).any():
                raise ValueError(f"{name} must {'increase' if trend > 0 else 'decrease'}, got {values.tolist()}")

        super().__init__(
            low=0.0,
            high=np.inf,
            action_size=p,
            observation_size=len(self.warehouse.observation_scale),
            horizon=horizon,
            weights=None if per_item else 1.0,
            action_scale=max(self.truck_capacity, self.min_order) / shared_by,
            observation_scale=self.warehouse.observation_scale,
        )
        loads = self.truck_capacity * np.arange(1, self.max_trucks)
        accepted = Threshold(self.min_order, below=self.min_order == 0)
        jumps = {accepted, *map(Threshold, breaks.tolist()), *(Threshold(load, below=True) for load in loads.tolist())}
        self.thresholds = sorted(jump for jump in jumps if jump >= accepted)  # what is refused costs nothing
        self.least = torch.tensor([self.min_order])
        self.breaks = torch.tensor(breaks, dtype=torch.float32)
        self.loads = torch.tensor(loads, dtype=torch.float32)
        self.discounts = torch.tensor(-np.diff(prices), dtype=torch.float32)
        self.list_price = float(prices[0])

    def exceeds(self, level: torch.Tensor, threshold: torch.Tensor, below: bool = False) -> torch.Tensor:
        """
        The one place where the problem jumps.

        :param level: orders, shape ``(batch, m)``: the total, m = 1, or that of each item
        :param threshold: shape ``(k,)``
        :param below: whether the threshold itself belongs to the cell below it
        :return: 1 where the level is above the threshold, else 0, shape ``(batch, m, k)``
        """
        order = level.unsqueeze(-1)
        return (order > threshold if below else order >= threshold).to(level.dtype)

    def accepted(self, action: BoxAction) -> torch.Tensor:
        """
        :return: 1 where an order reaches the minimum, else 0, shape ``(batch, m)``
        """
        return self.exceeds(action.level, self.least, below=self.min_order == 0).squeeze(-1)

    def supply_cost(self, action: BoxAction) -> torch.Tensor:
        """
        :return: price of the units and of the trucks, shape ``(batch,)``
        """
        price = self.list_price - (self.exceeds(action.level, self.breaks) * self.discounts).sum(dim=-1)
        trucks = 1 + self.exceeds(action.level, self.loads, below=True).sum(dim=-1)
        return (self.accepted(action) * (price * action.level + self.truck_cost * trucks)).sum(dim=1)

    def transition(self, state: StockState, action: BoxAction, noise: torch.Tensor) -> StockState:
        return self.warehouse.transition(state, self._delivery(state, action), noise)

    def reward(self, state: StockState, action: BoxAction, noise: torch.Tensor, next_state: StockState) -> torch.Tensor:
        stock = self.warehouse.reward(state, self._delivery(state, action), noise, next_state)
        return stock - self.supply_cost(action)

    def _delivery(self, state: StockState, action: BoxAction) -> HybridAction:
        """The accepted quantities as the warehouse takes orders, whose own fixed cost is 0."""
        return HybridAction(torch.ones_like(state.period), action.point * self.accepted(action))

    def initial(self, batch_size: int, generator: torch.Generator) -> StockState:
        return self.warehouse.initial(batch_size, generator)

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        return self.warehouse.sample_noise(batch_size, generator)

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StockState, torch.Tensor]:
        return self.warehouse.sample_scenarios(batch_size, generator)

    def sample_futures(self, state: StockState, generator: torch.Generator) -> torch.Tensor:
        return self.warehouse.sample_futures(state, generator)

    def observation(self, state: StockState) -> torch.Tensor:
        return self.warehouse.observation(state)

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        return self.warehouse.figure_of_merit(costs)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        self.warehouse.to(device, dtype)
        return super().to(device, dtype)


class HybridProcurementEnv(PiecewiseEnv[StockState]):
    """
    ## Description
    ``n_items`` items are bought from one supplier. He accepts no order below a minimum, gives a discount on *all* units of a
    large enough order, and delivers by truck: each truck begun is paid in full. Hence the cost jumps in the total order. The
    plain problem is :class:`ProcurementProblem`; this is its exact hybrid form, :class:`~hybrid_envs.piecewise.PiecewiseEnv`.
    The number of regimes does not depend on the number of items. With ``per_item`` every item has a supplier of its own, and
    orders are judged item by item.

    ## Action Space
    ``Tuple(Discrete(J), Box)``: regime x is an interval of the total order between two jumps, regime 0 "too little: no order".
    The point is the total (units), bounded by its interval, followed by a proportion in [0, 1] for each item: item i gets
    the share r_i / Σ_k r_k of the total, and all the same if every r is 0. With one item the point is the order alone. With
    the defaults and p items the regimes are [0, 10 p), [10 p, 24 p] by one truck, (24 p, 30 p) by two, [30 p, 48 p] by two
    at a discount, and (48 p, ∞) by three at a discount.

    With ``per_item`` each item has such a regime for its own order: ``Tuple(MultiDiscrete([J] * n_items), Box)``, the point
    being the orders themselves, each bounded by the interval of its item's regime.

    ## Observation Space
    ``Box(-inf, inf, (n_items * lead_time + 3 * n_items,))``: on-hand and pipeline stock divided by the item's mean demand,
    then underage costs u, holding costs h and mean demands μ. It holds no clock. What ``history`` and ``calendar``
    let a policy see follows.

    ## Dynamics
    As in ``HybridInventory-v0`` with backlog: an order is placed before the period's demand D is seen and is on hand
    ``lead_time`` periods later. An order whose total Q is below ``min_order`` (or 0) is refused: nothing is delivered.

    ## Rewards
    Minus the period's cost, Σ_i [h_i (I_i - D_i)^+ + u_i (D_i - I_i)^+] and, for an accepted order, c(Q) Q + F N(Q). The unit
    price c(Q) is ``unit_prices[k]`` if Q has reached k of the ``discount_quantities``. N(Q) is the number of trucks begun,
    ``max_trucks`` at most: a larger order travels for the price of that many. With ``per_item`` the latter is summed over the
    items' orders, so that nothing ties the items together: the optimum is that of each alone. Results are quoted by
    :meth:`figure_of_merit`: mean cost per item and period, the first 16 periods left out.

    ## Starting State
    Nothing on hand unless there is a ``starting_stock``, nothing on order.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to stock and b, but for the point of regime 0, which changes nothing. There
    are kinks where the stock on hand equals demand. Within a regime there are no jumps.

    ## Arguments
    :param n_items: p; 5 unless the demand data says otherwise
    :param mean_demand: μ, units per period; likewise ``holding_cost`` h per unit and period and ``underage_cost`` u per unit
        short and period: scalars or ``(n_items,)``, those of ``HybridInventory-v0`` unless given
    :param min_order: units, at least 0; 10 per item unless given
    :param unit_prices: c, the list price and then the prices after each discount, decreasing
    :param discount_quantities: units from which each discount holds for the whole order, increasing, one fewer than prices;
        30, 60, ... per item unless given
    :param truck_capacity: units, of all items together; 24 per item unless given
    :param truck_cost: F per truck; 10 per item unless given
    :param max_trucks: the most trucks that are charged for one order
    :param per_item: whether each item is ordered by itself; then ``min_order`` and what follows it are those of each item,
        their defaults what is said here of one item
    :param lead_time: periods from order to availability, at least 1
    :param horizon: T, periods of an episode
    :param demand: ``"poisson"``, ``"normal"`` (truncated at 0, of standard deviation √μ), an array of scenarios of shape
        ``(scenarios, periods, n_items)``, or the path of a CSV file with a header of item names and one row per period
    :param instances: a table with one row for each product, as in ``HybridInventory-v0``; μ, h and u may also be distributions
    :param history: like ``calendar``, ``split``, ``split_shares``, ``dates``, ``resampled``, ``costs`` and ``starting_stock``
        that of ``HybridInventory-v0``
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    All-units discounts and truckload costs: Porteus, "Foundations of Stochastic Inventory Theory", 2002; minimum orders: Zhao
    and Katehakis, "On the structure of optimal ordering policies for stochastic inventory systems with minimum order
    quantity", Probability in the Engineering and Informational Sciences 20, 2006.

    ## Version History
    v0: initial version
    """

    problem: ProcurementProblem
    # what ``arguments`` may hold, for help() and for whoever looks for a misspelt name
    __signature__ = inspect.Signature(
        [
            *list(inspect.signature(ProcurementProblem).parameters.values())[:-1],
            *(inspect.signature(HybridInventoryEnv).parameters[name] for name in OF_WAREHOUSE),
            RENDER_MODE,
        ]
    )

    def __init__(self, n_items: int | None = None, *, render_mode: str | None = None, **arguments: Any):
        problem = ProcurementProblem(n_items, **arguments)
        thresholds = [problem.thresholds] * problem.n_items if problem.per_item else problem.thresholds
        super().__init__(problem, thresholds, factors=problem.per_item, render_mode=render_mode)
        self.n_items, self.params = problem.n_items, {"n_items": n_items, **arguments}

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """Inventory position per item, and the cost of each period with the orders marked."""
        positions = np.array([frame.state.stock[0].sum(dim=0).cpu().numpy() for frame in frames])
        bounds = self.action_bounds[1:, 0]
        names = {j: f"{low:g} to {high:g} units" for j, (low, high) in enumerate(bounds, start=1)}
        if self.factors.many:  # the largest order
            frames = [f if f.regime is None else f._replace(regime=int(np.max(f.regime))) for f in frames]
        return draw_episode(frames, positions, "inventory position", names, self.horizon)
