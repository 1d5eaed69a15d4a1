"""Every expected number here was worked out by hand from the problem's equations."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridInventoryEnv

TWO_ITEMS = {
    "n_items": 2,
    "mean_demand": [10.0, 20.0],
    "holding_cost": [1.0, 2.0],
    "underage_cost": [9.0, 7.0],
    "fixed_cost": 50.0,
}
DEMAND = [[3.0, 4.0], [2.0, 1.0], [5.0, 3.0]]
ACTIONS = [(1, [12.0, 5.0]), (0, [7.0, 7.0]), (1, [4.0, 6.0])]


def play(env, demand, actions):
    """Stocks after each period and costs of each period, for one scenario."""
    state = env.initial(1, torch.Generator())
    stocks, costs = [], []
    for noise, (regime, point) in zip(demand, actions, strict=True):
        result = env.step_torch(state, HybridAction(torch.tensor([regime]), torch.tensor([point])), torch.tensor([noise]))
        state = result.state
        stocks.append(state.stock[0].tolist())
        costs.append(-result.reward.item())
    return stocks, costs


def test_backlog_with_lead_time_two_by_hand():
    stocks, costs = play(HybridInventoryEnv(**TWO_ITEMS, lead_time=2), DEMAND, ACTIONS)
    assert stocks == [
        [[-3.0, -4.0], [12.0, 5.0]],
        [[7.0, 0.0], [0.0, 0.0]],
        [[2.0, -3.0], [4.0, 6.0]],
    ]
    assert costs == [9 * 3 + 7 * 4 + 50, 9 * 5 + 7 * 5, 1 * 2 + 7 * 3 + 50]


def test_lost_sales_with_lead_time_two_by_hand():
    stocks, costs = play(HybridInventoryEnv(**TWO_ITEMS, lead_time=2, lost_sales=True), DEMAND, ACTIONS)
    assert stocks == [
        [[0.0, 0.0], [12.0, 5.0]],
        [[12.0, 5.0], [0.0, 0.0]],
        [[7.0, 2.0], [4.0, 6.0]],
    ]
    assert costs == [9 * 3 + 7 * 4 + 50, 9 * 2 + 7 * 1, 1 * 7 + 2 * 2 + 50]


def test_with_a_margin_what_is_sold_earns():
    env = HybridInventoryEnv(**TWO_ITEMS, lead_time=2, lost_sales=True, margin=[2.0, 5.0])
    _, costs = play(env, DEMAND, ACTIONS)
    assert costs == [9 * 3 + 7 * 4 + 50, 9 * 2 + 7 * 1, 1 * 7 + 2 * 2 + 50 - 2 * 5 - 5 * 3]


def test_with_minor_costs_an_item_is_ordered_if_there_is_an_order_and_it_is_on_it():
    env = HybridInventoryEnv(**TWO_ITEMS, lead_time=2, minor_fixed_cost=[3.0, 11.0])
    actions = [([1, 0, 1], [0.0, 5.0]), ([0, 1, 1], [7.0, 7.0]), ([1, 1, 1], [4.0, 0.0]), ([1, 0, 0], [0.0, 0.0])]
    stocks, costs = play(env, [*DEMAND, [1.0, 1.0]], actions)
    assert [stock[1] for stock in stocks] == [[0.0, 5.0], [0.0, 0.0], [4.0, 0.0], [0.0, 0.0]]
    assert [stock[0] for stock in stocks] == [[-3.0, -4.0], [-5.0, 0.0], [-10.0, -3.0], [-7.0, -4.0]]
    # an order of nothing but item 1; none, for want of the first factor; both, one of them in vain; none, for want of items
    running = [9 * 3 + 7 * 4, 9 * 5 + 7 * 5, 9 * 10 + 7 * 3, 9 * 11 + 7 * 4]
    assert costs == [running[0] + 50 + 11, running[1], running[2] + 50 + 3 + 11, running[3]]


def test_with_minor_costs_the_first_factor_bounds_nothing_and_each_other_its_item():
    env = HybridInventoryEnv(3, minor_fixed_cost=5.0)
    assert env.action_space.spaces[0].nvec.tolist() == [2, 2, 2, 2]
    assert env.factors.factor_of.tolist() == [1, 2, 3]
    assert env.action_bounds.tolist() == [[[0.0, 0.0]] * 3, [[0.0, np.inf]] * 3]
    assert env.params.minor_fixed_cost.tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("minor_fixed_cost", "message"),
    [
        (-1.0, r"minor_fixed_cost\[0\] = -1.0: must be finite and >= 0"),
        ([1.0, np.nan], r"minor_fixed_cost\[1\] = nan: must be finite and >= 0"),
        ([1.0, 2.0, 3.0], r"minor_fixed_cost must be a scalar or have shape \(2,\), got shape \(3,\)"),
        ("dear", r"minor_fixed_cost must be numeric, got 'dear'"),
    ],
)
def test_bad_minor_costs_are_named(minor_fixed_cost, message):
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(2, minor_fixed_cost=minor_fixed_cost)


def test_an_item_that_is_off_the_order_has_no_gradient_and_one_that_is_on_it_its_own():
    env = HybridInventoryEnv(**TWO_ITEMS, lead_time=1, minor_fixed_cost=[3.0, 11.0])
    order = torch.tensor([[12.0, 5.0]], requires_grad=True)
    state = env.initial(1, torch.Generator())
    first = env.step_torch(state, HybridAction(torch.tensor([[1, 1, 0]]), order), torch.tensor([[3.0, 4.0]]))
    none = HybridAction(torch.tensor([[0, 0, 0]]), torch.zeros(1, 2))
    second = env.step_torch(first.state, none, torch.tensor([[2.0, 6.0]]))
    (gradient,) = torch.autograd.grad(second.reward.sum(), order)
    assert gradient.tolist() == [[-1.0, 0.0]]


def test_lead_time_one_puts_an_order_on_hand_in_the_next_period():
    stocks, costs = play(HybridInventoryEnv(**TWO_ITEMS, lead_time=1), DEMAND, ACTIONS)
    assert stocks == [[[9.0, 1.0]], [[7.0, 0.0]], [[6.0, 3.0]]]
    assert costs == [105.0, 1 * 7, 1 * 2 + 7 * 3 + 50]


def test_lead_time_five_puts_an_order_on_hand_five_periods_later():
    env = HybridInventoryEnv(1, mean_demand=10.0, holding_cost=1.0, underage_cost=9.0, fixed_cost=50.0, lead_time=5)
    demand = [[1.0], [2.0], [3.0], [4.0], [5.0], [3.0]]
    actions = [(1, [20.0])] + [(0, [0.0])] * 5
    stocks, costs = play(env, demand, actions)
    assert [stock[0][0] for stock in stocks] == [-1.0, -3.0, -6.0, -10.0, 5.0, 2.0]
    assert stocks[0] == [[-1.0], [0.0], [0.0], [0.0], [20.0]]
    assert stocks[3] == [[-10.0], [20.0], [0.0], [0.0], [0.0]]
    assert costs == [59.0, 27.0, 54.0, 90.0, 135.0, 2.0]


def test_the_observation_is_scaled_stock_then_underage_and_holding_costs_and_mean_demand():
    env = HybridInventoryEnv(**TWO_ITEMS, demand=np.array([DEMAND]), horizon=3)
    env.reset(seed=0)
    observation, *_ = env.step((1, np.array([12.0, 5.0])))
    np.testing.assert_allclose(observation, [-0.3, -0.2, 1.2, 0.25, 9, 7, 1, 2, 10, 20], rtol=1e-6)


def test_a_recorded_scenario_is_replayed_through_step():
    env = HybridInventoryEnv(**TWO_ITEMS, demand=np.array([DEMAND]), horizon=3)
    env.reset(seed=5)
    rewards = [env.step((regime, np.array(point)))[1] for regime, point in ACTIONS]
    assert rewards == [-105.0, -80.0, -73.0]


def test_the_episode_is_truncated_at_the_horizon_and_never_terminated():
    env = HybridInventoryEnv(1, horizon=3)
    env.reset(seed=0)
    ends = [env.step((0, np.zeros(1)))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_the_reference_instance_with_three_items_has_its_published_numbers():
    env = HybridInventoryEnv(3)
    assert env.params.mean_demand.tolist() == [7.988, 9.6, 9.288]
    np.testing.assert_allclose(env.params.holding_cost, [1.08561395, 1.02317256, 1.00713879], rtol=1e-8)
    np.testing.assert_allclose(env.params.underage_cost, [10.23667421, 9.33069385, 6.9748223], rtol=1e-8)
    assert (env.params.fixed_cost, env.params.lead_time, env.horizon) == (192.0, 2, 100)
    assert not env.params.lost_sales


def test_the_default_instance_has_five_items():
    assert gym.make("HybridInventory-v0").unwrapped.n_items == 5


def test_scalar_arguments_are_spread_over_the_items():
    assert HybridInventoryEnv(3, holding_cost=2.0).params.holding_cost.tolist() == [2.0, 2.0, 2.0]


def test_regime_zero_orders_nothing_and_regime_one_any_amount():
    bounds = HybridInventoryEnv(2).action_bounds
    assert bounds.tolist() == [[[0.0, 0.0]] * 2, [[0.0, np.inf]] * 2]


def test_the_action_scale_is_wilsons_lot_size():
    # √(2·25·10/1) = √(2·25·20/2) = √500, the fixed cost of 50 shared by two items
    np.testing.assert_allclose(HybridInventoryEnv(**TWO_ITEMS).action_scale, [500**0.5, 500**0.5], rtol=1e-6)


def test_the_action_scale_counts_an_items_own_fixed_cost():
    scale = HybridInventoryEnv(**TWO_ITEMS, minor_fixed_cost=[0.0, 75.0]).action_scale
    np.testing.assert_allclose(scale, [500**0.5, 2000**0.5], rtol=1e-6)  # the second: √(2·(25 + 75)·20/2)


def test_the_action_scale_is_no_less_than_a_periods_demand():
    assert HybridInventoryEnv(1, mean_demand=10.0, fixed_cost=0.0).action_scale.tolist() == [10.0]


def test_the_figure_of_merit_is_the_mean_cost_per_item_after_sixteen_periods():
    costs = torch.full((100, 2), 1000.0)
    costs[16:, 0], costs[16:, 1] = 20.0, 30.0
    assert HybridInventoryEnv(5).figure_of_merit(costs).tolist() == [4.0, 6.0]


def test_the_figure_of_merit_of_a_short_episode_counts_every_period():
    costs = torch.tensor([[10.0], [30.0]])
    assert HybridInventoryEnv(4, horizon=2).figure_of_merit(costs).tolist() == [5.0]


def test_poisson_demand_has_the_means_and_variances_of_the_instance():
    env = HybridInventoryEnv(3)
    demand = env.sample_noise(400, torch.Generator().manual_seed(1)).flatten(
        0, 1
    )  # 40,000 draws: standard error of the mean 0.015
    np.testing.assert_allclose(demand.mean(0), env.mean_demand, atol=0.08)
    np.testing.assert_allclose(demand.var(0), env.mean_demand, rtol=0.05)
    assert bool((demand == demand.round()).all())


def test_normal_demand_has_the_given_deviation_and_is_never_negative():
    env = HybridInventoryEnv(2, demand="normal", mean_demand=[20.0, 1.0], demand_std=[3.0, 2.0])
    demand = env.sample_noise(400, torch.Generator().manual_seed(1)).flatten(0, 1)
    assert demand[:, 0].std().item() == pytest.approx(3.0, rel=0.03)
    assert demand.min() == 0.0


def test_stock_bought_at_a_kink_free_point_has_the_gradient_worked_out_by_hand():
    env = HybridInventoryEnv(**TWO_ITEMS, lead_time=1).to(dtype=torch.float64)
    order = torch.tensor([[12.0, 5.0]], dtype=torch.float64, requires_grad=True)
    first = env.step_torch(
        env.initial(1, torch.Generator()), HybridAction(torch.tensor([1]), order), torch.tensor([[3.0, 4.0]])
    )
    second = env.step_torch(first.state, HybridAction(torch.tensor([0]), torch.zeros(1, 2)), torch.tensor([[2.0, 6.0]]))
    (gradient,) = torch.autograd.grad(second.reward.sum(), order)
    assert gradient.tolist() == [[-1.0, 7.0]]  # item 0 is held, item 1 is short


def test_the_picture_grows_with_the_episode():
    env = HybridInventoryEnv(12, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step((1, np.full(12, 9.0)))
    after = env.render()
    assert before.shape == after.shape == (480, 640, 3)
    assert (before != after).any()
