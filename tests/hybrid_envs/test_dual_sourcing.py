"""Figures of the literature, trajectories worked out by hand, and the solvers against simulation and against each other."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridDualSourcingEnv
from hybrid_envs.dual_sourcing.policies import (
    CappedDualIndex,
    DualSourcingOptimum,
    Grid,
    Levels,
    WholeUnits,
    best_dual_sourcing,
    single_item,
)
from hybrid_envs.solvers import evaluate, reference_policy

NO_FIXED_COSTS = {"regular_fixed_cost": 0.0, "expedited_fixed_cost": 0.0}
TWO_ITEMS = {
    "n_items": 2,
    "holding_cost": [1.0, 2.0],
    "underage_cost": [9.0, 7.0],
    "premium": [3.0, 4.0],
    "regular_fixed_cost": 10.0,
    "expedited_fixed_cost": 100.0,
}
DEMAND = [[3.0, 4.0], [2.0, 1.0], [5.0, 3.0]]
ACTIONS = [(3, [6.0, 7.0, 4.0, 0.0]), (0, [5.0, 5.0, 5.0, 5.0]), (2, [5.0, 5.0, 0.0, 1.0])]


# ---- the environment -----------------------------------------------------------------------------------------------------


def play(env):
    """Stocks after each period and costs of each period of the actions above."""
    state = env.initial(1, torch.Generator())
    stocks, costs = [], []
    for noise, (regime, point) in zip(DEMAND, ACTIONS, strict=True):
        result = env.step_torch(state, HybridAction(torch.tensor([regime]), torch.tensor([point])), torch.tensor([noise]))
        state = result.state
        stocks.append(state.stock[0].tolist())
        costs.append(-result.reward.item())
    return stocks, costs


def test_a_regular_lead_time_of_two_by_hand():
    stocks, costs = play(HybridDualSourcingEnv(**TWO_ITEMS, lead_time=2))
    assert stocks == [
        [[1.0, -4.0], [6.0, 7.0]],  # 4 + 0 expedited, 3 + 4 demanded
        [[5.0, 2.0], [0.0, 0.0]],  # the regular order is on hand two periods after it was placed
        [[0.0, 0.0], [0.0, 0.0]],
    ]
    assert costs == [1 * 1 + 7 * 4 + 3 * 4 + 110, 9 * 1 + 7 * 5, 4 * 1 + 100]


def test_a_regular_lead_time_of_one_by_hand():
    stocks, costs = play(HybridDualSourcingEnv(**TWO_ITEMS, lead_time=1))
    assert stocks == [[[7.0, 3.0]], [[5.0, 2.0]], [[0.0, 0.0]]]
    assert costs == [151.0, 1 * 5 + 2 * 2, 4 * 1 + 100]


def test_a_regular_lead_time_of_three_delays_the_order_by_a_period_more():
    stocks, costs = play(HybridDualSourcingEnv(**TWO_ITEMS, lead_time=3))
    assert [stock[0] for stock in stocks] == [[1.0, -4.0], [-1.0, -5.0], [0.0, 0.0]]
    assert stocks[1][1:] == [[6.0, 7.0], [0.0, 0.0]]
    assert costs == [151.0, 9 * 1 + 7 * 5, 9 * 6 + 7 * 7 + 4 * 1 + 100]


def test_each_source_that_is_used_charges_its_fixed_cost_once_for_all_items():
    env = HybridDualSourcingEnv(**TWO_ITEMS, lead_time=1)
    action = HybridAction(torch.arange(4), torch.zeros(4, 4))
    rewards = env.step_torch(env.initial(4, torch.Generator()), action, torch.zeros(4, 2)).reward
    assert rewards.tolist() == [0.0, -10.0, -100.0, -110.0]


def test_each_item_that_uses_a_source_charges_its_own_fixed_cost_where_items_choose():
    kwargs = TWO_ITEMS | {"regular_fixed_cost": [10.0, 20.0], "expedited_fixed_cost": 100.0}
    env = HybridDualSourcingEnv(**kwargs, lead_time=1, per_item=True)
    regimes = torch.tensor([[0, 0], [1, 0], [1, 1], [2, 1], [3, 3]])
    points = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(5, -1)
    result = env.step_torch(env.initial(5, torch.Generator()), HybridAction(regimes, points), torch.zeros(5, 2))
    # what is left is held at 1 and 2; units of the expedited source cost 3 and 4 more
    assert result.reward.tolist() == [0, -10, -30, -(100 + 20 + 9 + 3), -(230 + 9 + 16 + 3 + 8)]
    assert result.state.stock[:, 0].tolist() == [[0, 0], [1, 0], [1, 2], [3, 2], [4, 6]]


def test_both_quantities_of_an_item_answer_to_its_factor():
    env = HybridDualSourcingEnv(3, per_item=True)
    assert env.factors.sizes == (4, 4, 4) and env.factors.factor_of.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(env.action_bounds, HybridDualSourcingEnv(3).action_bounds)
    np.testing.assert_array_equal(env.action_scale, HybridDualSourcingEnv(3).action_scale)
    assert env.params.regular_fixed_cost.tolist() == [5.0] * 3 and env.params.expedited_fixed_cost.tolist() == [10.0] * 3


def test_a_source_that_is_not_used_is_bounded_to_zero():
    bounds = HybridDualSourcingEnv(2).action_bounds
    assert (bounds[..., 0] == 0).all()
    assert bounds[..., 1].tolist() == [
        [0.0, 0.0, 0.0, 0.0],
        [np.inf, np.inf, 0.0, 0.0],
        [0.0, 0.0, np.inf, np.inf],
        [np.inf] * 4,
    ]


def test_the_observation_is_stock_in_units_of_mean_demand():
    env = HybridDualSourcingEnv(**TWO_ITEMS, mean_demand=[10.0, 20.0], demand=np.array([DEMAND]), horizon=3)
    env.reset(seed=0)
    observation, *_ = env.step((3, np.array([6.0, 7.0, 4.0, 0.0])))
    np.testing.assert_allclose(observation, [0.1, -0.2, 0.6, 0.35], rtol=1e-6)


def test_an_expedited_unit_has_the_gradient_worked_out_by_hand():
    env = HybridDualSourcingEnv(**TWO_ITEMS, lead_time=1).to(dtype=torch.float64)
    point = torch.tensor([[0.5, 0.5, 6.5, 2.5]], dtype=torch.float64, requires_grad=True)
    first = env.step_torch(
        env.initial(1, torch.Generator()), HybridAction(torch.tensor([3]), point), torch.tensor([[3.0, 4.0]]).double()
    )
    second = env.step_torch(
        first.state, HybridAction(torch.tensor([0]), torch.zeros(1, 4).double()), torch.tensor([[2.0, 1.0]]).double()
    )
    (gradient,) = torch.autograd.grad((first.reward + second.reward).sum(), point)
    # left after the first period: 3.5 and -1.5; after the second: 2 and -2
    assert gradient.tolist() == [[-1.0, 7.0, -1.0 - 3.0 - 1.0, 7.0 - 4.0 + 7.0]]


def test_uniform_demand_takes_every_integer_up_to_twice_the_mean_equally_often():
    env = HybridDualSourcingEnv(2, mean_demand=[2.0, 0.5])
    demand = env.sample_noise(400, torch.Generator().manual_seed(1)).flatten(0, 1)
    for i, expected in enumerate(([0, 1, 2, 3, 4], [0, 1])):
        values, counts = np.unique(demand[:, i].numpy(), return_counts=True)
        assert values.tolist() == expected
        np.testing.assert_allclose(counts / len(demand), 1 / len(expected), atol=0.01)  # five standard errors


def test_fixed_costs_grow_with_the_items_unless_given():
    params = HybridDualSourcingEnv(20).params
    assert (params.regular_fixed_cost, params.expedited_fixed_cost) == (100.0, 200.0)


def test_the_figure_of_merit_is_the_mean_cost_per_item_after_sixteen_periods():
    costs = torch.full((100, 2), 1000.0)
    costs[16:, 0], costs[16:, 1] = 20.0, 30.0
    assert HybridDualSourcingEnv(5).figure_of_merit(costs).tolist() == [4.0, 6.0]


def test_the_picture_grows_with_the_episode():
    env = HybridDualSourcingEnv(2, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step((3, np.full(4, 2.0)))
    assert before.shape == (480, 640, 3)
    assert (before != env.render()).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 0}, r"n_items must be an integer >= 1, got 0"),
        ({"lead_time": 0}, r"lead_time must be an integer >= 1, got 0"),
        ({"lead_time": 1.5}, r"lead_time must be an integer >= 1, got 1.5"),
        ({"horizon": 0}, r"horizon must be an integer >= 1, got 0"),
        ({"premium": -1.0}, r"premium\[0\] = -1.0: must be finite and >= 0"),
        ({"n_items": 2, "premium": [1.0, np.nan]}, r"premium\[1\] = nan: must be finite and >= 0"),
        ({"holding_cost": -1.0}, r"holding_cost\[0\] = -1.0: must be finite and >= 0"),
        ({"underage_cost": np.inf}, r"underage_cost\[0\] = inf: must be finite and >= 0"),
        ({"per_item": 1}, r"per_item must be True or False, got 1"),
        ({"n_items": 2, "regular_fixed_cost": [1.0, 2.0]}, r"regular_fixed_cost must be a scalar or have shape \(\), got"),
        (
            {"n_items": 2, "per_item": True, "expedited_fixed_cost": [1.0, -2.0]},
            r"expedited_fixed_cost\[1\] = -2.0: must be finite and >= 0",
        ),
        ({"regular_fixed_cost": -5.0}, r"regular_fixed_cost = -5.0: must be finite and >= 0"),
        ({"expedited_fixed_cost": np.nan}, r"expedited_fixed_cost = nan: must be finite and >= 0"),
        ({"mean_demand": 0.0}, r"mean_demand\[0\] = 0.0: must be finite and > 0"),
        ({"n_items": 2, "mean_demand": [1.0, 1.3]}, r"mean_demand\[1\] = 1.3: uniform demand .* needs a multiple of 1/2"),
        ({"demand": "gamma"}, r"demand must be 'uniform', 'poisson', 'normal', an array or .* CSV file, got 'gamma'"),
        ({"demand": np.zeros((2, 100))}, r"demand must have shape \(scenarios, periods, items\), got \(2, 100\)"),
        ({"demand": np.ones((2, 100, 3)), "n_items": 2}, r"demand holds 3 items, but n_items = 2"),
        ({"demand_std": 2.0}, r"demand_std = 2.0 is only for demand = 'normal', got demand = 'uniform'"),
        ({"demand": "normal", "demand_std": -1.0}, r"demand_std\[0\] = -1.0: must be finite and >= 0"),
        ({"render_mode": "human"}, r"render_mode must be None or one of \['rgb_array'\], got 'human'"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridDualSourcingEnv(**kwargs)


# ---- the optimum of one item ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lead_time", "premium", "cost"),
    [(2, 5.0, 16.772), (2, 10.0, 19.735), (2, 20.0, 23.073), (3, 10.0, 20.344), (3, 20.0, 24.339)],
)
def test_the_optimum_has_the_cost_of_the_literature(lead_time, premium, cost):
    env = HybridDualSourcingEnv(lead_time=lead_time, premium=premium, **NO_FIXED_COSTS)
    assert DualSourcingOptimum(env).cost == pytest.approx(cost, abs=0.01)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"lead_time": 1, **NO_FIXED_COSTS},
        {"lead_time": 3, "premium": 5.0, "expedited_fixed_cost": 40.0},
        {"demand": "poisson", "underage_cost": 50.0},
    ],
    ids=str,
)
def test_the_optimum_costs_in_the_environment_what_it_states(kwargs):
    env = HybridDualSourcingEnv(**kwargs)
    policy = DualSourcingOptimum(env)
    costs = evaluate(env, policy, 1000, seed=3)
    assert costs.mean() == pytest.approx(policy.cost, abs=4 * costs.std() / len(costs) ** 0.5)
    assert costs.std() / len(costs) ** 0.5 < 0.01 * policy.cost


@pytest.mark.parametrize("lead_time", [1, 2])
def test_no_policy_of_orders_up_to_six_beats_the_optimum_in_policy_iteration(lead_time):
    """An independent solution: every action of every state listed, policy evaluation by a linear system."""
    problem = replace(single_item(HybridDualSourcingEnv()), lead_time=lead_time)
    low, high, most = -4, 16, 6
    states = [(i, *rest) for i in range(low, high + 1) for rest in np.ndindex((most + 1,) * (lead_time - 1))]
    index = {state: k for k, state in enumerate(states)}
    transitions, costs = [], []  # per state: one row for each action
    for on_hand, *pipeline in states:
        rows, prices = [], []
        for regular in range(most + 1):
            for expedited in range(max(0, -on_hand), high - on_hand + 1):
                row, price = np.zeros(len(states)), 5.0 * (regular > 0) + 10.0 * (expedited > 0) + 20.0 * expedited
                for demand in range(5):
                    left = on_hand + expedited - demand
                    price += (5.0 * max(left, 0) + 495.0 * max(-left, 0)) / 5
                    arriving, *rest = [*pipeline, regular]
                    row[index[(min(left + arriving, high), *rest)]] += 0.2
                rows.append(row)
                prices.append(price)
        transitions.append(np.array(rows))
        costs.append(np.array(prices))
    policy = np.zeros(len(states), dtype=int)
    while True:
        P = np.array([transitions[k][a] for k, a in enumerate(policy)])
        system = np.eye(len(states)) - P
        system[:, 0] = 1.0  # the relative value of state 0 is 0: its column stands for the long-run cost
        solution = np.linalg.solve(system, np.array([costs[k][a] for k, a in enumerate(policy)]))
        gain, value = solution[0], np.concatenate([[0.0], solution[1:]])
        outcomes = [c + T @ value for c, T in zip(costs, transitions, strict=True)]
        better = np.array([int(np.argmin(q)) if q.min() < q[a] - 1e-9 else a for q, a in zip(outcomes, policy, strict=True)])
        if (better == policy).all():
            break
        policy = better
    assert problem.solve().cost == pytest.approx(gain, rel=1e-6)


def test_half_units_do_not_make_the_optimum_cheaper():
    """The same problem counted in half units: stock and orders may then be fractional, demand stays whole."""
    whole = single_item(HybridDualSourcingEnv())
    half = replace(
        whole,
        demand=np.insert(whole.demand, slice(1, None), 0.0),
        holding_cost=whole.holding_cost / 2,
        underage_cost=whole.underage_cost / 2,
        premium=whole.premium / 2,
    )
    assert len(half.demand) == 9
    assert half.solve().cost == pytest.approx(whole.solve().cost, rel=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"lead_time": 3}, {"expedited_fixed_cost": 1000.0}, {"regular_fixed_cost": 300.0}])
def test_a_wider_grid_does_not_change_the_optimum(kwargs):
    problem = single_item(HybridDualSourcingEnv(**kwargs))
    table = problem.solve()
    wider = Grid(2 * table.grid.low, table.grid.high + 8, table.grid.most + 4)
    assert problem._iterate(wider).cost == pytest.approx(table.cost, rel=1e-6)


def test_without_a_regular_lead_time_advantage_the_optimum_is_the_newsvendor():
    """A free expedited source without fixed cost: every period on its own, and the regular source is not needed."""
    env = HybridDualSourcingEnv(premium=0.0, **NO_FIXED_COSTS)
    newsvendor = min(np.mean([5 * max(y - d, 0) + 495 * max(d - y, 0) for d in range(5)]) for y in range(6))
    assert DualSourcingOptimum(env).cost == pytest.approx(newsvendor, rel=1e-6)


def test_a_prohibitive_premium_leaves_one_source_with_its_base_stock_cost():
    """Then the stock left covers the demand of lead_time + 1 periods."""
    env = HybridDualSourcingEnv(premium=1e5, underage_cost=95.0, **NO_FIXED_COSTS)
    totals = np.array([a + b + c for a in range(5) for b in range(5) for c in range(5)])
    base_stock = min(np.mean(5 * np.maximum(y - totals, 0) + 95 * np.maximum(totals - y, 0)) for y in range(13))
    assert DualSourcingOptimum(env).cost == pytest.approx(base_stock, rel=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 2}, r"DualSourcingOptimum: n_items = 2; it replenishes one item"),
        ({"demand": "normal"}, r"DualSourcingOptimum: demand = 'normal'; it is for demand 'uniform' or 'poisson' only"),
        ({"demand": np.ones((2, 100, 1))}, r"DualSourcingOptimum: demand = 'data'; it is for"),
        ({"holding_cost": 0.0}, r"DualSourcingOptimum: holding_cost = 0.0 must be > 0"),
        ({"underage_cost": 0.0}, r"DualSourcingOptimum: underage_cost = 0.0 must be > 0"),
        ({"lead_time": 8}, r"DualSourcingOptimum: lead_time = 8 takes [\d,]+ states, more than 500,000"),
    ],
)
def test_the_optimum_refuses_what_it_does_not_solve(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DualSourcingOptimum(HybridDualSourcingEnv(**kwargs))


# ---- the capped dual index policy ----------------------------------------------------------------------------------------


def test_the_capped_dual_index_policy_by_hand():
    env = HybridDualSourcingEnv(2, lead_time=2)
    policy = CappedDualIndex(env, Levels([4.0, 5.0], 3.0, [9.0, 12.0], [3.0, 5.0], 6.0))
    stock = np.array(
        [
            [[1.0, 3.0], [2.0, 0.0]],  # 3 and 2 short, which is due; then 3 and 7 are lacking, of which 3 and 5 are ordered
            [[3.0, 4.0], [2.0, 4.0]],  # 1 and 1 short: not due; 4 and 4 lacking, of which 3 and 4 are ordered
            [[4.0, 5.0], [5.0, 2.0]],  # nothing short; 0 and 5 lacking, below the least order of 6
            [[1.0, 9.0], [9.0, 9.0]],  # 3 short, just due; nothing lacking
        ]
    )
    regimes, points = policy.act((stock / 2.0).reshape(4, -1).astype(np.float32), np.zeros(4))
    assert regimes.tolist() == [3, 1, 0, 2]
    assert points.tolist() == [[3, 5, 3, 2], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [NO_FIXED_COSTS, {}], ids=["without fixed costs", "with fixed costs"])
def test_the_capped_dual_index_policy_is_within_one_percent_of_the_optimum(kwargs):
    env = HybridDualSourcingEnv(**kwargs)
    optimum, policy = DualSourcingOptimum(env), CappedDualIndex.best(env)
    ratio = evaluate(env, policy, 500, seed=5).mean() / evaluate(env, optimum, 500, seed=5).mean()
    assert 0.999 < ratio < 1.01
    assert policy.cost == pytest.approx(optimum.cost, rel=0.02)
    assert 0 < policy.half_width < 0.01 * policy.cost


def test_items_that_choose_by_themselves_cost_what_each_costs_alone():
    kwargs = {"mean_demand": [2.0, 1.0], "regular_fixed_cost": [5.0, 2.0]}
    env = HybridDualSourcingEnv(2, per_item=True, **kwargs)
    optimum = DualSourcingOptimum(env)
    alone = [
        HybridDualSourcingEnv(mean_demand=mean, regular_fixed_cost=cost) for mean, cost in zip(*kwargs.values(), strict=True)
    ]
    assert optimum.cost == pytest.approx(np.mean([DualSourcingOptimum(item).cost for item in alone]))
    costs = evaluate(env, optimum, 500, seed=5)
    assert costs.mean() == pytest.approx(optimum.cost, abs=4 * costs.std() / len(costs) ** 0.5 + 0.003 * optimum.cost)
    assert isinstance(best_dual_sourcing(env), DualSourcingOptimum)


def test_capped_orders_of_items_that_choose_by_themselves_are_due_by_themselves():
    env = HybridDualSourcingEnv(2, per_item=True)
    policy = CappedDualIndex(env, Levels(5.0, [2.0, 1.0], 12.0, 5.0, [0.0, 4.0]))
    stock = np.array([[[2.0, 4.0], [1.0, 5.0]], [[4.0, 5.0], [3.0, 4.0]]])  # on hand, then on order, of two states
    regimes, points = policy.act((stock / 2.0).reshape(2, -1).astype(np.float32), np.zeros(2))
    # 3 and 1 are short, and due; then 12 - 6 and 12 - 10 lack; then 1 and 0 are short: not due; 5 and 3 lack
    assert regimes.tolist() == [[3, 2], [1, 0]]
    assert points.tolist() == [[5, 0, 3, 1], [5, 0, 0, 0]]


def test_the_search_finds_levels_for_items_that_choose_by_themselves():
    env = HybridDualSourcingEnv(2, per_item=True, mean_demand=[2.0, 3.0])
    policy, optimum = CappedDualIndex.best(env), DualSourcingOptimum(env)
    assert policy.levels.least_regular.shape == (2,)
    assert 0.99 * optimum.cost < policy.cost < 1.05 * optimum.cost


@pytest.mark.slow
def test_items_without_fixed_costs_cost_what_one_item_costs():
    """Without fixed costs items do not interact; five alike cost per item what the optimum of one costs."""
    policy = CappedDualIndex.best(HybridDualSourcingEnv(5, **NO_FIXED_COSTS))
    optimum = DualSourcingOptimum(HybridDualSourcingEnv(**NO_FIXED_COSTS)).cost
    assert optimum * 0.995 < policy.cost < optimum * 1.02


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (Levels(4.0, -1.0, 9.0, 3.0, 0.0), r"least_expedited\[0\] = -1.0: must be finite and >= 0"),
        (Levels(4.0, 0.0, 9.0, np.nan, 0.0), r"cap\[0\] = nan: must be finite and >= 0"),
        (Levels(np.zeros(3), 0.0, 9.0, 3.0, 0.0), r"expedited_level must be a scalar or have shape \(2,\), got shape \(3,\)"),
    ],
)
def test_a_bad_parameter_of_the_policy_is_named_with_its_value(levels, message):
    with pytest.raises(ValueError, match=message):
        CappedDualIndex(HybridDualSourcingEnv(2), levels)


class OffTheIntegers:
    """The optimum with every quantity a little wrong."""

    def __init__(self, env):
        self.optimum = DualSourcingOptimum(env)

    def predict(self, observation, **kwargs):
        actions, state = self.optimum.predict(observation, **kwargs)
        if isinstance(actions, tuple):
            return (actions[0], actions[1] * 0.99), state
        return [(regime, point * 0.99) for regime, point in actions], state


def test_orders_rounded_to_whole_units_are_back_at_the_optimum():
    env = HybridDualSourcingEnv()
    policy = OffTheIntegers(env)
    optimal, off, rounded = (evaluate(env, p, 50, seed=5).mean() for p in (policy.optimum, policy, WholeUnits(policy)))
    assert rounded == pytest.approx(optimal, rel=1e-6)
    assert off > 1.05 * optimal


def test_a_single_observation_is_rounded_too():
    (regime, point), _ = WholeUnits(OffTheIntegers(HybridDualSourcingEnv())).predict(np.zeros(2, dtype=np.float32))
    assert (regime, point.tolist()) == (3, [4.0, 4.0])


# ---- the reference -------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_optimum_where_it_can_be_computed():
    env = gym.make("HybridDualSourcing-v0").unwrapped
    assert isinstance(reference_policy(env), DualSourcingOptimum)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_items": 3, "mean_demand": [2.0, 5.0, 1.5]},
        {"demand": np.random.default_rng(0).uniform(0, 9, (20, 50, 2)), "horizon": 50},
    ],
    ids=["several items", "data"],
)
def test_elsewhere_the_reference_is_a_capped_dual_index_policy_that_keeps_to_the_bounds(kwargs):
    env = HybridDualSourcingEnv(**kwargs)
    policy = best_dual_sourcing(env)
    assert isinstance(policy, CappedDualIndex)
    observation, _ = env.reset(seed=0)
    state = None
    for _ in range(env.horizon):
        (regime, point), state = policy.predict(observation, state=state)
        low, high = env.action_bounds[regime].T
        assert ((point >= low) & (point <= high)).all()
        observation, *_ = env.step((regime, point))
