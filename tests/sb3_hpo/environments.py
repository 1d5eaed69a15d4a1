"""Small environments for the tests of sb3_hpo; in a module of their own, so that subprocesses can import them."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from hybrid_envs import HybridEnv


class TargetEnv(gym.Env):
    """
    Not differentiable, plain numpy: one period, which pays 1 for regime 1 and takes the squared distance of b from the target
    that was shown. It refuses actions outside its space and remembers those it got.
    """

    def __init__(self, dict_observation: bool = False):
        target = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self.dict_observation = dict_observation
        self.observation_space = spaces.Dict({"target": target, "mood": spaces.Discrete(3)}) if dict_observation else target
        self.action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-2.0, 2.0, (1,), dtype=np.float32)))
        self.received: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self._observation(), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self.received.append(action)
        regime, point = action
        return self._observation(), float(regime - (point[0] - self.target[0]) ** 2), True, False, {}

    def _observation(self):
        return {"target": self.target, "mood": 1} if self.dict_observation else self.target


class DriftEnv(gym.Env):
    """
    Not differentiable, plain numpy: steer a drifting point of the plane to the origin, without regimes. The same problem
    with the control alone (``flat``) or with a regime of one value before it.
    """

    def __init__(self, flat: bool):
        control = spaces.Box(-1e6, 1e6, (2,), dtype=np.float32)
        self.flat = flat
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
        self.action_space = control if flat else spaces.Tuple((spaces.Discrete(1), control))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.period = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.position, {}

    def step(self, action):
        control = action if self.flat else action[1]
        cost = float((self.position**2).sum() + 0.1 * (control**2).sum())
        self.position = (self.position + 0.5 * control + self.np_random.normal(0, 0.1, 2)).astype(np.float32)
        self.period += 1
        return self.position, -cost, False, self.period == 7, {}


class PurseState(NamedTuple):
    money: torch.Tensor
    period: torch.Tensor


class PurseEnv(HybridEnv[PurseState]):
    """
    Differentiable: spend b from a purse, twice as fast in regime 1, until it is empty (terminated) or four periods are over
    (truncated). Purses differ, so that scenarios end at different times.
    """

    def __init__(self):
        super().__init__(action_bounds=np.array([[[0.0, 4.0]], [[0.0, 4.0]]]), observation_size=2, horizon=4)

    def initial(self, batch_size, generator):
        money = 20 * torch.rand(batch_size, 1, generator=generator, dtype=self.dtype)
        return PurseState(money, torch.zeros(batch_size, dtype=torch.int64))

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 1, generator=generator, dtype=self.dtype)

    def transition(self, state, action, noise):
        return PurseState(state.money - action.point * (1 + action.regime.unsqueeze(1)) - noise, state.period)

    def reward(self, state, action, noise, next_state):
        return -(action.point - 1).square().sum(1) - 0.1 * next_state.money.square().sum(1)

    def observation(self, state):
        return torch.cat([state.money, state.period.unsqueeze(1).to(self.dtype)], dim=1)

    def terminal(self, state):
        return state.money[:, 0] <= 0
