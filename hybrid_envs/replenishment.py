"""What problems of replenishment share: items on hand and on order, and random demand for them."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hybrid_envs.core import HybridEnv, settled_mean
from hybrid_envs.demand import Demand, interrupted, sample_demand, some_rows
from hybrid_envs.instances import Instances


class StockState(NamedTuple):
    """
    ``stock[:, 0]`` is on hand (negative: backlog), all that has arrived included; ``stock[:, k]`` is on order and arrives at
    the end of the k-th period from now; shape ``(batch, lead_time, n_items)``.
    """

    stock: torch.Tensor
    period: torch.Tensor
    instance: torch.Tensor
    """What differs from scenario to scenario, see :meth:`ReplenishmentEnv.parameter`, shape ``(batch, k)``; mostly k = 0."""
    history: torch.Tensor
    """Demand that was seen in the last periods, the latest first, shape ``(batch, periods, n_items)``; mostly no period."""
    window: torch.Tensor
    """Which window of demand data the scenario is, where it matters to the observation, else 0; int64, shape ``(batch,)``."""


class ReplenishmentEnv(HybridEnv[StockState]):
    """
    Base of environments whose state is the stock of each item, and whose noise is the demand for it. What an order is, and
    what it costs, is the subclass's.

    :param demand: where demand comes from
    :param holding_cost: h per unit and period, shape ``(n_items,)``
    :param underage_cost: u per unit short and period, shape ``(n_items,)``
    :param lead_time: periods from order to availability
    :param instances: what differs from scenario to scenario, laid out; the other arguments hold means in its place
    :param starting_stock: on hand in the first period, in periods of mean demand; ``None`` for nothing
    :param history: periods of demand that are observed
    :param zero_share: the probability that nothing is demanded in a period, of demand that is no data
    :param env_kwargs: the arguments of :class:`~hybrid_envs.core.HybridEnv`
    """

    def __init__(
        self,
        demand: Demand,
        holding_cost: np.ndarray,
        underage_cost: np.ndarray,
        lead_time: int,
        instances: Instances,
        *,
        starting_stock: Instances | None = None,
        history: int = 0,
        zero_share: float = 0.0,
        **env_kwargs: Any,
    ):
        super().__init__(**env_kwargs)
        self.history, self.zero_share = history, zero_share
        self.instances, self.starting_stock = instances, starting_stock
        if demand.source == "data" and "mean_demand" in instances.place:
            raise ValueError("mean_demand varies, but demand is data: its mean is that of the data")
        self.poisson_like = demand.poisson_like
        self.n_items, self.lead_time, self.demand = len(demand.mean), lead_time, demand.source
        self.windowed = False
        if demand.windows is not None:
            self.demand_data = torch.tensor(demand.windows.demand, dtype=self.dtype)  # (windows, horizon, items)
            self.past_data = torch.tensor(demand.windows.past.copy(), dtype=self.dtype)  # (windows, history, items)
            self.calendar = torch.tensor(demand.windows.calendar, dtype=self.dtype)  # (windows, horizon, features)
            self.windowed = history > 0 or self.calendar.shape[2] > 0
        self.mean_demand = torch.tensor(demand.mean, dtype=self.dtype)
        self.typical_demand = demand.mean if demand.windows is None else demand.windows.mean
        """Of a period, shape ``(n_items,)``: of data their own mean, whatever ``mean_demand``, which is then but the unit."""
        self.demand_std = torch.tensor(demand.std, dtype=self.dtype)
        self.holding_cost = torch.tensor(holding_cost, dtype=self.dtype)
        self.underage_cost = torch.tensor(underage_cost, dtype=self.dtype)

    def initial(self, batch_size: int, generator: torch.Generator) -> StockState:
        nothing = torch.zeros(batch_size, self.lead_time, self.n_items, dtype=self.dtype, device=self.device)
        state = self.standing(nothing, self.instances.draw(batch_size, generator, self.dtype))
        if self.starting_stock is not None:
            periods = self.starting_stock.draw(batch_size, generator, self.dtype)
            on_hand = periods * self.parameter("mean_demand", state)
            state = state._replace(stock=torch.cat([on_hand.unsqueeze(1), nothing[:, 1:]], dim=1))
        if self.windowed:
            window = some_rows(self.demand_data, batch_size, generator)
            return state._replace(window=window, history=self.past_data[window])
        if self.history:
            return state._replace(history=self._demand_of(state, self.history, generator).transpose(0, 1))
        return state

    def standing(self, stock: torch.Tensor, instance: torch.Tensor | None = None) -> StockState:
        """
        :param stock: shape ``(batch, lead_time, n_items)``
        :param instance: shape ``(batch, k)``; that of means unless given
        :return: the state in period 0 with this stock, after mean demand
        """
        batch_size = len(stock)
        period = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        if instance is None:
            typical = torch.as_tensor(self.instances.typical_instance, dtype=self.dtype, device=self.device)
            instance = typical.expand(batch_size, -1)
        return StockState(
            stock, period, instance, self.mean_demand.expand(batch_size, self.history, -1), torch.zeros_like(period)
        )

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StockState, torch.Tensor]:
        state = self.initial(batch_size, generator)
        if self.windowed:
            return state, self.demand_data[state.window].transpose(0, 1)
        return state, self._demand_of(state, self.horizon, generator)

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: demand D, shape ``(horizon, batch, n_items)``; where the distribution varies, each scenario of its own
        """
        return self.sample_scenarios(batch_size, generator)[1]

    def sample_futures(self, state: StockState, generator: torch.Generator) -> torch.Tensor:
        """
        :return: demand of the same products; of recorded windows, that of others
        """
        return super().sample_futures(state, generator) if self.windowed else self._demand_of(state, self.horizon, generator)

    def _demand_of(self, state: StockState, periods: int, generator: torch.Generator) -> torch.Tensor:
        """Demand of some periods, shape ``(periods, batch, n_items)``, in the instances of these states."""
        batch_size = len(state.period)
        if self.demand == "data":
            return self.demand_data[some_rows(self.demand_data, batch_size, generator)].transpose(0, 1)
        mean, std = (self.parameter(name, state) for name in ("mean_demand", "demand_std"))
        if self.poisson_like and "mean_demand" in self.instances.place:
            std = mean.sqrt()
        whole = sample_demand(self.demand, mean / (1 - self.zero_share), std, (periods, batch_size, self.n_items), generator)
        return interrupted(whole, self.zero_share, generator)

    def parameter(self, name: str, state: StockState) -> torch.Tensor:
        """
        :param name: of an argument, ``"holding_cost"`` for instance
        :return: its value, shape ``(n_items,)`` or ``(1,)``, where it differs from scenario to scenario with leading batch
            dimension
        """
        if name in self.instances.place:
            return state.instance[:, self.instances.place[name]]
        value: torch.Tensor = getattr(self, name)
        return value

    def in_periods(self, state: StockState, units: torch.Tensor) -> torch.Tensor:
        """
        :param units: of each item, shape ``(batch, k, n_items)``
        :return: the same in units of mean demand, shape ``(batch, k * n_items)``
        """
        mean = self.parameter("mean_demand", state)
        return (units / (mean if mean.dim() == 1 else mean.unsqueeze(1))).flatten(1)

    def observed(self, state: StockState, names: tuple[str, ...]) -> torch.Tensor:
        """
        :return: these arguments of each scenario, side by side, shape ``(batch, k)``
        """
        shape = (len(state.period), -1)
        return torch.cat([self.parameter(name, state).expand(shape) for name in names], dim=1)

    def context(self, state: StockState) -> list[torch.Tensor]:
        """
        :return: what is observed of demand: that of the last periods, in units of mean demand, the latest first, and what is
            known ahead of this period; two-dimensional, none where nothing is
        """
        seen = []
        if self.history:
            seen.append(self.in_periods(state, state.history))
        if self.windowed:
            seen.append(self.calendar[state.window, state.period.clamp(max=self.horizon - 1)])
        return seen

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """Mean cost per item and period, without the first 16 periods if the episode is longer."""
        return settled_mean(costs) / self.n_items

    def replenished(
        self, state: StockState, remaining: torch.Tensor, ordered: torch.Tensor, demand_seen: torch.Tensor
    ) -> StockState:
        """
        The end of a period, when everything on order comes a period nearer.

        :param remaining: what demand has left on hand, shape ``(batch, n_items)``
        :param ordered: in this period, to arrive after the lead time, likewise
        :param demand_seen: in this period, likewise
        """
        arriving, *on_order = (*state.stock.unbind(1)[1:], ordered)
        stock = torch.stack([remaining + arriving, *on_order], dim=1)
        if not self.history:
            return state._replace(stock=stock)
        return state._replace(stock=stock, history=torch.cat([demand_seen.unsqueeze(1), state.history[:, :-1]], dim=1))

    def running_cost(self, state: StockState, remaining: torch.Tensor) -> torch.Tensor:
        """
        Σ_i [h_i r_i^+ + u_i r_i^-], with both parts from one clamp: r^- = r^+ - r.

        :param remaining: r, stock less demand, shape ``(batch, n_items)``
        :return: shape ``(batch,)``
        """
        holding_cost, underage_cost = (self.parameter(name, state) for name in ("holding_cost", "underage_cost"))
        return weighted(remaining.clamp(min=0), holding_cost + underage_cost) - weighted(remaining, underage_cost)


def weighted(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    :param values: shape ``(batch, n)``
    :param weights: shape ``(n,)``, or of each row ``(batch, n)``
    :return: the weighted sum of each row, shape ``(batch,)``
    """
    return values @ weights if weights.dim() == 1 else (values * weights).sum(dim=1)


def context_scale(demand: Demand, history: int) -> np.ndarray:
    """
    :param history: periods of demand that are observed
    :return: the magnitude of what :meth:`ReplenishmentEnv.context` returns, shape ``(k,)``
    """
    past = np.ones(history * len(demand.mean))
    return (
        past if demand.windows is None else np.append(past, np.maximum(np.abs(demand.windows.calendar).max(axis=(0, 1)), 1e-9))
    )
