"""Environments that mask regimes; in a module of their own, so that subprocesses can import them."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from hybrid_envs import HybridEnv


class KilnState(NamedTuple):
    heat: torch.Tensor
    fired: torch.Tensor
    period: torch.Tensor


class KilnEnv(HybridEnv[KilnState]):
    """
    Regime 0 rests, 1 fires, 2 vents. It must not be fired twice in succession, nor vented in the first period; who does it
    all the same gets NaN.
    """

    def __init__(self, horizon: int = 4):
        bounds = np.array([[[0.0, 0.0]], [[0.0, 2.0]], [[-1.0, 0.0]]])
        super().__init__(action_bounds=bounds, observation_size=3, horizon=horizon)

    def initial(self, batch_size, generator):
        heat = torch.rand(batch_size, 1, generator=generator, dtype=self.dtype, device=self.device)
        return KilnState(heat, 0 * heat, torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 1, generator=generator, dtype=self.dtype, device=self.device)

    def transition(self, state, action, noise):
        regime = action.regime.unsqueeze(1)
        heat = 0.8 * state.heat + action.point - 0.3 * noise
        legal = self.regime_mask(state).gather(1, regime)
        return KilnState(torch.where(legal, heat, torch.nan), (regime == 1).to(self.dtype), state.period)

    def reward(self, state, action, noise, next_state):
        return -(next_state.heat[:, 0] - 1).square() - 0.1 * (action.regime > 0)

    def observation(self, state):
        return torch.cat([state.heat, state.fired, state.period.unsqueeze(1).to(self.dtype)], dim=1)

    def regime_mask(self, state):
        return torch.stack([state.period >= 0, state.fired[:, 0] < 0.5, state.period > 0], dim=1)


class StuckKilnEnv(KilnEnv):
    """Nothing may be done any more from period 2 on."""

    def regime_mask(self, state):
        return super().regime_mask(state) & (state.period < 2).unsqueeze(1)


class GateEnv(gym.Env):
    """Plain numpy, of no class of ours: two gates, of which the observation names the one that is open; five periods."""

    observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)
    action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.period, self.open = 0, int(self.np_random.integers(2))
        return np.array([self.open], dtype=np.float32), {}

    def step(self, action):
        regime, point = action
        if not self.action_masks()[regime]:
            raise ValueError(f"gate {regime} is shut")
        self.period, self.open = self.period + 1, int(self.np_random.integers(2))
        return np.array([self.open], dtype=np.float32), float(regime - abs(point).sum()), self.period == 5, False, {}

    def action_masks(self):
        return np.array([True, self.open == 0, self.open == 1])


class ShutGateEnv(GateEnv):
    def action_masks(self):
        return np.zeros(3, dtype=bool)
