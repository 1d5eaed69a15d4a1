"""Every expected number was worked out by hand from the problem's statement, or is computed here in another way."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import poisson

from hybrid_envs import BoxEnv, HybridAction, HybridProcurementEnv, PiecewiseEnv
from hybrid_envs.evaluation import reference_policy
from hybrid_envs.inventory.single_item import single_items
from hybrid_envs.procurement.env import ProcurementProblem
from hybrid_envs.procurement.policies import ItemOrders, TotalOrders, cells_of, shared_costs, solve

TWO_ITEMS = {
    "n_items": 2,
    "mean_demand": [10.0, 20.0],
    "holding_cost": [1.0, 2.0],
    "underage_cost": [9.0, 7.0],
    "min_order": 10.0,
    "unit_prices": (4.0, 3.0),
    "discount_quantities": [30.0],
    "truck_capacity": 20.0,
    "truck_cost": 50.0,
    "max_trucks": 3,
    "lead_time": 1,
}
SMALL = {
    "n_items": 1,
    "mean_demand": 2.0,
    "holding_cost": 1.0,
    "underage_cost": 6.0,
    "min_order": 3.0,
    "unit_prices": (3.0, 2.0),
    "discount_quantities": [9.0],
    "truck_capacity": 5.0,
    "truck_cost": 4.0,
    "lead_time": 1,
}


def costs_and_stock(env, regime, point):
    """Of one period from empty shelves, with demand 3 for every item."""
    state = env.initial(1, torch.Generator())
    demand = torch.full((1, env.n_items), 3.0)
    result = env.step_torch(state, HybridAction(torch.tensor([regime]), torch.tensor([point])), demand)
    return -result.reward.item(), result.state.stock[0, 0].tolist()


# ---- the problem ---------------------------------------------------------------------------------------------------------


def test_the_regimes_of_the_defaults_are_those_of_the_page():
    for p in (1, 5, 60):
        totals = HybridProcurementEnv(p).action_bounds[:, 0] / p
        expected = [[0, 10], [10, 24], [24, 30], [30, 48], [48, math.inf]]
        np.testing.assert_allclose(totals, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("regime", "total", "supply", "delivered"),
    [
        (0, 9.0, 0.0, [0.0, 0.0]),  # below the minimum: refused
        (1, 10.0, 4 * 10 + 50, [2.5, 7.5]),
        (1, 20.0, 4 * 20 + 50, [5.0, 15.0]),  # one truck, full
        (2, 28.0, 4 * 28 + 100, [7.0, 21.0]),
        (3, 30.0, 3 * 30 + 100, [7.5, 22.5]),  # the discount is on all units
        (3, 40.0, 3 * 40 + 100, [10.0, 30.0]),
        (4, 100.0, 3 * 100 + 150, [25.0, 75.0]),  # no more than max_trucks are charged
    ],
)
def test_an_order_costs_its_price_and_its_trucks_by_hand(regime, total, supply, delivered):
    backlog = 9 * 3 + 7 * 3
    cost, stock = costs_and_stock(HybridProcurementEnv(**TWO_ITEMS), regime, [total, 0.25, 0.75])
    assert cost == supply + backlog
    assert stock == [delivered[0] - 3, delivered[1] - 3]


def test_the_plain_problem_asks_the_same_for_the_same_order():
    problem = ProcurementProblem(**TWO_ITEMS)
    plain = PiecewiseEnv(problem, None)
    plain.n_items = 2
    for b in ([4.0, 5.0], [5.0, 5.0], [5.0, 15.0], [8.0, 20.0], [0.0, 30.0], [40.0, 0.5]):
        action = HybridProcurementEnv(**TWO_ITEMS).to_hybrid(torch.tensor([b]))
        regime, point = int(action.regime), action.point[0].tolist()
        np.testing.assert_allclose(
            costs_and_stock(HybridProcurementEnv(**TWO_ITEMS), regime, point)[0], costs_and_stock(plain, 0, b)[0], rtol=1e-6
        )


def test_without_a_minimum_only_an_order_of_nothing_is_no_order():
    env = HybridProcurementEnv(**TWO_ITEMS | {"min_order": 0.0})
    assert env.action_bounds[0, 0].tolist() == [0.0, 0.0]
    assert costs_and_stock(env, 0, [0.0, 0.5, 0.5]) == (48.0, [-3.0, -3.0])
    assert costs_and_stock(env, 1, [1.0, 0.5, 0.5])[0] == 48 + 4 * 1 + 50


def test_a_discount_that_starts_with_the_last_unit_of_a_truck_makes_a_regime_of_that_quantity():
    env = HybridProcurementEnv(**TWO_ITEMS | {"discount_quantities": [20.0]})
    assert env.action_bounds[2, 0].tolist() == [20.0, 20.0]
    assert costs_and_stock(env, 2, [20.0, 0.5, 0.5])[0] == 48 + 3 * 20 + 50


def test_jumps_below_the_minimum_order_are_none():
    env = HybridProcurementEnv(**TWO_ITEMS | {"min_order": 35.0})
    np.testing.assert_allclose(env.action_bounds[:, 0], [[0, 35], [35, 40], [40, math.inf]], rtol=1e-6)
    assert costs_and_stock(env, 1, [36.0, 0.5, 0.5])[0] == 48 + 3 * 36 + 100


def test_several_discounts_add_up():
    env = HybridProcurementEnv(1, unit_prices=(5.0, 4.0, 2.5), discount_quantities=(12.0, 20.0), underage_cost=0.0)
    points = [float(env.action_bounds[j, 0, 0]) for j in range(1, env.n_regimes)]
    prices = [(costs_and_stock(env, j, [q])[0] - 10) / q for j, q in zip((1, 2, 3), points, strict=False)]
    np.testing.assert_allclose(prices, [5.0, 4.0, 2.5], rtol=1e-6)


def test_one_price_for_all_quantities_is_allowed():
    env = HybridProcurementEnv(1, unit_prices=4.0)
    np.testing.assert_allclose(env.action_bounds[:, 0], [[0, 10], [10, 24], [24, 48], [48, math.inf]], rtol=1e-6)


def test_the_figure_of_merit_is_the_mean_cost_per_item_after_sixteen_periods():
    costs = torch.full((100, 1), 1000.0)
    costs[16:] = 20.0
    assert HybridProcurementEnv(5).figure_of_merit(costs).tolist() == [4.0]


def test_many_items_are_drawn():
    env = gym.make("HybridProcurement-v0", n_items=12, render_mode="rgb_array")
    env.reset(seed=0)
    env.step((3, np.append(np.float32(400.0), np.full(12, 0.5, np.float32))))
    assert env.render().std() > 0


def test_the_plain_problem_is_a_gymnasium_environment():
    env = BoxEnv(ProcurementProblem(2))
    observation, _ = env.reset(seed=0)
    assert env.action_space.shape == (2,)
    assert observation.shape == env.step(np.array([30.0, 40.0], dtype=np.float32))[0].shape == (10,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 0}, r"n_items must be an integer >= 1, got 0"),
        ({"min_order": -1.0}, r"min_order = -1.0: must be finite and >= 0"),
        ({"truck_capacity": 0.0}, r"truck_capacity = 0.0: must be finite and > 0"),
        ({"truck_cost": math.nan}, r"truck_cost = nan: must be finite"),
        ({"max_trucks": 0}, r"max_trucks must be an integer >= 1, got 0"),
        ({"max_trucks": 99}, r"thresholds make 101 = 101 regimes, more than max_regimes = 64"),
        ({"unit_prices": (3.0, 3.0)}, r"unit_prices must decrease, got \[3.0, 3.0\]"),
        ({"unit_prices": (3.0, -1.0)}, r"unit_prices\[1\] = -1.0: must be finite and >= 0"),
        ({"unit_prices": "cheap"}, r"unit_prices must be numeric"),
        (
            {"discount_quantities": [30.0, 40.0]},
            r"discount_quantities must be a scalar or have shape \(1,\), got shape \(2,\)",
        ),
        (
            {"unit_prices": (3.0, 2.0, 1.0), "discount_quantities": [40.0, 30.0]},
            r"discount_quantities must increase, got \[40.0, 30.0\]",
        ),
        ({"discount_quantities": [0.0]}, r"discount_quantities\[0\] = 0.0: must be finite and > 0"),
        ({"holding_cost": -1.0}, r"holding_cost\[0\] = -1.0: must be finite and >= 0"),
        ({"per_item": 1}, r"per_item must be True or False, got 1"),
        ({"render_mode": "human"}, r"render_mode must be None or one of"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridProcurementEnv(**kwargs)


# ---- a supplier for each item ---------------------------------------------------------------------------------------------

OF_EACH = {"mean_demand": [8.0, 12.0, 8.0], "holding_cost": [1.0, 2.0, 1.0], "underage_cost": [9.0, 7.0, 9.0]}


def item_alone(i, **kwargs):
    return HybridProcurementEnv(1, **{name: values[i] for name, values in OF_EACH.items()}, **kwargs)


def test_items_with_suppliers_of_their_own_are_problems_of_their_own():
    env = HybridProcurementEnv(3, per_item=True, **OF_EACH)
    alone = [item_alone(i) for i in range(3)]
    assert env.factors.sizes == (5, 5, 5)
    np.testing.assert_array_equal(env.action_bounds, np.tile(alone[0].action_bounds, (1, 3, 1)))
    regimes = torch.cartesian_prod(*[torch.arange(5)] * 3)
    low, high = torch.tensor(env.action_bounds[:, 0]).unbind(-1)
    share = torch.rand(regimes.shape, generator=torch.Generator().manual_seed(0))
    orders = torch.lerp(low[regimes], high.clamp(max=90.0)[regimes], share)
    demand = torch.poisson(torch.full(orders.shape, 10.0), generator=torch.Generator().manual_seed(1))
    states = [problem.initial(len(orders), torch.Generator()) for problem in (env, *alone)]
    for _ in range(4):  # the first orders arrive
        together = env.step_torch(states[0], HybridAction(regimes, orders), demand)
        rewards = torch.zeros(len(orders))
        for i, problem in enumerate(alone):
            own = HybridAction(regimes[:, i], orders[:, i : i + 1])
            result = problem.step_torch(states[i + 1], own, demand[:, i : i + 1])
            states[i + 1] = result.state
            rewards += result.reward
            torch.testing.assert_close(together.state.stock[..., i], result.state.stock[..., 0], rtol=0, atol=0)
        torch.testing.assert_close(together.reward, rewards)
        states[0] = together.state


def test_one_item_is_the_same_problem_whether_or_not_its_supplier_is_its_own():
    shared, own = HybridProcurementEnv(1), HybridProcurementEnv(1, per_item=True)
    np.testing.assert_array_equal(own.action_bounds, shared.action_bounds)
    np.testing.assert_array_equal(own.action_scale, shared.action_scale)
    regime = torch.arange(5).repeat(20)
    order = 60 * torch.rand(100, 1, generator=torch.Generator().manual_seed(0))  # each is put into its regime
    (state, demand), (same, _) = (env.sample_scenarios(100, torch.Generator().manual_seed(1)) for env in (shared, own))
    for noise in demand[:4]:
        result = shared.step_torch(state, HybridAction(regime, order), noise)
        again = own.step_torch(same, HybridAction(regime[:, None], order), noise)
        assert torch.equal(result.reward, again.reward)
        assert torch.equal(result.observation, again.observation)
        state, same = result.state, again.state
    assert reference_policy(own).cost == reference_policy(shared).cost


def test_the_optimum_of_items_with_suppliers_of_their_own_is_that_of_each_alone():
    from hybrid_envs.solvers import evaluate

    env = HybridProcurementEnv(3, per_item=True, **OF_EACH, horizon=400)
    policy = reference_policy(env)
    optima = [TotalOrders.best(item_alone(i)) for i in range(3)]
    assert policy.cost == pytest.approx(np.mean([optimum.cost for optimum in optima]), rel=1e-9)
    assert policy.lower_bound == pytest.approx(np.mean([optimum.lower_bound for optimum in optima]), rel=1e-9)
    assert 0 <= policy.cost - policy.lower_bound < 1e-6 * policy.cost
    costs = evaluate(env, policy, 400, seed=3)
    assert costs.mean() == pytest.approx(policy.cost, abs=3 * costs.std() / 20)


def test_each_item_with_a_supplier_of_its_own_is_ordered_as_if_alone():
    env = HybridProcurementEnv(3, per_item=True, **OF_EACH)
    state = env.initial(200, torch.Generator())
    stock = torch.randint(-15, 25, state.stock.shape, generator=torch.Generator().manual_seed(0)).to(env.dtype)
    regimes, orders = reference_policy(env).act(env.observation(state._replace(stock=stock)).numpy(), np.zeros(200))
    for i in range(3):
        alone = item_alone(i)
        own = alone.initial(200, torch.Generator())._replace(stock=stock[..., i : i + 1])
        regime, order = TotalOrders.best(alone).act(alone.observation(own).numpy(), np.zeros(200))
        np.testing.assert_array_equal(regimes[:, i], regime)
        np.testing.assert_array_equal(orders[:, i : i + 1], order)
        assert len(np.unique(order)) > 5


def test_many_items_with_suppliers_of_their_own_are_drawn():
    env = gym.make("HybridProcurement-v0", n_items=3, per_item=True, render_mode="rgb_array")
    env.reset(seed=0)
    env.step((np.array([3, 0, 1]), np.array([40.0, 0.0, 12.0], np.float32)))
    assert env.render().std() > 0


@pytest.mark.parametrize(
    ("solve_it", "per_item", "message"),
    [
        (TotalOrders.best, True, "TotalOrders: per_item = True"),
        (ItemOrders, False, "ItemOrders: per_item = False"),
    ],
)
def test_a_policy_for_the_other_kind_of_order_says_so(solve_it, per_item, message):
    with pytest.raises(ValueError, match=message):
        solve_it(HybridProcurementEnv(2, per_item=per_item))


def test_units_that_are_broken_have_no_optimum_by_item_either():
    with pytest.raises(ValueError, match=r"ItemOrders: the cost jumps at an order of 2.5; it must be a whole number"):
        ItemOrders(HybridProcurementEnv(2, per_item=True, min_order=2.5))


# ---- dynamic programming -------------------------------------------------------------------------------------------------


def order_cost(q):
    """Of SMALL, by its statement."""
    trucks = 1 + (q > 5) + (q > 10)
    return 0.0 if q == 0 else math.inf if q < 3 else (2 if q >= 9 else 3) * q + 4 * trucks


def stock_cost(y):
    """Expected holding and underage cost of SMALL a lead time ahead, by summing over demand."""
    demand = np.arange(60)
    return poisson.pmf(demand, 4.0) @ np.maximum(y - demand, 6.0 * (demand - y))


def test_the_optimum_of_one_item_is_that_of_a_linear_programme():
    """max g subject to g + V(x) <= c(x, q) + E V(x + q - D) for every position x and order q."""
    positions, sizes = np.arange(-14, 25), range(0, 22)
    rows, right = [], []
    for x in positions:
        for q in sizes:
            if math.isinf(order_cost(q)) or x + q > positions[-1]:
                continue
            row = np.zeros(1 + len(positions))
            row[0] = 1.0
            row[1 + x - positions[0]] += 1.0
            for d in range(30):
                row[1 + max(x + q - d, positions[0]) - positions[0]] -= poisson.pmf(d, 2.0)
            rows.append(row)
            right.append(order_cost(q) + stock_cost(x + q))
    objective = -np.eye(1, 1 + len(positions))[0]
    found = linprog(objective, A_ub=np.array(rows), b_ub=right, bounds=(None, None))
    assert found.status == 0
    solution = solve(HybridProcurementEnv(**SMALL))
    assert -found.fun == pytest.approx(solution.upper, rel=1e-6)
    assert solution.lower == pytest.approx(solution.upper, rel=1e-6)


def test_the_stated_cost_is_that_of_the_policy_by_its_stationary_distribution():
    policy = TotalOrders.best(HybridProcurementEnv(**SMALL))
    n, least = len(policy.positions), int(policy.positions[0])
    chain, costs = np.zeros((n, n)), np.zeros(n)
    for i, q in enumerate(policy.orders.astype(int)):
        costs[i] = order_cost(q) + stock_cost(least + i + q)
        for d in range(40):
            chain[i, max(i + q - d, 0)] += poisson.pmf(d, 2.0)
    share = np.linalg.lstsq(np.vstack([chain.T - np.eye(n), np.ones(n)]), np.append(np.zeros(n), 1.0), rcond=None)[0]
    assert share @ costs == pytest.approx(policy.cost, rel=1e-6)
    assert share[:3].sum() < 1e-9  # the end of the grid is never met


def test_in_simulation_the_optimum_costs_what_it_states():
    from hybrid_envs.solvers import evaluate

    env = HybridProcurementEnv(**SMALL, horizon=400)
    policy = reference_policy(env)
    costs = evaluate(env, policy, 400, seed=3)
    assert costs.mean() == pytest.approx(policy.cost, abs=3 * costs.std() / 20)


def test_every_order_of_the_optimum_lies_in_its_regime():
    env = HybridProcurementEnv(1)
    policy = TotalOrders.best(env)
    low, high = env.action_bounds[policy.regimes, 0].T
    ordering = policy.orders > 0
    assert ((low <= policy.orders) & (policy.orders <= high))[ordering].all()
    assert (policy.regimes[~ordering] == 0).all()
    assert {1, 3} <= set(policy.regimes)  # one truck, or two at a discount


def test_no_policy_of_three_items_beats_the_bound_and_the_reference_is_near_it():
    policy = TotalOrders.best(HybridProcurementEnv(3))
    assert policy.lower_bound < policy.cost < 1.05 * policy.lower_bound


def test_costs_shared_at_will_are_the_least_over_all_ways_to_share():
    problem = ProcurementProblem(2, mean_demand=[1.0, 2.0], holding_cost=[1.0, 2.0], underage_cost=[5.0, 9.0])
    costs, start, _ = shared_costs(problem, np.array([0, 20]))
    assert start.sum() == 0
    alone = [item.period_cost(item.demand_over(3), np.arange(-20, 41)) for item in single_items(problem.warehouse)]
    for total in (0, 7, 20):
        ways = [alone[0][a + 20] + alone[1][total - a + 20] for a in range(-20, 21)]
        assert costs[total] == pytest.approx(min(ways))


def test_an_order_is_shared_as_if_unit_by_unit_to_where_it_is_worth_most():
    env = HybridProcurementEnv(3)
    policy = TotalOrders(env, np.arange(-40, 300), np.zeros(340), cover=2)
    position, total = np.array([5.0, 30.0, 18.0]), 41
    costs = [
        item.period_cost(item.demand_over(3), np.arange(200)) + item.period_cost(item.demand_over(4), np.arange(200))
        for item in single_items(env.problem.warehouse)
    ]
    levels = position.astype(int)
    for _ in range(total):
        worth = [cost[level] - cost[level + 1] for cost, level in zip(costs, levels, strict=True)]
        levels[int(np.argmax(worth))] += 1
    shares = policy.shares(position[None], np.array([total]))[0]
    np.testing.assert_allclose(shares * total, levels - position)


def test_regimes_without_a_whole_quantity_are_passed_over():
    env = HybridProcurementEnv(**SMALL | {"discount_quantities": [6.0]})
    assert [(cell.regime, cell.low, cell.high) for cell in cells_of(env.problem, env.action_bounds)] == [
        (1, 3, 5),
        (3, 6, 10),
        (4, 11, None),
    ]


def test_problems_that_it_does_not_solve_are_refused_by_name():
    for kwargs, message in (
        ({"demand": "normal"}, r"TotalOrders: demand = 'normal'; it must be 'poisson'"),
        ({"min_order": 2.5}, r"TotalOrders: the cost jumps at an order of 2.5; it must be a whole number"),
        ({"holding_cost": 0.0}, r"TotalOrders: holding_cost\[0\] = 0.0; it must be > 0"),
        ({"underage_cost": 0.0}, r"TotalOrders: underage_cost\[0\] = 0.0; it must be > 0"),
    ):
        env = HybridProcurementEnv(1, **kwargs)
        assert reference_policy(env) is None
        with pytest.raises(ValueError, match=message):
            solve(env)
    with pytest.raises(ValueError, match=r"orders\[1\] = 2.0 is refused: it is below 10"):
        TotalOrders(HybridProcurementEnv(1), np.arange(3), np.array([0.0, 2.0, 0.0]))


def test_the_grid_is_widened_to_where_waiting_ends():
    """With underage all but free, orders are put off far beyond the first grid."""
    solution = solve(HybridProcurementEnv(**SMALL | {"underage_cost": 0.02}))
    assert solution.positions[solution.orders == 0].min() < 6 - (10 * 2 + 2 * 11)
    assert solution.upper == pytest.approx(solution.lower, rel=1e-6)
