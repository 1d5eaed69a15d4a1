"""The tower: from raw outputs to candidate points that are feasible in their own regime."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sb3_hpo.networks import Tower
from tests.sb3_hpo.geometry import BOUNDS, SCALE


def by_hand(z, low, high, scale, share, excess):
    if math.isinf(low) and math.isinf(high):
        return scale * z
    if math.isinf(high):
        return low + scale * excess(z)
    if math.isinf(low):
        return high - scale * excess(z)
    return low + (high - low) * share(z)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def softplus(z, beta):
    u = beta * z + math.log(2**beta - 1)
    return (max(u, 0.0) + math.log1p(math.exp(-abs(u)))) / beta


def clipped_share(z):
    return min(max(0.5 + z / 4, 0.0), 1.0)


def clipped_excess(z):
    return max(z + math.log(2), 0.0)


@pytest.mark.parametrize(
    ("corner", "share", "excess"),
    [
        *(({"softplus_beta": beta}, sigmoid, partial(softplus, beta=beta)) for beta in (1, 2.5, 16.0)),
        ({"projected": True}, clipped_share, clipped_excess),
    ],
)
def test_the_tower_follows_the_formula_of_each_kind_of_bound(corner, share, excess):
    z = 3 * torch.randn(20, 15, generator=torch.Generator().manual_seed(0))
    candidates = Tower(BOUNDS, SCALE, **corner)(z)
    assert candidates.shape == (20, 3, 5)
    for row in range(20):
        for regime in range(3):
            for i in range(5):
                low, high = map(float, BOUNDS[regime, i])
                expected = by_hand(z[row, 5 * regime + i].item(), low, high, float(SCALE[i]), share, excess)
                assert candidates[row, regime, i].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("corner", [*({"softplus_beta": beta} for beta in (2.0, 16.0, 1e3)), {"projected": True}])
def test_a_sharp_corner_leaves_the_first_points_where_they_are(corner):
    z = torch.zeros(1, 15)
    torch.testing.assert_close(Tower(BOUNDS, SCALE, **corner)(z), Tower(BOUNDS, SCALE)(z))


@pytest.mark.parametrize("corner", [{}, {"softplus_beta": 16.0}, {"projected": True}])
@pytest.mark.parametrize("magnitude", [1.0, 30.0, 1e4, 1e30])
def test_candidates_are_feasible_in_their_own_regime_whatever_the_network_says(magnitude, corner):
    z = magnitude * torch.randn(500, 15, generator=torch.Generator().manual_seed(0))
    candidates = Tower(BOUNDS, SCALE, **corner)(z).numpy()
    assert np.isfinite(candidates).all()
    assert (candidates >= BOUNDS[..., 0]).all()
    assert (candidates <= BOUNDS[..., 1]).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, np.inf), (-np.inf, 1.0)])
@pytest.mark.parametrize("start", [-30.0, 0.1, 30.0])
def test_a_projected_point_comes_back_from_a_bound_and_goes_no_further_beyond_it(bounds, start):
    tower = Tower(np.array([[bounds]], dtype=np.float32), np.ones(1, np.float32), projected=True)
    low, high = bounds

    def descend(target):
        z = torch.tensor([[start]], requires_grad=True)
        optimizer = torch.optim.SGD([z], lr=0.5)
        for _ in range(500):
            optimizer.zero_grad()
            ((tower(z) - target) ** 2).sum().backward()
            optimizer.step()
        return z.item(), tower(z).item()

    _, reached = descend(0.7)
    assert reached == pytest.approx(0.7, abs=1e-3)
    for target, bound in ((-1.0, low), (2.0, high)):
        if math.isfinite(bound):
            z, reached = descend(target)
            assert reached == bound
            assert abs(z) <= max(abs(start), 3.0)


numbers = st.floats(-1e6, 1e6, width=32)


@given(numbers, numbers, st.floats(-100, 100, width=32), st.booleans())
def test_rounding_carries_no_candidate_over_the_ends_of_an_interval(end, other_end, z, projected):
    low, high = sorted((end, other_end))
    tower = Tower(np.array([[[low, high]]], dtype=np.float32), np.ones(1, np.float32), projected=projected)
    for raw in (z, 1e4, -1e4):
        assert low <= tower(torch.tensor([[raw]])).item() <= high


def test_unbounded_and_one_sided_candidates_can_go_as_far_as_they_are_told():
    low_only, high_only, free = Tower(BOUNDS, SCALE)(torch.full((1, 15), 1e3))[0, [0, 1, 2], [1, 1, 2]].tolist()
    assert (low_only, high_only, free) == pytest.approx((1002.0, -993.0, 2000.0))


def test_a_degenerate_interval_passes_no_gradient_and_no_nan():
    z = torch.randn(10, 15, requires_grad=True)
    Tower(BOUNDS, SCALE)(z).sum().backward()
    gradient = z.grad.view(10, 3, 5)
    degenerate = torch.from_numpy(BOUNDS[..., 0] == BOUNDS[..., 1])
    assert gradient.isfinite().all()
    assert (gradient[:, degenerate] == 0).all()
    assert (gradient[:, ~degenerate] != 0).all()
