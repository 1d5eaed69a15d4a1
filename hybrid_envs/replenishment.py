"""What problems of replenishment share: items on hand and on order, and random demand for them."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hybrid_envs.core import HybridEnv, settled_mean
from hybrid_envs.demand import Demand, replay_demand, sample_demand
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


class ReplenishmentEnv(HybridEnv[StockState]):
    """
    Base of environments whose state is the stock of each item, and whose noise is the demand for it. What an order is, and
    what it costs, is the subclass's.

    :param demand: where demand comes from
    :param holding_cost: h per unit and period, shape ``(n_items,)``
    :param underage_cost: u per unit short and period, shape ``(n_items,)``
    :param lead_time: periods from order to availability
    :param instances: what differs from scenario to scenario, laid out; the other arguments hold means in its place
    :param env_kwargs: the arguments of :class:`~hybrid_envs.core.HybridEnv`
    """

    def __init__(
        self,
        demand: Demand,
        holding_cost: np.ndarray,
        underage_cost: np.ndarray,
        lead_time: int,
        instances: Instances,
        **env_kwargs: Any,
    ):
        super().__init__(**env_kwargs)
        self.instances = instances
        if demand.source == "data" and "mean_demand" in instances.place:
            raise ValueError("mean_demand varies, but demand is data: its mean is that of the data")
        self.poisson_like = demand.poisson_like
        self.n_items, self.lead_time, self.demand = len(demand.mean), lead_time, demand.source
        if demand.scenarios is not None:
            self.demand_data = torch.tensor(demand.scenarios, dtype=self.dtype)  # (scenarios, horizon, items)
        self.mean_demand = torch.tensor(demand.mean, dtype=self.dtype)
        self.demand_std = torch.tensor(demand.std, dtype=self.dtype)
        self.holding_cost = torch.tensor(holding_cost, dtype=self.dtype)
        self.underage_cost = torch.tensor(underage_cost, dtype=self.dtype)

    def initial(self, batch_size: int, generator: torch.Generator) -> StockState:
        return StockState(
            torch.zeros(batch_size, self.lead_time, self.n_items, dtype=self.dtype, device=self.device),
            torch.zeros(batch_size, dtype=torch.int64, device=self.device),
            self.instances.draw(batch_size, generator, self.dtype),
        )

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StockState, torch.Tensor]:
        state = self.initial(batch_size, generator)
        return state, self._demand_of(state, generator)

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: demand D, shape ``(horizon, batch, n_items)``; where the distribution varies, each scenario of its own
        """
        return self.sample_scenarios(batch_size, generator)[1]

    def _demand_of(self, state: StockState, generator: torch.Generator) -> torch.Tensor:
        batch_size = len(state.period)
        if self.demand == "data":
            return replay_demand(self.demand_data, batch_size, generator)
        mean, std = (self.parameter(name, state) for name in ("mean_demand", "demand_std"))
        if self.poisson_like and "mean_demand" in self.instances.place:
            std = mean.sqrt()
        return sample_demand(self.demand, mean, std, (self.horizon, batch_size, self.n_items), generator)

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

    def in_periods(self, state: StockState) -> torch.Tensor:
        """
        :return: stock in units of mean demand, shape ``(batch, lead_time * n_items)``
        """
        mean = self.parameter("mean_demand", state)
        return (state.stock / (mean if mean.dim() == 1 else mean.unsqueeze(1))).flatten(1)

    def observed(self, state: StockState, names: tuple[str, ...]) -> torch.Tensor:
        """
        :return: these arguments of each scenario, side by side, shape ``(batch, k)``
        """
        shape = (len(state.period), -1)
        return torch.cat([self.parameter(name, state).expand(shape) for name in names], dim=1)

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """Mean cost per item and period, without the first 16 periods if the episode is longer."""
        return settled_mean(costs) / self.n_items

    def replenished(self, state: StockState, remaining: torch.Tensor, ordered: torch.Tensor) -> StockState:
        """
        The end of a period, when everything on order comes a period nearer.

        :param remaining: what demand has left on hand, shape ``(batch, n_items)``
        :param ordered: in this period, to arrive after the lead time, likewise
        """
        on_order = torch.cat([state.stock[:, 1:], ordered.unsqueeze(1)], dim=1)  # next arrival first
        stock = torch.cat([(remaining + on_order[:, 0]).unsqueeze(1), on_order[:, 1:]], dim=1)
        return state._replace(stock=stock)

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
