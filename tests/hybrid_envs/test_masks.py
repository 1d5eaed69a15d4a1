"""Masked regimes in the environment: who is asked, what is refused, and where the masks are kept."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv, HybridVectorEnv
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.factors import allowed_regimes
from hybrid_envs.spaces import append_mask, feasible_actions, pack, packed_size, split_mask
from hybrid_envs.wrappers import FlatActionWrapper
from tests.masked import KilnEnv, StuckKilnEnv

REST, FIRE = (0, np.zeros(1)), (1, np.ones(1))


def test_the_mask_is_that_of_the_present_state():
    env = gym.wrappers.OrderEnforcing(KilnEnv())
    env.reset(seed=0)
    seen = [env.get_wrapper_attr("action_masks")().tolist()]
    for action in (FIRE, REST):
        env.step(action)
        seen.append(env.get_wrapper_attr("action_masks")().tolist())
    assert seen == [[True, True, False], [True, False, True], [True, True, True]]


def test_only_an_environment_that_masks_regimes_has_the_method():
    assert hasattr(KilnEnv(), "action_masks")
    assert not hasattr(HybridInventoryEnv(), "action_masks")
    assert HybridVectorEnv(HybridInventoryEnv(), 2).regime_mask() is None


def test_a_masked_regime_is_refused_and_the_episode_goes_on():
    env = KilnEnv()
    env.reset(seed=0)
    env.step(FIRE)
    with pytest.raises(ValueError, match=r"KilnEnv: regime 1 is masked in this state; allowed are \[0, 2\]"):
        env.step(FIRE)
    env.step(REST)
    env.step(FIRE)


def test_a_masked_regime_is_refused_in_its_row_of_a_batch():
    env = HybridVectorEnv(KilnEnv(), 2)
    env.reset(seed=0)
    env.step((np.array([0, 1]), np.zeros((2, 1))))
    with pytest.raises(ValueError, match="KilnEnv: regime 1 is masked"):
        env.step((np.array([0, 1]), np.zeros((2, 1))))
    env.step((np.array([1, 0]), np.zeros((2, 1))))
    assert env.regime_mask().tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("make", [StuckKilnEnv, lambda: HybridVectorEnv(StuckKilnEnv(), 2)])
def test_a_state_without_an_allowed_regime_is_named_with_its_period(make):
    env = make()
    env.reset(seed=0)
    rest = REST if isinstance(env, StuckKilnEnv) else (np.zeros(2, int), np.zeros((2, 1)))
    env.step(rest), env.step(rest)
    with pytest.raises(ValueError, match=r"StuckKilnEnv: regime_mask\(\) allows no regime in period 2 \(scenario 0\)"):
        env.step(rest)


def test_there_is_no_mask_before_an_episode():
    with pytest.raises(gym.error.ResetNeeded, match="before action_masks"):
        KilnEnv().action_masks()


def test_evaluation_hands_the_masks_to_the_policy_and_reference_policies_take_them():
    class Greedy(ReferencePolicy):
        def act(self, observation, period):
            return np.zeros(len(observation), int), np.zeros((len(observation), 1))

        def predict(self, observation, *args, action_masks, **kwargs):
            masks.append(action_masks)
            return super().predict(observation, *args, action_masks=action_masks, **kwargs)

    masks = []
    evaluate(KilnEnv(), Greedy(), n_scenarios=2, seed=0)
    assert [mask.tolist() for mask in masks] == [[[True, True, False]] * 2] + [[[True, True, True]] * 2] * 3


def test_the_flat_view_takes_the_highest_score_that_is_allowed():
    env = FlatActionWrapper(KilnEnv())
    env.reset(seed=0)
    assert env.action(np.array([0.0, 0.5, 1.0, 0.0]))[0] == 1
    env.step(np.array([0.0, 0.5, 1.0, 0.0]))
    assert env.action(np.array([0.0, 1.0, -0.5, 0.0]))[0] == 0


def test_the_mask_travels_behind_the_packed_action():
    packed = pack(torch.tensor([2, 0]), torch.tensor([[0.5, 9.0], [0.25, -9.0]]))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    both = append_mask(packed, mask)
    space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-9, 9, (2,))))
    assert both.shape == (2, packed_size(space, masked=True)) and packed.shape == (2, packed_size(space, masked=False))
    for name, given, expected in (("masked", both, mask), ("unmasked", packed, None)):
        action, found = split_mask(given, 2)
        assert torch.equal(action, packed), name
        assert found is expected or torch.equal(found, expected)
        (x, b), _ = feasible_actions(given, np.tile([-1.0, 1.0], (3, 2, 1)))
        assert x == 2 and b.tolist() == [0.5, 1.0]


def test_a_masked_regime_gives_way_to_the_first_allowed_one():
    mask = torch.tensor([[False, True, True], [True, True, False]])
    assert allowed_regimes(torch.tensor([0, 1]), mask).tolist() == [1, 1]
    assert allowed_regimes(torch.tensor([0, 1, 2, 0, 1, 2]), mask).tolist() == [1, 1, 2, 0, 1, 0]
