from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import hybrid_envs
from hybrid_envs import HybridAction, HybridEnv, HybridVectorEnv


class PurseState(NamedTuple):
    money: torch.Tensor
    period: torch.Tensor


class PurseEnv(HybridEnv[PurseState]):
    """Spend b from a purse of 10, doubled in regime 1; the problem ends when the purse is empty."""

    def __init__(self, horizon: int = 4, render_mode: str | None = None):
        super().__init__(
            action_bounds=np.array([[[0.0, 5.0]], [[0.0, 5.0]]]), observation_size=1, horizon=horizon, render_mode=render_mode
        )

    def initial(self, batch_size, generator):
        return PurseState(torch.full((batch_size, 1), 10.0), torch.zeros(batch_size, dtype=torch.int64))

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 1, generator=generator)

    def transition(self, state, action, noise):
        return PurseState(state.money - action.point * (1 + action.regime.unsqueeze(1)), state.period)

    def reward(self, state, action, noise, next_state):
        return -(next_state.money**2).sum(1) - noise.sum(1)

    def observation(self, state):
        return state.money

    def terminal(self, state):
        return state.money[:, 0] <= 0


def spend(*points, regime=0):
    return np.full(len(points), regime), np.array(points, dtype=np.float32)[:, None]


def test_make_vec_is_natively_batched_and_resets_in_the_same_step(env_id):
    vector = gym.make_vec(env_id, num_envs=3)
    assert isinstance(vector, HybridVectorEnv)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert vector.observation_space.shape == (3, *vector.single_observation_space.shape)
    assert vector.reset(seed=0)[0] in vector.observation_space
    assert vector.action_space.sample() in vector.action_space


def test_make_vec_passes_arguments_on():
    assert gym.make_vec("HybridInventory-v0", num_envs=2, n_items=7).env.n_items == 7


def test_each_scenario_follows_the_equations_of_the_single_environment(env_id, draw_action):
    """Through the ends of episodes that terminate: the next one starts from the state the vector environment reset to."""
    vector = gym.make_vec(env_id, num_envs=4)
    env = gym.make(env_id).unwrapped
    generator = torch.Generator().manual_seed(0)
    vector.reset(seed=1)

    def row(i):
        return type(vector.state)(*(field[i : i + 1] for field in vector.state))

    states = [row(i) for i in range(4)]
    ended = np.zeros(4, dtype=bool)
    for _ in range(env.horizon):
        action, noise = draw_action(env, 4, generator), vector.noise
        observations, rewards, terminated, truncated, info = vector.step((action.regime.numpy(), action.point.numpy()))
        done = terminated | truncated
        ended |= done
        for i in range(4):
            mine = HybridAction(action.regime[i : i + 1], action.point[i : i + 1])
            result = env.step_torch(states[i], mine, noise[int(states[i].period), i : i + 1])
            states[i] = row(i) if done[i] else result.state
            seen = info["final_obs"][i] if done[i] else observations[i]
            np.testing.assert_allclose(seen, result.observation[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(rewards[i], result.reward[0], rtol=1e-5, atol=1e-6)
            assert (terminated[i], truncated[i]) == (result.terminated[0], result.truncated[0])
    assert ended.all()


def test_the_batched_environment_and_gymnasiums_sync_vector_env_speak_alike(env_id, draw_action):
    """Same types, shapes and keys in every step of an episode and its reset; equal values where nothing is random."""
    native = gym.make_vec(env_id, num_envs=2)
    sync = gym.make_vec(
        env_id, num_envs=2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    assert isinstance(sync, SyncVectorEnv)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    generator = torch.Generator().manual_seed(0)
    native.reset(seed=0), sync.reset(seed=0)
    horizon = native.env.horizon
    for period in range(horizon + 1):
        action = draw_action(native.env, 2, generator)
        batch = (action.regime.numpy(), action.point.numpy())
        ours, theirs = native.step(batch), sync.step(batch)
        for mine, other in zip(ours[:4], theirs[:4], strict=True):
            assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        if (ours[2] | theirs[2]).any():  # starts differ, and so does the time at which an episode terminates
            break
        np.testing.assert_array_equal(ours[3], theirs[3])
        assert ours[4].keys() == theirs[4].keys()
        assert ours[3].all() == (period == horizon - 1)
        if period == horizon - 1:
            assert ours[4]["final_obs"].shape == theirs[4]["final_obs"].shape
            assert ours[4]["final_obs"][0].dtype == theirs[4]["final_obs"][0].dtype
            np.testing.assert_array_equal(ours[4]["_final_obs"], theirs[4]["_final_obs"])


def test_gymnasiums_vector_statistics_wrapper_counts_whole_episodes():
    vector = gym.wrappers.vector.RecordEpisodeStatistics(HybridVectorEnv(PurseEnv(), 2))
    vector.reset(seed=0)
    for _ in range(3):
        *_, info = vector.step(spend(1, 1))
        assert "episode" not in info
    *_, info = vector.step(spend(1, 1))
    assert info["episode"]["l"].tolist() == [4, 4]


def test_a_scenario_that_ends_is_reset_alone_and_shows_both_observations():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    vector.step(spend(5, 1))
    observations, _, terminated, truncated, info = vector.step(spend(5, 1))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, False]
    assert observations.tolist() == [[10.0], [8.0]]
    assert info["_final_obs"].tolist() == [True, False]
    assert info["final_obs"][0].tolist() == [0.0]
    assert info["final_obs"][1] is None
    assert vector.state.period.tolist() == [0, 2]


def test_the_end_of_the_problem_at_the_horizon_is_a_termination_and_no_truncation():
    vector = HybridVectorEnv(PurseEnv(horizon=2), 2)
    vector.reset(seed=0)
    vector.step(spend(5, 1))
    _, _, terminated, truncated, _ = vector.step(spend(5, 1))
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]


def test_a_scenario_that_is_reset_draws_fresh_noise_and_leaves_the_others_theirs():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    before = vector.noise.clone()
    vector.step(spend(5, 1))
    vector.step(spend(5, 1))
    assert torch.equal(vector.noise[:, 1], before[:, 1])
    assert not torch.equal(vector.noise[:, 0], before[:, 0])


def test_the_noise_of_a_scenario_is_that_of_its_own_period():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    for _ in range(3):
        vector.step(spend(5, 1))
    period = vector.state.period
    assert period.tolist() == [1, 3]
    noise = vector.noise.clone()
    money = vector.state.money[:, 0].numpy()
    _, rewards, *_ = vector.step(spend(0, 0))
    np.testing.assert_allclose(rewards, [-(money[i] ** 2) - noise[period[i], i, 0] for i in range(2)], rtol=1e-6)


def test_no_info_is_given_where_nothing_ends():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    assert vector.step(spend(1, 1))[4] == {}


def test_the_same_seed_gives_the_same_scenarios_and_no_seed_others(env_id):
    vector = gym.make_vec(env_id, num_envs=2)

    def scenarios(seed):
        vector.reset(seed=seed)
        return torch.cat([vector.observation().flatten(), vector.noise.flatten()])

    first = scenarios(3)
    assert torch.equal(scenarios(3), first)
    assert not torch.equal(scenarios(None), first)


def test_the_scenarios_of_a_batch_differ(env_id, draw_action):
    vector = gym.make_vec(env_id, num_envs=2)
    vector.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    alike = [draw_action(vector.env, 1, generator) for _ in range(5)]
    rewards = [vector.step((one.regime.expand(2).numpy(), one.point.expand(2, -1).numpy()))[1] for one in alike]
    assert (np.array(rewards)[:, 0] != np.array(rewards)[:, 1]).any()


# ---- gradients through advance() ---------------------------------------------------------------------------------------


def advance(vector, *points):
    action = torch.tensor(points)[:, None].requires_grad_()
    result, done = vector.advance(HybridAction(torch.zeros(len(points), dtype=torch.int64), action))
    return result, done, action


def grad(output, action):
    (gradient,) = torch.autograd.grad(output, action, retain_graph=True, allow_unused=True)
    return None if gradient is None else gradient[:, 0].tolist()


def test_later_rewards_are_differentiable_in_earlier_actions():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    _, _, action = advance(vector, 1.0, 2.0)
    result, _, _ = advance(vector, 1.0, 1.0)
    assert grad(result.reward.sum(), action) == [2 * 8.0, 2 * 7.0]  # d(-m²)/db = 2m, m = what is left


def test_gradients_are_cut_where_a_scenario_is_reset_and_there_alone():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    _, _, first = advance(vector, 5.0, 1.0)
    _, done, _ = advance(vector, 5.0, 1.0)
    assert done.tolist() == [True, False]
    after, _, _ = advance(vector, 3.0, 1.0)
    assert grad(after.reward.sum(), first) == [0.0, 2 * 7.0]


def test_the_final_observation_keeps_its_gradient():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    _, _, first = advance(vector, 5.0, 1.0)
    ending, _, _ = advance(vector, 5.0, 1.0)
    assert grad(ending.observation.sum(), first) == [-1.0, -1.0]


def test_detach_forgets_how_the_states_came_about():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    _, _, first = advance(vector, 1.0, 2.0)
    vector.detach()
    result, _, second = advance(vector, 1.0, 1.0)
    assert grad(result.reward.sum(), first) is None
    assert grad(result.reward.sum(), second) == [2 * 8.0, 2 * 7.0]


def test_discounting_scales_the_gradient_of_a_reward_by_gamma_for_each_period_passed():
    vector = HybridVectorEnv(PurseEnv(), 1)
    vector.reset(seed=0)
    result, _, first = advance(vector, 1.0)
    rewards = [result.reward]
    for _ in range(2):
        vector.discount_gradient(0.5)
        rewards.append(advance(vector, 1.0)[0].reward)
    assert [grad(reward.sum(), first)[0] for reward in rewards] == [2 * 9.0, 0.5 * 2 * 8.0, 0.25 * 2 * 7.0]


def test_step_keeps_no_history():
    vector = HybridVectorEnv(PurseEnv(), 2)
    vector.reset(seed=0)
    advance(vector, 1.0, 2.0)
    assert vector.state.money.requires_grad
    vector.step(spend(1, 1))
    assert not vector.state.money.requires_grad


# ---- a user's own environment --------------------------------------------------------------------------------------------


def test_a_users_own_environment_is_registered_in_one_line_for_make_and_make_vec():
    hybrid_envs.register("Purse-v0", PurseEnv)
    assert gym.make("Purse-v0", horizon=7).unwrapped.horizon == 7
    vector = gym.make_vec("Purse-v0", num_envs=5, horizon=7)
    assert vector.num_envs == 5
    assert vector.env.horizon == 7


def test_what_a_batch_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"max_episode_steps = 5.*use horizon"):
        gym.make_vec("HybridInventory-v0", num_envs=2, max_episode_steps=5)
    with pytest.raises(ValueError, match="reset_mask"):
        gym.make_vec("HybridInventory-v0", num_envs=2).reset(options={"reset_mask": np.array([True, False])})


def test_an_environment_without_a_picture_says_so():
    env = PurseEnv(render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(NotImplementedError, match="PurseEnv has no pictures: override draw"):
        env.render()


def test_a_simulator_moves_to_a_device_with_its_environment_and_its_scenarios():
    simulator = HybridVectorEnv(hybrid_envs.HybridInventoryEnv(2, horizon=5), 3)
    simulator.to(torch.device("cpu"))
    simulator.reset(seed=0)
    assert simulator.state is not None
    simulator.env.device = torch.device("meta")  # as if it had been moved away: coming back moves everything
    simulator.to(torch.device("cpu"))
    assert simulator.state is None
    assert {simulator.env.device.type, simulator.env.mean_demand.device.type, simulator.generator.device.type} == {"cpu"}
    observation, _ = simulator.reset(seed=0)
    assert observation.shape == (3, 10)
