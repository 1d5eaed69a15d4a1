"""The checker warns of a regime that changes nothing, and of a part of the range of b without effect."""

import re
import warnings

import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv, check_hybrid_env
from hybrid_envs.probing import HybridEnvWarning
from tests.hybrid_envs.test_checker import TankEnv


def messages(env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_hybrid_env(env)
    return [str(warning.message) for warning in caught if issubclass(warning.category, HybridEnvWarning)]


class FillingTankEnv(TankEnv):
    """b in [0, 2] in both regimes; ``effect`` is what arrives of it."""

    def __init__(self, effect, price=0.5):
        super(TankEnv, self).__init__(
            action_bounds=np.full((2, 2, 2), [0.0, 2.0]), observation_size=2, horizon=6, action_scale=1.0
        )
        self.price, self.order_price, self.effect = torch.tensor([1.0, 3.0]), price, effect

    def transition(self, state, action, noise):
        return state._replace(level=0.9 * state.level + self.effect(action) - noise)

    def reward(self, state, action, noise, next_state):
        return -(next_state.level.square() @ self.price) - self.order_price * (action.regime > 0)


def test_a_tank_whose_whole_range_matters_passes():
    assert messages(FillingTankEnv(lambda action: action.point)) == []


def test_a_regime_that_is_used_nowhere_is_named():
    (message,) = messages(FillingTankEnv(lambda action: action.point, price=0.0))
    assert "regime 1 changes nothing: with every b that it may take, regime 0 does the same" in message


def test_a_regime_that_is_a_special_case_of_another_is_named():
    """Ordering is free, so that "order nothing" is the same as "order 0"."""
    (message,) = messages(HybridInventoryEnv(2, horizon=10, fixed_cost=0.0))
    assert "regime 0 changes nothing" in message


def test_two_equal_modes_are_named():
    (message,) = messages(HybridSwitchedLQREnv(A=1.1 * np.eye(2), B=np.stack([np.eye(2)] * 2), horizon=5))
    assert "regime 1 changes nothing" in message


@pytest.mark.parametrize(
    ("effect", "end", "low", "high"),
    [
        (lambda action: action.point.clamp(max=1.3), "highest", 1.3, 2.0),
        (lambda action: action.point.clamp(min=0.4), "lowest", 0.0, 0.4),
        (lambda action: (action.point - 1.7).clamp(min=0), "lowest", 0.0, 1.7),
        (lambda action: action.point - (action.point - 0.9).clamp(min=0) * action.regime[:, None], "highest", 0.9, 2.0),
        (lambda action: action.point.minimum(action.point.new_tensor([2.0, 1.88])), "highest", 1.88, 2.0),
    ],
    ids=["upper clamp", "lower clamp", "only large ones count", "in one regime", "one coordinate"],
)
def test_an_end_of_the_range_without_effect_is_located(effect, end, low, high):
    found = messages(FillingTankEnv(effect))
    assert found
    for message in found:
        where = re.search(
            r"the (\w+) part of the range of b\[\d\] has no effect in regime \d, from (\S+) to (\S+)\. ", message
        )
        assert where is not None, message
        assert where[1] == end
        np.testing.assert_allclose([float(where[2]), float(where[3])], [low, high], atol=2e-3)


def test_a_range_that_only_some_states_use_up_is_no_reason_to_warn():
    """What a full tank cannot take is lost, but a tank is not always full."""

    class Bounded(FillingTankEnv):
        def transition(self, state, action, noise):
            return state._replace(level=(0.9 * state.level + action.point - noise).clamp(max=1.5))

    assert messages(Bounded(None)) == []


def test_a_coordinate_that_a_regime_ignores_is_no_reason_to_warn():
    effect = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert messages(FillingTankEnv(lambda action: action.point * effect.to(action.point)[action.regime])) == []
