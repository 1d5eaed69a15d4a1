"""What problems of replenishment share: items on hand and on order, and random demand for them."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hybrid_envs.core import HybridEnv, settled_mean
from hybrid_envs.demand import Demand, replay_demand, sample_demand


class StockState(NamedTuple):
    """
    ``stock[:, 0]`` is on hand (negative: backlog), all that has arrived included; ``stock[:, k]`` is on order and arrives at
    the end of the k-th period from now; shape ``(batch, lead_time, n_items)``.
    """

    stock: torch.Tensor
    period: torch.Tensor


class ReplenishmentEnv(HybridEnv[StockState]):
    """
    Base of environments whose state is the stock of each item, and whose noise is the demand for it. What an order is, and
    what it costs, is the subclass's.

    :param demand: where demand comes from
    :param holding_cost: h per unit and period, shape ``(n_items,)``
    :param underage_cost: u per unit short and period, shape ``(n_items,)``
    :param lead_time: periods from order to availability
    :param env_kwargs: the arguments of :class:`~hybrid_envs.core.HybridEnv`
    """

    def __init__(self, demand: Demand, holding_cost: np.ndarray, underage_cost: np.ndarray, lead_time: int, **env_kwargs: Any):
        super().__init__(**env_kwargs)
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
        )

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: demand D, shape ``(horizon, batch, n_items)``
        """
        if self.demand == "data":
            return replay_demand(self.demand_data, batch_size, generator)
        shape = (self.horizon, batch_size, self.n_items)
        return sample_demand(self.demand, self.mean_demand, self.demand_std, shape, generator)

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """Mean cost per item and period, without the first 16 periods if the episode is longer."""
        return settled_mean(costs) / self.n_items

    def replenished(self, state: StockState, remaining: torch.Tensor, ordered: torch.Tensor) -> StockState:
        """
        The end of a period, when everything on order comes a period nearer.

        :param remaining: what demand has left on hand, shape ``(batch, n_items)``
        :param ordered: in this period, to arrive after the lead time, likewise
        """
        arriving, *on_order = (*state.stock.unbind(1)[1:], ordered)
        return StockState(torch.stack([remaining + arriving, *on_order], dim=1), state.period)

    def running_cost(self, remaining: torch.Tensor) -> torch.Tensor:
        """
        Σ_i [h_i r_i^+ + u_i r_i^-], with both parts from one clamp: r^- = r^+ - r.

        :param remaining: r, stock less demand, shape ``(batch, n_items)``
        :return: shape ``(batch,)``
        """
        return remaining.clamp(min=0) @ (self.holding_cost + self.underage_cost) - remaining @ self.underage_cost
