"""check_hybrid_env passes what keeps the contract, and names what breaks it."""

import copy
import random
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridEnv, check_hybrid_env
from hybrid_envs.checker import HybridEnvError
from hybrid_envs.core import StepResult
from sb3_hpo import HPO
from tests.masked import KilnEnv


class TankState(NamedTuple):
    level: torch.Tensor
    period: torch.Tensor


class TankEnv(HybridEnv[TankState]):
    """Two tanks; regime 0 lets them be, regime 1 fills, regime 2 drains them."""

    def __init__(self):
        bounds = np.array([[[0, 0]] * 2, [[0, np.inf]] * 2, [[-1, 0]] * 2])
        super().__init__(action_bounds=bounds, observation_size=2, horizon=6)
        self.price = torch.tensor([1.0, 3.0])

    def initial(self, batch_size, generator):
        level = torch.rand(batch_size, 2, generator=generator, dtype=self.dtype, device=self.device)
        return TankState(level, torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 2, generator=generator, dtype=self.dtype, device=self.device)

    def transition(self, state, action, noise):
        return state._replace(level=0.9 * state.level + action.point * (action.regime[:, None] > 0) - noise)

    def reward(self, state, action, noise, next_state):
        return -(next_state.level.square() @ self.price) - 0.5 * (action.regime > 0)

    def observation(self, state):
        return state.level.tanh()


# ---- what is broken, one thing at a time -------------------------------------------------------------------------------


class HullTooWide(TankEnv):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-2, np.inf, (2,))))


class RegimesMiscounted(TankEnv):
    def __init__(self):
        super().__init__()
        self.n_regimes = 2


class SpaceNotHybrid(TankEnv):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Box(-1, 1, (2,))


class NeverSetUp(TankEnv):
    def __init__(self):
        pass


class TensorsInAList(TankEnv):
    def __init__(self):
        super().__init__()
        self.tables = [torch.ones(2)]


class StateIsNoNamedTuple(TankEnv):
    def initial(self, batch_size, generator):
        return tuple(super().initial(batch_size, generator))


class StartsLate(TankEnv):
    def initial(self, batch_size, generator):
        state = super().initial(batch_size, generator)
        return state._replace(period=state.period + 1)


class InitialWithoutBatch(TankEnv):
    def initial(self, batch_size, generator):
        return super().initial(batch_size, generator)._replace(level=torch.zeros(2, dtype=self.dtype))


class InitialDrawsGlobally(TankEnv):
    def initial(self, batch_size, generator):
        state = super().initial(batch_size, generator)
        return state._replace(level=torch.rand(batch_size, 2, dtype=self.dtype))


class NoiseBatchFirst(TankEnv):
    def sample_noise(self, batch_size, generator):
        return super().sample_noise(batch_size, generator).transpose(0, 1)


class NoiseFromFreshNumpy(TankEnv):
    def sample_noise(self, batch_size, generator):
        return torch.tensor(np.random.default_rng().random((self.horizon, batch_size, 2)), dtype=self.dtype)


class NoiseFollowsActions(TankEnv):
    pressure = 0.0

    def transition(self, state, action, noise):
        self.pressure = float(action.point.mean())
        return super().transition(state, action, noise)

    def sample_noise(self, batch_size, generator):
        return super().sample_noise(batch_size, generator) + self.pressure


class TransitionDrawsFromTorch(TankEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action, torch.rand_like(noise))


class RewardDrawsFromNumpy(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) + np.random.random()


class ObservationDrawsFromPython(TankEnv):
    def observation(self, state):
        return super().observation(state) + random.random()


class ObservationFromFreshNumpy(TankEnv):
    def observation(self, state):
        return super().observation(state) + np.random.default_rng().random()


class RewardRemembers(TankEnv):
    last = 0.0

    def reward(self, state, action, noise, next_state):
        before, self.last = self.last, float(action.point.mean())
        return super().reward(state, action, noise, next_state) - before


class WritesToState(TankEnv):
    def transition(self, state, action, noise):
        state.level.sub_(noise)
        return state._replace(level=state.level + action.point)


class WritesToAction(TankEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action._replace(point=action.point.clamp_(-1, 1)), noise)


class WritesToNoise(TankEnv):
    def reward(self, state, action, noise, next_state):
        noise *= 2
        return super().reward(state, action, noise, next_state)


class TransitionReturnsTensor(TankEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action, noise).level


class RewardKeepsAColumn(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state)[:, None]


class ObservationOfAnotherSize(TankEnv):
    def observation(self, state):
        return torch.cat([state.level, state.level], dim=1)


class TerminalIsFloat(TankEnv):
    def terminal(self, state):
        return torch.zeros(len(state.level), dtype=self.dtype)


class TruncatesEarly(TankEnv):
    def step_torch(self, state, action, noise):
        result = super().step_torch(state, action, noise)
        return result._replace(truncated=result.state.period >= self.horizon - 1)


class ClockStandsStill(TankEnv):
    def step_torch(self, state, action, noise):
        result = super().step_torch(state, action, noise)
        return result._replace(state=result.state._replace(period=state.period))


class MeritOverBatch(TankEnv):
    def figure_of_merit(self, costs):
        return costs.mean(dim=1)


class StepClips(TankEnv):
    def check_action(self, action, mask=None):
        return min(int(action[0]), 2), np.nan_to_num(np.asarray(action[1], dtype=np.float32))


class StepOfItsOwn(TankEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 1.0, terminated, truncated, info


class RowsNormalised(TankEnv):
    def observation(self, state):
        return state.level - state.level.mean(dim=0)


class BranchesForAllRows(TankEnv):
    def transition(self, state, action, noise):
        following = super().transition(state, action, noise)
        return following._replace(level=0.5 * following.level) if (state.level > 0.9).any() else following


class BranchesOnTheMean(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) * (1.0 if next_state.level.mean() > -0.3 else 2.0)


class SharesAmongRows(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) / len(noise)


class BranchesOnATensor(TankEnv):
    def reward(self, state, action, noise, next_state):
        return -next_state.level.sum(dim=1) if next_state.level[:, 0] > 0 else next_state.level[:, 1]


class ThroughNumpy(TankEnv):
    def transition(self, state, action, noise):
        return state._replace(level=torch.as_tensor(state.level.numpy()) + action.point - noise)


class SinglePrecisionInside(TankEnv):
    def observation(self, state):
        return state.level.float().tanh()


class SinglePrecisionParameter(TankEnv):
    def reward(self, state, action, noise, next_state):
        return -(next_state.level @ torch.tensor([1.0, 3.0]))


class RewardDetached(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state._replace(level=next_state.level.detach()))


class OneCoordinateDetached(TankEnv):
    def observation(self, state):
        return torch.stack([state.level[:, 0], state.level[:, 1].detach()], dim=1)


class DetachedBehindALargeNumber(TankEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) + 1e5 + 0.01 * state.level[:, 1].detach()


class PointDetachedWhenDraining(TankEnv):
    def transition(self, state, action, noise):
        draining = (action.regime == 2)[:, None]
        point = torch.where(draining, action.point.detach(), action.point)
        return super().transition(state, action._replace(point=point), noise)


class StraightThrough(TankEnv):
    def transition(self, state, action, noise):
        rounded = action.point + (action.point.round() - action.point).detach()
        return super().transition(state, action._replace(point=rounded), noise)


class Rounded(TankEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action._replace(point=(10 * action.point).round()), noise)


class NaNGradient(TankEnv):
    def transition(self, state, action, noise):
        following = super().transition(state, action, noise)
        return following._replace(level=following.level * (following.level > 0))

    def observation(self, state):
        return torch.where(state.level > 0, state.level.sqrt(), 0.0)


class Overflows(TankEnv):
    def transition(self, state, action, noise):
        return state._replace(level=(state.level + action.point + 40).exp())


class Raises(TankEnv):
    def terminal(self, state):
        return state.temperature > 0


class MaskIsFloat(TankEnv):
    def regime_mask(self, state):
        return torch.ones(len(state.period), 3, dtype=self.dtype)


class MaskWithoutBatch(TankEnv):
    def regime_mask(self, state):
        return torch.ones(3, dtype=torch.bool)


class MaskOfEverything(TankEnv):
    def regime_mask(self, state):
        return (state.period < 4).unsqueeze(1).expand(-1, 3)


class MaskSeesOtherRows(TankEnv):
    def regime_mask(self, state):
        drains = (state.level >= state.level.mean(dim=0)).any(dim=1)
        return torch.stack([state.period >= 0, state.period >= 0, drains], dim=1)


class MaskRemembers(TankEnv):
    calls = 0

    def regime_mask(self, state):
        self.calls += 1
        return torch.stack([state.period >= 0, state.period >= 0, state.period + self.calls % 2 > 0], dim=1)


class SalvageDetached(TankEnv):
    """What is left over counts in the last period alone."""

    def reward(self, state, action, noise, next_state):
        last = state.period == self.horizon - 1
        return super().reward(state, action, noise, next_state) + torch.where(last, next_state.level.sum(1).detach(), 0.0)


class SalvageOverBatch(TankEnv):
    def reward(self, state, action, noise, next_state):
        last = state.period == self.horizon - 1
        return super().reward(state, action, noise, next_state) + torch.where(last, next_state.level.mean(), 0.0)


class RaisesBehindAnEnd(TankEnv):
    """Some rows end early; what is wrong comes after that."""

    def terminal(self, state):
        return state.level[:, 0] > 0.3

    def reward(self, state, action, noise, next_state):
        if int(state.period.max()) == self.horizon - 1:
            raise RuntimeError("boom")
        return super().reward(state, action, noise, next_state)


class ScenariosOfTheirOwn(TankEnv):
    def sample_scenarios(self, batch_size, generator):
        return self.initial(batch_size, generator), self.noise_of(self.sample_noise(batch_size, generator))


class ScenariosTooShort(ScenariosOfTheirOwn):
    def noise_of(self, noise):
        return noise[1:]


class ScenariosNotFinite(ScenariosOfTheirOwn):
    def noise_of(self, noise):
        return noise / 0 - noise / 0


class ScenariosRemember(ScenariosOfTheirOwn):
    asked = 0

    def noise_of(self, noise):
        self.asked += 1
        return noise + self.asked


class MeritOfOthers(TankEnv):
    def figure_of_merit(self, costs):
        return costs.sum(dim=0) - costs.mean()


BROKEN = [
    (SalvageDetached, "gradient of reward", "period 5"),
    (SalvageOverBatch, "reward", "never over the batch"),
    (RaisesBehindAnEnd, "reward", "RuntimeError: boom"),
    (ScenariosTooShort, r"sample_scenarios\(\)", r"\(horizon, batch, ...\)"),
    (ScenariosNotFinite, r"sample_scenarios\(\)", "non-finite"),
    (ScenariosRemember, r"sample_scenarios\(\)", "equal seeds give different values"),
    (MeritOfOthers, r"figure_of_merit\(\)", "row 0 of its result is another when it is alone"),
    (HullTooWide, "action_space", "Box.-2.0, inf.*hull of action_bounds is .*Box.-1.0, inf"),
    (RegimesMiscounted, "action_bounds", r"n_regimes = 2.*shape \(3, 2, 2\)"),
    (SpaceNotHybrid, "action space", "must be Tuple"),
    (NeverSetUp, "not set up", r"super\(\).__init__"),
    (TensorsInAList, "self.tables", "tensors inside a list"),
    (StateIsNoNamedTuple, "initial", "returned a tuple"),
    (StartsLate, "initial", "starts at 1"),
    (InitialWithoutBatch, "initial.*level", "first dimension is the batch"),
    (InitialDrawsGlobally, "initial", "global generator of torch"),
    (NoiseBatchFirst, "sample_noise", r"\(horizon, batch, ...\)"),
    (NoiseFromFreshNumpy, "sample_noise", "equal seeds give different values"),
    (NoiseFollowsActions, "sample_noise", "another scenario after some steps"),
    (TransitionDrawsFromTorch, "transition", "global generator of torch"),
    (RewardDrawsFromNumpy, "reward", "global generator of numpy"),
    (ObservationDrawsFromPython, "observation", "global generator of random"),
    (ObservationFromFreshNumpy, "observation", "same inputs give different results"),
    (RewardRemembers, "reward", "same inputs give different results"),
    (WritesToState, "transition", "writes to its argument state.level"),
    (WritesToAction, "transition", "writes to its argument action.point"),
    (WritesToNoise, "reward", "writes to its argument noise"),
    (TransitionReturnsTensor, "transition", "returned a Tensor"),
    (RewardKeepsAColumn, "reward.*period 0", r"shape \(9, 1\)"),
    (ObservationOfAnotherSize, "observation.*period 0", r"shape \(9, 4\)"),
    (TerminalIsFloat, "terminal", "torch.bool"),
    (TruncatesEarly, "truncated", "horizon = 6"),
    (ClockStandsStill, "period becomes", "must become 1"),
    (MeritOverBatch, "figure_of_merit", "over dim 0"),
    (StepClips, "step", "refuse actions outside"),
    (StepOfItsOwn, r"reward in period 0, regime 0", r"but step_torch\(\) gives"),
    (RowsNormalised, "row 0 of observation changes", "never over the batch"),
    (BranchesForAllRows, "row . of state.level", "torch.where, not by"),
    (SharesAmongRows, "row 0 of reward is another when it is alone", "never over the batch"),
    (BranchesOnTheMean, "row . of reward", "torch.where, not by"),
    (BranchesOnATensor, "reward", "Boolean value.*use torch.where"),
    (ThroughNumpy, "step_torch", "without numpy"),
    (SinglePrecisionInside, "observation", "make it torch.float64"),
    (SinglePrecisionParameter, "reward", "float64"),
    (RewardDetached, "gradient of reward", "autograd gives 0,.*detach"),
    (OneCoordinateDetached, "gradient of observation", r"state.level\[1\].*detach"),
    (DetachedBehindALargeNumber, "gradient of reward", r"state.level\[1\]"),
    (PointDetachedWhenDraining, "gradient of next state.level", r"b\[0\], regime 2"),
    (StraightThrough, "gradient of next state.level", "straight-through"),
    (Rounded, "piecewise constant in b", "regime 1"),
    (NaNGradient, "gradient of observation", r"not finite in state.level\[0\]"),
    (Overflows, "transition", "non-finite level in period"),
    (Raises, "terminal", "AttributeError.*temperature"),
    (MaskIsFloat, "regime_mask", "make it torch.bool"),
    (MaskWithoutBatch, "regime_mask", r"return shape \(9, 3\)"),
    (MaskOfEverything, "regime_mask", "allows no regime in period 4"),
    (MaskSeesOtherRows, "regime_mask", "row 8 of regime_mask changes"),
    (MaskRemembers, "regime_mask", "same inputs give different results"),
]


class SandglassState(NamedTuple):
    sand: torch.Tensor
    period: torch.Tensor


class SandglassEnv(HybridEnv[SandglassState]):
    """A state field that is one number per row, without a dimension of its own."""

    def __init__(self):
        super().__init__(action_bounds=np.array([[[0, 1]], [[-1, 0]]]), observation_size=1, horizon=4)

    def initial(self, batch_size, generator):
        sand = torch.rand(batch_size, generator=generator, dtype=self.dtype, device=self.device)
        return SandglassState(sand, torch.zeros(batch_size, dtype=torch.int64, device=self.device))

    def transition(self, state, action, noise):
        return state._replace(sand=0.5 * state.sand + action.point[:, 0])

    def reward(self, state, action, noise, next_state):
        return -next_state.sand.square()

    def observation(self, state):
        return state.sand[:, None]


def test_a_state_field_may_be_one_number_per_row():
    check_hybrid_env(SandglassEnv())


@pytest.mark.parametrize(("env_class", "where", "what"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_environment_is_caught_and_the_message_names_the_matter(env_class, where, what):
    with pytest.raises(HybridEnvError, match=f"(?s){what}") as caught:
        check_hybrid_env(env_class())
    caught.match(where)


@pytest.mark.parametrize("env_class", [RewardKeepsAColumn, ObservationOfAnotherSize, TerminalIsFloat, MaskWithoutBatch])
def test_what_a_first_period_shows_is_named_before_any_training_in_the_same_words(env_class):
    with pytest.raises(HybridEnvError) as checked:
        check_hybrid_env(env_class())
    with pytest.raises(HybridEnvError) as begun:
        HPO("MlpPolicy", env_class(), n_scenarios=4)
    assert str(begun.value) == str(checked.value)


def test_noise_that_nobody_draws_is_named():
    class Dry(TankEnv):
        sample_noise = HybridEnv.sample_noise

    class DryByColumn(Dry):
        def transition(self, state, action, noise):
            return state._replace(level=state.level - noise[:, :1] - noise[:, 0:1])

        def reward(self, state, action, noise, next_state):
            return -noise[:, 0]

    for env in (Dry(), DryByColumn()):
        with pytest.raises(HybridEnvError, match=r"transition.*noise has no columns unless sample_noise\(\) draws them"):
            HPO("MlpPolicy", env, n_scenarios=4)


def test_what_is_no_hybrid_environment_is_refused():
    with pytest.raises(HybridEnvError, match="CartPoleEnv is not a HybridEnv"):
        check_hybrid_env(gym.make("CartPole-v1"))


def test_every_registered_environment_passes(instance):
    env_id, kwargs = instance
    check_hybrid_env(gym.make(env_id, **kwargs), seed=3)


@pytest.mark.parametrize("seed", range(5))
def test_the_environment_that_the_broken_ones_derive_from_passes(seed):
    check_hybrid_env(TankEnv(), seed=seed)


def test_gradients_are_checked_where_the_caller_has_switched_them_off():
    with torch.no_grad():
        check_hybrid_env(TankEnv())


def test_an_episode_that_ends_early_passes():
    class Bursting(TankEnv):
        def terminal(self, state):
            return state.level.sum(dim=1) > 2.0

    check_hybrid_env(Bursting())


def test_masked_regimes_are_not_tried():
    check_hybrid_env(KilnEnv())  # which gives NaN where one is taken


def test_the_checked_environment_and_the_global_generators_are_left_alone():
    env = TankEnv()
    env.reset(seed=1)
    twin = copy.deepcopy(env)
    before = torch.get_rng_state()
    check_hybrid_env(env)
    assert torch.equal(torch.get_rng_state(), before)
    assert (env.dtype, env.device.type) == (torch.float32, "cpu")
    np.testing.assert_array_equal(env.step((0, np.zeros(2)))[0], twin.step((0, np.zeros(2)))[0])


def test_a_step_result_of_the_wrong_kind_is_caught():
    class BareTuple(TankEnv):
        def step_torch(self, state, action, noise):
            return tuple(super().step_torch(state, action, noise))

    with pytest.raises(HybridEnvError, match=StepResult.__name__):
        check_hybrid_env(BareTuple())
