"""A running episode, saved and loaded, goes on exactly as it would have."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridEnv, HybridVectorEnv


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def play(env: HybridEnv, actions: list[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(np.append(observation, reward))
        if terminated or truncated:
            seen.append(env.reset()[0])
    return seen


def test_an_episode_loaded_into_another_instance_goes_on_bit_for_bit(instance, env, draw_action):
    generator = torch.Generator().manual_seed(0)
    drawn = draw_action(env, 2 * env.horizon, generator)
    actions = list(zip(drawn.regime.tolist(), drawn.point.numpy(), strict=True))
    env.reset(seed=3)
    before = env.horizon // 2
    play(env, actions[:before])
    saved = through_a_file(env.state_dict())
    expected = play(env, actions[before:])  # to the end, the next scenario, and some of that

    other = gym.make(instance[0], **instance[1]).unwrapped
    other.reset(seed=4)
    other.load_state_dict(saved)
    found = play(other, actions[before:])
    assert len(found) == len(expected) > env.horizon
    assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


def test_all_scenarios_of_a_vector_go_on_bit_for_bit(instance, env, draw_action):
    vector = HybridVectorEnv(env, 5)
    vector.reset(seed=0)
    actions = [draw_action(env, 5, torch.Generator().manual_seed(i)) for i in range(2 * env.horizon)]
    before = env.horizon // 2
    for action in actions[:before]:
        vector.advance(action)
    saved = through_a_file(vector.state_dict())
    expected = [vector.advance(action)[0].reward for action in actions[before:]]

    other = HybridVectorEnv(gym.make(instance[0], **instance[1]).unwrapped, 5)
    other.load_state_dict(saved)
    found = [other.advance(action)[0].reward for action in actions[before:]]
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_a_saved_state_carries_no_gradient():
    vector = HybridVectorEnv(gym.make("HybridInventory-v0", n_items=2, horizon=5).unwrapped, 3)
    vector.reset(seed=0)
    vector.state = vector.state._replace(stock=vector.state.stock.clone().requires_grad_())
    assert not vector.state_dict()["state"]["stock"].requires_grad


def test_an_environment_that_was_never_reset_has_a_state_too():
    env, other = (gym.make("HybridInventory-v0", n_items=2).unwrapped for _ in range(2))
    other.reset(seed=0)
    other.load_state_dict(through_a_file(env.state_dict()))
    with pytest.raises(gym.error.ResetNeeded):
        other.step((0, np.zeros(2)))


def test_the_state_of_another_problem_or_another_number_of_scenarios_is_refused():
    small, large = (gym.make("HybridInventory-v0", n_items=n).unwrapped for n in (2, 3))
    small.reset(seed=0)
    with pytest.raises(ValueError, match=r"HybridInventory-v0.*stock.*2.*saved"):
        large.load_state_dict(small.state_dict())
    small.reset(seed=0)
    shorter = gym.make("HybridInventory-v0", n_items=2, horizon=50).unwrapped
    with pytest.raises(ValueError, match="horizon = 50, but a scenario of 100 periods was saved"):
        shorter.load_state_dict(small.state_dict())
    finer = gym.make("HybridInventory-v0", n_items=2).unwrapped.to(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"float64\[2, 2\].*float32\[2, 2\].*was saved"):
        finer.load_state_dict(small.state_dict())
    three, four = HybridVectorEnv(small, 3), HybridVectorEnv(small, 4)
    three.reset(seed=0)
    with pytest.raises(ValueError, match="3 scenarios were saved, here are 4"):
        four.load_state_dict(three.state_dict())
