"""check_hybrid_env passes environments whose regimes have several factors, and names what is wrong with broken ones."""

import warnings
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridEnv, check_hybrid_env
from hybrid_envs.checker import HybridEnvError
from hybrid_envs.factors import NO_FACTOR, RegimeFactors
from hybrid_envs.probing import HybridEnvWarning
from tests.factored import NAN, BreweryEnv


class PipesState(NamedTuple):
    """``level``: of four basins, shape ``(batch, 4)``; ``gear``: the motor's, int64, shape ``(batch,)``."""

    level: torch.Tensor
    gear: torch.Tensor
    period: torch.Tensor


class PipesEnv(HybridEnv[PipesState]):
    """
    Three taps that are shut or open, a motor with three gears, and a drain that always runs: an inflow behind each tap, a
    stirrer on the motor, which has no factor's bounds.
    """

    factor_of = (0, 1, 2, NO_FACTOR)

    def __init__(self, **kwargs):
        bounds = np.full((3, 4, 2), NAN)
        bounds[0, :3], bounds[1, :3], bounds[0, 3] = (0.0, 0.0), (0.0, 2.0), (-1.0, 1.0)
        super().__init__(
            action_bounds=bounds,
            observation_size=4,
            horizon=5,
            factor_sizes=[2, 2, 2, 3],
            factor_of=self.factor_of,
            **kwargs,
        )

    def initial(self, batch_size, generator):
        level = torch.rand(batch_size, 4, generator=generator, dtype=self.dtype, device=self.device)
        zero = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return PipesState(level, zero, zero)

    def sample_noise(self, batch_size, generator):
        return torch.rand(self.horizon, batch_size, 4, generator=generator, dtype=self.dtype, device=self.device)

    def flow(self, action):
        taps = action.regime[:, :3] > 0
        return torch.cat([action.point[:, :3] * taps, action.point[:, 3:]], dim=1)

    def transition(self, state, action, noise):
        level = 0.8 * state.level + 0.5 * self.flow(action) - 0.3 * noise
        return PipesState(level, action.regime[:, 3], state.period)

    def reward(self, state, action, noise, next_state):
        return -(next_state.level - 1).square().sum(dim=1) - 0.1 * (action.regime > 0).sum(dim=1) - 0.2 * state.gear

    def observation(self, state):
        return state.level


# ---- layout ------------------------------------------------------------------------------------------------------------


class SpaceOfOtherFactors(PipesEnv):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Tuple((gym.spaces.MultiDiscrete([2, 2, 3, 2]), self.action_space[1]))


class SpaceOfOneFactor(PipesEnv):
    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.Tuple((gym.spaces.Discrete(24), self.action_space[1]))


class FactorsOfADiscrete(PipesEnv):
    def __init__(self):
        super().__init__()
        self.factors = RegimeFactors(3, [0, 0, 0, 0])


class FactorOfWrittenLater(PipesEnv):
    def __init__(self):
        super().__init__()
        self.factors.factor_of[1] = 0


class SizesWrittenLater(PipesEnv):
    def __init__(self):
        super().__init__()
        self.factors.sizes = (2, 2, 2, 2)


class CoordinateMissing(PipesEnv):
    def __init__(self):
        super().__init__()
        self.factors = RegimeFactors([2, 2, 2, 3], [0, 1, 2])


class BoundsLeftNaN(PipesEnv):
    def __init__(self):
        super().__init__()
        self.action_bounds[1, 2] = np.nan


class BoundsOfARegimeThatIsNot(PipesEnv):
    def __init__(self):
        super().__init__()
        self.action_bounds[2, 1] = 0.0, 2.0


class BoundsOfAFreeCoordinateChange(PipesEnv):
    def __init__(self):
        super().__init__()
        self.action_bounds[1, 3] = 0.0, 1.0


# ---- masks and regimes -------------------------------------------------------------------------------------------------


class MaskOfTheLargestFactor(PipesEnv):
    def regime_mask(self, state):
        return torch.ones(len(state.period), 3, dtype=torch.bool, device=self.device)


class MaskOfFactors(PipesEnv):
    def regime_mask(self, state):
        return torch.ones(len(state.period), 4, dtype=torch.bool, device=self.device)


class MaskByFactor(PipesEnv):
    def regime_mask(self, state):
        return torch.ones(len(state.period), 4, 3, dtype=torch.bool, device=self.device)


class MaskEmptiesAFactor(PipesEnv):
    def regime_mask(self, state):
        mask = torch.ones(len(state.period), 9, dtype=torch.bool, device=self.device)
        mask[:, 4:6] = (state.period < 2).unsqueeze(1)
        return mask


class MaskAgainstLimits(PipesEnv):
    def __init__(self):
        super().__init__(active_limits=(2, 3))

    def regime_mask(self, state):
        mask = torch.ones(len(state.period), 9, dtype=torch.bool, device=self.device)
        mask[:, [1, 3, 5]] = (state.period < 2).unsqueeze(1)
        return mask


class LimitsIgnored(PipesEnv):
    def __init__(self):
        super().__init__(active_limits=(1, 2))

    def check_action(self, action, mask=None):
        limits, self.factors.active_limits = self.factors.active_limits, None
        try:
            return super().check_action(action, mask)
        finally:
            self.factors.active_limits = limits


class RegimeTakenForANumber(PipesEnv):
    def reward(self, state, action, noise, next_state):
        return super().reward(state, action, noise, next_state) - 0.1 * (action.regime == 1)


class RegimeTakenForAColumn(PipesEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action, noise)._replace(gear=action.regime)


class RegimeKeptAsFloat(PipesEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action, noise)._replace(gear=action.regime[:, 3].to(self.dtype))


class SixFactors(HybridEnv[PipesState]):
    """As many factors as there are rows when each of two regimes is tried three times."""

    def __init__(self):
        bounds = np.array([[[0.0, 0.0]] * 6, [[0.0, 1.0]] * 6])
        super().__init__(action_bounds=bounds, observation_size=4, horizon=3, factor_sizes=[2] * 6, factor_of=np.arange(6))

    initial, observation = PipesEnv.initial, PipesEnv.observation

    def transition(self, state, action, noise):
        return state._replace(level=0.5 * state.level + action.point.sum(dim=1, keepdim=True))

    def reward(self, state, action, noise, next_state):
        return -next_state.level.sum(dim=1) * (1 + 0.1 * (action.regime > 0)).mean(dim=0)


class DrawsOneNumber(PipesEnv):
    def draw(self, frames):
        names = {None: "start", 0: "shut", 1: "open"}
        assert [names[frame.regime] for frame in frames]
        return np.zeros((4, 4, 3), np.uint8)


class DrawsInFloat(PipesEnv):
    def draw(self, frames):
        return np.zeros((4, 4, 3))


# ---- which factor acts on what -----------------------------------------------------------------------------------------


class ColumnsReversed(PipesEnv):
    def flow(self, action):
        taps = action.regime[:, :3].flip(1) > 0
        return torch.cat([action.point[:, :3] * taps, action.point[:, 3:]], dim=1)


class ColumnsShifted(PipesEnv):
    def flow(self, action):
        taps = action.regime[:, :3].roll(1, dims=1) > 0
        return torch.cat([action.point[:, :3] * taps, action.point[:, 3:]], dim=1)


class OneTapRounded(PipesEnv):
    def flow(self, action):
        flow = super().flow(action)
        return torch.cat([flow[:, :2], (10 * flow[:, 2:3]).round(), flow[:, 3:]], dim=1)


BROKEN = [
    (SpaceOfOtherFactors, r"its regimes are \[2, 2, 3, 2\], but the factors have the sizes \[2, 2, 2, 3\]"),
    (SpaceOfOneFactor, r"its regimes are no MultiDiscrete, but the factors have the sizes \[2, 2, 2, 3\]"),
    (FactorsOfADiscrete, r"MultiDiscrete\(\[2 2 2 3\]\).*but its factors are RegimeFactors\(Discrete\(3\)"),
    (FactorOfWrittenLater, r"factor_of\[1\].*changed to 0 after __init__"),
    (SizesWrittenLater, r"its regimes are \[2, 2, 2, 3\], but the factors have the sizes \[2, 2, 2, 2\]"),
    (CoordinateMissing, r"action_bounds.*action_size = 4.*factor_of=\[0, 1, 2\]\) wants shape \(3, 3, 2\)"),
    (BoundsLeftNaN, r"action_bounds\[1, 2\].*nan.*coordinate 2, whose factor is 2"),
    (BoundsOfARegimeThatIsNot, r"action_bounds\[2, 1\].*coordinate 1 has no regime 2, since its factor 1 has 2 regimes"),
    (BoundsOfAFreeCoordinateChange, r"action_bounds\[1, 3\].*coordinate 3 has no regime 1, since it has no factor"),
    (MaskOfTheLargestFactor, r"regime_mask\(\).*shape \(9, 3\).*shape \(9, 9\), since 2 \+ 2 \+ 2 \+ 3 = 9"),
    (MaskOfFactors, r"regime_mask\(\).*shape \(9, 4\).*flat, factor after factor"),
    (MaskByFactor, r"regime_mask\(\).*shape \(9, 4, 3\).*flat, factor after factor"),
    (MaskEmptiesAFactor, "allows no regime of factor 2 in period 2"),
    (
        MaskAgainstLimits,
        r"in period 2 .*lets 0 to 1 factors be in another regime than 0, but active_limits = \(2, 3\).*\[0, 1, 2\] cannot",
    ),
    (LimitsIgnored, r"accepts \(array\(\[0, 0, 0, 0\]\)"),
    (RegimeTakenForANumber, r"reward\(\).*RuntimeError.*action.regime has shape \(batch, 4\), a column for each factor"),
    (RegimeTakenForAColumn, r"transition\(\): gear in period 0.*shape \(9, 4\)"),
    (RegimeKeptAsFloat, r"transition\(\): gear in period 0.*torch.float32.*torch.int64"),
    (SixFactors, r"reward\(\).*RuntimeError.*action.regime has shape \(batch, 6\)"),
    (DrawsOneNumber, r"draw\(\).*raised TypeError.*array of shape \(4,\)"),
    (DrawsInFloat, r"draw\(\).*float64.*uint8"),
    (ColumnsReversed, r"mixes up the factors: b\[0\] answers to factor 0.*only where factor 2 is in regime 1"),
    (ColumnsShifted, r"mixes up the factors: b\[0\] answers to factor 0.*only where factor 2 is in regime 1"),
    (OneTapRounded, r"piecewise constant in b: b\[2\] matters in regime 1 of its factor 2"),
]


@pytest.mark.parametrize(("env_class", "what"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_environment_is_caught_and_the_message_names_the_factor(env_class, what):
    with pytest.raises(HybridEnvError, match=f"(?s){what}"):
        check_hybrid_env(env_class())


# ---- what is hardly meant ----------------------------------------------------------------------------------------------


class FreeCoordinateWaits(PipesEnv):
    def flow(self, action):
        flow = super().flow(action)
        return torch.cat([flow[:, :3], flow[:, 3:] * (action.regime[:, 3:] == 2)], dim=1)


class MainValve(PipesEnv):
    def flow(self, action):
        flow, main = super().flow(action), action.regime[:, :1] > 0
        return torch.cat([flow[:, :1], flow[:, 1:2] * main, flow[:, 2:]], dim=1)


class IdleFactor(PipesEnv):
    def transition(self, state, action, noise):
        return super().transition(state, action, noise)._replace(gear=state.gear)

    def reward(self, state, action, noise, next_state):
        return -(next_state.level - 1).square().sum(dim=1)


class IdleRegime(PipesEnv):
    def reward(self, state, action, noise, next_state):
        return -(next_state.level - 1).square().sum(dim=1) - 0.2 * state.gear

    def transition(self, state, action, noise):
        gear = torch.where(action.regime[:, 3] == 1, 0, action.regime[:, 3])
        return super().transition(state, action, noise)._replace(gear=gear)


class IdleCoordinate(PipesEnv):
    def flow(self, action):
        flow = super().flow(action)
        return torch.cat([flow[:, :1], 0 * flow[:, 1:2], flow[:, 2:]], dim=1)


class IdleLimits(PipesEnv):
    def __init__(self):
        super().__init__(active_limits=(0, 4))


ODD = [
    (FreeCoordinateWaits, r"factor_of\[3\].*b\[3\] has NO_FACTOR, but acts only where factor 3 is in regime 2"),
    (IdleFactor, "factor 3 .*changes nothing"),
    (IdleRegime, "factor 3 .*regime 1 does the same as regime 0"),
    (IdleCoordinate, r"b\[1\] .*changed nothing"),
    (IdleLimits, r"active_limits .*\(0, 4\) forbids nothing to 4 factors"),
]


@pytest.mark.parametrize(("env_class", "what"), ODD, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_hardly_meant_is_a_warning(env_class, what):
    with pytest.warns(HybridEnvWarning, match=f"(?s){what}") as caught:
        check_hybrid_env(env_class())
    assert len([warning for warning in caught if issubclass(warning.category, HybridEnvWarning)]) == 1


# ---- what passes -------------------------------------------------------------------------------------------------------


class ManyPipes(PipesEnv):
    """Fifty taps."""

    def __init__(self):
        bounds = np.array([[[0.0, 0.0]] * 50, [[0.0, 2.0]] * 50])
        HybridEnv.__init__(
            self, action_bounds=bounds, observation_size=4, horizon=4, factor_sizes=[2] * 50, factor_of=np.arange(50)
        )

    def transition(self, state, action, noise):
        flow = (action.point * (action.regime > 0)).unflatten(1, (25, 2)).sum(dim=1)
        return state._replace(level=0.8 * state.level + torch.cat([flow, flow.tanh()], dim=1) - 0.3 * noise)


GOOD = {
    "masked": lambda: BreweryEnv(),
    "not masked": lambda: BreweryEnv(masked=False),
    "longer": lambda: BreweryEnv(10),
    "limited": lambda: BreweryEnv(active_limits=(1, 2)),
    "exactly": lambda: BreweryEnv(masked=False, active_limits=(2, 2)),
    "pipes": PipesEnv,
    "at most one": lambda: PipesEnv(active_limits=(0, 1)),
    "fifty": ManyPipes,
    "main valve": MainValve,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", GOOD)
def test_factored_environments_pass_without_a_warning(name, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("error", HybridEnvWarning)
        check_hybrid_env(GOOD[name](), seed=seed)


# ---- the regimes that are tried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(0, 1), (1, 2), (2, 2), (4, 4), (3, 9)])
def test_repaired_regimes_keep_to_masks_and_limits_and_reach_all_that_are_left(limits):
    factors = RegimeFactors([2, 3, 2, 2], [0], active_limits=limits)
    generator = torch.Generator().manual_seed(0)
    regime = factors.spread(2_000, generator)
    mask = torch.rand(2_000, factors.total, generator=generator) < 0.8
    usable = factors.leaves_a_choice(mask).all(dim=1)
    assert usable.sum() > 20
    regime, mask = regime[usable], mask[usable]
    found = factors.repaired(regime, mask)
    assert factors.permits(found, mask).all()
    kept = factors.permits(regime, mask)
    assert torch.equal(found[kept], regime[kept])
    free = factors.repaired(factors.spread(2_000, generator), None)
    every = factors.every()
    permitted = every[factors.permits(every, None)]
    active = {tuple((x != 0).tolist()) for x in free}
    assert active == {tuple((x != 0).tolist()) for x in permitted}


def test_spread_regimes_hold_every_regime_of_every_factor_equally_often():
    regime = RegimeFactors([2, 3, 5], [0]).spread(30, torch.Generator().manual_seed(1))
    for f, size in enumerate((2, 3, 5)):
        assert torch.bincount(regime[:, f]).tolist() == [30 // size] * size
    assert RegimeFactors(3, [0]).spread(5, torch.Generator()).tolist() == [0, 1, 2, 0, 1]
