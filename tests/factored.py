"""Environments whose regimes have several factors; in a module of their own, so that subprocesses can import them."""

from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs import HybridEnv
from hybrid_envs.factors import NO_FACTOR

NAN = float("nan")


class BrewState(NamedTuple):
    """``level``: of three tanks; ``hot``: whether each valve was open last period, 0 or 1; both of shape ``(batch, 3)``."""

    level: torch.Tensor
    hot: torch.Tensor
    period: torch.Tensor


class BreweryEnv(HybridEnv[BrewState]):
    """
    Three valves of 2, 3 and 2 positions, which bound the inflow of tank 0, the in- and outflow of tank 1, and nothing; a pump
    that always runs moves beer from tank 1 to tank 2. Valve 1 must not be in position 2 twice in succession.
    """

    def __init__(self, horizon: int = 3, masked: bool = True, active_limits: tuple[int, int] | None = None):
        bounds = np.full((3, 4, 2), NAN)
        bounds[:2, 0] = [[0.0, 0.0], [0.0, 2.0]]  # inflow of tank 0, by valve 0
        bounds[:, 1] = [[0.0, 0.0], [0.0, 1.0], [0.5, 3.0]]  # inflow of tank 1, by valve 1
        bounds[:, 2] = [[0.0, 1.0], [-1.0, 1.0], [0.0, np.inf]]  # outflow of tank 1, by valve 1
        bounds[0, 3] = [-1.0, 1.0]  # the pump, by none
        self.masked = masked
        super().__init__(
            action_bounds=bounds,
            observation_size=6,
            horizon=horizon,
            factor_sizes=[2, 3, 2],
            factor_of=[0, 1, 1, NO_FACTOR],
            active_limits=active_limits,
        )

    @property
    def masks_regimes(self) -> bool:
        return self.masked

    def initial(self, batch_size, generator):
        level = torch.rand(batch_size, 3, generator=generator, dtype=self.dtype, device=self.device)
        return BrewState(level, torch.zeros_like(level), torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 3, generator=generator, dtype=self.dtype, device=self.device)

    def transition(self, state, action, noise):
        inflow, filled, drained, pumped = action.point.unbind(1)
        tapped = 0.4 * action.regime[:, 2]
        change = torch.stack([inflow, filled - 0.5 * torch.tanh(drained) - pumped, pumped - tapped], dim=1)
        level = 0.9 * state.level + 0.3 * change - 0.3 * noise
        return BrewState(level, (action.regime > 0).to(self.dtype), state.period)

    def reward(self, state, action, noise, next_state):
        regime = action.regime.to(self.dtype)
        wear = (regime * torch.tensor([0.1, 0.2, 0.05], dtype=self.dtype, device=self.device)).sum(dim=1)
        together = 0.3 * regime[:, 0] * regime[:, 2] + 0.1 * state.hot[:, 1] * regime[:, 1]
        return -(next_state.level - 1).square().sum(dim=1) - wear + together

    def observation(self, state):
        return torch.cat([state.level, state.hot], dim=1)

    def regime_mask(self, state):
        mask = torch.ones(len(state.period), 7, dtype=torch.bool, device=self.device)
        if self.masked:
            mask[:, 4] = (state.hot[:, 1] < 0.5) | (state.period == 0)
        return mask
