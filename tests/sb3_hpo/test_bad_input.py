"""A mistake is named where it is made, before any work is lost."""

import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleObservation, TimeLimit, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.checks import require_finite_observation
from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.vec_env import HybridVecEnv
from tests.sb3_hpo.environments import PurseEnv, TargetEnv

ID, SMALL = "HybridInventory-v0", {"n_items": 2, "horizon": 10}
NET = {"net_arch": [8]}
TEXTS = "'lin_V', 'quad_V', 'early_V', 'late_V', 'exp_V', 'hold_V'"
"""How schedules can be written."""


@pytest.fixture(params=[HPO, HybridPPO])
def algorithm(request):
    return request.param


def small(env_class=HybridInventoryEnv, **kwargs):
    return env_class(**SMALL | kwargs)


def make(algorithm, env=None, **kwargs):
    kwargs = {"n_steps": 10, "batch_size": 10, "policy_kwargs": NET} | kwargs
    return algorithm("MlpPolicy", small() if env is None else env, **kwargs)


# ---- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [TargetEnv, lambda: DummyVecEnv([TargetEnv] * 2)])
def test_an_environment_without_step_torch_is_told_what_is_missing_and_where_to_go(env):
    with pytest.raises(TypeError, match=r"step_torch\(\), which .*TargetEnv.* does not have.*Use HybridPPO"):
        HPO("MlpPolicy", env(), policy_kwargs=NET)


def test_what_is_missing_is_told_before_the_wrappers_are_looked_at():
    """Most registered environments stand in a TimeLimit."""
    with pytest.raises(
        TypeError, match=r"step_torch\(\), which .*Pendulum.* does not have: it is not a hybrid_envs.HybridEnv"
    ):
        HPO("MlpPolicy", "Pendulum-v1")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: RescaleObservation(env, np.float32(-1), np.float32(1)),
        lambda env: TransformReward(env, lambda reward: reward / 100),
        lambda env: TimeLimit(env, 5),
        FlatActionWrapper,
    ],
)
def test_a_wrapper_that_gradients_cannot_follow_is_refused_by_name(wrap):
    env = small()
    env.observation_space = spaces.Box(-10, 10, env.observation_space.shape, dtype=np.float32)
    env = wrap(env)
    for given in (env, DummyVecEnv([lambda: env])):
        with pytest.raises(ValueError, match=rf"cannot differentiate through the wrapper {type(env).__name__}\..*HybridPPO"):
            HPO("MlpPolicy", given, policy_kwargs=NET)


def test_a_vec_wrapper_that_gradients_cannot_follow_is_refused_by_name():
    env = VecFrameStack(make_vec_env(ID, 2, env_kwargs=SMALL), 3)
    with pytest.raises(ValueError, match=r"cannot differentiate through VecFrameStack; it knows VecNormalize and VecMonitor"):
        HPO("MlpPolicy", env, policy_kwargs=NET)


def test_a_time_limit_given_to_gymnasium_make_is_refused_too():
    with pytest.raises(ValueError, match="TimeLimit"):
        HPO("MlpPolicy", gym.make(ID, max_episode_steps=5, **SMALL), policy_kwargs=NET)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", lambda: FlatActionWrapper(small())])
def test_hybrid_ppo_names_the_action_space_it_needs_and_the_one_it_got(env):
    with pytest.raises(TypeError, match=r"must be Tuple\(Discrete\(J\), Box\(shape=\(n,\)\)\).*, got (Box|Discrete)\("):
        HybridPPO("MlpPolicy", env if isinstance(env, str) else env(), policy_kwargs=NET)


def test_a_vec_env_of_different_problems_is_refused_and_the_difference_shown():
    costs = iter([1.0, 2.0])
    env = DummyVecEnv([lambda: gym.make(ID, fixed_cost=next(costs), **SMALL)] * 2)
    with pytest.raises(ValueError, match=r"holds 2: .*'fixed_cost': 1.0.*'fixed_cost': 2.0"):
        HPO("MlpPolicy", env, policy_kwargs=NET)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_a_misspelt_argument_is_named(algorithm):
    with pytest.raises(TypeError, match="n_scenario_count"):
        make(algorithm, n_scenario_count=3)


@pytest.mark.parametrize("n_scenarios", [0, -1, 2.5])
def test_a_number_of_scenarios_that_is_none_is_refused(n_scenarios):
    with pytest.raises(ValueError, match=rf"n_scenarios must be an integer >= 1, got {n_scenarios}"):
        HPO("MlpPolicy", small(), n_scenarios=n_scenarios, policy_kwargs=NET)


@pytest.mark.parametrize("ent_coef", ["linear_0.5", "lin_", "lin_half", "0.5"])
def test_a_schedule_that_cannot_be_read_is_refused_with_the_notation(algorithm, ent_coef):
    with pytest.raises(
        ValueError,
        match=rf"ent_coef must be a number, a schedule, or one of {TEXTS}, got '{ent_coef}'",
    ):
        make(algorithm, ent_coef=ent_coef)


@pytest.mark.parametrize("noise", [-0.5, "lin_-0.5"])
def test_a_negative_deviation_of_the_noise_is_refused(noise):
    with pytest.raises(ValueError, match=f"point_noise must be a finite number >= 0, got {noise!r}"):
        make(HPO, point_noise=noise)


def test_a_negative_deviation_of_the_noise_is_refused_in_loading_too(tmp_path):
    make(HPO).save(tmp_path / "model")
    with pytest.raises(ValueError, match="point_noise must be a finite number >= 0, got -1"):
        HPO.load(tmp_path / "model", point_noise=-1)


@pytest.mark.parametrize("name", ["continuous_learning_rate", "value_learning_rate", "point_noise"])
def test_a_schedule_of_hpo_that_cannot_be_read_is_refused_by_name(name):
    with pytest.raises(
        ValueError,
        match=f"{name} must be a number, a schedule, or one of {TEXTS}, got 'fast'",
    ):
        make(HPO, **{name: "fast"})


NAN, INF = math.nan, math.inf
NONSENSE = [  # argument, value, and what the error says is allowed
    *[("gamma", value, r"in \[0, 1\]") for value in (2, -0.1, NAN, INF, "0.99", True, None)],
    *[("gae_lambda", value, r"in \[0, 1\]") for value in (-1, 1.5, NAN, [0.9])],
    *[("clip_range", value, "> 0") for value in (-1, 0, NAN, INF, "lin_-0.2", lambda left: left - 0.5)],
    *[
        ("clip_range", value, "a number, a schedule")
        for value in (lambda: 0.2, lambda left: None, lambda left: 1 / (left - left))
    ],
    *[("clip_range_vf", value, "> 0") for value in (-1, NAN)],
    *[("n_epochs", value, "an integer >= 1") for value in (0, -1, 2.5, NAN, True, "5", None, -(10**400))],
    *[("n_steps", value, "an integer >= 1") for value in (0, -8, 1.5)],
    *[("batch_size", value, "an integer >= ") for value in (0, -4, 2.5)],
    *[("max_grad_norm", value, "> 0") for value in (-1, 0, NAN, -INF, None)],
    *[("vf_coef", value, ">= 0") for value in (NAN, -0.5, INF, "0.5")],
    *[("target_kl", value, "> 0 or None") for value in (-1, 0, NAN, "0.01")],
    *[("temperature", value, "> 0") for value in (0, -1, NAN, INF, "early_1", lambda left: left - 0.5)],
    *[("ent_coef", value, ">= 0") for value in (-0.1, NAN, INF, "lin_-1", lambda left: 1 - 2 * left)],
    *[("learning_rate", value, ">= 0") for value in (-1e-3, NAN, INF, "lin_nan", lambda left: NAN)],
    *[("learning_rate", value, f"a number, a schedule, or one of {TEXTS}") for value in (None, True, [1e-3])],
    *[("continuous_learning_rate", value, ">= 0") for value in (-1, NAN)],
    *[("normalize_reward", value, "True or False") for value in ("yes", NAN)],
    *[("value_learning_rate", value, ">= 0") for value in (-1, INF, "lin_-1")],
    *[("value_beyond_horizon", value, "True") for value in ("no", NAN, 1, None)],
    *[("stats_window_size", value, "an integer >= 1") for value in (0, 1.5)],
    *[("normalize_advantage", value, "True or False") for value in ("no", NAN, 1)],
    ("rollout_buffer_class", "x", "a subclass of Stable-Baselines3's RolloutBuffer, or None"),
    ("rollout_buffer_kwargs", 3, "a dict"),
    *[("use_sde", value, "True or False") for value in ("no", NAN, 0)],
    *[("verbose", value, r"in \[0, 2\]") for value in (3, -1, 0.5)],
    *[("seed", value, r"in \[0, 4294967295\] or None") for value in (-1, 2**32, 0.5, NAN)],
    *[("device", value, "'auto' or a device of torch's") for value in ("quantum", 5, "cuda:x")],
    *[("tensorboard_log", value, "a path or None") for value in (5, True)],
]
NONSENSE_OF_HPO = [
    *[("pathwise_weight", value, ">= 0") for value in (-1, NAN, INF, "1", None)],
    *[("pathwise_lambda", value, r"in \(0, 1\]") for value in (0, -0.5, 1.5, NAN, "1", None)],
    *[("point_noise", value, ">= 0") for value in (NAN, INF, lambda left: -left)],
    *[("cross_term", value, "True, False or 'auto'") for value in ("Auto", NAN, 1, None)],
]
NONSENSE_OF_THE_POLICY = [
    ({"net_arch": [0]}, r"net_arch\[0\] must be an integer >= 1, got 0"),
    ({"net_arch": [8, -8]}, r"net_arch\[1\] must be an integer >= 1, got -8"),
    ({"net_arch": [8.5]}, r"net_arch\[0\] must be an integer >= 1, got 8.5"),
    ({"net_arch": 8}, "net_arch must be a list of layer sizes, got 8"),
    ({"net_arch": {"discrete": [8], "continuous": [0], "value": [8]}}, r"net_arch\['continuous'\]\[0\] must be an integer"),
    ({"log_std_init": NAN}, "log_std_init must be a finite number, got nan"),
    ({"ortho_init": "no"}, "ortho_init must be True or False, got 'no'"),
    ({"activation_fn": "relu"}, "activation_fn must be a class of torch.nn, .* got 'relu'"),
    ({"optimizer_kwargs": {"betas": (0.9, 2)}}, r"betas\[1\] must be a finite number in \[0, 1\], got 2"),
    ({"optimizer_kwargs": {"betas": (NAN, 0.9)}}, r"betas\[0\] must be a finite number in \[0, 1\], got nan"),
    ({"optimizer_kwargs": {"betas": 0.9}}, "betas must be a pair of numbers, got 0.9"),
    ({"optimizer_kwargs": {"betas": (0.9, 0.99, 0.999)}}, r"betas must be a pair of numbers, got \(0.9, 0.99, 0.999\)"),
    ({"optimizer_kwargs": {"amsgrad": "no"}}, "amsgrad must be True or False, got 'no'"),
    ({"optimizer_kwargs": 5}, "optimizer_kwargs must be a dict, got 5"),
    ({"optimizer_class": "Adam"}, "optimizer_class must be a class of torch.optim, .* got 'Adam'"),
    ({"features_extractor_class": dict}, "features_extractor_class must be a subclass .* got <class 'dict'>"),
    ({"squash_output": "yes"}, "squash_output must be True or False, got 'yes'"),
    ({"normalize_images": NAN}, "normalize_images must be True or False, got nan"),
    ({"optimizer_kwargs": {"eps": INF}}, "eps must be a finite number >= 0, got inf"),
    ({"optimizer_kwargs": {"weight_decay": -1}}, "weight_decay must be a finite number >= 0, got -1"),
    ([8], r"policy_kwargs must be a dict, got \[8\]"),
    ({"net_arhc": [8]}, "policy_kwargs: .* has no argument 'net_arhc'; the nearest known name is 'net_arch'"),
    ({"optimizer_kwargs": {"esp": 1e-5}}, "optimizer_kwargs: Adam has no argument 'esp'; the nearest known name is 'eps'"),
    ({"optimizer_kwargs": {"lr": 1e-3}}, "optimizer_kwargs must leave out 'lr', which is the algorithm's learning_rate"),
]


def refuses(name, value, allowed):
    return pytest.raises(ValueError, match=f"^{name} must be .*{allowed}.*, got {re.escape(repr(value))}")


@pytest.mark.parametrize(("name", "value", "allowed"), NONSENSE)
def test_a_value_that_makes_no_sense_is_refused_by_name_by_both_algorithms(algorithm, name, value, allowed):
    with refuses(name, value, allowed):
        make(algorithm, **{name: value})


@pytest.mark.parametrize(("name", "value", "allowed"), NONSENSE_OF_HPO)
def test_a_value_that_makes_no_sense_is_refused_by_name_by_hpo(name, value, allowed):
    with refuses(name, value, allowed):
        make(HPO, **{name: value})


@pytest.mark.parametrize("std", [0, -1, NAN, "early_0.5"])
def test_a_standard_deviation_is_above_zero(std):
    with refuses("point_std", std, "> 0"):
        make(HybridPPO, point_std=std)


def test_a_point_without_a_density_has_no_standard_deviation():
    with pytest.raises(ValueError, match=r"point_std must be None: HPO's point has no density, got 'exp_0\.5'"):
        make(HPO, point_std="exp_0.5")


def test_hpo_clips_its_networks_apart(model_files):
    message = "clip_networks must be True: HPO's networks take steps apart, got False"
    with pytest.raises(ValueError, match=message):
        make(HPO, clip_networks=False)
    with pytest.raises(ValueError, match=message):
        HPO.load(model_files / "HPO", small(), clip_networks=False)


def test_hybrid_ppo_does_not_bound_what_follows_the_horizon(model_files):
    with refuses("value_beyond_horizon", "bounded", "True or False"):
        make(HybridPPO, value_beyond_horizon="bounded")
    with refuses("value_beyond_horizon", "bounded", "True or False"):
        HybridPPO.load(model_files / "HybridPPO", small(), value_beyond_horizon="bounded")


@pytest.mark.parametrize(("policy_kwargs", "message"), NONSENSE_OF_THE_POLICY)
def test_a_policy_or_optimizer_that_makes_no_sense_is_refused_by_name(algorithm, policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("MlpPolcy", "knows no policy 'MlpPolcy'; the nearest known name is 'MlpPolicy'"),
        ("CnnPolicy", "knows no policy 'CnnPolicy'"),
        (5, "policy must be 'MlpPolicy'.* or a policy class, got 5"),
        (dict, "policy must be 'MlpPolicy'.* or a policy class, got <class 'dict'>"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused_by_name(algorithm, policy, message):
    with pytest.raises(ValueError, match=message):
        algorithm(policy, small())


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for algorithm in (HPO, HybridPPO):
        make(algorithm).save(folder / algorithm.__name__)
    return folder


@pytest.mark.parametrize(("name", "value", "allowed"), NONSENSE)
def test_load_refuses_the_same_values(algorithm, name, value, allowed, model_files):
    with refuses(name, value, allowed):
        algorithm.load(model_files / algorithm.__name__, small(), **{name: value})


@pytest.mark.parametrize(("name", "value", "allowed"), NONSENSE_OF_HPO)
def test_load_refuses_the_same_values_of_hpo(name, value, allowed, model_files):
    with refuses(name, value, allowed):
        HPO.load(model_files / "HPO", small(), **{name: value})


def test_a_misspelt_argument_is_answered_with_the_nearest(algorithm):
    with pytest.raises(ValueError, match=f"{algorithm.__name__} has no argument 'temprature'; did you mean 'temperature'"):
        algorithm("MlpPolicy", small(), temprature=0.5)


def test_a_misspelt_argument_of_load_is_answered_with_the_nearest(algorithm, model_files):
    with pytest.raises(ValueError, match=f"{algorithm.__name__} has no argument 'gama'; did you mean 'gamma'"):
        algorithm.load(model_files / algorithm.__name__, small(), gama=0.9)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gamma": 1, "gae_lambda": 0, "ent_coef": 0, "vf_coef": 0, "target_kl": None, "clip_range_vf": None, "seed": None},
        {"max_grad_norm": INF},
        {"gamma": np.float32(0.9), "n_epochs": np.int64(2), "learning_rate": 0.0, "normalize_advantage": np.bool_(True)},
        {"clip_range": "exp_0.2", "clip_range_vf": "lin_0.3"},
        {"clip_range": lambda left: 0.2 * left, "ent_coef": lambda left: 0.1 * left, "learning_rate": "lin_1e-3"},
        {"policy_kwargs": {"net_arch": []}},
        {"policy_kwargs": {"net_arch": {"discrete": [], "continuous": (8,), "value": [np.int64(8)]}}},
        {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "optimizer_kwargs": {"betas": (0.0, 0.9), "eps": 1e-5}}},
    ],
)
def test_unusual_values_that_make_sense_are_accepted(algorithm, arguments):
    make(algorithm, **arguments).learn(10)


# ---- model files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small(n_items=3), "Observation spaces do not match"),
        (lambda: HybridSwitchedLQREnv(n_dims=10, n_modes=3), "Action spaces do not match"),
    ],
)
def test_a_model_of_another_environment_is_not_loaded_nor_given_that_environment(algorithm, other, message, tmp_path):
    model = make(algorithm)
    assert model.observation_space.shape == (10,)
    model.save(tmp_path / "model")
    for env in (other(), DummyVecEnv([other])):
        with pytest.raises(ValueError, match=message):
            algorithm.load(tmp_path / "model", env)
    with pytest.raises(ValueError, match=message):
        model.set_env(other())


def test_a_model_file_does_not_make_an_environment_differentiable(tmp_path):
    make(HPO).save(tmp_path / "model")
    with pytest.raises(TypeError, match="Use HybridPPO"):
        HPO.load(tmp_path / "model", TargetEnv())


def test_a_missing_model_file_is_named(algorithm):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        algorithm.load("nowhere", small())


# ---- training --------------------------------------------------------------------------------------------------------


class ExplodingEnv(HybridInventoryEnv):
    """Its cost is infinite in period 3."""

    def reward(self, state, action, noise, next_state):
        return torch.where(state.period == 3, -torch.inf, super().reward(state, action, noise, next_state))


def test_an_infinite_cost_stops_training_and_names_environment_and_period(algorithm):
    with pytest.raises(FloatingPointError, match=r"ExplodingEnv: non-finite reward in period 3 \(scenario 0\)"):
        make(algorithm, small(ExplodingEnv)).learn(100)


class EmptyPurseEnv(PurseEnv):
    """Its cost is undefined in the period in which a purse is emptied."""

    def reward(self, state, action, noise, next_state):
        reward = super().reward(state, action, noise, next_state)
        return torch.where((state.period == 2) & (action.regime == 1), torch.nan, reward)


def test_the_period_named_is_that_of_the_scenario_named():
    """Scenarios that end early are in other periods than their neighbours."""
    env = HybridVecEnv(EmptyPurseEnv(), 3)
    env.reset()
    state = env.simulator.state
    periods = torch.tensor([3, 2, 0])
    env.simulator.state = state._replace(money=torch.full_like(state.money, 15.0), period=periods)
    with pytest.raises(FloatingPointError, match=r"EmptyPurseEnv: non-finite reward in period 2 \(scenario 1\)"):
        env.step([(1, np.ones(1, dtype=np.float32))] * 3)


class SteepEnv(HybridInventoryEnv):
    """Its cost is finite, but has an infinite slope where nothing is ordered."""

    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) - (0 * action.point).sqrt().sum(dim=1)


def test_a_gradient_that_is_not_finite_stops_training_and_names_the_network():
    model = make(HPO, small(SteepEnv), n_scenarios=4)
    before = {name: value.clone() for name, value in model.policy.state_dict().items() if "continuous" in name}
    with pytest.raises(FloatingPointError, match=r"the gradient of the continuous network has norm nan at 40 steps"):
        model.learn(40)
    assert all(torch.equal(model.policy.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ((1, [3.0, -0.5]), r"b\[1\] = -0.5 is outside \[0.0, inf\]"),
        ((1, [np.nan, 1.0]), r"b\[0\] = nan is outside \[0.0, inf\]"),
        ((2, [1.0, 1.0]), r"regime 2 is not one of 0..1"),
        ((1, [1.0]), r"the point of an action has shape \(2,\), got \(1,\)"),
    ],
)
def test_an_action_outside_its_bounds_is_refused_by_the_batched_environment(action, message):
    env = HybridVecEnv(small(), 2)
    env.reset()
    with pytest.raises(ValueError, match=f"HybridInventoryEnv: {message}"):
        env.step([(0, np.zeros(2, dtype=np.float32)), action])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_action_is_made_of_an_observation_that_is_not_finite(algorithm, value):
    model = algorithm("MlpPolicy", small())
    observation = np.zeros((3, *model.observation_space.shape), dtype=np.float32)
    observation[1, 2] = value
    with pytest.raises(ValueError, match=rf"observation\[1, 2\] = {value}: must be finite"):
        model.predict(observation)
    with pytest.raises(ValueError, match=rf"observation\[0, 2\] = {value}: must be finite"):
        model.predict(observation[1])


def test_a_dict_observation_that_is_not_finite_is_named_by_its_key():
    observation = {"stock": torch.zeros(2, 3), "price": torch.tensor([[1.0], [torch.nan]])}
    with pytest.raises(ValueError, match=r"observation\['price'\]\[1, 0\] = nan: must be finite"):
        require_finite_observation(observation)
