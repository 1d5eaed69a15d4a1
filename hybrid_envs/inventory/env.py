"""Joint replenishment: when to order for all items at once, and how much of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count, check_switch
from hybrid_envs.core import Frame
from hybrid_envs.demand import check_share, read_demand
from hybrid_envs.instances import Drawable, Instances, Table, Uniform
from hybrid_envs.rendering import by_their_first_factor, draw_episode
from hybrid_envs.replenishment import ReplenishmentEnv, StockState, context_scale, weighted
from hybrid_envs.spaces import HybridAction

REFERENCE_FIXED_COST_PER_ITEM = 64.0
OBSERVED = ("underage_cost", "holding_cost", "mean_demand")
"""Arguments that are observed beside stock, whether they vary or not."""
ITEM_COSTS = ("holding_cost", "underage_cost", "minor_fixed_cost", "margin")
"""Columns of a table of costs."""


@dataclass(frozen=True)
class InventoryParams:
    """The numbers of one instance; arrays have shape ``(n_items,)``. What differs from scenario to scenario is its mean."""

    mean_demand: np.ndarray
    holding_cost: np.ndarray
    underage_cost: np.ndarray
    fixed_cost: float
    lead_time: int
    lost_sales: bool
    minor_fixed_cost: np.ndarray | None
    """``None`` where an order is for all items or none."""
    margin: np.ndarray
    """0 where the objective is cost alone."""

    @property
    def shortage_cost(self) -> np.ndarray:
        """What a unit short costs with the margin that is lost, shape ``(n_items,)``."""
        return self.underage_cost + self.margin

    @property
    def item_fixed_cost(self) -> np.ndarray:
        """What an item adds to the fixed cost of an order, 0 where the order is for all or none; shape ``(n_items,)``."""
        return np.zeros_like(self.mean_demand) if self.minor_fixed_cost is None else self.minor_fixed_cost


def lot_size(params: InventoryParams) -> np.ndarray:
    """
    Wilson's economic order quantity √(2 K_i μ_i / h_i) with K shared equally and the item's own cost added, and at least one
    period's demand: the magnitude of a sensible order.

    :return: shape ``(n_items,)``
    """
    share = params.fixed_cost / len(params.mean_demand) + params.item_fixed_cost
    holding_cost = np.maximum(params.holding_cost, 1e-3 * params.shortage_cost)  # free storage has no economic lot size
    quantity = np.sqrt(2 * share * params.mean_demand / np.maximum(holding_cost, 1e-9))
    return np.clip(quantity, params.mean_demand, 100 * params.mean_demand)


def typical_lot(env: "HybridInventoryEnv") -> np.ndarray:
    """
    :return: :func:`lot_size` of what is demanded, of data too whose unit ``mean_demand`` is another; to the last bit
        ``env.action_scale`` where it is not; shape ``(n_items,)``
    """
    return lot_size(replace(env.params, mean_demand=env.typical_demand)).astype(np.float32).astype(np.float64)


def observation_scale(params: InventoryParams) -> np.ndarray:
    """
    Stock is observed in units of mean demand already; u, h and μ are measured by their means over the items, so that these
    constants do not drown the state.

    :return: shape ``(n_items * (lead_time + 3),)``
    """
    n_items = len(params.mean_demand)
    means = [max(float(constant.mean()), 1e-9) for constant in (params.underage_cost, params.holding_cost, params.mean_demand)]
    return np.concatenate([np.ones(n_items * params.lead_time), np.repeat(means, n_items)])


class HybridInventoryEnv(ReplenishmentEnv):
    """
    ## Description
    Joint replenishment of ``n_items`` items under random demand. An order costs the same however many items are on it, so
    the question of each period is whether to order for all items, and if so how much of each.

    ## Action Space
    ``Tuple(Discrete(2), Box(0, inf, (n_items,)))``: regime 0 orders nothing (b is ignored), regime 1 orders b_i units of
    item i.

    With ``minor_fixed_cost`` every item on an order has a cost of its own, and the regime says which items are on it:
    ``Tuple(MultiDiscrete([2] * (n_items + 1)), Box(0, inf, (n_items,)))``. The first factor z is whether to order at all,
    factor i + 1 is y_i, whether item i is on the order, if there is one; b_i answers to it. The first factor alone would not
    be needed, since an order without items is none. It is what coordinates them: items whose factors are drawn
    independently of each other could hardly find a common period, as one that waits for the others would wait in vain.

    ## Observation Space
    ``Box(-inf, inf, (n_items * lead_time + 3 * n_items,))``: on-hand and pipeline stock divided by the item's mean demand,
    then underage costs u, holding costs h and mean demands μ. It holds no clock. Further arguments that differ from
    scenario to scenario follow, in the order of the signature, those of the table last; then the demand of the last
    ``history`` periods, the latest first, divided by mean demand, and the calendar of the present period.

    ## Dynamics
    The order q = b·1{x = 1} (q_i = b_i z y_i with minor costs) is placed before the period's demand D is seen and is on hand
    ``lead_time`` periods later. Demand is met from the stock on hand I; unmet demand is backlogged, or lost if ``lost_sales``:

        I' = I - D + arrivals        (backlog)
        I' = max(I - D, 0) + arrivals    (lost sales)

    where the arrivals are what was ordered ``lead_time - 1`` periods ago (this period's order if ``lead_time`` is 1).

    ## Rewards
    Minus the period's cost, Σ_i [h_i (I_i - D_i)^+ + u_i (D_i - I_i)^+] + K·1{x = 1}. With minor costs K is paid if any item
    is on the order, and k_i for each that is, however much of it is ordered: z (K max_i y_i + Σ_i k_i y_i). With a ``margin``
    the reward is the profit: what is sold earns Σ_i m_i min(D_i, I_i) besides. Results are quoted by :meth:`figure_of_merit`:
    mean cost per item and period, the first 16 periods left out; profit is a negative cost.

    ## Starting State
    Nothing on hand unless there is a ``starting_stock``, and nothing on order. What differs from scenario to scenario is
    drawn, for each item by itself.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to stock and b. There are kinks where the stock on hand equals demand, and no
    jumps: the fixed cost depends on x alone. With integer demand the kinks have probability zero unless b is integer.

    ## Arguments
    Costs and demand may differ from scenario to scenario, so that one policy serves many products. Beside numbers such an
    argument takes a distribution, :class:`~hybrid_envs.Uniform`, which as plain data is ``{uniform: [low, high]}``; or it is
    a column of the table ``instances``.

    :param n_items: p; 5 unless the demand data says otherwise
    :param mean_demand: μ, scalar or ``(n_items,)``; the reference instance's unless given, the data's mean for demand data
    :param holding_cost: h per unit and period, scalar or ``(n_items,)``; the reference instance's unless given
    :param underage_cost: u per unit short and period, scalar or ``(n_items,)``; the reference instance's unless given
    :param fixed_cost: K per order; 64 per item unless given
    :param minor_fixed_cost: k, what each item on an order costs beside K, scalar or ``(n_items,)``, at least 0; unless given
        an order is for all items or none, and costs K
    :param margin: m, what a unit that is sold earns over its purchase cost, scalar or ``(n_items,)``, at least 0. It needs
        ``lost_sales``: what is backlogged is sold all the same, so that margins are a constant there
    :param lead_time: periods from order to availability, at least 1
    :param horizon: T, periods of an episode
    :param lost_sales: whether unmet demand is lost instead of backlogged
    :param demand: ``"poisson"``, ``"normal"`` (truncated at 0), an array of scenarios of shape
        ``(scenarios, periods, n_items)``, or the path of a CSV file with a header of item names and one row per period
    :param demand_std: standard deviation of normal demand, scalar or ``(n_items,)``; √μ unless given
    :param instances: a table with one row for each product: a CSV file's path, or columns by name. Columns are
        ``mean_demand``, ``holding_cost``, ``underage_cost``, ``minor_fixed_cost``, ``margin``, ``demand_std``, with one item
        also ``fixed_cost``; ``item`` may name the product. Each item of a scenario draws a row, with replacement
    :param zero_share: the probability that a period has no demand for an item at all, of demand that is no data; when there is
        any, its mean is μ / (1 - zero_share), so that μ remains the mean
    :param history: how many past periods of demand are observed
    :param censored: with lost sales, whether what is observed of a period is what was sold, min(D, I)
    :param calendar: columns of the file of sales that are no items but known ahead: ``None`` for a column that is observed as
        it is, such as a promotion, or the length of its cycle, such as ``{"week": 52}``, for its sine and cosine
    :param split: ``"train"``, ``"validation"`` or ``"test"``: windows from the first, second or third part of the file alone;
        μ is then the mean of the first
    :param split_shares: the shares of the parts
    :param dates: the column of the file of sales that says when a row was, checked for gaps, repetitions and order: dates,
        weeks such as 2026-W05, months or whole numbers. It may be of the calendar, too; a date then counts as days
    :param resampled: if it is not 0, so many windows of resampled sales take the place of the recorded ones in training: the
        level of the season by the calendar, times what sales were to it in other periods, in blocks of them
    :param costs: a CSV file with one row for each item of the file of sales, named in a column ``item`` in the same order, and
        columns ``holding_cost``, ``underage_cost``, ``minor_fixed_cost``, ``margin``
    :param starting_stock: what is on hand of each item in the first period, in periods of its mean demand. A distribution lets
        a policy train from the shelves that it may have to take over
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    Problem and reference instance: Alvo, Russo, Kanoria (2026), arXiv 2605.14297, joint replenishment problem.
    Minor costs: Silver, "A control system for coordinated inventory replenishment", International Journal of Production
    Research 12, 1974.

    ## Version History
    v0: initial version
    """

    def __init__(
        self,
        n_items: int | None = None,
        *,
        mean_demand: Drawable | None = None,
        holding_cost: Drawable | None = None,
        underage_cost: Drawable | None = None,
        fixed_cost: Drawable | None = None,
        minor_fixed_cost: Drawable | None = None,
        margin: Drawable | None = None,
        lead_time: int = 2,
        horizon: int = 100,
        lost_sales: bool = False,
        demand: str | Path | np.ndarray = "poisson",
        demand_std: Drawable | None = None,
        instances: Table | None = None,
        zero_share: float = 0.0,
        history: int = 0,
        censored: bool = False,
        calendar: Mapping[str, float | None] | None = None,
        split: str | None = None,
        split_shares: Sequence[float] = (0.6, 0.2, 0.2),
        dates: str | None = None,
        resampled: int = 0,
        costs: str | Path | None = None,
        starting_stock: Drawable | None = None,
        render_mode: str | None = None,
    ):
        check_count("lead_time", lead_time)
        drawn = Instances(
            HybridInventoryEnv,
            {
                "mean_demand": mean_demand,
                "holding_cost": holding_cost,
                "underage_cost": underage_cost,
                "fixed_cost": fixed_cost,
                "minor_fixed_cost": minor_fixed_cost,
                "margin": margin,
                "demand_std": demand_std,
            },
            instances,
            costs,
            ITEM_COSTS,
        )
        holding_cost, underage_cost = drawn.typical["holding_cost"], drawn.typical["underage_cost"]
        fixed_cost, minor_fixed_cost = drawn.typical["fixed_cost"], drawn.typical["minor_fixed_cost"]
        margin = drawn.typical["margin"]
        read = read_demand(
            demand,
            ("poisson", "normal"),
            horizon,
            n_items,
            drawn.typical["mean_demand"],
            drawn.typical["demand_std"],
            default_items=5,
            default_mean=lambda n: np.random.RandomState(33).uniform(6, 14, n).round(3),
            history=history,
            calendar=calendar,
            split=split,
            split_shares=split_shares,
            dates=dates,
            resampled=resampled,
        )
        drawn.require_items(read.windows.items if read.windows is not None else [])
        if check_share("zero_share", zero_share) and read.source == "data":
            raise ValueError(f"zero_share = {zero_share} is of a distribution, but demand is data")
        if check_switch("censored", censored) and not (lost_sales and history):
            raise ValueError(f"censored = True needs lost_sales = True and history > 0, got {lost_sales} and {history}")
        if margin is not None and not lost_sales:
            raise ValueError(f"margin = {margin} needs lost_sales = True: what is backlogged is sold all the same")
        self.censored, self.earns = censored, margin is not None
        n_items = len(read.mean)
        if holding_cost is None:
            holding_cost = np.random.RandomState(73).uniform(0.7, 1.3, n_items)
        if underage_cost is None:
            underage_cost = np.random.RandomState(28).uniform(6.3, 11.7, n_items)
        if fixed_cost is None:
            fixed_cost = REFERENCE_FIXED_COST_PER_ITEM * n_items
        self.params = InventoryParams(
            mean_demand=read.mean,
            holding_cost=check_array("holding_cost", holding_cost, (n_items,), at_least=0.0),
            underage_cost=check_array("underage_cost", underage_cost, (n_items,), at_least=0.0),
            fixed_cost=float(check_array("fixed_cost", fixed_cost, (), at_least=0.0)),
            lead_time=lead_time,
            lost_sales=check_switch("lost_sales", lost_sales),
            minor_fixed_cost=(
                None
                if minor_fixed_cost is None
                else check_array("minor_fixed_cost", minor_fixed_cost, (n_items,), at_least=0.0)
            ),
            margin=check_array("margin", 0.0 if margin is None else margin, (n_items,), at_least=0.0),
        )
        self.itemised = minor_fixed_cost is not None
        drawn.lay_out(n_items, shared=("fixed_cost",))
        self.observed_too = tuple(name for name in drawn.place if name not in OBSERVED)
        scale = np.concatenate(
            [observation_scale(self.params), drawn.typical_of(self.observed_too), context_scale(read, history)]
        )
        super().__init__(
            read,
            self.params.holding_cost,
            self.params.underage_cost,
            lead_time,
            drawn,
            action_bounds=np.array([[[0.0, 0.0]] * n_items, [[0.0, np.inf]] * n_items]),  # no order, order
            factor_sizes=[2] * (n_items + 1) if self.itemised else None,
            factor_of=np.arange(1, n_items + 1) if self.itemised else None,
            history=history,
            zero_share=zero_share,
            starting_stock=_starts(starting_stock, n_items),
            observation_size=len(scale),
            horizon=horizon,
            action_scale=lot_size(self.params),
            observation_scale=scale,
            render_mode=render_mode,
        )
        self.fixed_cost = torch.tensor([self.params.fixed_cost], dtype=self.dtype)
        self.minor_fixed_cost = torch.tensor(self.params.item_fixed_cost, dtype=self.dtype)
        self.margin = torch.tensor(self.params.margin, dtype=self.dtype)

    def transition(self, state: StockState, action: HybridAction, noise: torch.Tensor) -> StockState:
        on_hand = state.stock[:, 0]
        remaining = on_hand - noise
        if self.params.lost_sales:
            remaining = remaining.clamp(min=0)
        seen = noise.minimum(on_hand) if self.censored else noise
        return self.replenished(state, remaining, action.point * self.on_order(action), seen)

    def reward(self, state: StockState, action: HybridAction, noise: torch.Tensor, next_state: StockState) -> torch.Tensor:
        on_order = self.on_order(action)
        ordering = (self.parameter("fixed_cost", state) * on_order.amax(dim=1, keepdim=True)).squeeze(1)
        cost = self.running_cost(state, state.stock[:, 0] - noise) + ordering
        if self.itemised:
            cost = cost + weighted(on_order.to(self.dtype), self.parameter("minor_fixed_cost", state))
        return weighted(noise.minimum(state.stock[:, 0]), self.parameter("margin", state)) - cost if self.earns else -cost

    def observation(self, state: StockState) -> torch.Tensor:
        constants = self.observed(state, (*OBSERVED, *self.observed_too))
        return torch.cat([self.in_periods(state, state.stock), constants, *self.context(state)], dim=1)

    def observed_mean_demand(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: shape ``(batch, d)``
        :return: μ, shape ``(n_items,)``, or where it varies ``(batch, n_items)``
        """
        if "mean_demand" not in self.instances.place:
            return self.params.mean_demand
        end = self.n_items * (self.lead_time + 3)
        return observation[:, end - self.n_items : end].astype(np.float64)

    def observed_history(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: shape ``(batch, d)``
        :return: demand of the last periods, the latest first, shape ``(batch, history, n_items)``
        """
        start = self.n_items * (self.lead_time + 3) + len(self.instances.typical_of(self.observed_too))
        past = observation[:, start : start + self.history * self.n_items].astype(np.float64)
        mean = self.observed_mean_demand(observation)
        return past.reshape(-1, self.history, self.n_items) * (mean if mean.ndim == 1 else mean[:, None])

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """Inventory position per item, and the cost of each period with the orders marked."""
        positions = np.array([frame.state.stock[0].sum(dim=0).cpu().numpy() for frame in frames])
        if self.itemised:
            frames = by_their_first_factor(frames)
        return draw_episode(frames, positions, "inventory position", {1: "order"}, self.horizon)

    def on_order(self, action: HybridAction) -> torch.Tensor:
        """Which items are ordered, 0 or 1, shape ``(batch, 1)`` where it is all of them or none, else ``(batch, n_items)``."""
        return action.regime[:, :1] * action.regime[:, 1:] if self.itemised else action.regime.unsqueeze(-1)


def _starts(value: Drawable | None, n_items: int) -> Instances | None:
    """How stock in the first period is drawn; a number is a distribution, too."""
    if value is None:
        return None
    if not isinstance(value, Uniform | Mapping):
        value = Uniform(value, value)
    starts = Instances(HybridInventoryEnv, {"starting_stock": value}, None)
    starts.lay_out(n_items)
    return starts
