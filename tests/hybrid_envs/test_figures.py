"""Pictures of a policy show what the policy does: checked with policies whose shape is known."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.core import Frame, HybridEnv
from hybrid_envs.evaluation import Choices, greedy_episode, policy_figure, reference_policy
from hybrid_envs.rendering import draw_episode, regimes_taken, to_rgb_array
from hybrid_envs.solvers import SingleItemSS, SingleMode
from hybrid_envs.switched_lqr.figures import leading_directions
from tests.factored import BreweryEnv


def order_up_to(env, s, S):
    """The (s, S) policy of every item in periods of mean demand, with a probability that passes 1/2 at s."""

    def choices(observation):
        n, lead_time = env.n_items, env.params.lead_time
        position = observation[:, : n * lead_time].reshape(-1, lead_time, n).sum(axis=1)
        order = 1 / (1 + np.exp(8 * (position.mean(axis=1) - s)))
        points = np.maximum(S - position, 0) * env.params.mean_demand
        return Choices(np.stack([1 - order, order], axis=1), np.stack([np.zeros_like(points), points], axis=1))

    return choices


def lines(axes):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}


@pytest.mark.parametrize("n_items, kwargs", [(1, {}), (4, {}), (3, {"lost_sales": True, "lead_time": 1})])
def test_an_s_S_policy_is_drawn_as_a_step_at_s_and_a_level_at_S(n_items, kwargs):
    env = HybridInventoryEnv(n_items, **kwargs)
    unit = env.params.mean_demand[0] if n_items == 1 else 1.0
    upper, lower = policy_figure(env, order_up_to(env, s=1.5, S=4.0)).axes
    position, probability = upper.get_lines()[0].get_xydata().T
    assert np.interp(1.5 * unit, position, probability) == pytest.approx(0.5, abs=1e-2)
    assert probability[0] > 0.99 and probability[-1] < 0.01
    assert (position[0] >= 0) == bool(kwargs.get("lost_sales"))  # without backlog no position is negative
    position, level = lines(lower)["level after an order"].T
    shown = np.isfinite(level)
    np.testing.assert_allclose(level[shown], 4.0 * unit, rtol=1e-5)
    assert (position[shown] <= 1.5 * unit + 1e-6).all() and (position[~shown] >= 1.5 * unit - 1e-6).all()


def test_the_dots_are_the_orders_of_an_episode():
    levels = np.array([3.0, 4.0, 6.0])
    env = HybridInventoryEnv(3, horizon=30)
    _, lower = policy_figure(env, order_up_to(env, s=1.0, S=levels)).axes
    at, to = lines(lower)["orders of one episode"].reshape(-1, 3, 2).transpose(2, 0, 1)  # one dot for each order and item
    np.testing.assert_allclose(to, np.tile(levels, (len(to), 1)), rtol=1e-5)
    assert (at.mean(axis=1) <= 1.0).all()
    assert at[0].tolist() == [0.0, 0.0, 0.0]  # nothing on hand at the start
    # 30 periods of demand 1 are met by orders of 10/3 or more on average: of what has fallen since the last order
    assert 5 <= len(at) <= 10


def test_a_single_item_is_drawn_with_its_optimum_where_that_is_known():
    env = HybridInventoryEnv(1)
    best = SingleItemSS.best(env)
    upper, lower = policy_figure(env, order_up_to(env, 1.0, 4.0)).axes
    assert lines(upper)[f"optimal s = {best.reorder_point:g}"][0, 0] == best.reorder_point
    assert lines(lower)[f"optimal S = {best.order_up_to[0]:g}"][0, 1] == best.order_up_to[0]
    env = HybridInventoryEnv(1, lost_sales=True)
    upper, _ = policy_figure(env, order_up_to(env, 1.0, 4.0)).axes
    assert len(upper.get_lines()) == 1


def larger_group(observation):
    """In the mode whose coordinates hold more of the state, bring those coordinates to zero."""
    groups = np.array_split(np.arange(observation.shape[1]), 2)
    energy = np.stack([(observation[:, group] ** 2).sum(axis=1) for group in groups], axis=1)
    points = np.zeros((len(observation), 2, observation.shape[1]), np.float32)
    for mode, group in enumerate(groups):
        points[:, mode, group] = -observation[:, group]
    return Choices((energy == energy.max(axis=1, keepdims=True)) * 0.8 + 0.1, points)


def test_the_leading_directions_are_those_that_one_mode_or_the_other_drives():
    env = HybridSwitchedLQREnv(6)
    first, second = leading_directions(env)
    np.testing.assert_allclose(np.stack([first, second]) @ np.stack([first, second]).T, np.eye(2), atol=1e-12)
    assert (first[:3] ** 2).sum() > 0.9 and (second[3:] ** 2).sum() > 0.9
    assert first.max() == np.abs(first).max() and second.max() == np.abs(second).max()


def test_the_map_shows_the_likelier_mode_in_its_colour():
    env = HybridSwitchedLQREnv(6)
    image = policy_figure(env, larger_group).axes[0].images[0]
    pixels = np.asarray(image.get_array())
    centre = len(pixels) // 2
    blue, orange = np.array([0x1F, 0x77, 0xB4]) / 255, np.array([0xFF, 0x7F, 0x0E]) / 255
    for row, column, near, far in ((centre, -1, blue, orange), (-1, centre, orange, blue)):  # x is the direction of mode 0
        np.testing.assert_allclose(pixels[row, column], 0.25 + 0.75 * (0.9 * near + 0.1 * far), atol=1e-6)
    assert image.origin == "lower"


def test_the_episode_is_that_of_the_likeliest_mode():
    env = HybridSwitchedLQREnv(6, horizon=5)
    observations, (probabilities, points) = greedy_episode(env, larger_group)
    assert observations.shape == (5, 6) and probabilities.shape == (5, 2) and points.shape == (5, 2, 6)
    state = observations[0].astype(np.float64)
    for t in range(5):
        np.testing.assert_allclose(observations[t], state, rtol=1e-4, atol=1e-5)
        mode = int((state[3:] ** 2).sum() > (state[:3] ** 2).sum())
        assert probabilities[t].argmax() == mode
        control = np.where((np.arange(6) >= 3) == mode, -state, 0.0)
        state = env.params.A @ state + env.params.B[mode] @ control
    axes = policy_figure(env, larger_group).axes
    (norms,) = (plot.get_lines()[0].get_ydata() for plot in axes if plot.get_ylabel() == "‖state‖")
    np.testing.assert_allclose(norms, np.linalg.norm(observations, axis=1))


@pytest.mark.parametrize("kwargs", [{"n_dims": 1, "n_modes": 1}, {"n_dims": 4, "n_modes": 1}])
def test_where_there_is_no_plane_or_no_choice_of_modes_there_is_no_figure(kwargs):
    assert policy_figure(HybridSwitchedLQREnv(**kwargs), larger_group) is None


def test_three_modes_have_three_colours_in_figure_and_legend():
    env = HybridSwitchedLQREnv(6, 3)

    def uniform(observation):
        return Choices(np.full((len(observation), 3), 1 / 3), np.zeros((len(observation), 3, 6), np.float32))

    figure = policy_figure(env, uniform)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["mode 0", "mode 1", "mode 2"]
    assert to_rgb_array(figure).shape == (1080, 750, 3)


def test_with_minor_costs_the_level_counts_the_items_that_are_likely_on_the_order():
    env = HybridInventoryEnv(2, mean_demand=10.0, minor_fixed_cost=5.0, lead_time=1)

    def first_item_only(observation):
        position = observation[:, :2]  # of lead time 1: what is on hand, in periods
        order = (position.mean(axis=1) <= 1.5).astype(np.float64)
        probabilities = np.stack([order, np.ones(len(order)), np.zeros(len(order))], axis=1)  # of the order, of items 0 and 1
        points = np.zeros((len(order), 2, 2))
        points[:, 1] = 10.0 * (4.0 - position)
        return Choices(np.stack([1 - probabilities, probabilities], axis=2), points.astype(np.float32))

    upper, lower = policy_figure(env, first_item_only).axes
    position, order = upper.lines[0].get_data()
    assert (order == (position <= 1.5)).all()
    _, level = lower.lines[1].get_data()
    np.testing.assert_allclose(level, (position + 4.0) / 2, rtol=1e-5)  # one at 4, the other where it was
    _, dots = lower.lines[3].get_data()
    assert np.isnan(dots[1::2]).all() and np.allclose(dots[::2], 4.0, atol=1e-4)


def test_every_environment_draws_any_policy_or_says_that_it_has_no_figure(env: HybridEnv):
    def uniform(observation):
        assert observation.dtype == np.float32 and observation.shape[1:] == env.observation_space.shape
        low, high = np.where(np.isfinite(env.action_bounds), env.action_bounds, [-1.0, 1.0]).transpose(2, 0, 1)
        points = np.broadcast_to((low + high) / 2, (len(observation), *low.shape)).astype(np.float32)
        flat = torch.cat([torch.full((size,), 1 / size) for size in env.factors.sizes])
        return Choices(env.factors.by_factor(flat.expand(len(observation), -1), 0.0).numpy(), points)

    figure = policy_figure(env, uniform)
    assert figure is None or to_rgb_array(figure).std() > 0
    assert policy_figure.dispatch(HybridEnv)(env, uniform) is None  # unless an environment says how


def test_one_decorator_each_gives_an_environment_of_ones_own_its_reference_and_its_picture():
    class OwnEnv(HybridSwitchedLQREnv):
        """A variation: what is known of the original holds until something else is said."""

    env = OwnEnv(6)
    assert policy_figure(env, larger_group) is not None

    @reference_policy.register
    def keep_to_one_mode(env: OwnEnv) -> SingleMode:
        return SingleMode.best(env)

    @policy_figure.register
    def empty(env: OwnEnv, policy):
        return f"{type(env).__name__} {policy}"

    wrapped = gym.wrappers.TimeLimit(env, 5)
    assert isinstance(reference_policy(env), SingleMode) and isinstance(reference_policy(wrapped), SingleMode)
    assert policy_figure(env, "policy") == policy_figure(wrapped, "policy") == "OwnEnv policy"
    assert reference_policy(gym.make("CartPole-v1")) is None and policy_figure(gym.make("CartPole-v1"), "policy") is None


@pytest.mark.parametrize("limits", [None, (1, 2)])
def test_an_episode_of_several_factors_keeps_to_masks_and_limits(limits):
    env = BreweryEnv(6, active_limits=limits)
    taken = []

    def eager(observation):
        """Wants the last position of every valve, which is forbidden every other time, and too much with limits."""
        probabilities = np.array([[[0.1, 0.9, 0.0], [0.1, 0.2, 0.7], [0.2, 0.8, 0.0]]])
        return Choices(probabilities, np.ones((1, 3, 4), np.float32))

    step = env.step_torch
    env.step_torch = lambda state, action, noise: taken.append((state, action)) or step(state, action, noise)
    observations, choices = greedy_episode(env, eager)
    assert (observations.shape, choices.probabilities.shape, choices.points.shape) == ((6, 6), (6, 3, 3), (6, 3, 4))
    assert all(env.factors.permits(action.regime, env.regime_mask(state)).all() for state, action in taken)
    if limits is None:
        assert [action.regime[0].tolist() for _, action in taken] == [[1, 2, 1], [1, 0, 1]] * 3


@pytest.mark.parametrize("crowd", [3, 12])
def test_an_episode_of_several_factors_is_drawn_with_how_many_are_in_each_regime(crowd):
    frames = [Frame(None, None, 0.0)] + [Frame(None, np.array([1, t % 2, 0]), 1.0 + t) for t in range(5)]
    series = np.random.default_rng(0).normal(size=(6, crowd))
    assert regimes_taken(frames).tolist() == [[-1, -1, -1], *([1, t % 2, 0] for t in range(5))]
    assert regimes_taken(frames[:1]).tolist() == [-1]
    pictures = [draw_episode(frames[:k], series[:k], "level", {0: "off", 1: "on"}, 8) for k in (1, 6)]
    assert all(picture.shape == (480, 640, 3) and picture.std() > 0 for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
