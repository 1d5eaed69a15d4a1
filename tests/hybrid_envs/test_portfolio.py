"""Periods worked out by hand, the expected growth against its closed form, and the solvers against simulation."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridPortfolioEnv
from hybrid_envs.portfolio.env import PortfolioState, weight_volatility
from hybrid_envs.portfolio.policies import best_rebalancing
from hybrid_envs.solvers import NoTradeBand, RebalancingOptimum, evaluate, reference_policy

TWO_ASSETS = {
    "n_assets": 2,
    "target": [0.5, 0.25],
    "covariance": np.array([[0.04, 0.01], [0.01, 0.09]]),
    "fixed_cost": 0.01,
    "proportional_cost": [0.1, 0.2],
}
RETURNS = [[math.log(1.2), math.log(0.8)]]


def act(regime, point):
    return HybridAction(torch.tensor([regime]), torch.tensor([point], dtype=torch.float64))


def two_assets():
    env = HybridPortfolioEnv(**TWO_ASSETS).to(dtype=torch.float64)
    return env, PortfolioState(torch.tensor([[0.3, 0.45]]).double(), torch.zeros(1, dtype=torch.int64))


# ---- the environment -----------------------------------------------------------------------------------------------------


def test_a_period_of_holding_by_hand():
    env, state = two_assets()
    result = env.step_torch(state, act(0, [0.0, 0.0]), torch.tensor(RETURNS).double())
    # wealth 0.25 + 0.36 + 0.36; deviations -0.2 and 0.2
    np.testing.assert_allclose(result.state.weight, [[0.36 / 0.97, 0.36 / 0.97]], rtol=1e-6)
    assert result.reward.item() == pytest.approx(-1e4 * 0.5 * (0.04 * 0.04 - 2 * 0.01 * 0.04 + 0.09 * 0.04), rel=1e-6)


def test_a_period_of_rebalancing_by_hand():
    env, state = two_assets()
    result = env.step_torch(state, act(1, [0.4, 0.25]), torch.tensor(RETURNS).double())
    # 0.1 bought at 10 %, 0.2 sold at 20 %, 1 % for doing so; wealth 0.35 + 0.48 + 0.2
    np.testing.assert_allclose(result.state.weight, [[0.48 / 1.03, 0.2 / 1.03]], rtol=1e-6)
    growth_lost = 0.5 * 0.04 * 0.1**2 - math.log(1 - 0.01 - 0.01 - 0.04)
    assert result.reward.item() == pytest.approx(-1e4 * growth_lost, rel=1e-6)


def test_a_period_of_trading_one_asset_by_hand():
    env = HybridPortfolioEnv(**TWO_ASSETS, fixed_cost_per_asset=[0.02, 0.03]).to(dtype=torch.float64)
    _, state = two_assets()
    result = env.step_torch(state, act([1, 1, 0], [0.4, 0.0]), torch.tensor(RETURNS).double())
    # 0.1 bought at 10 %; 1 % for a trade, 2 % for that of asset 0; wealth 0.15 + 0.48 + 0.36
    np.testing.assert_allclose(result.state.weight, [[0.48 / 0.99, 0.36 / 0.99]], rtol=1e-6)
    shortfall = 0.5 * (0.04 * 0.01 - 2 * 0.01 * 0.1 * 0.2 + 0.09 * 0.04)
    assert result.reward.item() == pytest.approx(-1e4 * (shortfall - math.log(1 - 0.01 - 0.02 - 0.01)), rel=1e-6)


def test_assets_that_are_traded_share_what_the_others_leave():
    env = HybridPortfolioEnv(3, fixed_cost_per_asset=1e-4).to(dtype=torch.float64)
    state = PortfolioState(torch.tensor([[0.3, 0.45, 0.1]]).double(), torch.zeros(1, dtype=torch.int64))
    still = torch.zeros(1, 3).double()
    for regime, point, weights in [
        ([1, 1, 0, 1], [0.2, 0.0, 0.3], [0.2, 0.45, 0.3]),  # it fits in what is left, 0.55
        ([1, 1, 0, 1], [1.0, 0.0, 1.2], [0.25, 0.45, 0.3]),
        ([1, 1, 0, 1], [0.0, 0.0, 0.0], [0.0, 0.45, 0.0]),
        ([1, 1, 1, 1], [1.0, 2.0, 1.0], [0.25, 0.5, 0.25]),  # all of them: as where the assets have no factors
        ([1, 0, 0, 0], [0.0, 0.0, 0.0], [0.3, 0.45, 0.1]),
        ([0, 1, 1, 0], [0.2, 0.3, 0.0], [0.3, 0.45, 0.1]),  # nothing is traded, whatever the assets say
    ]:
        np.testing.assert_allclose(env.step_torch(state, act(regime, point), still).state.weight, [weights], atol=1e-12)


def test_there_is_a_finite_gradient_even_where_nothing_is_left_to_share():
    env = HybridPortfolioEnv(2, fixed_cost_per_asset=1e-4)
    state = PortfolioState(torch.tensor([[0.0, 1.0]], requires_grad=True), torch.zeros(1, dtype=torch.int64))
    for bought in (0.0, 0.5):
        point = torch.tensor([[bought, 0.0]], requires_grad=True)
        result = env.step_torch(state, HybridAction(torch.tensor([[1, 1, 0]]), point), torch.zeros(1, 2))
        assert result.state.weight.tolist() == [[0.0, 1.0]]
        gradients = torch.autograd.grad(result.reward.sum() + result.state.weight[0, 0], [point, state.weight])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_trading_all_assets_costs_the_sum_more_where_each_has_its_own_cost():
    env, state = two_assets()
    dearer = HybridPortfolioEnv(**TWO_ASSETS, fixed_cost_per_asset=[0.02, 0.03]).to(dtype=torch.float64)
    noise = torch.tensor(RETURNS).double()
    together, apart = (
        env.step_torch(state, act(1, [0.4, 0.25]), noise),
        dearer.step_torch(state, act([1, 1, 1], [0.4, 0.25]), noise),
    )
    np.testing.assert_allclose(together.state.weight, apart.state.weight, rtol=1e-12)
    paid = math.log(1 - 0.01 - 0.05) - math.log(1 - 0.01 - 0.05 - 0.05)
    assert (together.reward - apart.reward).item() == pytest.approx(1e4 * paid, rel=1e-6)


def test_what_adds_up_to_more_than_all_wealth_is_scaled_down_to_it():
    env, state = two_assets()
    scaled, exact = (env.step_torch(state, act(1, point), torch.zeros(1, 2).double()) for point in ([3.0, 1.0], [0.75, 0.25]))
    assert scaled.state.weight.tolist() == exact.state.weight.tolist() == [[0.75, 0.25]]
    assert scaled.reward.item() == exact.reward.item()


def test_doing_nothing_by_rebalancing_costs_the_fixed_cost_and_no_more():
    env, state = two_assets()
    hold = env.step_torch(state, act(0, [0.0, 0.0]), torch.tensor(RETURNS).double())
    trade = env.step_torch(state, act(1, [0.3, 0.45]), torch.tensor(RETURNS).double())
    assert (hold.reward - trade.reward).item() == pytest.approx(-1e4 * math.log(0.99), rel=1e-6)
    np.testing.assert_allclose(hold.state.weight, trade.state.weight)


def test_in_short_periods_the_target_outgrows_other_weights_by_what_the_reward_charges():
    """Realised growth of w* over that of v with common returns, against ½ (v - w*)'Σ(v - w*)."""
    covariance = TWO_ASSETS["covariance"] / 100
    env = HybridPortfolioEnv(**TWO_ASSETS | {"covariance": covariance}).to(dtype=torch.float64)
    returns = env.sample_noise(20_000, torch.Generator().manual_seed(0)).flatten(0, 1).numpy()
    returns = np.concatenate([returns, 2 * env.mean_return.numpy() - returns])  # antithetic, for a small error
    target, weights = np.array([0.5, 0.25]), np.array([0.1, 0.7])
    lost = np.log1p(np.expm1(returns) @ target) - np.log1p(np.expm1(returns) @ weights)
    lost = lost.reshape(2, -1).mean(axis=0)
    charged = 0.5 * (weights - target) @ covariance @ (weights - target)
    assert lost.mean() == pytest.approx(charged, rel=0.02)
    assert lost.std() / len(lost) ** 0.5 < 0.005 * charged
    state = PortfolioState(torch.tensor(weights)[None], torch.zeros(1, dtype=torch.int64))
    reward = env.step_torch(state, act(0, [0.0, 0.0]), torch.zeros(1, 2).double()).reward.item()
    assert reward == pytest.approx(-1e4 * charged, rel=1e-6)


def test_simulated_returns_have_the_covariance_given():
    env = HybridPortfolioEnv(**TWO_ASSETS)
    returns = env.sample_noise(1000, torch.Generator().manual_seed(0)).flatten(0, 1).double().numpy()
    np.testing.assert_allclose(np.cov(returns.T), TWO_ASSETS["covariance"], rtol=0.05)
    excess = np.expm1(returns).mean(axis=0)  # of prices: exp(Σw*) - 1
    np.testing.assert_allclose(excess, np.expm1(TWO_ASSETS["covariance"] @ [0.5, 0.25]), atol=0.004)


def test_observations_are_scaled_by_what_three_standard_deviations_of_a_period_move_weights():
    env = HybridPortfolioEnv(**TWO_ASSETS | {"covariance": TWO_ASSETS["covariance"] / 100})
    hold = HybridAction(torch.zeros(50_000, dtype=torch.int64), torch.zeros(50_000, 2))
    state = env.initial(50_000, torch.Generator())
    noise = HybridPortfolioEnv.sample_noise(env, 50_000, torch.Generator().manual_seed(0))[0]
    moved = env.step_torch(state, hold, noise).observation.std(dim=0).numpy()
    np.testing.assert_allclose(moved, weight_volatility(env.params), rtol=0.02)
    np.testing.assert_allclose(env.observation_scale, 3 * weight_volatility(env.params), rtol=1e-6)


def test_holding_bounds_the_point_to_zero():
    assert HybridPortfolioEnv(2).action_bounds.tolist() == [[[0.0, 0.0]] * 2, [[0.0, np.inf]] * 2]


@pytest.mark.parametrize("n_assets", [1, 20])
def test_the_default_instance_is_what_it_says(n_assets):
    params = HybridPortfolioEnv(n_assets).params
    volatility = np.sqrt(np.diag(params.covariance))
    assert params.target.sum() == pytest.approx(0.6)
    assert volatility.mean() == pytest.approx(0.15)
    correlation = params.covariance / np.outer(volatility, volatility)
    np.testing.assert_allclose(correlation[~np.eye(n_assets, dtype=bool)], 0.3)
    assert max(params.target) < 3 * min(params.target) and max(volatility) < 2 * min(volatility)


def test_the_figure_of_merit_is_the_mean_after_sixteen_periods():
    costs = torch.full((100, 2), 1000.0)
    costs[16:, 0], costs[16:, 1] = 2.0, 3.0
    assert HybridPortfolioEnv().figure_of_merit(costs).tolist() == [2.0, 3.0]


def test_the_picture_grows_with_the_episode():
    env = HybridPortfolioEnv(3, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step((1, np.full(3, 0.2)))
    assert before.shape == (480, 640, 3)
    assert (before != env.render()).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_assets": 0}, r"n_assets must be an integer >= 1, got 0"),
        ({"horizon": 0}, r"horizon must be an integer >= 1, got 0"),
        ({"fixed_cost": -1e-4}, r"fixed_cost = -0.0001: must be finite and >= 0"),
        ({"fixed_cost": np.nan}, r"fixed_cost = nan: must be finite and >= 0"),
        ({"n_assets": 2, "proportional_cost": [0.0, -0.1]}, r"proportional_cost\[1\] = -0.1: must be finite and >= 0"),
        ({"n_assets": 2, "proportional_cost": [0.0] * 3}, r"proportional_cost must be a scalar or have shape \(2,\), got"),
        ({"fixed_cost": 0.9, "proportional_cost": 0.1}, r"fixed_cost \+ 2 \* proportional_cost = 1.1: must be < 1"),
        ({"n_assets": 2, "fixed_cost_per_asset": [0.0, -1.0]}, r"fixed_cost_per_asset\[1\] = -1.0: must be finite and >= 0"),
        ({"fixed_cost_per_asset": [0.0, 0.0]}, r"fixed_cost_per_asset must be a scalar or have shape \(1,\), got"),
        (
            {"n_assets": 2, "fixed_cost_per_asset": 0.5},
            r"fixed_cost \+ Σ fixed_cost_per_asset \+ 2 \* proportional_cost = 1.0022: must be < 1",
        ),
        ({"target": 0.0}, r"target\[0\] = 0.0: must be finite and > 0"),
        ({"n_assets": 2, "target": [0.5, -0.1]}, r"target\[1\] = -0.1: must be finite and > 0"),
        ({"target": 1.0}, r"target adds up to 1: must be < 1"),
        ({"n_assets": 2, "target": [0.5, 0.7]}, r"target adds up to 1.2: must be < 1"),
        ({"n_assets": 3, "covariance": np.eye(2)}, r"covariance must be a scalar or have shape \(3, 3\), got shape \(2, 2\)"),
        ({"n_assets": 2, "covariance": [[1.0, np.inf], [0.0, 1.0]]}, r"covariance\[0, 1\] = inf: must be finite"),
        (
            {"n_assets": 2, "covariance": [[1.0, 0.5], [0.1, 1.0]]},
            r"covariance\[0, 1\] = 0.5 and \[1, 0\] = 0.1: must be symmetric",
        ),
        (
            {"n_assets": 2, "covariance": [[1.0, 2.0], [2.0, 1.0]]},
            r"covariance must be positive definite; its least eigenvalue is -1",
        ),
        ({"covariance": [[0.0]]}, r"covariance must be positive definite; its least eigenvalue is 0"),
        ({"render_mode": "human"}, r"render_mode must be None or one of \['rgb_array'\], got 'human'"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridPortfolioEnv(**kwargs)


# ---- the optimum of one asset --------------------------------------------------------------------------------------------

ONE_ASSET = [
    {},
    {"fixed_cost": 1e-3, "target": 0.8},
    {"proportional_cost": 0.01, "covariance": [[0.04]]},
    {"fixed_cost": 0.0},
]


@pytest.mark.parametrize("kwargs", ONE_ASSET, ids=str)
def test_the_optimum_costs_in_the_environment_what_it_states(kwargs):
    env = HybridPortfolioEnv(**kwargs, horizon=200)
    policy = RebalancingOptimum(env)
    costs = evaluate(env, policy, 500, seed=3)
    assert costs.mean() == pytest.approx(policy.cost, abs=4 * costs.std() / len(costs) ** 0.5)
    assert costs.std() / len(costs) ** 0.5 < 0.01 * policy.cost


def test_without_costs_the_optimum_always_returns_to_the_target():
    policy = RebalancingOptimum(HybridPortfolioEnv(fixed_cost=0.0, proportional_cost=0.0))
    assert policy.cost == pytest.approx(0.0, abs=1e-12)
    assert set(policy.weights[policy.goal]) == {policy.weights[len(policy.weights) // 2]}


def test_with_a_fixed_cost_alone_every_trade_goes_to_the_same_weight():
    policy = RebalancingOptimum(HybridPortfolioEnv(proportional_cost=0.0))
    assert len(set(policy.goal[policy.rebalances])) == 1


def test_with_proportional_costs_a_trade_stops_short_of_the_target_on_either_side():
    policy = RebalancingOptimum(HybridPortfolioEnv(proportional_cost=0.01))
    held = policy.weights[~policy.rebalances]
    low, high = policy.weights[policy.goal[[0, -1]]]
    assert held[0] < low < policy.target < high < held[-1]


@pytest.mark.parametrize("shift", [-0.03, 0.03])
@pytest.mark.parametrize("index", [0, -1])
def test_no_shifted_edge_of_the_optimal_band_is_better(index, shift):
    """The optimum's own rule with one edge of the region without trades moved, on common scenarios."""
    env = HybridPortfolioEnv()
    optimum, moved = RebalancingOptimum(env), RebalancingOptimum(env)
    edges = optimum.weights[~optimum.rebalances][[0, -1]]
    edges[index] += shift
    moved.rebalances = (optimum.weights < edges[0]) | (optimum.weights > edges[1])
    excess = evaluate(env, moved, 500, seed=3) - evaluate(env, optimum, 500, seed=3)
    assert excess.mean() > 2 * excess.std() / len(excess) ** 0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_assets": 2}, r"RebalancingOptimum: n_assets = 2; it is for one risky asset"),
        ({"fixed_cost": 0.9}, r"RebalancingOptimum: fixed_cost = 0.9 and proportional_cost = 0.001 are too high"),
    ],
)
def test_the_optimum_refuses_what_it_does_not_solve(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RebalancingOptimum(HybridPortfolioEnv(**kwargs))


# ---- the no-trade band ---------------------------------------------------------------------------------------------------


def test_the_band_by_hand():
    env = HybridPortfolioEnv(2, target=[0.4, 0.2], covariance=np.diag([0.04, 0.01]))
    policy = NoTradeBand(env, band=0.02, slack=0.5)
    left = 0.5 * weight_volatility(env.params)
    np.testing.assert_allclose(left[0], 0.5 * 0.4 * math.sqrt(0.6**2 * 0.04 + 0.2**2 * 0.01))
    # deviations in the Σ-norm: 0.019, 0.0206, 0.0206; in the last the first asset is within its slack
    deviation = np.array([[0.095, 0.0], [0.1, 0.05], [-0.01, -0.205]])
    regimes, points = policy.act(deviation.astype(np.float32), np.zeros(3))
    assert regimes.tolist() == [0, 1, 1]
    np.testing.assert_allclose(points, [[0, 0], [0.4 + left[0], 0.2 + left[1]], [0.39, 0.2 - left[1]]], rtol=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"proportional_cost": 0.01}], ids=str)
def test_the_tuned_band_is_within_one_percent_of_the_optimum(kwargs):
    env = HybridPortfolioEnv(**kwargs)
    band = NoTradeBand.best(env)
    ratio = evaluate(env, band, 1000, seed=5).mean() / evaluate(env, RebalancingOptimum(env), 1000, seed=5).mean()
    assert 0.995 < ratio < 1.01  # episodes begin at the target, of which the long-run optimum takes no advantage
    assert 0 < band.half_width < 0.02 * band.cost


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-0.1, 0.0), r"band = -0.1: must be finite and >= 0"),
        ((0.1, np.nan), r"slack = nan: must be finite and >= 0"),
        ((0.1, 0.0, -2.0), r"reach\[0\] = -2.0: must be finite and >= 0"),
    ],
)
def test_a_bad_parameter_of_the_band_is_named_with_its_value(numbers, message):
    with pytest.raises(ValueError, match=message):
        NoTradeBand(HybridPortfolioEnv(2), *numbers)


def test_the_reach_of_each_asset_by_hand():
    deviation = np.array([[0.05, 0.0], [0.11, 0.05], [-0.01, -0.3]])
    kwargs = {"n_assets": 2, "target": [0.4, 0.2], "covariance": np.diag([0.04, 0.01])}
    apart, together = HybridPortfolioEnv(**kwargs, fixed_cost_per_asset=1e-3), HybridPortfolioEnv(**kwargs)
    volatility = weight_volatility(apart.params)
    reach = np.array([0.1, 0.06]) / volatility
    regimes, points = NoTradeBand(apart, band=0.0, slack=0.5, reach=reach).act(deviation, np.zeros(3))
    assert regimes.tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 1]]
    np.testing.assert_allclose(points, [[0, 0], [0.4 + 0.5 * volatility[0], 0], [0, 0.2 - 0.5 * volatility[1]]], rtol=1e-6)
    regimes, points = NoTradeBand(apart, band=0.023, slack=0.5, reach=reach).act(deviation, np.zeros(3))
    assert regimes.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1]]  # deviations in the Σ-norm: 0.01, 0.0226, 0.0301
    regimes, points = NoTradeBand(apart, band=0.02, slack=0.5).act(np.array([[0.11, 0.001]]), np.zeros(1))
    assert regimes.tolist() == [[1, 1, 0]]  # within its slack
    np.testing.assert_allclose(points, [[0.4 + 0.5 * volatility[0], 0]])
    regimes, _ = NoTradeBand(together, band=0.0, slack=0.5, reach=reach).act(deviation, np.zeros(3))
    assert regimes.tolist() == [1, 1, 1]  # of all or none no reach counts


def test_one_asset_with_a_cost_of_its_own_is_one_asset_with_the_sum_of_both():
    env, own = HybridPortfolioEnv(fixed_cost=5e-4), HybridPortfolioEnv(fixed_cost=2e-4, fixed_cost_per_asset=3e-4)
    optimum, own_optimum = RebalancingOptimum(env), RebalancingOptimum(own)
    assert own_optimum.cost == pytest.approx(optimum.cost, rel=1e-9)
    assert evaluate(own, own_optimum, 32, seed=1) == pytest.approx(evaluate(env, optimum, 32, seed=1), rel=1e-4)
    assert evaluate(own, NoTradeBand.best(own), 500, seed=1).mean() < 1.01 * evaluate(own, own_optimum, 500, seed=1).mean()


def test_where_assets_share_no_cost_the_search_finds_a_reach_for_each():
    own = np.tile([2e-5, 5e-4], 3)
    env = HybridPortfolioEnv(6, fixed_cost=0.0, fixed_cost_per_asset=own)
    best, one_for_all = best_rebalancing(env), []
    assert isinstance(best, NoTradeBand) and (best.reach[::2] < best.reach[1::2]).all()
    for reach in np.linspace(1, 6, 11):
        policies = [NoTradeBand(env, 0.0, slack, reach) for slack in (0.0, 0.25, 0.5, 1.0)]
        one_for_all += [evaluate(env, policy, 500, seed=3).mean() for policy in policies]
    assert evaluate(env, best, 500, seed=3).mean() < 0.99 * min(one_for_all)


def test_where_assets_share_a_fixed_cost_they_wait_for_each_other_and_small_trades_do_not_pay():
    env = HybridPortfolioEnv(6, fixed_cost_per_asset=1e-4)
    best = best_rebalancing(env)
    assert isinstance(best, NoTradeBand) and (best.reach > best.slack).all()
    others = [NoTradeBand(env, best.band, best.slack)]
    others += [NoTradeBand(env, 0.0, slack, reach) for slack in (0.0, 0.5, 1.0) for reach in np.linspace(2, 8, 13)]
    cost, *costs = (evaluate(env, policy, 500, seed=3).mean() for policy in (best, *others))
    assert cost < 0.97 * min(costs)


# ---- the reference -------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_optimum_where_it_can_be_computed():
    assert isinstance(reference_policy(gym.make("HybridPortfolio-v0")), RebalancingOptimum)


@pytest.mark.parametrize("kwargs", [{"n_assets": 3, "target": [0.5, 0.3, 0.1]}, {"fixed_cost": 0.5}], ids=str)
def test_elsewhere_the_reference_is_a_band_that_keeps_to_the_bounds(kwargs):
    env = HybridPortfolioEnv(**kwargs)
    policy = best_rebalancing(env)
    assert isinstance(policy, NoTradeBand)
    observation, _ = env.reset(seed=0)
    for _ in range(env.horizon):
        (regime, point), _ = policy.predict(observation)
        low, high = env.action_bounds[regime].T
        assert ((point >= low) & (point <= high)).all()
        observation, *_ = env.step((regime, point))
