"""The checker finds jumps that are planted at random, and takes neither kinks nor steep slopes for jumps."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridEnv, HybridInventoryEnv, check_hybrid_env
from hybrid_envs.checker import HybridEnvError
from hybrid_envs.probing import HybridEnvWarning, outputs_of, random_rollout


class ShopState(NamedTuple):
    stock: torch.Tensor
    heat: torch.Tensor
    period: torch.Tensor


class ShopEnv(HybridEnv[ShopState]):
    """Smooth, with sizes, bounds and coefficients drawn from a seed."""

    def __init__(self, seed: int):
        self.draw_from = np.random.default_rng(seed)
        n, n_regimes = self.draw_from.integers(1, 7), self.draw_from.integers(1, 4)
        kinds = np.array([[0.0, 1.0], [0.0, np.inf], [-2.0, 3.0], [-np.inf, np.inf]])
        bounds = kinds[self.draw_from.integers(len(kinds), size=(n_regimes, 1))].repeat(n, axis=1)
        super().__init__(action_bounds=bounds, observation_size=n + 1, horizon=8, action_scale=1.0)
        self.weight = torch.tensor(self.draw_from.uniform(0.2, 2.0, n), dtype=self.dtype)
        self.gain = torch.tensor(self.draw_from.uniform(0.5, 1.5, (n_regimes, n)), dtype=self.dtype)

    def initial(self, batch_size, generator):
        shape = (batch_size, self.action_size)
        stock = torch.rand(shape, generator=generator, dtype=self.dtype, device=self.device)
        return ShopState(stock, stock[:, 0] - 0.5, torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def sample_noise(self, batch_size, generator):
        shape = (self.horizon, batch_size, self.action_size)
        return torch.poisson(torch.full(shape, 1.0, dtype=self.dtype, device=self.device), generator=generator)

    def transition(self, state, action, noise):
        stock = 0.8 * state.stock + self.gain[action.regime] * action.point - 0.3 * noise
        return ShopState(stock, 0.5 * state.heat + stock.mean(dim=1).tanh(), state.period)

    def reward(self, state, action, noise, next_state):
        return -(next_state.stock.square() @ self.weight) - (action.point @ self.weight) - state.heat

    def observation(self, state):
        return torch.cat([state.stock, state.heat.unsqueeze(1)], dim=1)


class JumpingShop(ShopEnv):
    """
    One output jumps where a combination of b or of the stock exceeds a value that a random policy meets. Output, combination,
    value and height are drawn from the seed; the height is from 1 % of the output's standard deviation to all of it.
    """

    def __init__(self, seed: int):
        super().__init__(seed)
        draw_from, n = self.draw_from, self.action_size
        self.output = str(
            draw_from.choice(["reward", "next state.stock", "observation", "terminated"], p=[0.5, 0.2, 0.1, 0.2])
        )
        # observation() and terminal() know no b
        self.of_b = self.output in ("reward", "next state.stock") and bool(draw_from.integers(2))
        combinations = [np.eye(n)[draw_from.integers(n)], np.ones(n), draw_from.normal(size=n)]
        self.direction = torch.tensor(combinations[draw_from.integers(3)], dtype=self.dtype)
        self.threshold, self.height = torch.tensor(torch.inf), 0.0
        met = list(random_rollout(self, seed, copies=32))[1:]
        places = torch.cat([(probe.action.point if self.of_b else probe.state.stock) @ self.direction for probe in met])
        self.threshold = places.quantile(float(draw_from.uniform(0.05, 0.95)))
        outputs = [outputs_of(self, probe) for probe in met]
        spread = 1.0 if self.output == "terminated" else float(torch.cat([o[self.output][:, 0] for o in outputs]).std())
        self.height = spread * 10 ** draw_from.uniform(-2, 0) * draw_from.choice([-1, 1])

    def jump(self, output: str, value: torch.Tensor) -> torch.Tensor:
        """Shape ``(batch, 1)``; zero in all outputs but one."""
        return self.height * (self.output == output) * (value @ self.direction > self.threshold).unsqueeze(1)

    def transition(self, state, action, noise):
        following = super().transition(state, action, noise)
        jump = self.jump("next state.stock", action.point if self.of_b else state.stock)
        return following._replace(stock=following.stock + jump)

    def reward(self, state, action, noise, next_state):
        jump = self.jump("reward", action.point if self.of_b else state.stock)
        return super().reward(state, action, noise, next_state) + jump[:, 0]

    def observation(self, state):
        return super().observation(state) + self.jump("observation", state.stock)

    def terminal(self, state):
        return self.jump("terminated", state.stock)[:, 0] != 0


@pytest.mark.parametrize("seed", range(40))
def test_a_planted_jump_is_found(seed):
    env = JumpingShop(seed)
    if env.output == "terminated":
        with pytest.warns(HybridEnvWarning, match="terminated.*jumps by"):
            check_hybrid_env(env)
    else:
        with pytest.raises(HybridEnvError, match=f"{env.output} .*jumps by"):
            check_hybrid_env(env)


class WarehouseEnv(HybridInventoryEnv):
    """Another warehouse is rented as soon as more is stored than a policy with random regimes ever has."""

    def reward(self, state, action, noise, next_state):
        rent = 1.0 * (state.stock.sum(dim=(1, 2)) > 350)
        return super().reward(state, action, noise, next_state) - rent


def test_a_jump_is_found_in_states_that_only_a_policy_with_a_favourite_regime_meets():
    env = WarehouseEnv(2, horizon=30)
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(500, generator), env.sample_noise(500, generator)
    for period in range(env.horizon):
        regime = torch.randint(2, (500,), generator=generator)
        point = torch.rand(500, 2, generator=generator) * torch.tensor(env.action_scale)
        state = env.step_torch(state, HybridAction(regime, point), noise[period]).state
        assert state.stock.sum(dim=(1, 2)).max() < 350
    with pytest.raises(HybridEnvError, match=r"reward .*jumps by"):
        check_hybrid_env(env)


# kinks, steep slopes, vertical tangents, large and small numbers: all continuous, with a kink or a slope at 0
CONTINUOUS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs,
    "relu": torch.relu,
    "clamp": lambda x: x.clamp(-0.2, 0.3),
    "tanh": lambda x: (1e3 * x).tanh(),
    "steeper tanh": lambda x: (1e5 * x).tanh(),
    "steep ramp": lambda x: (1e4 * x).clamp(0, 1),
    "sigmoid": lambda x: (-1e3 * x).sigmoid(),
    "atan": lambda x: (1e5 * x).atan(),
    "root": lambda x: x.abs().sqrt(),
    "fifth root": lambda x: x.abs() ** 0.2,
    "signed root": lambda x: x.sign() * x.abs().sqrt(),
    "rounded root": lambda x: (x.square() + 1e-12).sqrt(),
    "entropy": lambda x: torch.special.xlogy(x.abs(), x.abs()),
    "large quadratic": lambda x: 1e6 * x.square(),
    "small quadratic": lambda x: 1e-6 * x.square(),
    "large number": lambda x: 1e8 + x.square(),
    "cubic": lambda x: 1e3 * x**3,
    "exponential": lambda x: (4 * x).exp(),
    "softplus": lambda x: torch.nn.functional.softplus(1e3 * x),
    "waves": lambda x: (100 * x).sin(),
    "triangles": lambda x: (30 * x).sin().asin(),
    "max of lines": lambda x: (x.unsqueeze(1) * torch.linspace(-9, 9, 30) - torch.linspace(-3, 3, 30) ** 2).amax(1).to(x),
    "min of parabolas": lambda x: (x.unsqueeze(1) - torch.linspace(-4, 4, 20, dtype=x.dtype)).square().amin(1),
    "price list": lambda x: torch.where(x < 0, 3 * x, 2 * x),
    "scarf": lambda x: torch.maximum(x, -1e4 * x),
    "pulse": lambda x: 1 / (1 + (1e3 * x).square()),
}


class KinkedShop(ShopEnv):
    """A continuous function of a combination of b, or of the stock, is added to the reward and to the heat."""

    def __init__(self, seed: int, function: Callable[[torch.Tensor], torch.Tensor], of_b: bool):
        super().__init__(seed)
        self.function, self.of_b = function, of_b
        self.direction = torch.tensor(self.draw_from.normal(size=self.action_size), dtype=self.dtype)
        self.centre = torch.tensor(self.draw_from.normal(), dtype=self.dtype)

    def value(self, state, action):
        return self.function((action.point if self.of_b else state.stock) @ self.direction - self.centre)

    def transition(self, state, action, noise):
        following = super().transition(state, action, noise)
        return following._replace(heat=following.heat.tanh() + self.value(state, action))

    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) - self.value(state, action)


@pytest.mark.parametrize("of_b", [True, False], ids=["of b", "of the state"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_is_continuous_passes(name, of_b):
    env = KinkedShop(list(CONTINUOUS).index(name), CONTINUOUS[name], of_b)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HybridEnvWarning)
        check_hybrid_env(env)


def test_a_registered_environment_does_not_warn(instance):
    env_id, kwargs = instance
    with warnings.catch_warnings():
        warnings.simplefilter("error", HybridEnvWarning)
        check_hybrid_env(gym.make(env_id, **kwargs), seed=11)
