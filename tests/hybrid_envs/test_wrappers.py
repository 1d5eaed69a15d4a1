import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from hybrid_envs.wrappers import ClipActionWrapper, FlatActionWrapper
from tests.factored import BreweryEnv


class FoldedEnv(gym.Env):
    """A hybrid action space and nothing else of a HybridEnv; it remembers what it was asked to do."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(np.float32([-1, 0]), np.float32([3, np.inf]))))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.action = action
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


class BoundedEnv(FoldedEnv):
    """Bounds of every kind, other ones in each regime."""

    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (3,))))
    action_bounds = np.array([[[0, 0], [1, np.inf], [-np.inf, -1]], [[2, 6], [-np.inf, np.inf], [-5, 5]]], dtype=np.float32)
    action_scale = np.array([1.0, 2.0, 3.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("scaled", "regime_zero", "regime_one"),
    [
        (-1.0, [0, 1, -31], [2, -20, -5]),
        (0.0, [0, 11, -16], [4, 0, 0]),
        (0.5, [0, 16, -8.5], [5, 10, 2.5]),
        (1.0, [0, 21, -1], [6, 20, 5]),
    ],
)
def test_each_entry_is_mapped_onto_the_interval_of_the_chosen_regime(scaled, regime_zero, regime_one):
    env = FlatActionWrapper(BoundedEnv(), span=10.0)
    for scores, regime, expected in [((0.3, 0.1), 0, regime_zero), ((-0.5, 0.2), 1, regime_one)]:
        x, b = env.action(np.array([*scores, scaled, scaled, scaled]))
        assert x == regime
        np.testing.assert_allclose(b, expected, rtol=1e-6)


def test_the_span_sets_how_far_an_infinite_bound_reaches():
    env = FlatActionWrapper(BoundedEnv(), span=1.0)
    np.testing.assert_allclose(env.action(np.ones(5))[1], [0, 3, -1], rtol=1e-6)


def test_of_equal_scores_the_first_regime_wins():
    assert FlatActionWrapper(BoundedEnv()).action(np.zeros(5))[0] == 0


def test_an_environment_without_bounds_per_regime_is_mapped_onto_its_box():
    env = FlatActionWrapper(FoldedEnv(), span=4.0)
    assert env.action_space.shape == (4,)
    env.reset()
    env.step(np.array([0.0, 1.0, -1.0, 1.0]))
    assert env.unwrapped.action[0] == 1
    assert env.unwrapped.action[1].tolist() == [-1.0, 4.0]


def test_flat_actions_reach_the_environment_as_hybrid_ones(env_id):
    flat, env = FlatActionWrapper(gym.make(env_id)), gym.make(env_id)
    flat.reset(seed=0), env.reset(seed=0)
    flat.action_space.seed(0)
    for _ in range(5):
        action = flat.action_space.sample()
        assert flat.action(action) in env.action_space
        observation, reward, *_ = flat.step(action)
        expected, expected_reward, *_ = env.step(flat.action(action))
        np.testing.assert_array_equal(observation, expected)
        assert reward == expected_reward


def test_the_point_keeps_to_the_bounds_of_its_regime(env):
    flat = FlatActionWrapper(env)
    flat.action_space.seed(0)
    for action in [flat.action_space.sample() for _ in range(50)] + [flat.action_space.low, flat.action_space.high]:
        regime, point = flat.action(action)
        own = [regime[f] for f in env.factors.factor_of] if env.factors.many else regime
        low, high = env.action_bounds[own, range(env.action_size)].T
        assert ((point >= low) & (point <= high)).all()


@pytest.mark.parametrize("limits", [(1, 2), (2, 2), (0, 1), (0, 3), (3, 3)])
def test_with_limits_the_scores_sum_to_the_most_that_they_allow(limits):
    env = BreweryEnv(horizon=20, active_limits=limits)
    flat = FlatActionWrapper(env)
    flat.reset(seed=0)
    flat.action_space.seed(0)
    every = np.array(list(itertools.product(range(2), range(3), range(2))))
    within = [x for x in every if limits[0] <= np.count_nonzero(x) <= limits[1]]
    for _ in range(20):
        action, mask = flat.action_space.sample(), env.action_masks()
        scores = np.where(mask, action[:7], -np.inf)
        best = max(within, key=lambda x: scores[np.array([0, 2, 5]) + x].sum())
        np.testing.assert_array_equal(flat.action(action)[0], best)
        flat.step(action)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(4), r"a flat action has shape \(5,\), got \(4,\)"),
        (np.zeros((1, 5)), r"a flat action has shape \(5,\), got \(1, 5\)"),
        (np.array([0, 0, np.nan, 0, 0]), r"action\[2\] = nan is outside \[-1, 1\]"),
        (np.array([0, 0, 0, 1.5, 0]), r"action\[3\] = 1.5 is outside \[-1, 1\]"),
    ],
)
def test_a_bad_flat_action_is_refused_with_its_value(action, message):
    with pytest.raises(ValueError, match=f"BoundedEnv: {message}"):
        FlatActionWrapper(BoundedEnv()).action(action)


@pytest.mark.parametrize("span", [0.0, -1.0, np.inf, np.nan])
def test_a_span_that_is_not_positive_and_finite_is_refused(span):
    with pytest.raises(ValueError, match="span must be positive and finite"):
        FlatActionWrapper(BoundedEnv(), span=span)


def test_an_environment_without_hybrid_actions_is_refused():
    with pytest.raises(TypeError, match=r"must be Tuple\(Discrete\(J\), Box\(shape=\(n,\)\)\)"):
        FlatActionWrapper(gym.make("Pendulum-v1"))


def test_a_wrapped_environment_is_made_again_from_its_spec(env_id):
    env = FlatActionWrapper(gym.make(env_id, horizon=7), span=3.0)
    again = gym.make(env.spec)
    assert isinstance(again, FlatActionWrapper)
    assert again.unwrapped.horizon == 7
    action = env.action_space.high
    np.testing.assert_array_equal(again.action(action)[1], env.action(action)[1])


def test_both_checkers_accept_the_wrapped_environment(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sb3_check_env(FlatActionWrapper(gym.make(env_id)))
        check_env(FlatActionWrapper(gym.make(env_id)))


@pytest.mark.parametrize(
    ("algorithm", "kwargs"), [(PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}), (SAC, {"learning_starts": 20})]
)
def test_a_stock_algorithm_trains_on_every_hybrid_environment(env_id, algorithm, kwargs):
    env = make_vec_env(env_id, n_envs=2, wrapper_class=FlatActionWrapper)
    model = algorithm("MlpPolicy", env, seed=0, **kwargs)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
    mean, _ = evaluate_policy(model, make_vec_env(env_id, wrapper_class=FlatActionWrapper), n_eval_episodes=2)
    assert np.isfinite(mean)


# ---- clipping ----------------------------------------------------------------------------------------------------------


def test_points_are_clipped_to_the_bounds_of_their_regime():
    env = ClipActionWrapper(BoundedEnv())
    assert env.action_space == BoundedEnv.action_space
    for x, expected in ((0, [0, 1, -1]), (1, [2, -9, 5])):
        regime, point = env.action((x, [-9.0, -9.0, 9.0]))
        assert regime == x and point.tolist() == expected and point.dtype == np.float32


def test_points_are_clipped_to_the_box_where_nothing_is_known_of_regimes():
    env = ClipActionWrapper(FoldedEnv())
    assert env.action((1, np.array([9.0, -9.0])))[1].tolist() == [3.0, 0.0]


def test_points_are_clipped_to_the_bounds_of_their_factors():
    env = ClipActionWrapper(BreweryEnv(masked=False))
    env.reset(seed=0)
    regime, point = env.action((np.array([0, 2, 1]), np.array([9.0, 9.0, -9.0, 9.0])))
    assert regime.tolist() == [0, 2, 1] and point.tolist() == [0.0, 3.0, 0.0, 1.0]
    env.step((np.array([0, 2, 1]), np.array([9.0, 9.0, -9.0, 9.0])))


def test_a_gaussian_that_nobody_clips_runs_through_every_environment(instance):
    env_id, kwargs = instance
    env, rng = ClipActionWrapper(gym.make(env_id, **kwargs)), np.random.default_rng(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        regime = env.action_space.sample()[0]
        _, reward, *_ = env.step((regime, rng.normal(size=env.action_space[1].shape, scale=3.0)))
        assert np.isfinite(reward)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ((2, np.zeros(3)), "BoundedEnv: regime 2 is not one of 0..1"),
        ((0, np.zeros(2)), r"BoundedEnv: the point of an action has shape \(3,\), got \(2,\)"),
    ],
)
def test_what_clipping_cannot_mend_is_refused(action, message):
    with pytest.raises(ValueError, match=message):
        ClipActionWrapper(BoundedEnv()).action(action)
    with pytest.raises(TypeError, match="must be Tuple"):
        ClipActionWrapper(gym.make("Pendulum-v1"))


def test_a_point_that_is_no_number_is_left_for_the_environment_to_refuse(env_id):
    env = ClipActionWrapper(gym.make(env_id))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"b\[0\] = nan"):
        env.step((0, np.full(env.action_space[1].shape, np.nan)))
