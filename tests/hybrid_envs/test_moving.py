"""Every expected number here was worked out by hand from the problem's equations."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridMovingEnv, HybridSlidingEnv, check_hybrid_env
from hybrid_envs.moving.env import ACCELERATE, BRAKE, TARGET_RADIUS, TURN, MovingState
from hybrid_envs.solvers import AlignAndStop, evaluate, success_rate

BOTH = pytest.mark.parametrize("env_class", [HybridMovingEnv, HybridSlidingEnv])


def state_of(position, velocity=(0.0, 0.0), heading=0.0, target=(0.0, 0.0), period=0):
    """One agent in float64."""
    pairs = [torch.tensor([[pair]], dtype=torch.float64) for pair in (position, velocity, target)]
    angle = torch.tensor([[heading]], dtype=torch.float64)
    return MovingState(pairs[0], pairs[1], angle, pairs[2], torch.tensor([period]))


def step(env, state, regime, b=(0.0, 0.0)):
    env = env.to(dtype=torch.float64)
    action = HybridAction(torch.tensor([regime]), torch.tensor([b], dtype=torch.float64))
    return env.step_torch(state, action, torch.empty(1, 0))


def drive(env, state, *actions):
    """The states and rewards of a sequence of (regime, b)."""
    states, rewards = [], []
    for regime, b in actions:
        result = step(env, state, regime, b)
        state = result.state
        states.append(state)
        rewards.append(result.reward.item())
    return states, rewards


# ---- trajectories by hand ----------------------------------------------------------------------------------------------


@BOTH
def test_accelerating_adds_speed_along_the_heading_and_then_moves(env_class):
    result = step(env_class(), state_of([0.2, 0.0], heading=np.pi / 2, target=[0.2, 0.5]), ACCELERATE, (0.8, 0.7))
    np.testing.assert_allclose(result.state.velocity[0, 0], [0.0, 0.4], atol=1e-15)
    np.testing.assert_allclose(result.state.position[0, 0], [0.2, 0.002], atol=1e-15)
    assert result.state.heading.item() == np.pi / 2  # the rotation is not this regime's
    assert result.reward.item() == pytest.approx(0.002 - 0.001)


def test_turning_takes_the_velocity_along():
    start = state_of([0.0, 0.0], velocity=[2.0, 0.0], target=[0.5, 0.0])
    result = step(HybridMovingEnv(), start, TURN, (0.9, -1.0))
    assert result.state.heading.item() == pytest.approx(-np.pi / 2)
    np.testing.assert_allclose(result.state.velocity[0, 0], [0.0, -2.0], atol=1e-15)
    np.testing.assert_allclose(result.state.position[0, 0], [0.0, -0.01], atol=1e-15)
    assert result.reward.item() == pytest.approx(0.5 - np.hypot(0.5, 0.01) - 0.001)


def test_two_quarter_turns_to_the_left_reverse_the_velocity():
    start = state_of([0.0, 0.0], velocity=[1.2, 1.6], heading=np.arctan2(4, 3), target=[0.5, 0.0])
    states, _ = drive(HybridMovingEnv(), start, *[(TURN, (0.0, 1.0))] * 2)
    np.testing.assert_allclose(states[0].velocity[0, 0], [-1.6, 1.2], atol=1e-15)
    np.testing.assert_allclose(states[1].velocity[0, 0], [-1.2, -1.6], atol=1e-15)


def test_turning_while_sliding_leaves_the_direction_of_travel():
    start = state_of([0.0, 0.0], velocity=[2.0, 0.0], target=[0.5, 0.0])
    result = step(HybridSlidingEnv(), start, TURN, (0.9, -1.0))
    assert result.state.heading.item() == pytest.approx(-np.pi / 2)
    np.testing.assert_allclose(result.state.velocity[0, 0], [2.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(result.state.position[0, 0], [0.01, 0.0], atol=1e-15)


def test_after_a_turn_sliding_adds_the_two_velocities():
    """0.3 along x, then, turned by a right angle, 0.4 along y: 0.5 in the direction (3, 4)."""
    actions = [(ACCELERATE, (0.6, 0.0)), (TURN, (0.0, 1.0)), (ACCELERATE, (0.8, 0.0))]
    sliding, _ = drive(HybridSlidingEnv(), state_of([0.0, 0.0], target=[0.5, 0.5]), *actions)
    moving, _ = drive(HybridMovingEnv(), state_of([0.0, 0.0], target=[0.5, 0.5]), *actions)
    np.testing.assert_allclose(sliding[-1].velocity[0, 0], [0.3, 0.4], atol=1e-15)
    np.testing.assert_allclose(moving[-1].velocity[0, 0], [0.0, 0.7], atol=1e-15)
    np.testing.assert_allclose(sliding[-1].position[0, 0], 0.005 * np.array([0.9, 0.4]), atol=1e-15)


@BOTH
def test_braking_loses_a_tenth_of_speed_and_stops_at_nought(env_class):
    start = state_of([-0.5, 0.0], velocity=[0.15, 0.2], heading=1.0, target=[0.5, 0.0])
    states, _ = drive(env_class(), start, *[(BRAKE, (1.0, 1.0))] * 3)
    np.testing.assert_allclose(states[0].velocity[0, 0], [0.09, 0.12], atol=1e-15)
    np.testing.assert_allclose(states[1].velocity[0, 0], [0.03, 0.04], atol=1e-15)
    assert states[2].velocity.tolist() == [[[0.0, 0.0]]]
    np.testing.assert_allclose(states[2].position[0, 0], [-0.5 + 0.0006, 0.0008], atol=1e-15)
    assert states[2].heading.item() == 1.0


def test_the_observation_by_hand():
    env = HybridMovingEnv(2).to(dtype=torch.float64)
    state = MovingState(
        torch.tensor([[[0.1, -0.2], [0.5, 0.5]]], dtype=torch.float64),
        torch.tensor([[[0.3, -0.4], [0.0, 0.0]]], dtype=torch.float64),
        torch.tensor([[0.0, np.pi / 2]], dtype=torch.float64),
        torch.tensor([[[0.4, 0.2], [0.5, 0.45]]], dtype=torch.float64),
        torch.tensor([50]),
    )
    first = [0.1, -0.2, 0.5, 1.0, 0.0, 0.4, 0.2, 0.5, 0.0]
    second = [0.5, 0.5, 0.0, 0.0, 1.0, 0.5, 0.45, 0.05, 1.0]
    np.testing.assert_allclose(env.observation(state)[0], [*first, *second, 0.25], atol=1e-15)


# ---- how episodes end --------------------------------------------------------------------------------------------------


def test_a_stop_on_the_target_pays_one_and_ends_the_episode():
    result = step(HybridMovingEnv(), state_of([0.05, 0.0], velocity=[0.08, 0.0]), BRAKE)
    assert result.terminated.item() and not result.truncated.item()
    assert result.reward.item() == pytest.approx(1 - 0.001)


@pytest.mark.parametrize(("x", "velocity"), [(0.05, 0.12), (0.11, 0.08)], ids=["still moving", "beside the target"])
def test_no_stop_on_the_target_goes_on(x, velocity):
    result = step(HybridMovingEnv(), state_of([x, 0.0], velocity=[velocity, 0.0]), BRAKE)
    assert not (result.terminated | result.truncated).item()
    assert result.reward.item() <= 0


@pytest.mark.parametrize(("start", "velocity"), [([0.999, 0.0], [0.5, 0.0]), ([0.0, -0.999], [0.0, -0.5])])
def test_leaving_the_field_pays_minus_one_and_ends_the_episode(start, velocity):
    result = step(HybridMovingEnv(), state_of(start, velocity=velocity), TURN)
    assert result.terminated.item() and not result.truncated.item()
    assert result.reward.item() == -1.0


def test_running_out_of_time_pays_minus_one_and_is_no_truncation():
    env = HybridMovingEnv(horizon=3)
    _, rewards = drive(env, state_of([0.5, 0.0]), *[(BRAKE, (0.0, 0.0))] * 2)
    assert rewards == [-0.001, -0.001]
    result = step(env, state_of([0.5, 0.0], period=2), BRAKE)
    assert result.terminated.item() and not result.truncated.item()
    assert result.reward.item() == -1.0


def test_a_stop_in_the_last_period_is_still_a_success():
    result = step(HybridMovingEnv(horizon=3), state_of([0.05, 0.0], period=2), BRAKE)
    assert result.reward.item() == pytest.approx(1 - 0.001)


def pair(positions, velocities=((0.0, 0.0), (0.0, 0.0))):
    """Two agents with targets (0, 0) and (0.5, 0.5), heading along x."""
    values = [torch.tensor([value], dtype=torch.float64) for value in (positions, velocities)]
    targets = torch.tensor([[[0.0, 0.0], [0.5, 0.5]]], dtype=torch.float64)
    return MovingState(*values, torch.zeros(1, 2, dtype=torch.float64), targets, torch.tensor([0]))


def test_several_agents_have_to_stand_on_their_targets_at_once():
    env = HybridMovingEnv(2)
    one = step(env, pair([[0.0, 0.0], [0.5, 0.2]]), BRAKE, (0.0,) * 4)
    both = step(env, pair([[0.05, 0.0], [0.5, 0.45]]), BRAKE, (0.0,) * 4)
    assert not one.terminated.item()
    assert both.terminated.item()
    assert both.reward.item() == pytest.approx(1 - 0.001)


def test_several_agents_take_their_own_accelerations_and_rotations_and_share_the_progress():
    env = HybridMovingEnv(2)
    result = step(env, pair([[-0.5, 0.0], [0.0, 0.5]]), ACCELERATE, (1.0, 0.5, 0.3, 0.3))
    np.testing.assert_allclose(result.state.velocity[0], [[0.5, 0.0], [0.25, 0.0]], atol=1e-15)
    assert result.reward.item() == pytest.approx((0.0025 + 0.00125) / 2 - 0.001)
    turned = step(env, pair([[-0.5, 0.0], [0.0, 0.5]]), TURN, (1.0, 1.0, 0.5, -1.0))
    np.testing.assert_allclose(turned.state.heading[0], [np.pi / 4, -np.pi / 2])


def test_starts_cover_the_field_and_the_targets_lie_within_it():
    state = HybridMovingEnv().initial(20_000, torch.Generator().manual_seed(0))
    for values, low, high in ((state.position, -1, 1), (state.target, -0.9, 0.9), (state.heading, 0, 2 * np.pi)):
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert not state.velocity.any()
    assert abs(torch.corrcoef(torch.cat([state.position[:, 0].T, state.target[:, 0].T]))[0, 2]) < 0.03


# ---- gradients ---------------------------------------------------------------------------------------------------------


@BOTH
def test_gradients_of_the_return_equal_finite_differences_along_a_drive(env_class):
    """Accelerate, steer and brake on the move: in float64, in all b, far from the kinks."""
    regimes = [ACCELERATE, TURN, ACCELERATE, TURN, BRAKE, ACCELERATE, BRAKE, TURN]
    env = env_class()

    def total(b):
        state, rewards = state_of([-0.5, -0.3], heading=0.3, target=[0.4, 0.5]), []
        for regime, point in zip(regimes, b, strict=True):
            result = env.to(dtype=torch.float64).step_torch(
                state, HybridAction(torch.tensor([regime]), point[None]), torch.empty(1, 0)
            )
            state = result.state
            rewards.append(result.reward)
        return torch.stack(rewards).sum()

    b = torch.tensor([[0.4 + 0.05 * t, 0.5 - 0.12 * t] for t in range(len(regimes))], dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(total, b)
    for t, regime in enumerate(regimes):
        for i in range(2):
            change = torch.zeros_like(b)
            change[t, i] = 1e-5
            expected = (total(b + change) - total(b - change)) / 2e-5
            assert gradient[t, i].item() == pytest.approx(expected.item(), abs=1e-9)
            matters = (regime, i) in ((ACCELERATE, 0), (TURN, 1)) and not (env.slides and t == len(regimes) - 1)
            assert (gradient[t, i] != 0) == matters


def test_failing_pays_no_gradient():
    b = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    state = state_of([0.999, 0.0], velocity=[0.5, 0.0])
    result = (
        HybridMovingEnv()
        .to(dtype=torch.float64)
        .step_torch(state, HybridAction(torch.tensor([ACCELERATE]), b), torch.empty(1, 0))
    )
    assert result.reward.item() == -1.0
    assert torch.autograd.grad(result.reward.sum(), b)[0].tolist() == [[0.0, 0.0]]


def test_gradients_are_finite_at_rest_on_the_centre_of_the_target():
    state = state_of([0.0, 0.0])
    leaves = [field.requires_grad_() for field in state if field.is_floating_point()]
    result = step(HybridMovingEnv(), state, BRAKE)
    outcome = result.reward.sum() + result.observation.sum() + sum(f.sum() for f in result.state)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(outcome, leaves))


# ---- a regime for each agent -------------------------------------------------------------------------------------------


def test_with_own_regimes_each_agent_does_its_own_thing():
    env = HybridMovingEnv(3, regimes="own").to(dtype=torch.float64)
    assert env.action_space[0] == gym.spaces.MultiDiscrete([3, 3, 3])
    state = MovingState(
        torch.tensor([[[-0.5, 0.0], [0.0, 0.5], [0.2, 0.2]]], dtype=torch.float64),
        torch.tensor([[[0.0, 0.0], [0.2, 0.0], [0.0, 0.3]]], dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.float64),
        torch.zeros(1, 3, 2, dtype=torch.float64),
        torch.tensor([0]),
    )
    action = HybridAction(torch.tensor([[ACCELERATE, TURN, BRAKE]]), torch.full((1, 6), 1.0, dtype=torch.float64))
    following = env.step_torch(state, action, torch.empty(1, 0)).state
    np.testing.assert_allclose(following.velocity[0], [[0.5, 0.0], [0.0, 0.2], [0.0, 0.2]], atol=1e-15)
    np.testing.assert_allclose(following.heading[0], [0.0, np.pi / 2, 0.0])


@BOTH
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_agents_that_happen_to_agree_move_as_under_a_common_regime(env_class, n_agents):
    shared, own = env_class(n_agents), env_class(n_agents, regimes="own")
    generator = torch.Generator().manual_seed(0)
    states = [shared.initial(20, generator)] * 2
    for _ in range(6):
        regime = torch.randint(3, (20,), generator=generator)
        point = 2 * torch.rand(20, 2 * n_agents, generator=generator) - 1
        results = [
            env.step_torch(state, HybridAction(x, point), torch.empty(20, 0))
            for env, state, x in zip((shared, own), states, (regime, regime[:, None].repeat(1, n_agents)), strict=True)
        ]
        states = [result.state for result in results]
        for left, right in zip(*states, strict=True):
            assert torch.equal(left, right)
        assert torch.equal(results[0].reward, results[1].reward)


@BOTH
@pytest.mark.parametrize("n_agents", [1, 2, 5])
def test_the_reference_controller_arrives_sooner_with_own_regimes(env_class, n_agents):
    costs = {}
    for regimes in ("shared", "own"):
        env = env_class(n_agents, regimes=regimes)
        assert success_rate(env, AlignAndStop(env), 64, seed=0) == 1.0
        costs[regimes] = evaluate(env, AlignAndStop(env), 64, seed=0)
    assert costs["own"].mean() <= costs["shared"].mean() + 1e-6
    if n_agents == 1:
        np.testing.assert_array_equal(costs["own"], costs["shared"])


@BOTH
def test_moving_with_own_regimes_keeps_the_contract(env_class):
    check_hybrid_env(env_class(2, regimes="own", max_acceleration=2.0, horizon=30))


# ---- the reference controller, and figures -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("n_agents", [1, 4])
def test_the_reference_controller_always_arrives(env_class, n_agents):
    env = env_class(n_agents)
    assert success_rate(env, AlignAndStop(env), 64, seed=0) == 1.0
    assert evaluate(env, AlignAndStop(env), 64, seed=0).mean() < -1.75


def test_the_reference_controller_wastes_no_period():
    """Ten periods at full throttle and fifty of braking cover 0.005 · (0.5 · Σ_1^10 j + 0.1 · Σ_1^49 i) = 0.75."""
    env = HybridMovingEnv().to(dtype=torch.float64)
    controller, state, regimes, ended = AlignAndStop(env), state_of([-0.5, 0.0], target=[0.25, 0.0]), [], False
    while not ended:
        regime, point = (part[0] for part in controller.act(env.observation(state).numpy(), np.array([len(regimes)])))
        regimes.append(int(regime))
        result = step(env, state, regimes[-1], tuple(point))
        state, ended = result.state, result.terminated.item()
    assert regimes == [ACCELERATE] * 10 + [BRAKE] * 50
    assert result.observation[0, 7].item() < 0.001


def test_a_policy_that_never_moves_fails_but_for_lucky_starts():
    env = HybridMovingEnv(horizon=5)

    class Parked(AlignAndStop):
        def act(self, observation, period):
            return np.full(len(observation), BRAKE), np.zeros((len(observation), 2))

    assert success_rate(env, Parked(env), 3000, seed=1) == pytest.approx(np.pi * 0.01 / 4, abs=0.006)
    returns = -evaluate(env, Parked(env), 3000, seed=1)
    assert set(np.round(returns, 6)) == {0.999, -1.004}  # a lucky start stops at once; what comes after does not count


def test_success_is_told_from_the_costs_of_an_episode():
    costs = torch.tensor([[0.001, -0.02, 0.001], [-0.999, 0.001, 1.0], [0.0, 0.001, 0.0]])
    assert HybridMovingEnv(horizon=3).success(costs).tolist() == [True, False, False]


@BOTH
def test_networks_see_the_targets_edge_at_distance_1(env_class):
    env = env_class(2)
    state = env.template()
    state = state._replace(position=state.target + torch.tensor([TARGET_RADIUS, 0.0]))
    seen = (env.observation(state) / torch.as_tensor(env.observation_scale))[0, :-1].view(2, 9)
    np.testing.assert_allclose(seen[:, 7], 1.0, rtol=1e-5)


# ---- bad input and pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_agents": 0}, "n_agents must be an integer >= 1, got 0"),
        ({"max_turn": 0.0}, r"max_turn = 0.0: must be finite and > 0"),
        ({"max_acceleration": -1.0}, r"max_acceleration = -1.0: must be finite and > 0"),
        ({"break_value": 0.0}, r"break_value = 0.0: must be finite and > 0"),
        ({"delta_t": np.nan}, r"delta_t = nan: must be finite and > 0"),
        ({"regimes": "each"}, "regimes must be 'shared' or 'own', got 'each'"),
        ({"penalty": -0.1}, r"penalty = -0.1: must be finite and >= 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make("HybridMoving-v0", **kwargs)


def test_the_picture_shows_the_field_with_paths_and_targets():
    env = gym.make("HybridMoving-v0", n_agents=2, render_mode="rgb_array")
    env.reset(seed=0)
    empty = env.render()
    for _ in range(10):
        env.step((ACCELERATE, np.array([1.0, 1.0, 0.0, 0.0], dtype=np.float32)))
    assert empty.shape == env.render().shape == (480, 480, 3)
    assert (empty != env.render()).any()


def test_the_picture_marks_each_path_by_the_regimes_of_its_agent():
    pictures = []
    for regime in ([ACCELERATE, BRAKE], [BRAKE, ACCELERATE]):
        env = gym.make("HybridMoving-v0", n_agents=2, regimes="own", render_mode="rgb_array")
        env.reset(seed=0)
        assert env.render().shape == (480, 480, 3)
        for _ in range(10):
            env.step((np.array(regime), np.zeros(4, dtype=np.float32)))  # nobody moves
        pictures.append(env.render())
    assert (pictures[0] != pictures[1]).any()
