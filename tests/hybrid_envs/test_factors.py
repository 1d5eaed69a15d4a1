"""Factors of a regime: bounds and spaces, actions that are taken and refused, and bad input, refused by name."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridEnv, HybridVectorEnv, PiecewiseEnv
from hybrid_envs.factors import NO_FACTOR, RegimeFactors
from hybrid_envs.spaces import hybrid_action_space
from sb3_hpo import HPO, HybridPPO
from tests.factored import NAN, BreweryEnv
from tests.hybrid_envs.test_piecewise import HALF_OPEN, JumpProblem


class OpenEnv(BreweryEnv):
    """The same brewery with two valves, each of an inflow, and layouts of the caller's choice."""

    def __init__(self, **kwargs):
        self.masked = False
        bounds = np.array([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]])
        arguments = {"action_bounds": bounds, "factor_sizes": [2, 2], "factor_of": [0, 1]}
        HybridEnv.__init__(self, **{"observation_size": 6, "horizon": 3} | arguments | kwargs)

    def transition(self, state, action, noise):
        level = state.level - 0.3 * noise + torch.nn.functional.pad(action.point, (0, 1))
        return state._replace(level=level)

    def reward(self, state, action, noise, next_state):
        return -(next_state.level - 1).square().sum(dim=1)


BOUNDS = np.zeros((2, 2, 2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"factor_sizes": [2, 1]}, r"factor_sizes\[1\] = 1: a factor has at least 2 regimes"),
        ({"factor_sizes": [0, 2]}, r"factor_sizes\[0\] = 0: a factor has at least 2 regimes"),
        ({"factor_sizes": [2, -3]}, r"factor_sizes\[1\] = -3: a factor has at least 2 regimes"),
        ({"factor_sizes": [2, 2.0]}, r"factor_sizes\[1\] = 2.0: a factor"),
        ({"factor_sizes": [2, True]}, r"factor_sizes\[1\] = True: a factor"),
        ({"factor_sizes": []}, "factor_sizes is empty"),
        ({"factor_of": [0, 2]}, r"factor_of\[1\] = 2 is not one of 0..1, nor NO_FACTOR = -1"),
        ({"factor_of": [0, -2]}, r"factor_of\[1\] = -2 is not one of 0..1"),
        ({"factor_of": [0]}, "factor_of names 1 coordinates of b, but action_bounds has 2"),
        ({"factor_of": [0, 1, 1]}, "factor_of names 3 coordinates of b, but action_bounds has 2"),
        ({"factor_of": [0, 0.5]}, "factor_of must give one integer for each coordinate"),
        ({"factor_of": [[0], [1]]}, "factor_of must give one integer for each coordinate"),
        ({"factor_of": None}, "factor_sizes needs factor_of"),
        ({"factor_sizes": None}, r"factor_of = \[0, 1\] goes with factor_sizes, which is not given"),
        ({"factor_sizes": None, "factor_of": None, "active_limits": (0, 1)}, "active_limits = .* goes with factor_sizes"),
        ({"action_bounds": np.zeros((3, 2, 2))}, r"must have shape \(J, n, 2\) = \(2, 2, 2\).*got \(3, 2, 2\)"),
        (
            {"action_bounds": np.zeros((3, 2, 2)), "factor_sizes": [3, 2]},
            r"action_bounds\[2, 1\] = \(0.0, 0.0\): coordinate 1 has no regime 2, since its factor 1 has 2 regimes; write NaN",
        ),
        (
            {"action_bounds": [[[0, 1]] * 2, [[0, 2]] * 2], "factor_of": [0, NO_FACTOR]},
            r"action_bounds\[1, 1\] = \(0.0, 2.0\): coordinate 1 has no regime 1, since it has no factor",
        ),
        ({"action_bounds": [[[0, 1]] * 2, [[0, 2], [NAN, NAN]]]}, r"action_bounds\[1, 1\] = \(nan, nan\)"),
        ({"action_bounds": [[[0, 1]] * 2, [[0, 2], [2, 1]]]}, r"action_bounds\[1, 1\] = \(2.0, 1.0\): low must not exceed"),
        ({"active_limits": (0, -1)}, r"active_limits = \(0, -1\) must be two integers"),
        ({"active_limits": (2, 1)}, r"active_limits = \(2, 1\) must be two integers"),
        ({"active_limits": (3, 3)}, "the number of factors of a MultiDiscrete, here 2"),
        ({"active_limits": (0.0, 1.0)}, "must be two integers"),
        ({"active_limits": 1}, "must be two integers"),
    ],
)
def test_bad_arguments_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OpenEnv(**kwargs)


@pytest.mark.parametrize(
    ("regime", "message"),
    [
        ([0, 3, 0], r"regime\[1\] = 3 is not one of 0..2"),
        ([0, 0, 2], r"regime\[2\] = 2 is not one of 0..1"),
        ([-1, 0, 0], r"regime\[0\] = -1 is not one of 0..1"),
        ([0.5, 0, 0], r"regime\[0\] = 0.5 is not one of 0..1"),
        ([0, 0], r"a regime has 3 factors, shape \(3,\), got \[0, 0\]"),
        (1, r"a regime has 3 factors, shape \(3,\), got 1"),
        ([0, 0, 0], "0 factors are in another regime than 0; allowed are 1 to 2"),
        ([1, 1, 1], "3 factors are in another regime than 0; allowed are 1 to 2"),
        ([0, 2, 0], r"regime\[1\] = 2 is masked in this state; allowed are \[0, 1\]"),
        ("open", r"an action is a pair \(regime, point\)"),
    ],
)
def test_an_action_that_factors_do_not_allow_is_refused_alone_and_in_a_batch(regime, message):
    env = BreweryEnv(active_limits=(1, 2))
    env.reset(seed=0)
    env.step((np.array([1, 2, 0]), np.zeros(4)))  # after which valve 1 must not be in position 2
    with pytest.raises(ValueError, match=f"BreweryEnv: {message}"):
        env.step((regime, np.zeros(4)))
    if len(np.shape(regime)) == 1 and len(regime) == 3:
        vector = HybridVectorEnv(env, 2)
        vector.reset(seed=0)
        vector.step((np.array([[1, 2, 0]] * 2), np.zeros((2, 4))))
        with pytest.raises(ValueError, match=f"BreweryEnv: {message}"):
            vector.step((np.array([[1, 0, 0], regime]), np.zeros((2, 4))))


def test_a_batch_of_another_shape_is_refused():
    vector = HybridVectorEnv(BreweryEnv(), 2)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"must have shapes \(2, 3\) and \(2, 4\), got \(2,\) and \(2, 4\)"):
        vector.step((np.zeros(2, int), np.zeros((2, 4))))


class StuckEnv(BreweryEnv):
    """From period 1 on, valve 1 has nothing left; with limits, no valve may move."""

    def regime_mask(self, state):
        mask = torch.ones(len(state.period), 7, dtype=torch.bool)
        late = (state.period > 0).unsqueeze(1)
        columns = [2, 3, 4] if self.factors.active_limits is None else [1, 3, 4, 6]
        mask[:, columns] = ~late
        return mask


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (None, "no regime of factor 1 in period 1"),
        ((1, 2), "no regime of any factor, or none with which all of them keep to active_limits, in period 1"),
    ],
)
def test_a_mask_that_leaves_nothing_is_named_wherever_it_is_met(limits, message):
    env, vector = StuckEnv(active_limits=limits), HybridVectorEnv(StuckEnv(active_limits=limits), 2)
    env.reset(seed=0), vector.reset(seed=0)
    env.step(([1, 0, 0], np.zeros(4))), vector.step((np.array([[1, 0, 0]] * 2), np.zeros((2, 4))))
    for call in (env.action_masks, vector.regime_mask):
        with pytest.raises(ValueError, match=f"StuckEnv: regime_mask.. allows {message}"):
            call()
    with pytest.raises(ValueError, match=message):
        HPO("MlpPolicy", StuckEnv(active_limits=limits), n_scenarios=4).learn(12)


@pytest.mark.parametrize("algorithm", [HPO, HybridPPO])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OpenEnv(factor_of=[1, 0]), r"factor_of=\[0, 1\].*factor_of=\[1, 0\]"),
        (lambda: OpenEnv(active_limits=(0, 1)), r"factor_of=\[0, 1\]\).*active_limits=\(0, 1\)"),
    ],
)
def test_a_model_file_of_another_factorisation_is_refused_by_both_algorithms(algorithm, make, named, tmp_path):
    kwargs = {"n_scenarios": 4} if algorithm is HPO else {"n_steps": 6, "batch_size": 6}
    algorithm("MlpPolicy", OpenEnv(), **kwargs).save(tmp_path / "model")
    with pytest.raises(ValueError, match=named):
        algorithm.load(tmp_path / "model", env=make())


def test_a_model_file_of_other_sizes_is_refused(tmp_path):
    HPO("MlpPolicy", PiecewiseEnv(JumpProblem(HALF_OPEN, n=2), [HALF_OPEN] * 2, factors=True), n_scenarios=4).save(
        tmp_path / "model"
    )
    with pytest.raises(ValueError, match=r"MultiDiscrete|[Aa]ction space"):
        HPO.load(tmp_path / "model", env=PiecewiseEnv(JumpProblem(HALF_OPEN, n=2), [HALF_OPEN, [1.0]], factors=True))


# ---- what is right -----------------------------------------------------------------------------------------------------


def test_bounds_of_regimes_that_are_not_there_are_filled_with_those_of_regime_0():
    env = BreweryEnv()
    assert not np.isnan(env.action_bounds).any()
    assert env.action_bounds[2, 0].tolist() == env.action_bounds[0, 0].tolist() == [0.0, 0.0]
    assert (env.action_bounds[:, 3] == [-1.0, 1.0]).all()
    assert env.action_space == hybrid_action_space(env.action_bounds, env.factors)
    assert env.action_space[0] == gym.spaces.MultiDiscrete([2, 3, 2])


def test_each_coordinate_is_given_the_value_of_its_own_factors_regime():
    factors = RegimeFactors([2, 3], [1, NO_FACTOR, 0, 1])
    values = torch.arange(3 * 4.0).view(1, 3, 4).expand(2, -1, -1)
    regime = torch.tensor([[1, 2], [0, 1]])
    assert factors.of_coordinates(regime).tolist() == [[2, 0, 1, 2], [1, 0, 0, 1]]
    assert factors.choose(values, regime).tolist() == [[8.0, 1.0, 6.0, 11.0], [4.0, 1.0, 2.0, 7.0]]


def test_flat_entries_stand_by_factor_with_the_gaps_filled():
    factors = RegimeFactors([2, 3], [0])
    flat = torch.tensor([[True, False, False, True, True]])
    assert factors.by_factor(flat, False).tolist() == [[[True, False, False], [False, True, True]]]
    assert factors.every().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_equal_factors_are_equal_and_others_are_not():
    one = RegimeFactors([2, 3], [0, 1], (1, 2))
    assert one == RegimeFactors((2, 3), np.array([0, 1]), (1, 2)) and hash(one) == hash(RegimeFactors([2, 3], [0, 1], (1, 2)))
    for other in (RegimeFactors([2, 3], [0, 1]), RegimeFactors([3, 2], [0, 1], (1, 2)), RegimeFactors([2, 3], [1, 0], (1, 2))):
        assert one != other
    assert RegimeFactors([2], [0]) != RegimeFactors(2, [0])
