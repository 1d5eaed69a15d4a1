"""What a problem of one's own may bring along: rewards that do not vary, other bounds, float64, parameters that differ."""

import re
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from hybrid_envs import HybridEnv, HybridInventoryEnv, Uniform
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.callbacks import CostCallback
from sb3_hpo.checkpoint import ExactCheckpointCallback
from sb3_hpo.gradients import exact_gradient, expectation, measure_quality
from sb3_hpo.lookahead import Lookahead
from sb3_hpo.safe_files import load_safe, save_safe
from sb3_hpo.simulation import branched_returns
from tests.factored import BreweryEnv
from tests.sb3_hpo.test_gradients import DTYPE, double_policy, relative_error


class SlopeState(NamedTuple):
    x: torch.Tensor
    period: torch.Tensor


class SlopeEnv(HybridEnv[SlopeState]):
    """A number that b pushes; no ``params`` tell one instance from another."""

    def __init__(self, bounds=(((0, 0),), ((0, 10),)), price=1.0):
        super().__init__(action_bounds=np.array(bounds, float), observation_size=1, horizon=5)
        self.price = torch.tensor(price)

    def initial(self, batch_size, generator):
        x = torch.rand(batch_size, generator=generator, dtype=self.dtype)
        return SlopeState(x, torch.zeros(batch_size, dtype=torch.int64))

    def transition(self, state, action, noise):
        return state._replace(x=0.5 * state.x + action.point[:, 0])

    def reward(self, state, action, noise, next_state):
        return -self.price * (next_state.x - 3).square()

    def observation(self, state):
        return state.x[:, None]


class FlatEnv(SlopeEnv):
    """Costs 1 in every period, whatever is done."""

    def reward(self, state, action, noise, next_state):
        return -torch.ones_like(next_state.x)


class SharedLoadEnv(SlopeEnv):
    """Two units share a load: of none there is no share."""

    def __init__(self):
        bounds = np.array([[[0.0, 0], [0, 0]], [[0, 1], [0, 1]]])
        arguments = {"factor_sizes": [2, 2], "factor_of": [0, 1], "active_limits": (1, 2)}
        HybridEnv.__init__(self, action_bounds=bounds, observation_size=1, horizon=2, **arguments)

    def transition(self, state, action, noise):
        return state._replace(x=state.x - 0.1 * action.point.sum(1))

    def reward(self, state, action, noise, next_state):
        return -state.x / action.regime.sum(1) - (next_state.x - 1).square()


def test_rewards_that_are_all_the_same_are_no_unit():
    model = HPO("MlpPolicy", FlatEnv(), n_scenarios=8, seed=0).learn(5 * 8 * 3)
    values = model.policy.predict_values(torch.rand(4, 1))
    assert (model.reward_scale * values.abs() < 100).all()  # the value of a cost of 1 for ever; in units of 0 it was -1e8
    model = HPO("MlpPolicy", SlopeEnv(), n_scenarios=8, seed=0).learn(5 * 8)
    assert model.reward_scale > 2  # of squares of about 3


class RareEnv(SlopeEnv):
    """Costs 1 and hardly more in every period, but 5 more in one of 200, whatever is done."""

    def sample_noise(self, batch_size, generator):
        return (torch.rand(self.horizon, batch_size, generator=generator) < 0.005).to(self.dtype)

    def transition(self, state, action, noise):
        return state

    def reward(self, state, action, noise, next_state):
        return -1 - 0.001 * state.x - 5 * noise


class Returns(BaseCallback):
    """Mean returns of each iteration."""

    def _on_training_start(self):
        self.means = []

    def _on_rollout_end(self):
        self.means.append(self.model.reward_scale * self.model.rollout_buffer.returns.mean())

    def _on_step(self):
        return True


def test_values_keep_their_size_whether_or_not_a_rollout_has_seen_a_rare_event():
    seen = Returns()
    HPO("MlpPolicy", RareEnv(), n_scenarios=8, seed=0, gamma=0.9, gae_lambda=1.0).learn(40 * 8 * 5, seen)
    assert -12.5 < min(seen.means[20:]) < max(seen.means[20:]) < -9.5  # in the unit of one rollout some were -30,000


@pytest.mark.parametrize("save", ["zip", "plain"])
def test_a_model_is_not_loaded_for_other_bounds_of_its_regimes(save, tmp_path):
    model = HPO("MlpPolicy", SlopeEnv(), n_scenarios=4, seed=0)
    other = SlopeEnv(bounds=(((0, 10),), ((0, 0),)))  # the Box is the same
    model.save(tmp_path / "model.zip")
    save_safe(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape("action_bounds: the model's are [[[0.0, 0.0]], [[0.0, 10.0]]], the")):
        if save == "zip":
            HPO.load(tmp_path / "model.zip", env=other)
        else:
            load_safe(tmp_path / "model.safetensors", other)


def test_another_number_of_scenarios_may_be_asked_for_on_loading(tmp_path):
    model = HPO("MlpPolicy", SlopeEnv(), n_scenarios=4, seed=0)
    model.save(tmp_path / "model.zip")
    save_safe(model, tmp_path / "model.safetensors")
    loaded = HPO.load(tmp_path / "model.zip", env=SlopeEnv(), n_scenarios=16)
    safe = load_safe(tmp_path / "model.safetensors", SlopeEnv(), n_scenarios=16)
    for one in (loaded, safe):
        assert (one.n_envs, one.get_env().num_envs, one.n_scenarios) == (16, 16, 16)
        one.learn(16 * 5)
    with pytest.raises(ValueError, match="n_scenarios = 16: goes with one environment"):
        HPO.load(tmp_path / "model.zip", env=model.get_env(), n_scenarios=16)


@pytest.mark.parametrize("n_steps", [None, 3])
def test_hpo_trains_a_problem_that_was_moved_to_float64(n_steps):
    env = HybridInventoryEnv(1, horizon=8).to(dtype=torch.float64)
    model = HPO("MlpPolicy", env, n_scenarios=4, n_steps=n_steps, seed=0).learn(64)
    assert np.isfinite(model.rollout_buffer.values).all()


def recorded(period):
    """Demand whose mean does not tell where its peak was."""
    demand = np.full((30, 120, 1), 5.0)
    demand[3, period] = 50.0
    return demand


@pytest.mark.parametrize(
    "makes",
    [
        [lambda: gym.make("HybridMoving-v0"), lambda: gym.make("HybridSliding-v0")],
        [lambda: HybridInventoryEnv(demand=recorded(5)), lambda: HybridInventoryEnv(demand=recorded(6))],
        [lambda: SlopeEnv(price=1.0), lambda: SlopeEnv(price=50.0)],
    ],
    ids=["ids", "arrays", "attributes"],
)
def test_different_problems_in_one_vec_env_are_told_apart(makes):
    with pytest.raises(ValueError, match="HPO simulates one problem, but the VecEnv holds 2"):
        HPO("MlpPolicy", DummyVecEnv(makes), n_steps=4)
    HPO("MlpPolicy", DummyVecEnv([makes[0], makes[0]]), n_steps=4)


def test_a_run_is_not_resumed_on_other_parameters(tmp_path):
    def train(price, steps):
        model = HPO("MlpPolicy", SlopeEnv(price=price), n_scenarios=4, seed=0)
        model.learn(steps, callback=ExactCheckpointCallback(tmp_path, every=1))

    train(1.0, 40)
    with pytest.raises(ValueError, match=r"price.*1\.0.*50\.0"):
        train(50.0, 80)


def test_a_callback_that_is_used_again_looks_at_the_second_training():
    callback = CostCallback(every=20, n_scenarios=8)
    curves = []
    for seed in (0, 1):
        HPO("MlpPolicy", SlopeEnv(), n_scenarios=4, seed=seed).learn(60, callback=callback)
        curves.append((list(callback.steps), list(callback.costs)))
    assert curves[0][0] == curves[1][0] == [0, 20, 40, 60]
    assert len(curves[1][1]) == 4
    assert curves[0][1] != curves[1][1]


def test_an_integer_is_a_standard_deviation_too():
    model = HybridPPO("MlpPolicy", SlopeEnv(), n_steps=8, batch_size=8, policy_kwargs={"log_std_init": -1}, seed=0)
    assert model.policy.log_std.tolist() == [-1.0]


def test_lookahead_draws_the_futures_of_the_products_at_hand():
    env = HybridInventoryEnv(1, horizon=30, mean_demand=Uniform(1.0, 100.0))
    lookahead = Lookahead(HPO("MlpPolicy", env, n_scenarios=4, seed=0), env, n_scenarios=64)
    state = env.initial(6, torch.Generator().manual_seed(1))
    ((part, noise),) = lookahead._with_futures(state, 2)
    means = noise.mean(dim=(0, 2, 3)) / env.parameter("mean_demand", part).flatten()
    torch.testing.assert_close(means, torch.ones(6), rtol=0, atol=0.1)


def test_branches_take_the_points_of_their_own_regime():
    env = BreweryEnv(1, masked=False).to(dtype=DTYPE)  # of one period, so that nothing but the branches is drawn
    policy = double_policy(env, seed=5, points_see_regime=True)
    generator = torch.Generator().manual_seed(2)
    state, noise = env.initial(4, generator), env.sample_noise(4, generator)
    exact, found = exact_gradient(env, policy, state, noise), expectation("branched", env, policy, state, noise)
    for network, gradient in exact.items():
        assert relative_error(found[network], gradient) < 1e-9


def test_regimes_beyond_the_active_limits_are_not_executed():
    env = SharedLoadEnv()
    policy = HPO("MlpPolicy", env, n_scenarios=4, seed=0).policy
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(2, generator), env.sample_noise(2, generator)
    exact, found = exact_gradient(env, policy, state, noise), expectation("mixed", env, policy, state, noise)
    for network, gradient in exact.items():
        assert gradient.isfinite().all()
        assert relative_error(found[network], gradient) < 1e-3


def test_one_scenario_and_no_depth_are_refused():
    env = SlopeEnv()
    policy = HPO("MlpPolicy", env, n_scenarios=4, seed=0).policy
    with pytest.raises(ValueError, match="n_scenarios"):
        measure_quality(env, policy, ["mixed"], n_batches=2, n_scenarios=1)
    state, noise = env.initial(2, torch.Generator()), env.sample_noise(2, torch.Generator())
    states = type(state)(*(torch.stack([field] * env.horizon) for field in state))
    with pytest.raises(ValueError, match="depth"):
        branched_returns(env, policy, states, noise, depth=0)
