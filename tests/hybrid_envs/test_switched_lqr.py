"""Every expected number here was worked out by hand from the problem's equations."""

import numpy as np
import torch

from hybrid_envs import HybridAction, HybridSwitchedLQREnv
from hybrid_envs.switched_lqr.env import SwitchedLQRState

MATRICES = {
    "A": np.array([[1.0, 2.0], [0.0, 1.0]]),
    "B": np.array([[[1.0, 0.0], [0.0, 0.5]], [[0.0, 1.0], [3.0, 0.0]]]),
    "Q": np.array([[2.0, 1.0], [1.0, 2.0]]),
    "R": np.array([[1.0, 0.0], [0.0, 3.0]]),
}


def step(env, x, mode, u):
    state = SwitchedLQRState(torch.tensor([x]), torch.tensor([0]))
    return env.step_torch(state, HybridAction(torch.tensor([mode]), torch.tensor([u])), torch.empty(1, 0))


def test_mode_one_by_hand():
    result = step(HybridSwitchedLQREnv(**MATRICES), [1.0, -2.0], 1, [2.0, 1.0])
    assert result.state.x.tolist() == [[-3.0 + 1.0, -2.0 + 6.0]]
    assert result.reward.item() == -((2 - 4 + 8) + (4 + 3))


def test_mode_zero_by_hand():
    result = step(HybridSwitchedLQREnv(**MATRICES), [-2.0, 4.0], 0, [-1.0, 2.0])
    assert result.state.x.tolist() == [[6.0 - 1.0, 4.0 + 1.0]]
    assert result.reward.item() == -((8 - 16 + 32) + (1 + 12))


def test_the_state_is_clamped_to_a_hundred():
    result = step(HybridSwitchedLQREnv(**MATRICES), [90.0, 30.0], 0, [0.0, -400.0])
    assert result.state.x.tolist() == [[100.0, -100.0]]


def test_no_gradient_passes_a_clamped_coordinate():
    env = HybridSwitchedLQREnv(**MATRICES)
    u = torch.tensor([[5.0, 6.0]], requires_grad=True)
    state = SwitchedLQRState(torch.tensor([[90.0, 30.0]]), torch.tensor([0]))
    result = env.step_torch(state, HybridAction(torch.tensor([0]), u), torch.empty(1, 0))
    (gradient,) = torch.autograd.grad(result.state.x.sum(), u)
    assert gradient.tolist() == [[0.0, 0.5]]


def test_each_row_is_driven_by_its_own_mode():
    env = HybridSwitchedLQREnv(**MATRICES)
    state = SwitchedLQRState(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    result = env.step_torch(state, HybridAction(torch.tensor([1, 0, 1]), torch.tensor([[2.0, 1.0]] * 3)), torch.empty(3, 0))
    assert result.state.x.tolist() == [[1.0, 6.0], [2.0, 0.5], [1.0, 6.0]]


def test_the_default_instance_has_eight_dimensions_two_modes_and_twenty_periods():
    env = HybridSwitchedLQREnv()
    assert (env.n_dims, env.n_regimes, env.horizon) == (8, 2, 20)


def test_the_reference_plant_with_two_dimensions_has_its_published_numbers():
    np.testing.assert_allclose(HybridSwitchedLQREnv(2, 2).params.A, [[1.12473457, 0.05], [0.05, 1.12063672]], rtol=1e-8)


def test_the_reference_modes_drive_their_own_group_at_full_strength():
    params = HybridSwitchedLQREnv(3, 2).params
    assert [np.diag(B).tolist() for B in params.B] == [[1.0, 1.0, 0.15], [0.15, 0.15, 1.0]]
    assert all(np.count_nonzero(B) == 3 for B in params.B)


def test_the_reference_costs_are_the_identity_and_a_tenth_of_it():
    params = HybridSwitchedLQREnv(3, 2).params
    np.testing.assert_array_equal(params.Q, np.eye(3))
    np.testing.assert_array_equal(params.R, 0.1 * np.eye(3))


def test_starts_fill_the_cube_of_ten_over_root_p():
    x = HybridSwitchedLQREnv(4, 2).initial(5000, torch.Generator().manual_seed(0)).x
    assert x.abs().max() <= 5.0
    assert x.max() > 4.99 and x.min() < -4.99
    assert x.mean(0).abs().max() < 0.2  # standard error 0.04


def test_one_mode_with_no_group_of_others_is_the_plain_regulator():
    np.testing.assert_array_equal(HybridSwitchedLQREnv(3, 1).params.B, np.eye(3)[None])


def test_the_figure_of_merit_is_the_total_cost_of_the_episode():
    assert HybridSwitchedLQREnv().figure_of_merit(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [4.0, 6.0]


def test_sizes_follow_from_given_matrices():
    env = HybridSwitchedLQREnv(**MATRICES)
    assert (env.n_dims, env.n_regimes, env.action_space[1].shape) == (2, 2, (2,))


def test_the_picture_grows_with_the_episode():
    env = HybridSwitchedLQREnv(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step((1, np.zeros(8)))
    assert (before != env.render()).any()
