"""A mistake is named where it is made, before any work is lost."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import NameNotFound, ResetNeeded, VersionNotFound

from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.solvers import PeriodicReview, evaluate


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 0}, r"n_items must be an integer >= 1, got 0"),
        ({"n_items": 2.5}, r"n_items must be an integer >= 1, got 2.5"),
        ({"n_items": True}, r"n_items must be an integer >= 1, got True"),
        ({"lead_time": 0}, r"lead_time must be an integer >= 1, got 0"),
        ({"horizon": -3}, r"horizon must be an integer >= 1, got -3"),
        ({"holding_cost": -1.0}, r"holding_cost\[0\] = -1.0: must be finite and >= 0"),
        ({"n_items": 2, "underage_cost": [9.0, -7.0]}, r"underage_cost\[1\] = -7.0: must be finite and >= 0"),
        ({"fixed_cost": -64.0}, r"fixed_cost = -64.0: must be finite and >= 0"),
        ({"fixed_cost": np.nan}, r"fixed_cost = nan: must be finite"),
        ({"n_items": 3, "mean_demand": [1.0, 2.0]}, r"mean_demand must be a scalar or have shape \(3,\), got shape \(2,\)"),
        ({"mean_demand": 0.0}, r"mean_demand\[0\] = 0.0: must be finite and > 0"),
        ({"n_items": 2, "mean_demand": [10.0, np.inf]}, r"mean_demand\[1\] = inf: must be finite and > 0"),
        ({"holding_cost": "much"}, r"holding_cost must be numeric, got 'much'"),
        ({"demand": "normal", "demand_std": -1.0}, r"demand_std\[0\] = -1.0: must be finite and >= 0"),
        ({"demand_std": 2.0}, r"demand_std = 2.0 is only for demand = 'normal', got demand = 'poisson'"),
        ({"lost_sales": "zzz"}, r"lost_sales must be True or False, got 'zzz'"),
        ({"lost_sales": np.nan}, r"lost_sales must be True or False, got nan"),
        ({"lost_sales": 1}, r"lost_sales must be True or False, got 1"),
        ({"margin": 3.0}, r"margin = 3.0 needs lost_sales = True"),
        ({"margin": -3.0, "lost_sales": True}, r"margin\[0\] = -3.0: must be finite and >= 0"),
        ({"render_mode": "human"}, r"render_mode must be None or one of \['rgb_array'\], got 'human'"),
    ],
)
def test_a_bad_argument_of_the_inventory_environment_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(**kwargs)


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_dims": 0}, r"n_dims must be an integer >= 1, got 0"),
        ({"n_modes": 0}, r"n_modes must be an integer >= 1, got 0"),
        ({"n_dims": 2, "n_modes": 3}, r"n_modes = 3 must not exceed n_dims = 2"),
        ({"n_dims": 3, "A": EYE}, r"n_dims: sizes disagree, n_dims says 3, A says 2"),
        ({"A": EYE, "Q": np.eye(3)}, r"n_dims: sizes disagree, A says 2, Q says 3"),
        ({"n_modes": 3, "B": np.ones((2, 2, 2))}, r"n_modes: sizes disagree, n_modes says 3, B says 2"),
        ({"A": np.ones((3, 2))}, r"A must be a scalar or have shape \(2, 2\), got shape \(3, 2\)"),
        ({"A": 1.1}, r"A must be given as matrices, got shape \(\)"),
        ({"B": np.ones((2, 3, 2))}, r"B must be a scalar or have shape \(2, 2, 2\), got shape \(2, 3, 2\)"),
        ({"A": np.array([[1.0, np.nan], [0.0, 1.0]])}, r"A\[0, 1\] = nan: must be finite"),
        ({"Q": np.array([[1.0, 0.5], [0.0, 1.0]])}, r"Q\[0, 1\] = 0.5 and \[1, 0\] = 0.0: must be symmetric"),
        ({"Q": -EYE}, r"Q must be positive semidefinite; its least eigenvalue is -1"),
        ({"R": np.diag([1.0, 0.0])}, r"R must be positive definite; its least eigenvalue is 0"),
        ({"horizon": 0}, r"horizon must be an integer >= 1, got 0"),
    ],
)
def test_a_bad_argument_of_the_switched_regulator_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridSwitchedLQREnv(**kwargs)


def test_a_singular_state_cost_is_allowed():
    assert HybridSwitchedLQREnv(Q=np.diag([1.0, 0.0])).n_dims == 2


# ---- gymnasium.make ------------------------------------------------------------------------------------------------------


def test_an_unknown_id_is_refused_with_a_hint():
    with pytest.raises(NameNotFound, match="HybridInventory"):
        gym.make("HybridInventroy-v0")


def test_an_unknown_version_is_refused():
    with pytest.raises(VersionNotFound, match="HybridInventory"):
        gym.make("HybridInventory-v7")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_unknown_argument_is_named(env_id, make):
    with pytest.raises(TypeError, match="n_itmes"):
        make(env_id, n_itmes=3)


def test_the_number_of_scenarios_must_be_positive(env_id):
    with pytest.raises(ValueError, match=r"num_envs must be an integer >= 1, got 0"):
        gym.make_vec(env_id, num_envs=0)


# ---- actions -------------------------------------------------------------------------------------------------------------

GOOD_POINT = np.array([1.0, 2.0])
BAD_ACTIONS = [
    ((2, GOOD_POINT), r"regime 2 is not one of 0\.\.1"),
    ((-1, GOOD_POINT), r"regime -1 is not one of 0\.\.1"),
    ((0.5, GOOD_POINT), r"regime 0\.5 is not one of 0\.\.1"),
    ((1, np.array([1.0, -2.0])), r"b\[1\] = -2\.0 is outside \[0\.0, inf\]"),
    ((1, np.array([np.nan, 2.0])), r"b\[0\] = nan is outside"),
    ((1, np.array([1.0, np.inf])), r"b\[1\] = inf is outside"),
]
MISSHAPEN_ACTIONS = [
    ((1, np.ones(3)), r"the point of an action has shape \(2,\), got \(3,\)"),
    ((1, 1.0), r"the point of an action has shape \(2,\), got \(\)"),
    ((np.array([0, 1]), GOOD_POINT), r"an action is a pair \(regime, point\), got \(array\(\[0, 1\]\)"),
    ((np.nan, GOOD_POINT), r"an action is a pair \(regime, point\), got \(nan"),
    ((None, GOOD_POINT), r"an action is a pair \(regime, point\), got \(None"),
    (("one", GOOD_POINT), r"an action is a pair \(regime, point\), got \('one'"),
    ((1, ["a", "b"]), r"an action is a pair \(regime, point\), got \(1, \['a', 'b'\]\)"),
    (1, r"an action is a pair \(regime, point\), got 1"),
    (np.array([1.0, 1.0, 2.0]), r"an action is a pair \(regime, point\), got array"),
]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS + MISSHAPEN_ACTIONS)
def test_a_bad_action_is_refused_with_environment_value_and_bound(action, message):
    env = gym.make("HybridInventory-v0", n_items=2, disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"HybridInventory-v0: {message}"):
        env.step(action)


def test_a_refused_action_leaves_the_episode_where_it_was():
    env, twin = HybridInventoryEnv(2), HybridInventoryEnv(2)
    env.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match="regime 7"):
        env.step((7, GOOD_POINT))
    for _ in range(3):
        assert env.step((1, GOOD_POINT))[1] == twin.step((1, GOOD_POINT))[1]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS)
def test_a_bad_action_among_good_ones_is_refused_by_the_vector_environment(action, message):
    vector = gym.make_vec("HybridInventory-v0", num_envs=2, n_items=2)
    vector.reset(seed=0)
    regime, point = action
    with pytest.raises(ValueError, match=f"HybridInventory-v0: {message}"):
        vector.step((np.array([1, regime]), np.stack([GOOD_POINT, point])))


@pytest.mark.parametrize(
    "actions",
    [(np.zeros(3, dtype=int), np.ones((2, 2))), (np.zeros(2, dtype=int), np.ones((2, 3)))],
    ids=["regimes", "points"],
)
def test_a_batch_of_actions_of_another_shape_is_refused_with_the_shapes(actions):
    vector = gym.make_vec("HybridInventory-v0", num_envs=2, n_items=2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shapes \(2,\) and \(2, 2\), got"):
        vector.step(actions)


# ---- order of calls ------------------------------------------------------------------------------------------------------


def test_a_step_before_the_first_reset_is_refused(env_id):
    for env in (gym.make(env_id), gym.make(env_id).unwrapped, gym.make_vec(env_id, num_envs=2)):
        with pytest.raises(ResetNeeded):
            env.step(env.action_space.sample())


def test_a_step_after_the_end_of_the_episode_is_refused():
    env = HybridInventoryEnv(1, horizon=1)
    env.reset(seed=0)
    env.step((0, np.zeros(1)))
    with pytest.raises(ResetNeeded, match=r"HybridInventoryEnv: call reset\(\) before step\(\)"):
        env.step((0, np.zeros(1)))


def test_a_picture_before_the_first_reset_is_refused(env_id):
    with pytest.raises(ResetNeeded):
        gym.make(env_id, render_mode="rgb_array").unwrapped.render()


def test_moving_an_environment_ends_its_episode():
    env = HybridInventoryEnv(1)
    env.reset(seed=0)
    env.to(dtype=torch.float64)
    with pytest.raises(ResetNeeded):
        env.step((0, np.zeros(1)))


# ---- numbers that got out of hand ----------------------------------------------------------------------------------------

HUGE = np.float32(3e38)


def test_a_cost_beyond_all_numbers_raises_with_environment_and_period():
    env = gym.make("HybridSwitchedLQR-v0")
    env.reset(seed=0)
    env.step((0, np.zeros(8)))
    with pytest.raises(FloatingPointError, match="HybridSwitchedLQR-v0: non-finite reward in period 1"):
        env.step((0, np.full(8, HUGE)))


def test_a_state_beyond_all_numbers_raises_with_environment_and_period():
    env = gym.make("HybridInventory-v0", n_items=1, mean_demand=1e-3, lead_time=1)
    env.reset(seed=0)
    with pytest.raises(FloatingPointError, match="HybridInventory-v0: non-finite observation in period 0"):
        env.step((1, np.array([HUGE])))


def test_the_vector_environment_names_the_period_and_the_scenario():
    vector = gym.make_vec("HybridSwitchedLQR-v0", num_envs=3)
    vector.reset(seed=0)
    points = np.zeros((3, 8))
    vector.step((np.zeros(3, dtype=int), points))
    points[1] = HUGE
    with pytest.raises(FloatingPointError, match=r"HybridSwitchedLQR-v0: non-finite reward in period 1 \(scenario 1\)"):
        vector.step((np.zeros(3, dtype=int), points))


def test_what_cannot_be_evaluated_is_named():
    env, policy = HybridInventoryEnv(2, horizon=4), PeriodicReview(HybridInventoryEnv(2), 4, 20.0)
    with pytest.raises(TypeError, match=r"env must be a HybridEnv, .* got a CartPoleEnv"):
        evaluate(gym.make("CartPole-v1"), policy, 3, seed=0)
    with pytest.raises(TypeError, match=r"policy must have predict\(\).* got <function"):
        evaluate(env, lambda observation: (0, np.zeros(2)), 3, seed=0)  # type: ignore[arg-type]
