import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from hybrid_envs.spaces import hybrid_action_space, pack, packed_space, split_hybrid_space, unpack

floats = st.floats(-1e6, 1e6, width=32)
batches = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, 1000), st.lists(floats, min_size=n, max_size=n)), min_size=1, max_size=8)
)


@given(batches)
def test_unpacking_a_packed_batch_gives_it_back(batch):
    regime = torch.tensor([x for x, _ in batch])
    point = torch.tensor([b for _, b in batch], dtype=torch.float32)
    again = unpack(pack(regime, point))
    assert again.regime.dtype == torch.int64
    assert torch.equal(again.regime, regime)
    assert torch.equal(again.point, point)


def test_packing_keeps_further_leading_dimensions():
    regime, point = torch.randint(4, (3, 2)), torch.randn(3, 2, 5)
    packed = pack(regime, point)
    assert packed.shape == (3, 2, 6)
    assert torch.equal(unpack(packed).regime, regime)


def test_gradients_pass_through_packing_into_the_point():
    point = torch.ones(2, 3, requires_grad=True)
    (2.0 * unpack(pack(torch.tensor([0, 1]), point)).point).sum().backward()
    assert torch.equal(point.grad, torch.full((2, 3), 2.0))


def test_packing_puts_the_regime_first():
    assert pack(torch.tensor([3]), torch.tensor([[0.5, -1.0]])).tolist() == [[3.0, 0.5, -1.0]]


bound = st.floats(-100, 100, width=32)
intervals = st.tuples(bound, bound).map(sorted)
bounds_arrays = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda size: st.lists(st.lists(intervals, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0])
)


@given(bounds_arrays)
def test_the_box_is_the_smallest_that_holds_every_regimes_interval(bounds):
    bounds = np.array(bounds, dtype=np.float32)
    discrete, box = split_hybrid_space(hybrid_action_space(bounds))
    assert discrete.n == len(bounds)
    for coordinate in range(bounds.shape[1]):
        assert box.low[coordinate] == min(low for low, _ in bounds[:, coordinate])
        assert box.high[coordinate] == max(high for _, high in bounds[:, coordinate])


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([[0.0, 1.0]], r"shape \(n_regimes, n, 2\), got \(1, 2\)"),
        (np.empty((0, 3, 2)), r"shape \(n_regimes, n, 2\), got \(0, 3, 2\)"),
        ([[[0.0, 1.0], [2.0, 1.0]]], r"action_bounds\[0, 1\] = \(2.0, 1.0\): low must not exceed high"),
        ([[[0.0, 1.0]], [[np.nan, 1.0]]], r"action_bounds\[1, 0\] = \(nan, 1.0\)"),
    ],
)
def test_impossible_bounds_are_refused_with_their_place(bounds, message):
    with pytest.raises(ValueError, match=message):
        hybrid_action_space(bounds)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2),
        spaces.Tuple((spaces.Discrete(2),)),
        spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Discrete(2))),
        spaces.Tuple((spaces.Discrete(2, start=1), spaces.Box(-1, 1, (2,)))),
        spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2, 2)))),
    ],
    ids=str,
)
def test_a_space_that_is_not_hybrid_is_refused_by_name(space):
    with pytest.raises(TypeError, match=r"must be Tuple\(Discrete\(J\), Box\(shape=\(n,\)\)\)"):
        split_hybrid_space(space)


def test_the_packed_space_holds_exactly_the_packed_actions():
    space = packed_space(spaces.Tuple((spaces.Discrete(3), spaces.Box(np.float32([-1, 0]), np.float32([1, 5])))))
    assert space.low.tolist() == [0.0, -1.0, 0.0]
    assert space.high.tolist() == [2.0, 1.0, 5.0]
