"""Dual sourcing: order from a slow supplier, from a fast and dearer one, from both or from none, and how much."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count, check_switch
from hybrid_envs.core import Frame
from hybrid_envs.demand import read_demand
from hybrid_envs.instances import Drawable, Instances, Table
from hybrid_envs.rendering import draw_episode
from hybrid_envs.replenishment import ReplenishmentEnv, StockState, weighted
from hybrid_envs.spaces import HybridAction

DISTRIBUTIONS = ("uniform", "poisson", "normal")
REGULAR_FIXED_COST_PER_ITEM = 5.0
EXPEDITED_FIXED_COST_PER_ITEM = 10.0
REGIMES = {1: "regular", 2: "expedited", 3: "both"}


@dataclass(frozen=True)
class DualSourcingParams:
    """The numbers of one instance; arrays have shape ``(n_items,)``, and fixed costs are arrays if each item has its own."""

    mean_demand: np.ndarray
    holding_cost: np.ndarray
    underage_cost: np.ndarray
    premium: np.ndarray
    regular_fixed_cost: float | np.ndarray
    expedited_fixed_cost: float | np.ndarray
    lead_time: int

    @property
    def item_fixed_costs(self) -> np.ndarray:
        """Fixed costs of the regular and of the expedited source, those that items share equally split, ``(2, n_items)``."""
        shares = [c if np.ndim(c) else c / len(self.mean_demand) for c in (self.regular_fixed_cost, self.expedited_fixed_cost)]
        return np.stack([np.broadcast_to(share, self.mean_demand.shape) for share in shares])


def lot_sizes(params: DualSourcingParams) -> np.ndarray:
    """
    Wilson's economic order quantity of each source on its own, fixed costs shared equally by the items, and at least two
    periods' demand, since a source is not used in every period: the magnitude of a sensible order.

    :return: shape ``(2 * n_items,)``, regular orders first
    """
    holding_cost = np.maximum(params.holding_cost, 1e-3 * np.maximum(params.underage_cost, 1e-6))  # storage may be free
    quantity = np.sqrt(2 * params.item_fixed_costs * params.mean_demand / holding_cost)
    return np.clip(quantity, 2 * params.mean_demand, 100 * params.mean_demand).ravel()


class HybridDualSourcingEnv(ReplenishmentEnv):
    """
    ## Description
    Every item can be had from two sources: a regular one, cheap and slow, and an expedited one that delivers at once and
    charges a premium per unit. Using a source costs a fixed amount per period, however many items and units are ordered from
    it. The question of each period is which sources to use, and how much of each item to order from them.

    ## Action Space
    ``Tuple(Discrete(4), Box(0, inf, (2 * n_items,)))``: regime 0 orders nothing, 1 from the regular source, 2 from the
    expedited one, 3 from both. b holds the regular quantities of all items, then the expedited ones; quantities of a source
    that the regime does not use are ignored.

    With ``per_item`` every item has its own such regime: ``Tuple(MultiDiscrete([4] * n_items), Box)`` of the same Box; both
    quantities of item i answer to factor i.

    ## Observation Space
    ``Box(-inf, inf, (n_items * lead_time,))``: stock on hand, then the regular orders on their way, the next to arrive
    first, each divided by the item's mean demand. It holds no clock. Arguments that differ from scenario to scenario follow.

    ## Dynamics
    Both orders r and e are placed before the period's demand D is seen. The expedited one can meet it; the regular one is on
    hand ``lead_time`` periods later. Unmet demand is backlogged:

        I' = I + e - D + arrivals

    where the arrivals are what was ordered from the regular source ``lead_time - 1`` periods ago (this period's order if
    ``lead_time`` is 1).

    ## Rewards
    Minus the period's cost, Σ_i [h_i (I_i + e_i - D_i)^+ + u_i (D_i - I_i - e_i)^+ + c_i e_i] plus K_r if the regular source
    is used plus K_e if the expedited one is; with ``per_item`` for each item that uses it, so that nothing ties the items
    together: the optimum is that of each alone. Units from the regular source cost nothing: with backlog every unit is bought
    in the end, so only the difference of the prices matters. Results are quoted by :meth:`figure_of_merit`: mean cost per item
    and period, the first 16 periods left out.

    ## Starting State
    Nothing on hand, nothing on order.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to stock and b. There are kinks where the stock left meets zero, and no
    jumps: the fixed costs depend on x alone. With integer demand the kinks have probability zero unless the orders add up to
    an integer.

    ## Arguments
    The default is the smallest instance of the literature with fixed costs added; without them
    (``regular_fixed_cost=0, expedited_fixed_cost=0``) it is that instance. Mean demand, h, u, c and the standard deviation may
    differ from scenario to scenario, as in ``HybridInventory-v0``: by a distribution, ``{uniform: [low, high]}``, or a table.

    :param n_items: p; 1 unless the demand data says otherwise
    :param mean_demand: μ, scalar or ``(n_items,)``; 2 unless given, the data's mean for demand data
    :param holding_cost: h per unit and period, scalar or ``(n_items,)``
    :param underage_cost: u per unit short and period, scalar or ``(n_items,)``
    :param premium: c, what the expedited source charges per unit beyond the regular one, scalar or ``(n_items,)``
    :param regular_fixed_cost: K_r per period of use; 5 per item unless given; with ``per_item`` that of each item, scalar or
        ``(n_items,)``, 5 unless given
    :param expedited_fixed_cost: K_e, likewise, 10 per item
    :param per_item: whether each item chooses its sources by itself
    :param lead_time: of the regular source, in periods, at least 1
    :param horizon: T, periods of an episode
    :param demand: ``"uniform"`` on the integers 0 to 2μ, ``"poisson"``, ``"normal"`` (truncated at 0), an array of scenarios
        of shape ``(scenarios, periods, n_items)``, or the path of a CSV file with a header of item names and one row per
        period
    :param demand_std: standard deviation of normal demand, scalar or ``(n_items,)``; √μ unless given
    :param instances: a table with one row for each product, a CSV file's path or columns by name: ``mean_demand``,
        ``holding_cost``, ``underage_cost``, ``premium``, ``demand_std``; ``item`` may name the product
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    Instance: Veeraraghavan and Scheller-Wolf (2008), Operations Research 56(4); Gijsbrechts, Boute, Van Mieghem and Zhang
    (2022), Manufacturing & Service Operations Management 24(3); Böttcher, Asikis and Fragkos (2023), INFORMS Journal on
    Computing 35(6), who train networks on it by gradients through the simulator.

    ## Version History
    v0: initial version
    """

    def __init__(
        self,
        n_items: int | None = None,
        *,
        mean_demand: Drawable | None = None,
        holding_cost: Drawable = 5.0,
        underage_cost: Drawable = 495.0,
        premium: Drawable = 20.0,
        regular_fixed_cost: float | np.ndarray | None = None,
        expedited_fixed_cost: float | np.ndarray | None = None,
        per_item: bool = False,
        lead_time: int = 2,
        horizon: int = 100,
        demand: str | Path | np.ndarray = "uniform",
        demand_std: Drawable | None = None,
        instances: Table | None = None,
        render_mode: str | None = None,
    ):
        check_count("lead_time", lead_time)
        drawn = Instances(
            HybridDualSourcingEnv,
            {
                "mean_demand": mean_demand,
                "holding_cost": holding_cost,
                "underage_cost": underage_cost,
                "premium": premium,
                "demand_std": demand_std,
            },
            instances,
        )
        read = read_demand(
            demand,
            DISTRIBUTIONS,
            horizon,
            n_items,
            drawn.typical["mean_demand"],
            drawn.typical["demand_std"],
            default_items=1,
            default_mean=lambda n: np.full(n, 2.0),
        )
        n_items, shape = len(read.mean), (len(read.mean),)
        self.per_item = check_switch("per_item", per_item)
        shared_by = 1 if per_item else n_items
        regular = REGULAR_FIXED_COST_PER_ITEM * shared_by if regular_fixed_cost is None else regular_fixed_cost
        expedited = EXPEDITED_FIXED_COST_PER_ITEM * shared_by if expedited_fixed_cost is None else expedited_fixed_cost
        fixed_costs = [
            check_array(name, cost, shape if per_item else (), at_least=0.0)
            for name, cost in (("regular_fixed_cost", regular), ("expedited_fixed_cost", expedited))
        ]
        self.params = params = DualSourcingParams(
            mean_demand=read.mean,
            holding_cost=check_array("holding_cost", drawn.typical["holding_cost"], shape, at_least=0.0),
            underage_cost=check_array("underage_cost", drawn.typical["underage_cost"], shape, at_least=0.0),
            premium=check_array("premium", drawn.typical["premium"], shape, at_least=0.0),
            regular_fixed_cost=fixed_costs[0] if per_item else float(fixed_costs[0]),
            expedited_fixed_cost=fixed_costs[1] if per_item else float(fixed_costs[1]),
            lead_time=lead_time,
        )
        drawn.lay_out(n_items)
        self.varying = tuple(drawn.place)
        if read.source == "uniform" and "mean_demand" in drawn.place:
            raise ValueError("mean_demand varies; demand = 'uniform' needs multiples of 1/2: use 'poisson' or 'normal'")
        halves = 2 * params.mean_demand % 1
        if read.source == "uniform" and halves.any():
            i = int(np.argmax(halves != 0))
            raise ValueError(
                f"mean_demand[{i}] = {params.mean_demand[i]}: uniform demand on 0..2·mean_demand needs a multiple of 1/2"
            )
        closed, open_ = [[0.0, 0.0]] * n_items, [[0.0, np.inf]] * n_items
        super().__init__(
            read,
            params.holding_cost,
            params.underage_cost,
            lead_time,
            drawn,
            action_bounds=np.array([closed + closed, open_ + closed, closed + open_, open_ + open_]),
            factor_sizes=[4] * n_items if per_item else None,
            factor_of=np.tile(np.arange(n_items), 2) if per_item else None,
            observation_size=n_items * lead_time + drawn.size,
            horizon=horizon,
            action_scale=lot_sizes(params),
            observation_scale=np.append(np.ones(n_items * lead_time), drawn.typical_of(self.varying)),
            render_mode=render_mode,
        )
        self.premium = torch.tensor(params.premium, dtype=self.dtype)
        self.fixed_costs = torch.tensor(np.stack(fixed_costs), dtype=self.dtype).view(2, -1)

    def transition(self, state: StockState, action: HybridAction, noise: torch.Tensor) -> StockState:
        regular, expedited = self._ordered(action)
        return self.replenished(state, state.stock[:, 0] + expedited - noise, regular, noise)

    def reward(self, state: StockState, action: HybridAction, noise: torch.Tensor, next_state: StockState) -> torch.Tensor:
        _, expedited = self._ordered(action)
        running = self.running_cost(state, state.stock[:, 0] + expedited - noise)
        fixed = (self._used(action) * self.fixed_costs).flatten(1).sum(dim=1)
        return -(running + weighted(expedited, self.parameter("premium", state)) + fixed)

    def observation(self, state: StockState) -> torch.Tensor:
        stock = self.in_periods(state, state.stock)
        return torch.cat([stock, self.observed(state, self.varying)], dim=1) if self.varying else stock

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """Stock on hand per item, and the cost of each period with the sources used."""
        on_hand = np.array([frame.state.stock[0, 0].cpu().numpy() for frame in frames])
        if self.per_item:  # the sources that any item uses
            frames = [f if f.regime is None else f._replace(regime=int(np.bitwise_or.reduce(f.regime))) for f in frames]
        return draw_episode(frames, on_hand, "stock on hand", REGIMES, self.horizon)

    def _used(self, action: HybridAction) -> torch.Tensor:
        """
        Whether the regular and the expedited source are used: the two bits of the regime, shape ``(batch, 2, 1)``, with a
        regime for each item ``(batch, 2, n_items)``.
        """
        regimes = self.factors.columns(action.regime)
        return torch.stack([regimes % 2, regimes // 2], dim=1)

    def _ordered(self, action: HybridAction) -> tuple[torch.Tensor, torch.Tensor]:
        """What is ordered from the regular and from the expedited source, each of shape ``(batch, n_items)``."""
        regular, expedited = (action.point.unflatten(1, (2, -1)) * self._used(action)).unbind(1)
        return regular, expedited
