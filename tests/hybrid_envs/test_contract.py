"""What every hybrid environment owes its users, checked over the whole registry and some further instances."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from hybrid_envs import HybridAction


def advance(env, state, actions, noise):
    """Roll out, one action a period; rewards have shape ``(periods, batch)``."""
    rewards = []
    for action, xi in zip(actions, noise, strict=False):
        result = env.step_torch(state, action, xi)
        state = result.state
        rewards.append(result.reward)
    return state, torch.stack(rewards)


def rows_of(state, index):
    return type(state)(*(field[index] for field in state))


def to_single(action):
    regime = action.regime[0].numpy()
    return (regime if regime.ndim else int(regime)), action.point[0].numpy()


def assert_close_rows(got, expected):
    for name, left, right in zip(got._fields, got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


# ---- Gymnasium's own word ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasiums_checker_accepts_the_bare_environment_without_a_warning(instance, render_mode):
    env_id, kwargs = instance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # stocks and controls are unbounded in these problems
        warnings.filterwarnings("ignore", message=".*infinity.*")
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space.*")
        check_env(gym.make(env_id, render_mode=render_mode, **kwargs).unwrapped)


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasiums_checker_accepts_the_environment_in_the_wrappers_of_make(env_id, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(gym.make(env_id, render_mode=render_mode))


def test_the_environment_can_be_pickled_and_copied_in_mid_episode(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    env.reset(seed=1)
    env.step(to_single(draw_action(env, 1, generator)))
    action = to_single(draw_action(env, 1, generator))
    twins = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    observation, reward, *_ = env.step(action)
    for twin in twins:
        again, reward_again, *_ = twin.step(action)
        np.testing.assert_array_equal(again, observation)
        assert reward_again == reward


def test_the_spec_survives_copying_and_pickling(env_id):
    spec = gym.spec(env_id)
    for again in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert gym.make(again).unwrapped.name == env_id
        assert gym.make_vec(again, num_envs=2).num_envs == 2


# ---- one set of equations ----------------------------------------------------------------------------------------------


def test_step_agrees_with_step_torch_over_a_whole_episode(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    env.reset(seed=3)
    state, noise = env._state, env._noise
    for period in range(env.horizon):
        action = draw_action(env, 1, generator)
        expected = env.step_torch(state, action, noise[period])
        state = expected.state
        observation, reward, terminated, truncated, _ = env.step(to_single(action))
        np.testing.assert_array_equal(observation, expected.observation[0])
        assert reward == expected.reward.item()
        assert (terminated, truncated) == (expected.terminated.item(), expected.truncated.item())
        if terminated:
            break
    assert truncated or terminated


def test_one_scenario_of_the_vector_environment_is_the_single_environment(instance, draw_action):
    env_id, kwargs = instance
    single, vector = gym.make(env_id, **kwargs), gym.make_vec(env_id, num_envs=1, **kwargs)
    generator = torch.Generator().manual_seed(0)
    observation, vector_observation = single.reset(seed=4)[0], vector.reset(seed=4)[0]
    np.testing.assert_array_equal(vector_observation[0], observation)
    for _ in range(single.unwrapped.horizon - 1):
        action = draw_action(single.unwrapped, 1, generator)
        observation, reward, terminated, *_ = single.step(to_single(action))
        vector_observation, rewards, *_, info = vector.step((action.regime.numpy(), action.point.numpy()))
        np.testing.assert_array_equal(info["final_obs"][0] if terminated else vector_observation[0], observation)
        assert rewards[0] == reward
        if terminated:
            break


def test_a_batch_of_scenarios_costs_what_its_scenarios_cost_one_by_one(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(4, generator), env.sample_noise(4, generator)
    actions = [draw_action(env, 4, generator) for _ in range(10)]
    _, together = advance(env, state, actions, noise)
    for i in range(4):
        alone = [HybridAction(a.regime[i : i + 1], a.point[i : i + 1]) for a in actions]
        _, rewards = advance(env, rows_of(state, slice(i, i + 1)), alone, noise[:, i : i + 1])
        torch.testing.assert_close(rewards[:, 0], together[:, i], rtol=1e-5, atol=1e-5)


def test_a_row_does_not_notice_what_the_other_rows_hold(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(5, generator), env.sample_noise(5, generator)
    actions = [draw_action(env, 5, generator) for _ in range(6)]
    other_state, other_noise = env.initial(5, generator), env.sample_noise(5, generator)
    others = [draw_action(env, 5, generator) for _ in range(6)]
    keep = torch.tensor([False, False, True, False, False])

    def mixed(mine, theirs):
        return torch.where(keep.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)

    mixed_state = type(state)(*(mixed(a, b) for a, b in zip(state, other_state, strict=True)))
    mixed_actions = [
        HybridAction(mixed(a.regime, b.regime), mixed(a.point, b.point)) for a, b in zip(actions, others, strict=True)
    ]
    mixed_noise = torch.stack([mixed(a, b) for a, b in zip(noise, other_noise, strict=True)])
    for period in range(6):
        expected = env.step_torch(state, actions[period], noise[period])
        result = env.step_torch(mixed_state, mixed_actions[period], mixed_noise[period])
        state, mixed_state = expected.state, result.state
        assert_close_rows(rows_of(result.state, 2), rows_of(expected.state, 2))
        torch.testing.assert_close(result.observation[2], expected.observation[2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result.reward[2], expected.reward[2], rtol=1e-6, atol=1e-6)


def test_permuting_the_rows_permutes_the_results(env, draw_action):
    env.to(dtype=torch.float64)  # in single precision a sum whose terms cancel rounds by more, row by row, as processors do
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(6, generator), env.sample_noise(6, generator)
    actions = [draw_action(env, 6, generator) for _ in range(5)]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    end, rewards = advance(env, state, actions, noise)
    permuted = [HybridAction(a.regime[order], a.point[order]) for a in actions]
    permuted_end, permuted_rewards = advance(env, rows_of(state, order), permuted, noise[:, order])
    assert_close_rows(permuted_end, rows_of(end, order))
    torch.testing.assert_close(permuted_rewards, rewards[:, order], rtol=1e-6, atol=1e-6)


def test_step_torch_changes_none_of_its_inputs(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise, action = env.initial(3, generator), env.sample_noise(3, generator), draw_action(env, 3, generator)
    before = copy.deepcopy((state, action, noise))
    env.step_torch(state, action, noise[0])
    for old, new in zip((*before[0], *before[1], before[2]), (*state, *action, noise), strict=True):
        assert torch.equal(old, new)


def test_step_torch_draws_no_randomness(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise, action = env.initial(3, generator), env.sample_noise(3, generator), draw_action(env, 3, generator)
    global_before, own_before = torch.get_rng_state(), env._generator.get_state()
    first = env.step_torch(state, action, noise[0])
    second = env.step_torch(state, action, noise[0])
    assert torch.equal(torch.get_rng_state(), global_before)
    assert torch.equal(env._generator.get_state(), own_before)
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.observation, second.observation)


# ---- seeds and scenarios -----------------------------------------------------------------------------------------------


def episode(env, seed, actions):
    observations = [env.reset(seed=seed)[0]]
    rewards = []
    for action in actions:
        observation, reward, terminated, *_ = env.step(to_single(action))
        observations.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.array(observations), rewards


def test_the_same_seed_gives_the_same_episode(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    actions = [draw_action(env, 1, generator) for _ in range(env.horizon)]
    observations, rewards = episode(env, 7, actions)
    again, rewards_again = episode(env, 7, actions)
    np.testing.assert_array_equal(again, observations)
    assert rewards_again == rewards


def test_another_seed_gives_another_episode(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    actions = [draw_action(env, 1, generator) for _ in range(env.horizon)]
    assert episode(env, 7, actions)[1] != episode(env, 8, actions)[1]


def test_episodes_after_one_seed_differ_from_each_other(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    actions = [draw_action(env, 1, generator) for _ in range(env.horizon)]
    assert episode(env, 7, actions)[1] != episode(env, None, actions)[1]


def test_a_scenario_is_drawn_whole_and_depends_on_its_generator_alone(env):
    first = env.sample_noise(3, torch.Generator().manual_seed(5))
    again = env.sample_noise(3, torch.Generator().manual_seed(5))
    assert first.shape[:2] == (env.horizon, 3)
    assert torch.equal(first, again)


def test_replaying_a_scenario_with_the_same_actions_gives_the_same_costs(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(2, generator), env.sample_noise(2, generator)
    actions = [draw_action(env, 2, generator) for _ in range(env.horizon)]
    _, rewards = advance(env, state, actions, noise)
    draw_action(env, 2, generator)
    _, replayed = advance(env, state, actions, noise)
    assert torch.equal(rewards, replayed)


# ---- shapes, types, bounds ---------------------------------------------------------------------------------------------


def test_a_step_result_has_the_promised_shapes_and_types(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(3, generator), env.sample_noise(3, generator)
    result = env.step_torch(state, draw_action(env, 3, generator), noise[0])
    assert type(result.state) is type(state)
    assert [field.shape for field in result.state] == [field.shape for field in state]
    assert result.state.period.tolist() == [1, 1, 1]
    assert result.observation.shape == (3, *env.observation_space.shape)
    assert result.reward.shape == result.terminated.shape == result.truncated.shape == (3,)
    assert result.terminated.dtype == result.truncated.dtype == torch.bool
    assert result.observation.dtype == result.reward.dtype == torch.float32


def test_step_returns_float32_observations_python_floats_and_bools(env, draw_action):
    env.reset(seed=0)
    action = to_single(draw_action(env, 1, torch.Generator().manual_seed(0)))
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation.dtype == np.float32
    assert [type(value) for value in (reward, terminated, truncated, info)] == [float, bool, bool, dict]


def test_an_observation_in_the_users_hands_is_not_the_state(env, draw_action):
    action = to_single(draw_action(env, 1, torch.Generator().manual_seed(0)))
    expected = [env.reset(seed=0)[0], env.step(action)[0], env.step(action)[0]]
    expected = [observation.copy() for observation in expected]
    env.reset(seed=0)[0][:] = 1e6
    env.step(action)[0][:] = 1e6
    np.testing.assert_array_equal(env.step(action)[0], expected[2])


def test_the_box_of_the_action_space_is_the_hull_of_the_regimes_bounds(env):
    regimes, box = env.action_space.spaces
    largest = regimes.nvec.max() if isinstance(regimes, gym.spaces.MultiDiscrete) else regimes.n
    assert env.action_bounds.shape == (largest, *box.shape, 2) == (env.n_regimes, env.action_size, 2)
    np.testing.assert_array_equal(box.low, env.action_bounds[..., 0].min(axis=0))
    np.testing.assert_array_equal(box.high, env.action_bounds[..., 1].max(axis=0))


def test_an_action_inside_the_bounds_of_its_regime_is_accepted(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        env.reset(seed=0)
        env.step(to_single(draw_action(env, 1, generator)))


def test_there_is_a_positive_action_scale_for_each_coordinate(env):
    assert env.action_scale.shape == (env.action_size,)
    assert (env.action_scale > 0).all() and np.isfinite(env.action_scale).all()


def test_the_figure_of_merit_gives_one_number_per_scenario_and_grows_with_the_costs(env):
    costs = torch.rand(env.horizon, 4, generator=torch.Generator().manual_seed(0))
    merit = env.figure_of_merit(costs)
    assert merit.shape == (4,)
    assert bool((env.figure_of_merit(2 * costs) > merit).all())


def test_to_moves_every_tensor_to_double_precision(env, draw_action):
    env.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(2, generator), env.sample_noise(2, generator)
    result = env.step_torch(state, draw_action(env, 2, generator), noise[0])
    floats = [*(field for field in result.state if field.is_floating_point()), result.observation, result.reward, noise]
    assert {tensor.dtype for tensor in floats} == {torch.float64}
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32


def test_double_precision_tells_the_same_story(env, draw_action):
    generator = torch.Generator().manual_seed(0)
    state, noise = env.initial(3, generator), env.sample_noise(3, generator)
    actions = [draw_action(env, 3, generator) for _ in range(8)]
    _, rewards = advance(env, state, actions, noise)
    env.to(dtype=torch.float64)
    doubled = [HybridAction(a.regime, a.point.double()) for a in actions]
    exact_state = type(state)(*(field.double() if field.is_floating_point() else field for field in state))
    _, exact = advance(env, exact_state, doubled, noise.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(rewards.double(), exact, rtol=1e-4, atol=1e-4)


# ---- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_of_a_rollout_equal_central_finite_differences(env, draw_action):
    """Of rewards and observations of four periods, in the first state and in every b, in float64."""
    env.to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    noise = env.sample_noise(2, generator)
    warm_up = [draw_action(env, 2, generator) for _ in range(3)]
    start, _ = advance(env, env.initial(2, generator), warm_up, noise)
    actions = [draw_action(env, 2, generator) for _ in range(4)]
    # off the kinks that integer demand and empty shelves sit on
    fields = [0.01 * torch.rand(f.shape, generator=generator, dtype=f.dtype) + f for f in start if f.is_floating_point()]
    leaves = [*fields, *(action.point for action in actions)]

    def outcome(*values):
        floating = iter(values[: len(fields)])
        state = type(start)(*(next(floating) if f.is_floating_point() else f for f in start))
        total = torch.zeros((), dtype=torch.float64)
        for period, (action, point) in enumerate(zip(actions, values[len(fields) :], strict=True)):
            result = env.step_torch(state, HybridAction(action.regime, point), noise[3 + period])
            state = result.state
            weights = torch.linspace(0.5, 1.5, result.observation.shape[1], dtype=torch.float64)
            total = total + (period + 1.0) * result.reward.sum() + (result.observation @ weights).sum()
        return total

    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(outcome(*leaves), leaves, allow_unused=True, materialize_grads=True)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[len(fields) :])
    for k, gradient in enumerate(gradients):
        flat = torch.empty(gradient.numel(), dtype=torch.float64)
        for i in range(flat.numel()):
            ends = []
            for sign in (1, -1):
                values = [leaf.detach().clone() for leaf in leaves]
                values[k].view(-1)[i] += sign * 1e-5
                ends.append(outcome(*values))
            flat[i] = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(gradient.flatten(), flat, rtol=1e-6, atol=1e-6)
