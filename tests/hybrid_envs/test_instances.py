"""Instances that differ from scenario to scenario: each scenario is the problem of its own instance."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from scipy.stats import chisquare

from hybrid_envs import (
    HybridAction,
    HybridDualSourcingEnv,
    HybridInventoryEnv,
    HybridProcurementEnv,
    Uniform,
    reference_policy,
)
from hybrid_envs.solvers import (
    CappedDualIndex,
    InstanceSS,
    PeriodicReview,
    SingleItemSS,
    TotalOrders,
    best_classical,
    best_dual_sourcing,
    evaluate,
    lower_bound,
)

RANGE = {"underage_cost": Uniform(6.3, 11.7), "holding_cost": Uniform(0.7, 1.3), "mean_demand": Uniform(6.0, 14.0)}
TABLE = {"item": ["nails", "glue"], "underage_cost": [7.0, 11.0], "mean_demand": [4.0, 9.0]}


def drawn(env, batch=5, seed=0):
    return env.sample_scenarios(batch, torch.Generator().manual_seed(seed))


def numbers(env, state, row, names):
    return {name: env.parameter(name, state)[row].tolist() for name in names}


# ---- each scenario has its own ---------------------------------------------------------------------------------------


def test_every_item_of_every_scenario_has_numbers_of_its_own_within_the_bounds():
    env = HybridInventoryEnv(3, **RANGE)
    state, _ = drawn(env, 400)
    for name, bounds in RANGE.items():
        values = env.parameter(name, state)
        assert values.shape == (400, 3) and len(values.unique()) > 1100
        assert bounds.low <= values.min() < bounds.low + 0.05 * (bounds.high - bounds.low)
        assert bounds.high >= values.max() > bounds.high - 0.05 * (bounds.high - bounds.low)


def test_the_instance_stays_for_the_whole_episode_and_the_next_has_another():
    env = HybridInventoryEnv(1, horizon=3, **RANGE)
    seen = [env.reset(seed=0)[0]] + [env.step((1, np.ones(1)))[0] for _ in range(3)]
    assert len(np.unique([observation[2:] for observation in seen], axis=0)) == 1
    assert (env.reset()[0][2:] != seen[0][2:]).all()


def test_a_scenario_that_is_reset_in_the_vector_has_the_demand_of_its_new_instance():
    env = gym.make_vec("HybridInventory-v0", num_envs=64, n_items=1, horizon=50, mean_demand=Uniform(1.0, 100.0))
    env.reset(seed=0)
    nothing = (np.zeros(64, dtype=np.int64), np.zeros((64, 1), dtype=np.float32))
    for _ in range(50):
        observation, *_ = env.step(nothing)
    mean = env.noise.mean(dim=0)[:, 0].numpy()
    assert np.corrcoef(mean, observation[:, -1])[0, 1] > 0.99  # 50 periods: about 1.4 about a mean of 50


@pytest.mark.parametrize("lost_sales", [False, True])
@pytest.mark.parametrize("minor_fixed_cost", [None, Uniform(np.array([5.0, 0.0]), 20.0)], ids=["joint", "minor"])
def test_a_scenario_is_the_problem_of_its_instance(lost_sales, minor_fixed_cost):
    varying = RANGE | {"fixed_cost": Uniform(50.0, 200.0)}
    if minor_fixed_cost is not None:
        varying["minor_fixed_cost"] = minor_fixed_cost
    env = HybridInventoryEnv(2, lost_sales=lost_sales, **varying)
    state, noise = drawn(env)
    state, noise = type(state)(*(f.double() if f.is_floating_point() else f for f in state)), noise.double()
    env.to(dtype=torch.float64)
    for row in range(5):
        own = numbers(env, state, row, varying) | {"fixed_cost": env.parameter("fixed_cost", state)[row].item()}
        alone = HybridInventoryEnv(2, lost_sales=lost_sales, **own).to(dtype=torch.float64)
        generator = torch.Generator().manual_seed(row)
        one, other = type(state)(*(field[row : row + 1] for field in state)), alone.initial(1, generator)
        for shock in noise[:12, row : row + 1]:
            action = HybridAction(
                env.factors.draw(1, generator), 30 * torch.rand(1, 2, generator=generator, dtype=torch.float64)
            )
            mine, expected = env.step_torch(one, action, shock), alone.step_torch(other, action, shock)
            one, other = mine.state, expected.state
            torch.testing.assert_close(mine.reward, expected.reward, rtol=1e-12, atol=1e-9)
            seen = mine.observation[:, : expected.observation.shape[1]]
            torch.testing.assert_close(seen, expected.observation, rtol=1e-12, atol=1e-9)
            extra = [own["fixed_cost"], *own.get("minor_fixed_cost", [])]
            assert mine.observation[0, expected.observation.shape[1] :].tolist() == extra


def test_a_scenario_of_dual_sourcing_is_the_problem_of_its_instance_and_shows_it():
    varying = {"holding_cost": Uniform(1.0, 5.0), "premium": Uniform(5.0, 20.0), "mean_demand": Uniform(2.0, 9.0)}
    env = HybridDualSourcingEnv(2, demand="poisson", **varying).to(dtype=torch.float64)
    state, noise = drawn(env)
    action = HybridAction(torch.full((5,), 3), torch.full((5, 4), 2.5, dtype=torch.float64))
    result = env.step_torch(state, action, noise[0])
    for row in range(5):
        own = numbers(env, state, row, varying)
        alone = HybridDualSourcingEnv(2, demand="poisson", **own).to(dtype=torch.float64)
        expected = alone.step_torch(
            alone.initial(1, torch.Generator()), HybridAction(*(a[:1] for a in action)), noise[0, row : row + 1]
        )
        torch.testing.assert_close(result.reward[row : row + 1], expected.reward)
        torch.testing.assert_close(result.observation[row : row + 1, :4], expected.observation)
        assert result.observation[row, 4:].tolist() == own["mean_demand"] + own["holding_cost"] + own["premium"]


def test_procurement_hands_instances_to_its_warehouse():
    env = HybridProcurementEnv(1, **RANGE)
    state, noise = drawn(env, 300)
    mean = env.problem.warehouse.parameter("mean_demand", state)
    assert env.observation(state)[:, 4].tolist() == mean[:, 0].tolist()
    assert np.corrcoef(noise.mean(dim=0)[:, 0], mean[:, 0])[0, 1] > 0.95


@pytest.mark.parametrize("given", [{}, {"demand_std": 2.0}, {"demand_std": Uniform(1.0, 3.0)}], ids=["root", "given", "drawn"])
def test_normal_demand_has_the_deviation_of_its_instance(given):
    env = HybridInventoryEnv(1, demand="normal", mean_demand=Uniform(40.0, 90.0), horizon=2000, **given)
    state, noise = drawn(env, 20)
    mean = env.parameter("mean_demand", state)
    std = env.parameter("demand_std", state).expand(20, 1) if given else mean.sqrt()
    np.testing.assert_allclose(noise.mean(dim=0), mean, rtol=0.02)
    np.testing.assert_allclose(noise.std(dim=0), std, rtol=0.08)


def test_poisson_demand_has_the_law_of_its_instance():
    env = HybridInventoryEnv(1, mean_demand=Uniform(2.0, 5.0), horizon=4000)
    state, noise = drawn(env, 3)
    for row in range(3):
        mean = env.parameter("mean_demand", state)[row].item()
        law = np.cumprod(np.r_[np.exp(-mean), mean / np.arange(1, 30)])
        counts = np.bincount(noise[:, row, 0].long().numpy(), minlength=30)
        expected = np.r_[law[:8], 1 - law[:8].sum()] * 4000
        assert chisquare(np.r_[counts[:8], counts[8:].sum()], expected).pvalue > 1e-3


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_each_item_draws_a_product_and_products_are_drawn_alike():
    env = HybridInventoryEnv(2, instances=TABLE)
    state, _ = drawn(env, 1000)
    pairs = torch.stack([env.parameter(name, state) for name in ("underage_cost", "mean_demand")], dim=2).flatten(0, 1)
    assert sorted(map(tuple, pairs.unique(dim=0).tolist())) == [(7.0, 4.0), (11.0, 9.0)]
    assert abs((pairs[:, 1] == 4.0).double().mean().item() - 0.5) < 0.05


def test_a_file_of_products_is_the_same_as_its_columns(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text("item,underage_cost,mean_demand\nnails,7,4\nglue, 11,9\n\n", encoding="utf-8-sig")
    states = [drawn(HybridInventoryEnv(3, instances=table))[0] for table in (path, str(path), TABLE)]
    assert torch.equal(states[0].instance, states[1].instance) and torch.equal(states[0].instance, states[2].instance)


def test_the_first_period_begins_with_stock_in_periods_of_each_items_demand():
    env = HybridInventoryEnv(
        2, mean_demand=Uniform([5.0, 50.0], [10.0, 90.0]), starting_stock={"uniform": [1.0, 3.0]}, lead_time=3
    )
    state, _ = drawn(env, 4000)
    periods = state.stock[:, 0] / env.parameter("mean_demand", state)
    assert (state.stock[:, 1:] == 0).all() and (periods >= 1).all() and (periods <= 3).all()
    np.testing.assert_allclose(periods.mean(dim=0), 2.0, atol=0.05)
    np.testing.assert_allclose(np.cov(periods.T.numpy()), np.eye(2) / 3, atol=0.03)
    state, _ = drawn(HybridInventoryEnv(2, mean_demand=[5.0, 8.0], starting_stock=[0.0, 2.5]))
    assert state.stock[:, 0].tolist() == [[0.0, 20.0]] * 5
    empty, demand = drawn(HybridInventoryEnv(2))
    assert (empty.stock == 0).all()  # and demand is what it was before there was the argument
    torch.testing.assert_close(demand, HybridInventoryEnv(2).sample_noise(5, torch.Generator().manual_seed(0)), rtol=0, atol=0)


def test_yaml_can_say_it_too():
    said = yaml.safe_load("{underage_cost: {uniform: [6.3, 11.7]}, mean_demand: {uniform: [[6, 7], 14]}, n_items: 2}")
    plain, typed = (
        HybridInventoryEnv(**said),
        HybridInventoryEnv(2, underage_cost=Uniform(6.3, 11.7), mean_demand=Uniform(np.array([6.0, 7.0]), 14.0)),
    )
    assert torch.equal(drawn(plain)[0].instance, drawn(typed)[0].instance)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"underage_cost": Uniform(9.0, 7.0)}, r"underage_cost: low = 9.0 must not exceed high = 7.0"),
        ({"underage_cost": Uniform(-1.0, 7.0)}, r"underage_cost: low = -1.0: must be finite and >= 0"),
        ({"underage_cost": Uniform(1.0, np.nan)}, r"underage_cost: high = nan: must be finite and >= 0"),
        ({"mean_demand": Uniform(0.0, 7.0)}, r"mean_demand: low = 0.0: must be finite and > 0"),
        ({"mean_demand": Uniform("few", 7.0)}, r"mean_demand: low must be numeric, got 'few'"),
        (
            {"n_items": 2, "holding_cost": Uniform([1.0, 2.0, 3.0], 4.0)},
            r"holding_cost must be .* shape \(2,\), got shape \(3,\)",
        ),
        ({"holding_cost": Uniform([1.0, 2.0], [3.0, 4.0, 5.0])}, r"holding_cost: low has shape \(2,\), high has \(3,\)"),
        ({"holding_cost": {"uniform": [1.0]}}, r"holding_cost must be numbers or \{'uniform': \[low, high\]\}, got"),
        ({"holding_cost": {"normal": [1.0, 2.0]}}, r"holding_cost must be numbers or .* got \{'normal'"),
        ({"fixed_cost": Uniform([1.0, 2.0], 4.0)}, r"fixed_cost must be a scalar"),
        ({"instances": {"price": [1.0]}}, r"instances: unknown column 'price'; columns are mean_demand, holding_cost"),
        ({"instances": {"underage_cost": []}}, r"instances\['underage_cost'\] must be a column .* got shape \(0,\)"),
        ({"instances": {"underage_cost": [1.0, -2.0]}}, r"instances\['underage_cost'\]\[1\] = -2.0: must be finite and >= 0"),
        ({"instances": {"mean_demand": [1.0, np.nan]}}, r"instances\['mean_demand'\]\[1\] = nan: must be finite and > 0"),
        ({"instances": {"mean_demand": [1.0], "holding_cost": [1.0, 2.0]}}, r"equally long, got .*'holding_cost': 2"),
        ({"instances": {"item": ["a"]}}, r"instances: no column is an argument"),
        ({"starting_stock": -1.0}, r"starting_stock: low = -1.0: must be finite and >= 0"),
        ({"n_items": 2, "starting_stock": {"uniform": [[0, 0, 0], 1]}}, r"starting_stock must be .* shape \(2,\), got"),
        ({"instances": 3}, r"instances must be the path of a CSV file or columns by name, got 3"),
        ({"n_items": 2, "instances": {"fixed_cost": [9.0]}}, r"fixed_cost is not an item's; .* got n_items = 2"),
        ({"underage_cost": 9.0, "instances": TABLE}, r"underage_cost = 9.0 is given beside the column 'underage_cost'"),
        ({"demand": np.ones((1, 100, 1)), "mean_demand": Uniform(1.0, 2.0)}, r"mean_demand varies, but demand is data"),
    ],
)
def test_a_bad_instance_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(**kwargs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("underage_cost,price\n1,2\n", r"unknown column 'price'"),
        ("underage_cost,underage_cost\n1,2\n", r"column 'underage_cost' is there 2 times"),
        ("underage_cost,holding_cost\n1,2\n3,-4\n", r"row 3, column 'holding_cost': '-4' is not a finite number >= 0"),
        ("mean_demand\n1\n0\n", r"row 3, column 'mean_demand': '0' is not a finite number > 0"),
        ("underage_cost\nnan\n", r"row 2, column 'underage_cost': 'nan' is not a finite number >= 0"),
        ("underage_cost,holding_cost\n1\n", r"row 2 has 1 cells, the header has 2"),
        ("underage_cost\n", r"at least one product, got 1 line"),
        ("", r"at least one product, got 0 line"),
    ],
)
def test_a_bad_file_of_products_is_refused_with_row_and_column(tmp_path, text, message):
    path = tmp_path / "costs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        HybridInventoryEnv(1, instances=path)
    assert str(path) in str(error.value)


def test_a_file_of_products_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        HybridInventoryEnv(1, instances="nowhere.csv")


def test_what_other_problems_do_not_take_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown column 'minor_fixed_cost'"):
        HybridProcurementEnv(1, instances={"minor_fixed_cost": [1.0]})
    with pytest.raises(ValueError, match="mean_demand varies; demand = 'uniform'"):
        HybridDualSourcingEnv(mean_demand=Uniform(1.0, 2.0))


# ---- references ------------------------------------------------------------------------------------------------------


def test_the_policy_of_many_instances_is_the_optimum_of_each():
    env = HybridInventoryEnv(1, fixed_cost=Uniform(20.0, 100.0), **RANGE)
    policy = InstanceSS(env)
    assert type(reference_policy(env)) is InstanceSS
    state, _ = drawn(env, 6)
    optima = policy.optima(env.observation(state).numpy())
    for row, (s, S, cost) in enumerate(optima):
        own = numbers(env, state, row, [*RANGE]) | {"fixed_cost": env.parameter("fixed_cost", state)[row].item()}
        alone = SingleItemSS.best(HybridInventoryEnv(1, **own))
        assert (s, S) == (alone.reorder_point, alone.order_up_to[0])
        assert cost == pytest.approx(alone.cost, rel=1e-5)
    costs = evaluate(env, policy, 600, seed=1)
    expected = policy.optima(env.observation(drawn(env, 600, seed=9)[0]).numpy())[:, 2]
    error = np.hypot(costs.std(), expected.std()) / np.sqrt(600)
    assert abs(costs.mean() - expected.mean()) < 4 * error


def test_of_one_instance_it_is_the_optimum_as_well():
    env = HybridInventoryEnv(1)
    np.testing.assert_array_equal(evaluate(env, InstanceSS(env), 20, 1), evaluate(env, SingleItemSS.best(env), 20, 1))


def test_a_policy_with_given_levels_reads_stock_in_the_units_of_each_instance():
    env = HybridInventoryEnv(1, lead_time=1, mean_demand=Uniform(5.0, 50.0))
    state, noise = drawn(env)
    state = env.step_torch(state, HybridAction(torch.ones(5, dtype=torch.int64), torch.full((5, 1), 70.0)), noise[0]).state
    _, quantities = PeriodicReview(env, 1, 100.0).act(env.observation(state).numpy(), np.zeros(5, dtype=np.int64))
    np.testing.assert_allclose(quantities[:, 0], 100 - state.stock[:, 0, 0], atol=1e-3)


@pytest.mark.parametrize("solver", [SingleItemSS.best, PeriodicReview.best, best_classical, lower_bound])
def test_solvers_of_one_instance_say_so(solver):
    with pytest.raises(ValueError, match="mean_demand differs from scenario to scenario; it is for one instance"):
        solver(HybridInventoryEnv(1, **RANGE))


def test_solvers_of_the_other_problems_say_so_as_well():
    with pytest.raises(ValueError, match="CappedDualIndex: premium differs from scenario to scenario"):
        CappedDualIndex.best(HybridDualSourcingEnv(premium=Uniform(5.0, 20.0)))
    with pytest.raises(ValueError, match="TotalOrders: mean_demand differs from scenario to scenario"):
        TotalOrders.best(HybridProcurementEnv(1, **RANGE))
    assert best_dual_sourcing(HybridDualSourcingEnv(premium=Uniform(5.0, 20.0))) is None
    assert reference_policy(HybridProcurementEnv(1, **RANGE)) is None
    assert reference_policy(HybridInventoryEnv(2, **RANGE)) is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_items": 2}, "InstanceSS: n_items = 2"),
        ({"n_items": 1, "lost_sales": True}, "InstanceSS: lost_sales = True"),
        ({"n_items": 1, "holding_cost": Uniform(0.0, 1.0)}, r"InstanceSS: holding_cost\[0\] = 0.0 must be > 0"),
    ],
)
def test_the_policy_of_many_instances_refuses_what_it_does_not_solve(kwargs, message):
    with pytest.raises(ValueError, match=message):
        InstanceSS(HybridInventoryEnv(**kwargs))
