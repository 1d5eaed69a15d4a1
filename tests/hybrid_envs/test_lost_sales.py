"""References for lost sales: the dynamic programme against a linear one, and policies tuned by simulation against it."""

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import poisson

from hybrid_envs import HybridInventoryEnv, Uniform, reference_policy
from hybrid_envs.solvers import CappedSS, LostSalesOptimum, SingleItemSS, evaluate

SMALL = {"n_items": 1, "mean_demand": 1.5, "holding_cost": 1.0, "underage_cost": 6.0, "fixed_cost": 4.0, "lost_sales": True}


def long_run_optimum(lead_time: int, most_held: int, most_ordered: int) -> float:
    """The least average cost as a linear programme over how often each state and order occurs: no value iteration."""
    demand = np.arange(30)
    law = poisson.pmf(demand, SMALL["mean_demand"])
    states = [(i, *rest) for i in range(most_held + 1) for rest in np.ndindex(*(most_ordered + 1,) * (lead_time - 1))]
    index = {state: k for k, state in enumerate(states)}
    costs, balance = [], []
    for state in states:
        left = np.maximum(state[0] - demand, 0)
        running = law @ (left * SMALL["holding_cost"] + np.maximum(demand - state[0], 0) * SMALL["underage_cost"])
        for order in range(most_ordered + 1):
            pipeline = (*state[1:], order)
            costs.append(running + SMALL["fixed_cost"] * (order > 0))
            column = np.zeros(len(states))
            for what_is_left, probability in zip(left, law, strict=True):
                column[index[(min(what_is_left + pipeline[0], most_held), *pipeline[1:])]] += probability
            column[index[state]] -= 1
            balance.append(column)
    rows = np.vstack([np.array(balance).T, np.ones(len(costs))])
    return float(linprog(costs, A_eq=rows, b_eq=np.append(np.zeros(len(states)), 1.0)).fun)


@pytest.mark.parametrize(("lead_time", "most_held", "most_ordered"), [(1, 16, 12), (2, 13, 9)])
def test_the_dynamic_programme_agrees_with_a_linear_one(lead_time, most_held, most_ordered):
    optimum = LostSalesOptimum(HybridInventoryEnv(lead_time=lead_time, **SMALL))
    assert optimum.cost == pytest.approx(long_run_optimum(lead_time, most_held, most_ordered), rel=1e-5)


@pytest.mark.parametrize("lead_time", [1, 3])
@pytest.mark.parametrize(
    "given",
    [{}, {"minor_fixed_cost": 2.0}, {"zero_share": 0.3}, {"margin": 1.0}],
    ids=["plain", "minor", "interrupted", "profit"],
)
def test_the_optimum_costs_what_it_says_and_no_tuned_policy_costs_less(lead_time, given):
    env = HybridInventoryEnv(lead_time=lead_time, horizon=300, **SMALL, **given)
    optimum = LostSalesOptimum(env)
    costs = evaluate(env, optimum, 500, seed=1)
    assert abs(costs.mean() - optimum.cost) < 4 * costs.std() / np.sqrt(500)
    tuned = evaluate(env, CappedSS.best(env), 500, seed=1)
    saved = tuned - costs  # on common scenarios
    assert saved.mean() >= -4 * saved.std() / np.sqrt(500)
    assert tuned.mean() < 1.03 * costs.mean()


def test_profit_is_what_all_demand_would_earn_less_costs_with_lost_margins():
    margin = 4.0
    profit = LostSalesOptimum(HybridInventoryEnv(**SMALL | {"underage_cost": 2.0, "margin": margin}))
    cost = LostSalesOptimum(HybridInventoryEnv(**SMALL | {"underage_cost": 6.0}))
    assert -profit.cost == pytest.approx(margin * SMALL["mean_demand"] - cost.cost, rel=1e-9)
    np.testing.assert_array_equal(profit.order, cost.order)


def test_where_nothing_is_lost_it_is_the_optimum_with_backlog():
    arguments = SMALL | {"underage_cost": 1e5, "lead_time": 1}
    alike = HybridInventoryEnv(**arguments | {"lost_sales": False})
    assert LostSalesOptimum(HybridInventoryEnv(**arguments)).cost == pytest.approx(SingleItemSS.best(alike).cost, rel=0.02)


def test_an_order_is_placed_at_s_up_to_the_level_and_no_larger_than_the_cap():
    env = HybridInventoryEnv(2, lead_time=1, mean_demand=[1.0, 2.0], lost_sales=True)
    policy = CappedSS(env, [3.0, 4.0], [20.0, 6.0], [10.0, np.inf])
    position = np.array([[3.0, 9.0], [4.0, 5.0], [15.0, 4.0]])
    regimes, quantities = policy.orders(position, np.zeros(3))
    assert regimes.tolist() == [1, 0, 1]
    assert quantities.tolist() == [[10.0, 0.0], [0.0, 0.0], [5.0, 2.0]]


def test_policies_are_tuned_on_the_windows_of_the_training_part(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "sales.csv"
    np.savetxt(path, rng.poisson([4, 9], (120, 2)), "%d", ",", header="a,b", comments="")
    arguments = {"demand": path, "horizon": 20, "lost_sales": True, "fixed_cost": 30.0, "history": 2}
    train, test = (HybridInventoryEnv(split=part, **arguments) for part in ("train", "test"))
    policy = CappedSS.best(train)
    never = CappedSS(train, -1.0, 0.0)
    assert evaluate(test, policy, 50, seed=0).mean() < 0.6 * evaluate(test, never, 50, seed=0).mean()


def test_the_reference_of_one_item_is_the_optimum_and_of_many_there_is_none():
    assert type(reference_policy(HybridInventoryEnv(**SMALL))) is LostSalesOptimum
    assert reference_policy(HybridInventoryEnv(**SMALL | {"n_items": 2})) is None
    assert reference_policy(HybridInventoryEnv(**SMALL | {"mean_demand": 500.0})) is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 2}, r"it is for n_items = 1, .* got n_items = 2, lost_sales = True"),
        ({"lost_sales": False}, r"got n_items = 1, lost_sales = False"),
        ({"demand": "normal"}, r"got .* demand = 'normal'"),
        ({"holding_cost": 0.0}, r"LostSalesOptimum: holding_cost = 0.0 must be > 0"),
        ({"underage_cost": 0.0}, r"LostSalesOptimum: underage_cost \+ margin = 0.0 must be > 0"),
        ({"mean_demand": 200.0}, r"LostSalesOptimum: .* the instance is too large"),
        ({"underage_cost": Uniform(6.3, 11.7)}, r"LostSalesOptimum: underage_cost differs from scenario to scenario"),
    ],
)
def test_what_the_dynamic_programme_does_not_solve_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LostSalesOptimum(HybridInventoryEnv(**SMALL | kwargs))


def test_a_policy_of_one_instance_and_a_cap_of_nothing_are_refused():
    with pytest.raises(ValueError, match="CappedSS: underage_cost differs from scenario to scenario"):
        CappedSS.best(HybridInventoryEnv(**SMALL | {"underage_cost": Uniform(6.3, 11.7)}))
    with pytest.raises(ValueError, match=r"cap must be > 0, got 0\.0"):
        CappedSS(HybridInventoryEnv(**SMALL), 1.0, 2.0, 0.0)
