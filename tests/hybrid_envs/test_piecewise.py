"""The rewrite is exact: every action of the original is one action of the hybrid environment, at the same cost."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from hybrid_envs import BoxEnv, BoxProblem, HybridAction, PiecewiseEnv, Threshold, check_hybrid_env
from hybrid_envs.probing import HybridEnvError
from hybrid_envs.spaces import feasible_actions
from hybrid_envs.vector import HybridVectorEnv
from sb3_hpo.policies import Tower


class JumpState(NamedTuple):
    x: torch.Tensor
    period: torch.Tensor


class JumpProblem(BoxProblem[JumpState]):
    """Pushes a state by b; passing the k-th threshold costs 10^k more, and makes the push heavier."""

    def __init__(self, cuts, low=-1.0, high=math.inf, n=1, weights=None):
        super().__init__(low=low, high=high, action_size=n, observation_size=n, horizon=4, weights=weights)
        self.cuts = torch.tensor([cut.value for cut in cuts], dtype=torch.float32)
        self.belongs_below = torch.tensor([cut.below for cut in cuts])

    def passed(self, action):
        level = action.level.unsqueeze(-1)
        return torch.where(self.belongs_below, level > self.cuts, level >= self.cuts).to(level.dtype)

    def initial(self, batch_size, generator):
        x = torch.rand(batch_size, self.action_size, generator=generator, dtype=self.dtype)
        return JumpState(x, torch.zeros(batch_size, dtype=torch.int64))

    def transition(self, state, action, noise):
        return state._replace(x=0.5 * state.x + action.point * (1 + self.passed(action).sum(dim=(1, 2)).unsqueeze(1)))

    def reward(self, state, action, noise, next_state):
        steps = (self.passed(action) * 10.0 ** torch.arange(len(self.cuts))).sum(dim=(1, 2))
        return -(steps + (next_state.x**2).sum(dim=1) + (action.level**2).sum(dim=1))

    def observation(self, state):
        return state.x


HALF_OPEN = [Threshold(0.0, below=True), Threshold(0.1), Threshold(3.0), Threshold(3.0, below=True)]
"""{..0} | (0, 0.1) | [0.1, 3) | {3} | (3, ..)"""


def step(env, x, point):
    state = env.initial(1, torch.Generator().manual_seed(0))
    action = HybridAction(torch.tensor([x]), torch.tensor([point], dtype=torch.float32))
    return env.step_torch(state, action, env.sample_noise(1, torch.Generator())[0])


def step_box(problem, b):
    """The original's step, through its own functions alone."""
    env = PiecewiseEnv(problem, None)
    return step(env, 0, b)


def next_to(value, direction):
    return float(np.nextafter(np.float32(value), np.float32(direction)))


# ---- cells -------------------------------------------------------------------------------------------------------------


def test_cells_are_closed_in_float32_on_the_side_that_owns_the_threshold():
    env = PiecewiseEnv(JumpProblem(HALF_OPEN), [HALF_OPEN])
    tenth = float(np.float32(0.1))
    expected = [
        [-1.0, 0.0],
        [next_to(0, 1), next_to(0.1, 0)],
        [tenth, next_to(3, 0)],
        [3.0, 3.0],
        [next_to(3, 4), math.inf],
    ]
    assert env.action_bounds[:, 0].tolist() == expected


def test_a_threshold_at_the_low_end_of_the_box_makes_a_cell_of_that_point():
    env = PiecewiseEnv(JumpProblem([], low=0.0), [[Threshold(0.0, below=True)]])
    assert env.action_bounds[0, 0].tolist() == [0.0, 0.0]


def test_regimes_are_the_products_of_the_coordinates_cells():
    env = PiecewiseEnv(JumpProblem([], low=0.0, high=9.0, n=2), [[1.0], [2.0, 4.0]])
    assert env.n_regimes == 6
    lows = [[0, 0], [0, 2], [0, 4], [1, 0], [1, 2], [1, 4]]
    np.testing.assert_array_equal(env.action_bounds[..., 0], lows)


@given(st.data())
def test_every_float_is_in_exactly_one_cell_and_that_is_the_regime_it_is_given(data):
    tenths = data.draw(st.lists(st.integers(-40, 40), min_size=1, max_size=5, unique=True).map(sorted))
    values = [float(np.float32(tenth / 10)) for tenth in tenths]
    cuts = [Threshold(value, data.draw(st.booleans())) for value in values]
    env = PiecewiseEnv(JumpProblem(cuts, low=-5.0, high=5.0), [cuts])
    near = [number for value in values for number in (value, next_to(value, -9), next_to(value, 9))]
    b = np.float32(data.draw(st.sampled_from(near) | st.floats(-5, 5, width=32)))
    low, high = env.action_bounds[:, 0].T
    inside = np.flatnonzero((low <= b) & (b <= high))
    assert inside.tolist() == env.to_hybrid(torch.tensor([[b]])).regime.tolist()


# ---- round trip --------------------------------------------------------------------------------------------------------


@given(st.data())
def test_an_action_by_coordinates_returns_to_itself_with_the_same_cost_and_next_state(data):
    problem = JumpProblem(HALF_OPEN, n=2)
    env = PiecewiseEnv(problem, [HALF_OPEN, HALF_OPEN])
    interesting = st.sampled_from([0.0, next_to(0, 1), 0.1, next_to(0.1, 0), 3.0, next_to(3, 0), next_to(3, 4)])
    b = data.draw(st.lists(interesting | st.floats(-1, 1e3, width=32), min_size=2, max_size=2))
    point = torch.tensor([b], dtype=torch.float32)
    action = env.to_hybrid(point)
    assert torch.equal(env.to_box(action).point, point)
    original, rewritten = step_box(problem, b), step(env, int(action.regime), action.point[0].tolist())
    assert original.reward.item() == rewritten.reward.item()
    assert torch.equal(original.state.x, rewritten.state.x)


@given(st.data())
def test_an_action_by_its_total_returns_to_itself_with_the_same_cost_and_next_state(data):
    weights = [1.0, 0.5, 2.0]
    cuts = [Threshold(0.0, below=True), Threshold(2.0), Threshold(5.0, below=True)]
    problem = JumpProblem(cuts, low=0.0, n=3, weights=np.array(weights))
    env = PiecewiseEnv(problem, cuts)
    on_a_threshold = st.sampled_from([[2.0, 0.0, 0.0], [0.0, 10.0, 0.0], [1.0, 1.0, 0.25], [0.0, 0.0, 0.0]])
    anywhere = st.lists(st.floats(0, 50, width=32, allow_subnormal=False), min_size=3, max_size=3)
    b = data.draw(on_a_threshold | anywhere)
    point = torch.tensor([b], dtype=torch.float32)
    action = env.to_hybrid(point)
    regime = int(action.regime)
    assert env.action_bounds[regime, 0, 0] <= action.point[0, 0] <= env.action_bounds[regime, 0, 1]
    back = env.to_box(action)
    assert torch.equal(back.level, problem.level(point))  # to the last bit: the same side of every threshold
    torch.testing.assert_close(back.point, point, rtol=1e-5, atol=1e-30)
    original, rewritten = step_box(problem, b), step(env, regime, action.point[0].tolist())
    torch.testing.assert_close(rewritten.reward, original.reward, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rewritten.state.x, original.state.x, rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.floats(0, 20, width=32), st.integers(0, 3))
def test_any_point_of_the_box_is_put_into_the_cell_of_its_regime(proportions, total, regime):
    cuts = [Threshold(0.0, below=True), Threshold(2.0), Threshold(5.0, below=True)]
    env = PiecewiseEnv(JumpProblem(cuts, low=0.0, n=3, weights=1.0), cuts)
    action = HybridAction(torch.tensor([regime]), torch.tensor([[total, *proportions]], dtype=torch.float32))
    b = env.to_box(action)
    assert env.problem.passed(b).sum() == regime
    assert bool((b.point >= 0).all())
    torch.testing.assert_close(b.point.sum(dim=1, keepdim=True), b.level)


def test_proportions_of_nothing_are_equal_shares():
    env = PiecewiseEnv(JumpProblem([], low=0.0, n=4, weights=2.0), [])
    b = env.to_box(HybridAction(torch.tensor([0]), torch.tensor([[8.0, 0.0, 0.0, 0.0, 0.0]])))
    assert b.point.tolist() == [[1.0] * 4]


def test_one_item_by_its_total_needs_no_proportion():
    env = PiecewiseEnv(JumpProblem([], low=0.0, weights=2.0), [4.0])
    assert env.action_size == 1
    assert env.to_box(HybridAction(torch.tensor([1]), torch.tensor([[6.0]]))).point.tolist() == [[3.0]]
    assert env.to_hybrid(torch.tensor([[3.0]])).point.tolist() == [[6.0]]


# ---- a factor for each coordinate ----------------------------------------------------------------------------------------

RAGGED = [HALF_OPEN, [], [Threshold(1.0)], [Threshold(0.0, below=True), Threshold(2.0)]]
"""Cells of four coordinates: five, one, two and three."""


def test_cells_of_coordinates_become_factors_and_a_coordinate_without_thresholds_has_none():
    env = PiecewiseEnv(JumpProblem(HALF_OPEN, n=4), RAGGED, factors=True)
    assert env.action_space[0] == gym.spaces.MultiDiscrete([5, 2, 3])
    assert env.factors.factor_of.tolist() == [0, -1, 1, 2]
    assert env.action_bounds[:2, 2].tolist() == [[-1.0, next_to(1, 0)], [1.0, math.inf]]
    assert env.action_bounds[0, 1].tolist() == [-1.0, math.inf]


@given(st.data())
def test_an_action_in_factors_returns_to_itself_with_the_same_cost_and_next_state(data):
    problem = JumpProblem(HALF_OPEN, n=4)
    env = PiecewiseEnv(problem, RAGGED, factors=True)
    product = PiecewiseEnv(problem, RAGGED)
    interesting = st.sampled_from([0.0, next_to(0, 1), 0.1, next_to(0.1, 0), 3.0, next_to(3, 0), next_to(3, 4), 1.0, 2.0])
    b = data.draw(st.lists(interesting | st.floats(-1, 1e3, width=32), min_size=4, max_size=4))
    point = torch.tensor([b], dtype=torch.float32)
    action, same = env.to_hybrid(point), product.to_hybrid(point)
    assert torch.equal(env.to_box(action).point, point)
    low, high = env.factors.bounds_of(action.regime.numpy(), env.action_bounds)
    assert ((low <= point.numpy()) & (point.numpy() <= high)).all()
    assert int(action.regime @ torch.tensor([6, 3, 1])) == int(same.regime)
    state = env.initial(1, torch.Generator().manual_seed(0))
    noise = env.sample_noise(1, torch.Generator())[0]
    original, rewritten = step_box(problem, b), env.step_torch(state, action, noise)
    assert original.reward.item() == rewritten.reward.item()
    assert torch.equal(original.state.x, rewritten.state.x)


@given(st.data())
def test_any_point_is_put_into_the_cells_of_its_factors(data):
    env = PiecewiseEnv(JumpProblem(HALF_OPEN, n=4), RAGGED, factors=True)
    regime = torch.tensor([[data.draw(st.integers(0, size - 1)) for size in env.factors.sizes]])
    point = torch.tensor([data.draw(st.lists(st.floats(-1, 50, width=32), min_size=4, max_size=4))])
    box = env.to_box(HybridAction(regime, point)).point
    assert torch.equal(env.to_hybrid(box).regime, regime)


def test_thirty_coordinates_of_three_cells_are_ninety_regimes():
    cuts = [Threshold(0.0, below=True), Threshold(2.0)]
    env = PiecewiseEnv(JumpProblem(cuts, n=30, high=4.0), [cuts] * 30, factors=True)
    assert (env.factors.n_factors, env.factors.total, env.action_bounds.shape) == (30, 90, (3, 30, 2))
    point = 5 * torch.rand(200, 30, generator=torch.Generator().manual_seed(0)) - 1
    action = env.to_hybrid(point)
    assert torch.equal(env.to_box(action).point, point)
    assert torch.equal(action.regime, (point > 0).long() + (point >= 2).long())


def test_problems_in_factors_keep_the_contract():
    check_hybrid_env(PiecewiseEnv(JumpProblem(HALF_OPEN, n=3, high=5.0), [HALF_OPEN] * 3, factors=True))


def test_a_threshold_that_was_forgotten_among_factors_is_found_by_the_checker():
    problem = JumpProblem(HALF_OPEN, n=3)
    with pytest.raises(HybridEnvError, match=r"next state\.x .*: jumps by .*, inside regime \[\d, \d\], where b\[1\] = "):
        check_hybrid_env(PiecewiseEnv(problem, [HALF_OPEN, [], HALF_OPEN], factors=True))


@pytest.mark.parametrize(
    ("problem", "thresholds", "message"),
    [
        (JumpProblem([], low=0.0, n=2, weights=1.0), [1.0], "got thresholds on a weighted sum"),
        (JumpProblem([], n=2), [[], []], "got thresholds on no coordinate"),
        (JumpProblem([], n=2), None, "got thresholds on no coordinate"),
    ],
)
def test_factors_without_thresholds_on_coordinates_are_refused(problem, thresholds, message):
    with pytest.raises(ValueError, match=f"factors = True .*{message}"):
        PiecewiseEnv(problem, thresholds, factors=True)
    with pytest.raises(ValueError, match="factors must be True or False, got 2"):
        PiecewiseEnv(problem, thresholds, factors=2)


# ---- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("regime", "edge", "slope"), [(2, 0, 1 + 3 * 3), (3, 0, 0), (2, 1, 1 + 3 * 3), (4, 0, 1 + 5 * 5)])
def test_on_the_edge_of_a_cell_the_derivative_is_that_of_the_cells_own_branch(regime, edge, slope):
    """d/db [b² + (x/2 + m b)²] with m = 1 + thresholds passed, x = 0 to make it short: 2 b (1 + m²); no slope in a point."""
    env = PiecewiseEnv(JumpProblem(HALF_OPEN), [HALF_OPEN])
    b = torch.tensor([[env.action_bounds[regime, 0, edge]]], requires_grad=True)
    state = JumpState(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    cost = -env.step_torch(state, HybridAction(torch.tensor([regime]), b), torch.empty(1, 0)).reward
    (gradient,) = torch.autograd.grad(cost.sum(), b)
    torch.testing.assert_close(gradient.item(), 2 * b.item() * slope, rtol=1e-5, atol=1e-6)


def test_the_tower_keeps_to_the_cells_even_when_it_saturates():
    env = PiecewiseEnv(JumpProblem(HALF_OPEN), [HALF_OPEN])
    tower = Tower(env.action_bounds, env.action_scale)
    for z in (-1e4, -80.0, -3.0, 0.0, 3.0, 80.0, 1e4):
        candidates = tower(torch.full((1, 5), z))[0]
        assert env.to_hybrid(candidates).regime.tolist() == [0, 1, 2, 3, 4]
        assert candidates[3].item() == 3.0


def test_a_cell_of_zero_alone_gives_exactly_zero():
    env = PiecewiseEnv(JumpProblem([], low=0.0), [[Threshold(0.0, below=True)]])
    tower = Tower(env.action_bounds, env.action_scale)
    assert tower(torch.full((1, 2), 5.0))[0, 0].item() == 0.0
    assert env.to_box(HybridAction(torch.tensor([0]), torch.tensor([[7.0]]))).point.item() == 0.0
    assert feasible_actions(torch.tensor([[0.0, 7.0]]), env.action_bounds) == [(0, 0.0)]


# ---- as environments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, 2.0])
def test_the_rewritten_problem_keeps_the_contract_of_a_hybrid_environment(weights):
    low = 0.0 if weights else -1.0
    problem = JumpProblem(HALF_OPEN, low=low, n=2, weights=weights)
    check_hybrid_env(PiecewiseEnv(problem, HALF_OPEN if weights else [HALF_OPEN, HALF_OPEN]))


def test_a_threshold_that_was_forgotten_is_found_by_the_checker():
    problem = JumpProblem(HALF_OPEN, n=2)  # jumps in both coordinates
    with pytest.raises(HybridEnvError, match=r"next state\.x .*: jumps by .*, inside regime \d, where b\[1\] = "):
        check_hybrid_env(PiecewiseEnv(problem, [HALF_OPEN, [0.5]]))


def test_what_a_problem_declares_to_jump_and_its_success_are_those_of_its_views():
    class Declared(JumpProblem):
        jumps = ("next state.x", "reward", "observation")

        def success(self, costs):
            return costs.sum(dim=0) < 1

    env = PiecewiseEnv(Declared(HALF_OPEN, n=2), [HALF_OPEN, [0.5]])
    check_hybrid_env(env)
    assert env.success(torch.tensor([[0.0, 2.0], [0.5, 2.0]])).tolist() == [True, False]
    assert PiecewiseEnv(JumpProblem(HALF_OPEN), [HALF_OPEN]).success(torch.zeros(2, 3)) is None


@pytest.mark.filterwarnings("ignore:.*infinity.*", "ignore:.*symmetric and normalized.*")
def test_the_original_is_a_gymnasium_environment_with_its_box():
    env = BoxEnv(JumpProblem(HALF_OPEN, high=4.0))
    check_env(env, skip_render_check=True)
    assert env.action_space == gym.spaces.Box(-1.0, 4.0, (1,))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"b\[0\] = 5.0 is outside \[-1.0, 4.0\]"):
        env.step(np.array([5.0], dtype=np.float32))


def test_the_original_and_the_rewrite_tell_the_same_story_in_gymnasium():
    problem = JumpProblem(HALF_OPEN)
    box, hybrid = BoxEnv(problem), PiecewiseEnv(problem, [HALF_OPEN])
    assert box.reset(seed=3)[0] == hybrid.reset(seed=3)[0]
    for b in (0.0, 0.1, 3.0, 17.0):
        action = hybrid.to_hybrid(torch.tensor([[b]]))
        original = box.step(np.array([b], dtype=np.float32))
        rewritten = hybrid.step((int(action.regime), action.point[0].numpy()))
        assert original[:4] == rewritten[:4]


def test_two_views_of_one_problem_can_be_of_different_precision():
    problem = JumpProblem(HALF_OPEN)
    single, double = PiecewiseEnv(problem, [HALF_OPEN]), PiecewiseEnv(problem, [HALF_OPEN]).to(dtype=torch.float64)
    assert HybridVectorEnv(single, 2).reset(seed=0)[0].dtype == np.float32
    assert (single.problem.cuts.dtype, double.problem.cuts.dtype) == (torch.float32, torch.float64)


def test_a_float64_point_between_two_float32_numbers_goes_to_the_side_its_comparison_says():
    env = PiecewiseEnv(JumpProblem(HALF_OPEN), [HALF_OPEN]).to(dtype=torch.float64)
    b = torch.tensor([[3.0 - 1e-12], [3.0 + 1e-12]], dtype=torch.float64)
    assert env.to_hybrid(b).regime.tolist() == [2, 4]


def test_the_example_of_the_page_runs_and_prints_the_cells_it_shows(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "piecewise.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(snippets), encoding="utf-8")
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == shown


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([[1.0, 0.5]], r"thresholds\[0\]: 0.5 comes after 1.0; thresholds must increase"),
        ([[1.0, 2.0, 2.0]], r"thresholds\[0\]: 2.0 is given twice"),
        ([[Threshold(1.0, below=True), Threshold(1.0)]], r"thresholds\[0\]: 1.0 comes after 1.0"),
        ([[9.0]], r"9.0, which belongs to the cell above it, is outside the Box \[-1.0, 4.0\]"),
        ([[-1.0]], r"-1.0, which belongs to the cell above it, is outside the Box"),
        ([[Threshold(4.0, below=True)]], r"4.0, which belongs to the cell below it, is outside the Box"),
        ([[math.nan]], r"thresholds\[0\] = nan: must be finite"),
        ([[math.inf]], r"thresholds\[0\] = inf: must be finite"),
        ([["much"]], r"thresholds\[0\] must be numeric, got 'much'"),
        ([[Threshold(1.0, below=True), Threshold(next_to(1, 2))]], r"no float32 number lies between 1.00"),
        ([[1.0], [2.0]], r"one sequence for each of 1 coordinates, got 2"),
    ],
)
def test_bad_thresholds_are_named(thresholds, message):
    with pytest.raises(ValueError, match=message):
        PiecewiseEnv(JumpProblem([], high=4.0), thresholds)


def test_too_many_cells_are_counted_before_they_are_built():
    cuts = [float(k) for k in range(1, 10)]
    with pytest.raises(
        ValueError, match=r"10 · 10 · .* = 1000000000000 regimes, more than max_regimes = 64; with factors=True"
    ):
        PiecewiseEnv(JumpProblem([], low=0.0, n=12), [cuts] * 12)
    assert PiecewiseEnv(JumpProblem([], low=0.0, n=2), [cuts] * 2, max_regimes=100).n_regimes == 100


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"low": 2.0, "high": 1.0}, r"low\[0\] = 2.0 must be less than high = 1.0"),
        ({"low": math.nan}, r"low must be a number"),
        ({"low": [0.0, 1.0]}, r"low must be a number, or numbers of shape \(1,\), got \[0.0, 1.0\]"),
        ({"weights": 1.0, "low": 1.0}, r"low = \[1.\] must be 0.0 where weights are given"),
        ({"weights": 1.0, "low": 0.0, "high": 5.0}, r"high = \[5.\] must be inf where weights are given"),
        ({"weights": 0.0, "low": 0.0}, r"weights\[0\] = 0.0: must be finite and > 0"),
    ],
)
def test_a_bad_argument_of_a_problem_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        JumpProblem([], **kwargs)


def test_an_action_outside_the_original_box_is_refused():
    env = PiecewiseEnv(JumpProblem([], high=4.0), [[1.0]])
    with pytest.raises(ValueError, match=r"PiecewiseEnv: b\[0\] = 4.5 is outside \[-1.0, 4.0\]"):
        env.to_hybrid(torch.tensor([[0.0], [4.5]]))
