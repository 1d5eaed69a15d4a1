import itertools

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from scipy.stats import norm, poisson
from stable_baselines3 import PPO

from hybrid_envs import HybridDualSourcingEnv, HybridEnv, HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.inventory.single_item import single_items
from hybrid_envs.search import search
from hybrid_envs.solvers import (
    CanOrder,
    CappedDualIndex,
    CappedSS,
    ForecastSS,
    PeriodicReview,
    PeriodicSS,
    PerItemSS,
    ReferencePolicy,
    SingleItemSS,
    SingleMode,
    SwitchedRiccati,
    TotalDemandTrigger,
    best_classical,
    dual_lower_bound,
    evaluate,
    lower_bound,
    riccati,
)
from hybrid_envs.wrappers import FlatActionWrapper

# ---- predict and evaluate --------------------------------------------------------------------------------------------


def constant_demand(horizon: int = 10) -> HybridInventoryEnv:
    return HybridInventoryEnv(
        mean_demand=4.0,
        holding_cost=1.0,
        underage_cost=9.0,
        fixed_cost=30.0,
        lead_time=1,
        horizon=horizon,
        demand=np.full((1, horizon, 2), 4.0),
    )


def total_cost_by_hand(horizon: int, review_period: int, level: float) -> float:
    """Two equal items of constant demand 4, lead time 1: what is ordered in a period is on hand in the next."""
    total, stock = 0.0, 0.0
    for t in range(horizon):
        order = level - stock if t % review_period == 0 else 0.0
        total += 30.0 * (t % review_period == 0) + 2 * (max(stock - 4, 0) + 9 * max(4 - stock, 0))
        stock += order - 4
    return total


def test_predict_returns_a_bare_action_for_one_observation_and_a_list_for_a_batch() -> None:
    env = constant_demand()
    policy = PeriodicReview(env, 4, 20.0)
    observation, _ = env.reset(seed=0)
    (regime, quantities), _ = policy.predict(observation)
    assert regime == 1 and quantities.dtype == np.float32 and quantities.tolist() == [20.0, 20.0]
    assert env.action_space.contains((regime, quantities))
    batch, _ = policy.predict(np.stack([observation] * 3))
    assert isinstance(batch, list) and len(batch) == 3
    assert all(env.action_space.contains(action) for action in batch)


def test_the_clock_travels_in_the_state_and_restarts_with_each_episode() -> None:
    env = constant_demand()
    policy = PeriodicReview(env, 3, 20.0)
    observations = np.stack([env.reset(seed=0)[0]] * 2)
    state, orders = None, []
    for t in range(6):
        actions, state = policy.predict(observations, state, episode_start=np.array([t == 0, t in (0, 2)]))
        orders.append([regime for regime, _ in actions])
    assert [row for row, _ in orders] == [1, 0, 0, 1, 0, 0]
    assert [row for _, row in orders] == [1, 0, 1, 0, 0, 1]


def test_evaluate_policy_of_stable_baselines_agrees_with_the_cost_by_hand() -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.DummyVecEnv([constant_demand, constant_demand])
    policy = PeriodicReview(constant_demand(), 4, 20.0)  # 10 periods are no multiple of 4: a clock that ran on would show
    rewards, lengths = evaluation.evaluate_policy(policy, envs, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    assert lengths == [10] * 6
    assert rewards == pytest.approx([-total_cost_by_hand(10, 4, 20.0)] * 6)


def test_evaluate_returns_the_figure_of_merit_of_one_episode() -> None:
    env = constant_demand()
    figures = evaluate(env, PeriodicReview(env, 4, 20.0), 3, seed=0)
    np.testing.assert_array_equal(evaluate(TimeLimit(env, 7), PeriodicReview(env, 4, 20.0), 3, seed=0), figures)
    assert figures.shape == (3,) and figures.dtype == np.float64
    assert figures == pytest.approx([total_cost_by_hand(10, 4, 20.0) / 20] * 3)  # 2 items, 10 periods: no warm-up left out


def test_evaluate_draws_equal_scenarios_for_equal_seeds() -> None:
    env = HybridInventoryEnv(2, horizon=20)
    policy = PeriodicReview.best(env)
    first, again, other = (evaluate(env, policy, 8, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).all()


# ---- joint replenishment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_items", "cost"), [(1, 36.995), (5, 38.653), (20, 38.684), (60, 37.777)])
def test_periodic_review_costs_what_is_known_of_the_reference_instance(n_items: int, cost: float) -> None:
    policy = PeriodicReview.best(HybridInventoryEnv(n_items))
    assert policy.review_period == 4
    assert policy.cost == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize("n_items", [5, pytest.param(1, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow)])
def test_periodic_review_costs_in_simulation_what_it_states(n_items: int) -> None:
    env = HybridInventoryEnv(n_items, horizon=400)
    policy = PeriodicReview.best(env)
    assert evaluate(env, policy, 2000, seed=1).mean() == pytest.approx(policy.cost, rel=2e-3)


def test_periodic_review_orders_up_to_the_best_levels() -> None:
    env = HybridInventoryEnv(3, lead_time=3, underage_cost=[2.0, 9.0, 40.0], fixed_cost=50.0)
    policy = PeriodicReview.best(env)
    demands = np.arange(400)
    for i, level in enumerate(policy.order_up_to):

        def cost(S: float, i: int = i) -> float:
            left = S - demands
            per_unit = env.params.holding_cost[i] * np.maximum(left, 0) + env.params.underage_cost[i] * np.maximum(-left, 0)
            totals = env.params.mean_demand[i] * (3 + np.arange(1, policy.review_period + 1))
            return float(sum(poisson.pmf(demands, total) @ per_unit for total in totals))

        assert cost(level) < min(cost(level - 1), cost(level + 1))


def test_periodic_review_of_normal_demand_costs_in_simulation_what_it_states() -> None:
    env = HybridInventoryEnv(2, demand="normal", demand_std=[3.0, 8.0], horizon=400)  # the second is often cut off at 0
    policy = PeriodicReview.best(env)
    assert evaluate(env, policy, 2000, seed=1).mean() == pytest.approx(policy.cost, rel=3e-3)


def test_regular_demand_has_a_lattice_as_fine_as_its_deviation() -> None:
    env = HybridInventoryEnv(1, demand="normal", mean_demand=1_000.0, demand_std=10.0, fixed_cost=0.0, horizon=60)
    periods, ratio = (
        env.lead_time + 1,
        env.params.underage_cost[0] / (env.params.underage_cost[0] + env.params.holding_cost[0]),
    )
    deviation = 10.0 * np.sqrt(periods)
    newsvendor = (env.params.underage_cost[0] + env.params.holding_cost[0]) * deviation * norm.pdf(norm.ppf(ratio))
    assert PeriodicReview.best(env).cost == pytest.approx(newsvendor, rel=2e-3)
    assert lower_bound(env) == pytest.approx(newsvendor, rel=2e-3)
    certain = HybridInventoryEnv(1, demand="normal", mean_demand=1_000.0, demand_std=0.0, fixed_cost=0.0)
    assert PeriodicReview.best(certain).cost == pytest.approx(0.0)
    with pytest.raises(ValueError, match=r"demand_std = 1 is below 0.0078125 of mean_demand = 1000"):
        lower_bound(HybridInventoryEnv(1, demand="normal", mean_demand=1_000.0, demand_std=1.0, fixed_cost=0.0))


@pytest.mark.parametrize("best", [TotalDemandTrigger.best, CappedDualIndex.best, CappedSS.best, ForecastSS.best])
def test_the_unit_of_demand_data_does_not_move_the_reference(best) -> None:
    scenarios = np.random.default_rng(0).poisson(20, (100, 30, 1)).astype(float)
    costs = []
    for unit in (None, 1.0, 200.0):
        if best == CappedDualIndex.best:
            env: HybridEnv = HybridDualSourcingEnv(demand=scenarios, horizon=30, mean_demand=unit)
        else:
            history = {"history": 8, "horizon": 20} if best == ForecastSS.best else {"horizon": 30}
            env = HybridInventoryEnv(demand=scenarios, mean_demand=unit, lost_sales=best == CappedSS.best, **history)
        costs.append(best(env).cost)
    np.testing.assert_allclose(costs, costs[0], rtol=0.01)


def test_a_search_plays_all_candidates_from_the_same_shelves() -> None:
    env = HybridInventoryEnv(1, lost_sales=True, starting_stock={"uniform": [0, 6]}, horizon=12)
    seen = []

    def rules(shares):
        def rule(state):
            seen.append(state.stock.clone())
            return np.ones(len(state.period), dtype=np.int64), np.full((len(state.period), 1), 10.0)

        return rule

    search(env, rules, 1, n_scenarios=5, iterations=1, seed=0)
    starts = [stock.view(-1, 5, *stock.shape[1:]) for stock in seen[:: env.horizon]]
    assert len(starts[0]) > 1
    for of_generation in starts:
        assert (of_generation == starts[0][:1]).all()


def test_periodic_review_of_demand_data_finds_the_policy_of_the_distribution_it_was_drawn_from() -> None:
    data = np.random.default_rng(0).poisson([6.0, 12.0], (500, 60, 2))
    instance = {"mean_demand": [6.0, 12.0], "holding_cost": 1.0, "underage_cost": 9.0, "fixed_cost": 100.0, "horizon": 60}
    from_data = PeriodicReview.best(HybridInventoryEnv(demand=data, **instance))
    exact = PeriodicReview.best(HybridInventoryEnv(2, **instance))
    assert from_data.review_period == exact.review_period
    assert np.abs(from_data.order_up_to - exact.order_up_to).max() <= 1
    assert from_data.cost == pytest.approx(exact.cost, rel=0.01)


def test_single_item_optimum_of_the_reference_instance() -> None:
    policy = SingleItemSS.best(HybridInventoryEnv(1))
    assert (policy.reorder_point, *policy.order_up_to) == (21, 52)
    assert policy.cost == pytest.approx(34.901, abs=5e-4)


def test_single_item_orders_at_s_and_not_above() -> None:
    env = HybridInventoryEnv(1)
    policy = SingleItemSS(env, reorder_point=21, order_up_to=52)
    assert policy.predict(observe(env, [21.0])[0])[0] == (1, 31.0)
    assert policy.predict(observe(env, [22.0])[0])[0] == (0, 0.0)


def value_iteration(mean: float, lead_time: int, h: float, u: float, K: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Average cost, positions and optimal positions after ordering of one item, on a truncated grid."""
    positions = np.arange(-40, 61)
    demand = poisson.pmf(np.arange(30), mean)
    exposure = np.arange(200)
    left = positions[:, None] - exposure
    G = (h * np.maximum(left, 0) + u * np.maximum(-left, 0)) @ poisson.pmf(exposure, (lead_time + 1) * mean)
    following = np.maximum(np.arange(len(positions))[:, None] - np.arange(30), 0)
    value = np.zeros(len(positions))
    for _ in range(3000):
        stay = G + value[following] @ demand
        after = [y + int(np.argmin(stay[y:])) for y in range(len(positions))]
        order = K + stay[after]
        updated = np.minimum(stay, order)
        gain = float((updated - value)[60])
        value = updated - updated[60]
    return gain, positions, np.where(order < stay, positions[after], positions)


@pytest.mark.parametrize(("mean", "lead_time", "h", "u", "K"), [(3.0, 1, 1.0, 4.0, 10.0), (1.5, 2, 0.5, 9.0, 25.0)])
def test_single_item_optimum_agrees_with_value_iteration(mean: float, lead_time: int, h: float, u: float, K: float) -> None:
    cost, positions, after = value_iteration(mean, lead_time, h, u, K)
    env = HybridInventoryEnv(1, mean_demand=mean, holding_cost=h, underage_cost=u, fixed_cost=K, lead_time=lead_time)
    policy = SingleItemSS.best(env)
    assert policy.cost == pytest.approx(cost, abs=1e-6)
    orders = positions[after > positions]
    assert orders.max() == policy.reorder_point
    assert set(after[after > positions]) == set(policy.order_up_to)


def test_single_item_optimum_of_normal_demand_costs_in_simulation_what_it_states() -> None:
    env = HybridInventoryEnv(1, mean_demand=10.0, demand="normal", demand_std=4.0, horizon=400)
    policy = SingleItemSS.best(env)
    assert evaluate(env, policy, 2000, seed=1).mean() == pytest.approx(policy.cost, rel=3e-3)
    shifted = SingleItemSS(env, policy.reorder_point - 4, policy.order_up_to[0] + 6)
    assert evaluate(env, shifted, 2000, seed=1).mean() > policy.cost


def trigger_cost(env: HybridInventoryEnv, threshold: float) -> float:
    """
    Exact stationary cost per item of ordering once total Poisson demand reaches the threshold, with the best S. That the cycle
    runs after k periods in which item i sold d means that the others sold less than threshold - d.
    """
    params, cycle, d = env.params, np.arange(1, 30), np.arange(400)
    total = params.mean_demand.sum()
    length = 1 + poisson.cdf(threshold - 1, cycle * total).sum()
    cost = params.fixed_cost
    for mean, h, u in zip(params.mean_demand, params.holding_cost, params.underage_cost, strict=True):
        running = (d == 0).astype(float)
        for k in cycle:
            running += poisson.pmf(d, k * mean) * poisson.cdf(threshold - 1 - d, k * (total - mean))
        exposure = np.convolve(running, poisson.pmf(d, (params.lead_time + 1) * mean))
        left = np.searchsorted(np.cumsum(exposure), u / (u + h) * length) - np.arange(len(exposure))
        cost += exposure @ (h * np.maximum(left, 0) + u * np.maximum(-left, 0))
    return float(cost / length / env.n_items)


@pytest.mark.parametrize(("n_items", "known"), [(1, 34.91), (5, 38.53), (20, 38.55)])
def test_demand_trigger_is_the_best_of_its_family(n_items: int, known: float) -> None:
    env = HybridInventoryEnv(n_items)
    policy = TotalDemandTrigger.best(env)
    best = min(trigger_cost(env, theta) for theta in np.arange(2.5, 5, 0.05) * env.params.mean_demand.sum() // 1)
    assert trigger_cost(env, np.ceil(policy.threshold)) == pytest.approx(best, rel=1e-3)
    assert policy.cost == pytest.approx(best, rel=2e-3)
    assert abs(policy.cost - best) < 2 * policy.half_width
    assert policy.cost == pytest.approx(known, rel=5e-3)


def test_demand_trigger_weighs_demand() -> None:
    env = HybridInventoryEnv(2)
    policy = TotalDemandTrigger(env, threshold=10.0, order_up_to=50.0, weights=[1.0, 0.1])
    position = np.array([[40.0, 50.0], [41.0, 50.0], [45.0, 0.0], [46.0, 20.0]])
    assert policy.due(position, np.zeros(4)).tolist() == [True, False, True, False]


def observe(env: HybridInventoryEnv, position: list[float]) -> np.ndarray:
    """An observation with that inventory position, a third of it on hand."""
    stock = np.outer([1 / 3, 2 / 3], position)
    params = env.params
    return np.concatenate(
        [(stock / params.mean_demand).ravel(), params.underage_cost, params.holding_cost, params.mean_demand]
    ).astype(np.float32)[None]


def test_can_order_lets_items_join_an_order() -> None:
    policy = CanOrder(HybridInventoryEnv(3), reorder_point=10.0, can_order=[30.0, 30.0, 20.0], order_up_to=50.0)
    env = HybridInventoryEnv(3)
    regimes, quantities = policy.act(observe(env, [10.0, 25.0, 25.0]), np.zeros(1))
    assert regimes.tolist() == [1] and quantities.tolist() == [[40.0, 25.0, 0.0]]
    regimes, quantities = policy.act(observe(env, [11.0, 25.0, 25.0]), np.zeros(1))
    assert regimes.tolist() == [0] and not quantities.any()


def test_can_order_costs_in_simulation_what_it_states() -> None:
    env = HybridInventoryEnv(3, horizon=400)
    policy = CanOrder.best(env)
    assert evaluate(env, policy, 1000, seed=1).mean() == pytest.approx(policy.cost, rel=3e-3)


def test_best_classical_is_no_worse_than_any_policy_on_its_scenarios() -> None:
    env = HybridInventoryEnv(5)
    best = best_classical(env, n_scenarios=512, seed=3)
    rivals: list[ReferencePolicy] = [PeriodicReview.best(env), TotalDemandTrigger.best(env), CanOrder.best(env)]
    assert best.cost == pytest.approx(min(evaluate(env, rival, 512, seed=3).mean() for rival in rivals))
    assert 0 < best.half_width < 0.2
    assert lower_bound(env) < best.cost


def test_best_classical_orders_as_often_as_suits_the_episode() -> None:
    """Every fifth of the periods 16 to 99 are 0.8 orders fewer than their share: it beats what is best for ever."""
    env = HybridInventoryEnv(5, minor_fixed_cost=20.0)
    forever, best = PeriodicReview.best(env), best_classical(env, n_scenarios=256)
    assert forever.review_period == 4
    assert best.cost < 0.995 * evaluate(env, forever, 256, seed=0).mean()


def test_best_classical_accepts_demand_data() -> None:
    data = np.random.default_rng(0).poisson(8.0, (200, 40, 2))
    best = best_classical(HybridInventoryEnv(demand=data, horizon=40), n_scenarios=128)
    assert np.isfinite(best.cost)


@pytest.mark.parametrize(("n_items", "bound"), [(1, 34.901), (5, 36.80), (20, 36.88), (60, 35.99)])
def test_lower_bound_of_the_reference_instance(n_items: int, bound: float) -> None:
    assert bound - 1e-3 < lower_bound(HybridInventoryEnv(n_items)) < bound * 1.001


def joint_optimum(env: HybridInventoryEnv, low: int, high: int) -> float:
    """Average cost per item of the best policy for two items with Poisson demand, by value iteration on a truncated grid."""
    params, positions, exposure = env.params, np.arange(low, high + 1), np.arange(60)
    n = len(positions)
    periods, follow = np.zeros((2, n)), np.zeros((2, n, n))
    for i, mean in enumerate(params.mean_demand):
        left = positions[:, None] - exposure
        per_unit = params.holding_cost[i] * np.maximum(left, 0) + params.underage_cost[i] * np.maximum(-left, 0)
        periods[i] = per_unit @ poisson.pmf(exposure, (params.lead_time + 1) * mean)
        for row in range(n):
            follow[i, row, : row + 1] = poisson.pmf(row - np.arange(row + 1), mean)
            follow[i, row, 0] += 1 - follow[i, row].sum()
    G = periods[0][:, None] + periods[1]
    value = np.zeros((n, n))
    for _ in range(2000):
        stay = G + follow[0] @ value @ follow[1].T
        least = np.minimum.accumulate(np.minimum.accumulate(stay[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
        updated = np.minimum(stay, params.fixed_cost + least)
        gain = (updated - value)[n // 2, n // 2]
        value = updated - updated[n // 2, n // 2]
    return float(gain / 2)


def test_lower_bound_and_policies_bracket_the_joint_optimum_by_value_iteration() -> None:
    env = HybridInventoryEnv(
        2, mean_demand=[1.0, 2.0], holding_cost=[1.0, 0.5], underage_cost=[5.0, 9.0], fixed_cost=8.0, lead_time=1
    )
    optimum = joint_optimum(env, -25, 25)
    assert 0.85 * optimum < lower_bound(env) < optimum
    for policy in (PeriodicReview.best(env), TotalDemandTrigger.best(env), CanOrder.best(env)):
        assert optimum < policy.cost + policy.half_width < 1.15 * optimum


# ---- joint replenishment with minor costs ----------------------------------------------------------------------------

MIXED = {
    "n_items": 3,
    "mean_demand": [4.0, 6.0, 3.0],
    "holding_cost": [1.0, 0.5, 2.0],
    "underage_cost": 9.0,
    "fixed_cost": 10.0,
    "minor_fixed_cost": [2.0, 40.0, 8.0],
    "lead_time": 1,
}


def items_on_order(env: HybridInventoryEnv, policy: ReferencePolicy, position: list[float], period: int = 0) -> list[int]:
    """The regimes of a policy at an inventory position; checked against the action space."""
    observation = np.concatenate([np.array(position) / env.params.mean_demand, np.zeros(3 * env.n_items)])[None]
    regimes, points = policy.act(observation, np.array([period]))
    env.check_action((regimes[0], points[0]))
    return regimes[0].tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda env: PeriodicReview(env, 3, [40.0, 45.0], multiples=[1, 2]),
        lambda env: TotalDemandTrigger(env, 30.0, [40.0, 45.0]),
        lambda env: CanOrder(env, 15.0, [30.0, 35.0], [40.0, 45.0]),
        lambda env: PerItemSS(env, [15.0, 20.0], [40.0, 45.0]),
        lambda env: PeriodicSS(env, 2, [25.0, 30.0], [40.0, 45.0]),
    ],
)
def test_at_minor_costs_of_zero_a_policy_costs_what_it_costs_where_an_order_is_for_all(make) -> None:
    env, itemised = (HybridInventoryEnv(2, minor_fixed_cost=k) for k in (None, 0.0))
    costs, of_items = (evaluate(problem, make(problem), 64, seed=2) for problem in (env, itemised))
    # where nobody joins an order that is due, only the form without items pays for it
    assert (of_items <= costs + 1e-4).all()
    if not isinstance(make(env), PeriodicReview | PeriodicSS):
        assert of_items == pytest.approx(costs, rel=1e-6)


def test_at_minor_costs_of_zero_the_best_policies_and_the_bound_are_those_without() -> None:
    env, itemised = (HybridInventoryEnv(3, fixed_cost=80.0, minor_fixed_cost=k) for k in (None, 0.0))
    assert lower_bound(itemised) == lower_bound(env)
    for family in (PeriodicReview, TotalDemandTrigger, CanOrder):
        best, of_items = family.best(env), family.best(itemised)
        assert of_items.cost == best.cost and (of_items.order_up_to == best.order_up_to).all()
        assert evaluate(itemised, of_items, 64, seed=1) == pytest.approx(evaluate(env, best, 64, seed=1), rel=1e-6)
    assert PeriodicSS.best(itemised).cost == pytest.approx(PeriodicReview.best(env).cost)  # nobody waits for free


def test_one_item_with_a_minor_cost_is_one_item_with_the_sum_of_both_costs() -> None:
    alone = SingleItemSS.best(HybridInventoryEnv(1, fixed_cost=60.0))
    env = HybridInventoryEnv(1, fixed_cost=45.0, minor_fixed_cost=15.0)
    policy, of_item = SingleItemSS.best(env), PerItemSS.best(env)
    assert (policy.reorder_point, policy.order_up_to, policy.cost) == (alone.reorder_point, alone.order_up_to, alone.cost)
    assert (of_item.reorder_point, of_item.order_up_to) == (alone.reorder_point, alone.order_up_to)
    assert lower_bound(env) == pytest.approx(alone.cost, abs=1e-3)
    assert evaluate(env, policy, 1000, seed=1).mean() == pytest.approx(alone.cost, rel=3e-3)


@pytest.mark.parametrize("family", [PeriodicReview, PeriodicSS, PerItemSS, CanOrder, TotalDemandTrigger])
def test_no_policy_costs_less_than_the_bound_and_each_costs_what_it_states(family) -> None:
    env = HybridInventoryEnv(**MIXED, horizon=100)
    policy = family.best(env)
    costs = evaluate(env, policy, 1000, seed=4)
    error = costs.std() / len(costs) ** 0.5
    assert costs.mean() - 3 * error > lower_bound(env)
    # every item is ordered seldom enough that some periods order nothing, for which a period's K is counted all the same
    assert costs.mean() < policy.cost + 3 * (error + policy.half_width) + 0.005 * policy.cost
    if family is not TotalDemandTrigger:
        assert costs.mean() > 0.95 * policy.cost


def itemised_optimum(env: HybridInventoryEnv, low: int, high: int) -> float:
    """As joint_optimum, with minor costs: by value iteration over which of the two items are ordered."""
    params, positions, exposure = env.params, np.arange(low, high + 1), np.arange(60)
    n = len(positions)
    periods, follow = np.zeros((2, n)), np.zeros((2, n, n))
    for i, mean in enumerate(params.mean_demand):
        left = positions[:, None] - exposure
        per_unit = params.holding_cost[i] * np.maximum(left, 0) + params.underage_cost[i] * np.maximum(-left, 0)
        periods[i] = per_unit @ poisson.pmf(exposure, (params.lead_time + 1) * mean)
        for row in range(n):
            follow[i, row, : row + 1] = poisson.pmf(row - np.arange(row + 1), mean)
            follow[i, row, 0] += 1 - follow[i, row].sum()
    G = periods[0][:, None] + periods[1]
    K, (k0, k1) = params.fixed_cost, params.minor_fixed_cost
    value = np.zeros((n, n))
    for _ in range(2000):
        stay = G + follow[0] @ value @ follow[1].T
        first, second = (np.flip(np.minimum.accumulate(np.flip(stay, axis), axis), axis) for axis in (0, 1))
        both = np.flip(np.minimum.accumulate(np.flip(first, 1), 1), 1)
        updated = np.minimum.reduce([stay, K + k0 + first, K + k1 + second, K + k0 + k1 + both])
        gain = (updated - value)[n // 2, n // 2]
        value = updated - updated[n // 2, n // 2]
    return float(gain / 2)


def test_bound_and_policies_bracket_the_optimum_with_minor_costs_by_value_iteration() -> None:
    env = HybridInventoryEnv(
        2,
        mean_demand=[1.0, 2.0],
        holding_cost=[1.0, 0.5],
        underage_cost=[5.0, 9.0],
        fixed_cost=4.0,
        minor_fixed_cost=[2.0, 9.0],
        lead_time=1,
    )
    optimum = itemised_optimum(env, -25, 30)
    assert 0.85 * optimum < lower_bound(env) < optimum
    policies = [PeriodicReview.best(env), PeriodicSS.best(env), CanOrder.best(env), PerItemSS.best(env)]
    for policy in policies:
        assert optimum < evaluate(env, policy, 1000, seed=1).mean() + 0.02 < 1.25 * optimum
    assert best_classical(env).cost < 1.06 * optimum


def test_periodic_review_with_multiples_is_the_best_of_all_multiples() -> None:
    env = HybridInventoryEnv(**MIXED)
    policy, items = PeriodicReview.best(env), single_items(env)
    least = min(
        (sum(item.periodic(R * m)[1] + k / (R * m) for item, m, k in zip(items, multiples, (2, 40, 8), strict=True)) + 10 / R)
        / 3
        for R in range(1, 6)
        for multiples in itertools.product(range(1, 7), repeat=3)
    )
    assert policy.cost == pytest.approx(least)
    assert len(set(policy.multiples)) > 1


def test_an_item_reviewed_every_other_period_has_its_optimum_by_value_iteration() -> None:
    (item,) = single_items(HybridInventoryEnv(1, mean_demand=1.5, holding_cost=0.5, underage_cost=9.0, lead_time=1))
    positions, demand, exposure = np.arange(-30, 41), np.arange(60), np.arange(60)
    left = positions[:, None] - exposure
    per_unit = 0.5 * np.maximum(left, 0) + 9.0 * np.maximum(-left, 0)
    G = per_unit @ poisson.pmf(exposure, 2 * 1.5) + per_unit @ poisson.pmf(exposure, 3 * 1.5)  # of both periods
    following = np.maximum(np.arange(len(positions))[:, None] - demand, 0)
    value = np.zeros(len(positions))
    for _ in range(2000):
        stay = G + value[following] @ poisson.pmf(demand, 2 * 1.5)
        least = np.minimum.accumulate(stay[::-1])[::-1]
        updated = np.minimum(stay, 12.0 + least)
        gain, value = (updated - value)[40], updated - updated[40]
    assert item.reorder_costs(12.0, review_period=2).optimal_cost(12.0) == pytest.approx(gain / 2, abs=1e-6)


def test_which_items_are_on_an_order() -> None:
    env = HybridInventoryEnv(3, lead_time=1, minor_fixed_cost=5.0)
    periodic = PeriodicReview(env, 2, 30.0, multiples=[1, 2, 3])
    assert [items_on_order(env, periodic, [10.0, 10.0, 10.0], t) for t in (0, 1, 2, 4)] == [
        [1, 1, 1, 1],
        [0, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
    ]
    can_order = CanOrder(env, 10.0, 20.0, 30.0)
    assert items_on_order(env, can_order, [10.0, 20.0, 21.0]) == [1, 1, 1, 0]
    assert items_on_order(env, can_order, [11.0, 11.0, 11.0]) == [0, 0, 0, 0]
    assert items_on_order(env, PerItemSS(env, [10.0, 11.0, 12.0], 30.0), [11.0, 11.0, 11.0]) == [1, 0, 1, 1]
    assert items_on_order(env, PeriodicSS(env, 2, [10.0, 11.0, 12.0], 30.0), [11.0, 11.0, 11.0], 1) == [0, 0, 0, 0]
    assert items_on_order(env, PeriodicReview(env, 2, 30.0), [30.0, 31.0, 29.0]) == [1, 0, 0, 1]  # the others need nothing


def test_the_best_classical_policy_with_minor_costs_is_the_least_on_its_scenarios() -> None:
    env = HybridInventoryEnv(**MIXED)
    best = best_classical(env, n_scenarios=256, seed=3)
    rivals = [family.best(env) for family in (PeriodicReview, PeriodicSS, PerItemSS, CanOrder, TotalDemandTrigger)]
    assert best.cost == pytest.approx(min(evaluate(env, rival, 256, seed=3).mean() for rival in rivals))
    data = np.random.default_rng(0).poisson(8.0, (200, 40, 2))
    assert np.isfinite(best_classical(HybridInventoryEnv(demand=data, horizon=40, minor_fixed_cost=9.0), 64).cost)


@pytest.mark.parametrize(
    ("solve", "arguments", "message"),
    [
        (PeriodicSS.best, {"n_items": 2, "lost_sales": True}, "PeriodicSS: lost_sales = True"),
        (PerItemSS.best, {"n_items": 2, "lost_sales": True}, "PerItemSS: lost_sales = True"),
        (PeriodicSS.best, {"demand": np.ones((1, 100, 1))}, "PeriodicSS: demand = 'data'"),
        (lambda env: PeriodicReview(env, 1, 9.0, [1, 0]), {"n_items": 2}, r"multiples\[1\] must be an integer >= 1, got 0"),
        (lambda env: PeriodicSS(env, 0, 1.0, 2.0), {"n_items": 2}, "review_period must be an integer >= 1, got 0"),
        (lambda env: PerItemSS(env, [1.0, np.inf], 2.0), {"n_items": 2}, r"reorder_point\[1\] = inf"),
        (PeriodicReview.best, {"n_items": 2, "lost_sales": True}, "lost_sales = True"),
        (TotalDemandTrigger.best, {"n_items": 2, "lost_sales": True}, "lost_sales = True"),
        (CanOrder.best, {"n_items": 2, "lost_sales": True}, "lost_sales = True"),
        (best_classical, {"n_items": 2, "lost_sales": True}, "lost_sales = True"),
        (SingleItemSS.best, {"n_items": 1, "lost_sales": True}, "lost_sales = True"),
        (lower_bound, {"n_items": 2, "lost_sales": True}, "lost_sales = True"),
        (SingleItemSS.best, {"n_items": 2}, "n_items = 2"),
        (SingleItemSS.best, {"demand": np.ones((1, 100, 1))}, "demand = 'data'"),
        (lower_bound, {"demand": np.ones((1, 100, 1))}, "demand = 'data'"),
        (lower_bound, {"n_items": 2, "holding_cost": [1.0, 0.0]}, r"holding_cost\[1\] = 0.0"),
        (PeriodicReview.best, {"n_items": 2, "holding_cost": 0.0, "underage_cost": 0.0}, r"holding_cost\[0\]"),
        (PeriodicReview.best, {"demand": np.ones((1, 2, 1)), "horizon": 2}, "horizon = 2"),
        (lambda env: PeriodicReview(env, 0, 1.0), {"n_items": 2}, "review_period"),
        (lambda env: PeriodicReview(env, 1, [1.0, 2.0, 3.0]), {"n_items": 2}, "order_up_to"),
        (lambda env: TotalDemandTrigger(env, -1.0, 1.0), {"n_items": 2}, "threshold = -1.0"),
        (lambda env: TotalDemandTrigger.best(env, weights=[1.0, -1.0]), {"n_items": 2}, r"weights\[1\] = -1.0"),
    ],
)
def test_inventory_solvers_refuse_what_they_do_not_solve(solve, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        solve(HybridInventoryEnv(**arguments))


# ---- switched LQR ----------------------------------------------------------------------------------------------------


def small_lqr(n_modes: int = 3, horizon: int = 6) -> HybridSwitchedLQREnv:
    """No matrix is diagonal, no two modes are alike."""
    rng = np.random.default_rng(4)
    Q, R = (np.eye(3) + 0.2 * x @ x.T for x in rng.standard_normal((2, 3, 3)))
    A = 1.1 * np.eye(3) + 0.3 * rng.standard_normal((3, 3))
    return HybridSwitchedLQREnv(A=A, B=rng.standard_normal((n_modes, 3, 3)) / 2, Q=Q, R=R, horizon=horizon)


def uniform_starts(env: HybridSwitchedLQREnv, n_starts: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-env.start_limit, env.start_limit, (n_starts, env.n_dims))


def cost_of_modes(env: HybridSwitchedLQREnv, modes: tuple[int, ...], starts: np.ndarray) -> np.ndarray:
    """The least cost under given modes, by stacking all states as linear in all controls: no dynamic programming."""
    A, B, Q, R = env.params.A, env.params.B, env.params.Q, env.params.R
    p, T = env.n_dims, env.horizon
    free, forced = np.eye(p), np.zeros((p, T * p))  # s_t = free s_0 + forced (u_0..u_{T-1})
    hessian, cross, constant = np.kron(np.eye(T), R), np.zeros((T * p, p)), np.zeros((p, p))
    for t, mode in enumerate(modes):
        hessian += forced.T @ Q @ forced
        cross += forced.T @ Q @ free
        constant += free.T @ Q @ free
        free, forced = A @ free, A @ forced
        forced[:, t * p : (t + 1) * p] += B[mode]
    P = constant - cross.T @ np.linalg.solve(hessian, cross)
    return np.einsum("ni,ij,nj->n", starts, P, starts)


def brute_force(env: HybridSwitchedLQREnv, starts: np.ndarray) -> np.ndarray:
    sequences = itertools.product(range(env.n_regimes), repeat=env.horizon - 1)  # the last mode moves only s_T, which is free
    return np.min([cost_of_modes(env, (*modes, 0), starts) for modes in sequences], axis=0)


def test_riccati_attains_the_least_cost_of_one_mode() -> None:
    env = small_lqr(n_modes=1)
    starts = uniform_starts(env, 5)
    expected = cost_of_modes(env, (0,) * env.horizon, starts)
    values, gains = riccati(env.params.A, env.params.B[0], env.params.Q, env.params.R, env.horizon)
    assert values.shape == (7, 3, 3) and gains.shape == (6, 3, 3)
    assert np.einsum("ni,ij,nj->n", starts, values[0], starts) == pytest.approx(expected)
    assert SingleMode.best(env).trajectories(starts)[1] == pytest.approx(expected)


@pytest.mark.parametrize("n_dims", [8, 48])
def test_single_mode_costs_in_simulation_what_it_states(n_dims: int) -> None:
    env = HybridSwitchedLQREnv(n_dims, 2)
    costs = evaluate(env, SingleMode.best(env), 4000, seed=0)
    assert abs(costs.mean() - SingleMode.best(env).cost) < 2.5 * costs.std() / 4000**0.5


@pytest.mark.parametrize(("n_dims", "n_modes", "cost"), [(8, 2, 70.94), (48, 2, 73.40), (48, 4, 92.4), (48, 8, 101.9)])
def test_single_mode_costs_what_is_known_of_the_reference_instance(n_dims: int, n_modes: int, cost: float) -> None:
    assert SingleMode.best(HybridSwitchedLQREnv(n_dims, n_modes)).cost == pytest.approx(cost, abs=0.05)


def test_trajectories_cost_what_the_environment_charges() -> None:
    env = small_lqr()
    policy = SwitchedRiccati(env, n_starts=64)
    observation, _ = env.reset(seed=5)
    expected = policy.trajectories(observation[None])[1]
    total, state, start = 0.0, None, np.ones(1, dtype=bool)
    for _ in range(env.horizon):
        ((action,), state) = policy.predict(observation[None], state, start)
        observation, reward, *_ = env.step(action)
        total, start = total - reward, np.zeros(1, dtype=bool)
    assert total == pytest.approx(expected[0], rel=1e-5)


def test_switched_riccati_attains_the_least_cost_over_all_mode_sequences() -> None:
    env = small_lqr()
    starts = uniform_starts(env, 20, seed=7)  # not those that it was solved on
    least = brute_force(env, starts)
    costs = SwitchedRiccati(env, max_matrices=500).trajectories(starts)[1]
    assert (costs >= least * (1 - 1e-9)).all()
    assert costs == pytest.approx(least, rel=1e-3) and np.median(costs / least) < 1 + 1e-9
    assert (SingleMode.best(env).trajectories(starts)[1] > 1.02 * least).mean() > 0.5  # the modes do matter here


def test_switched_riccati_trades_cost_for_smaller_sets() -> None:
    env = HybridSwitchedLQREnv(8, 4)
    exact, small, slack = (SwitchedRiccati(env, n_starts=128, **kw) for kw in ({}, {"max_matrices": 4}, {"slack": 0.01}))
    assert max(map(len, small.sets)) == 4 < max(map(len, slack.sets)) < max(map(len, exact.sets))
    assert exact.cost <= slack.cost <= 1.01**8 * exact.cost and exact.cost <= small.cost


def test_dual_lower_bound_rises_to_the_least_cost_as_modes_are_enumerated() -> None:
    env = small_lqr(n_modes=2)
    starts = uniform_starts(env, 4)
    least = brute_force(env, starts)
    bounds = [dual_lower_bound(env, starts, first_modes=k) for k in range(6)]
    assert all((bound <= least * (1 + 1e-9)).all() for bound in bounds)
    assert (bounds[0] < 0.995 * least).any()  # here the plain dual has a gap ...
    assert bounds[5] == pytest.approx(least, rel=1e-5)  # ... and enumerating every mode that matters leaves none
    assert all((fewer <= more).all() for fewer, more in itertools.pairwise(bounds))


def test_dual_lower_bound_holds_whatever_known_costs_are_claimed() -> None:
    env = small_lqr()
    starts = uniform_starts(env, 4)
    least = brute_force(env, starts)
    pruned = dual_lower_bound(env, starts, first_modes=5, known_costs=least)
    assert (pruned <= least * (1 + 1e-9)).all()
    assert (pruned >= least * (1 - 1e-4) * (1 - 1e-5)).all()  # within the tolerance, where pruning stops
    assert (dual_lower_bound(env, starts, first_modes=5, known_costs=0.5 * least) <= least).all()


def test_dual_lower_bound_allows_for_the_clamp() -> None:
    env = HybridSwitchedLQREnv(A=5 * np.eye(2), B=np.full((1, 2, 2), 1e-3), horizon=5)  # cannot be steered
    starts = np.array([[90.0, 90.0]])
    saturated = SingleMode.best(env).trajectories(starts)[1]
    unclamped = cost_of_modes(env, (0,) * 5, starts)
    bound = dual_lower_bound(env, starts, first_modes=0)
    assert bound <= saturated < unclamped


def test_policy_and_bound_close_in_on_the_optimum_of_the_reference_instance() -> None:
    env = HybridSwitchedLQREnv(48, 2)
    policy = SwitchedRiccati(env, n_starts=128)
    starts = uniform_starts(env, 16)
    costs = policy.trajectories(starts)[1]
    bounds = dual_lower_bound(env, starts, first_modes=4, known_costs=costs)
    assert (bounds <= costs).all() and (costs <= 1.001 * bounds).all()
    assert policy.cost - policy.half_width < 51.8 < policy.cost + policy.half_width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_modes", "first_modes", "gap", "cost"), [(4, 4, 1.001, 70.4), (6, 3, 1.03, 79.5), (8, 3, 1.04, 85.8)]
)
def test_policy_and_bound_with_many_modes(n_modes: int, first_modes: int, gap: float, cost: float) -> None:
    env = HybridSwitchedLQREnv(48, n_modes)
    policy = SwitchedRiccati(env)
    assert policy.cost - policy.half_width < cost < policy.cost + policy.half_width
    starts = uniform_starts(env, 8)
    costs = policy.trajectories(starts)[1]
    bounds = dual_lower_bound(env, starts, first_modes, known_costs=costs)
    assert (bounds <= costs).all() and costs.sum() <= gap * bounds.sum()


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda env: SingleMode(env, 3), "mode = 3"),
        (lambda env: SwitchedRiccati(env, max_matrices=0), "max_matrices"),
        (lambda env: SwitchedRiccati(env, slack=-0.1), "slack = -0.1"),
        (lambda env: dual_lower_bound(env, np.zeros((2, 4))), "starts"),
        (lambda env: dual_lower_bound(env, np.zeros((2, 3)), first_modes=-1), "first_modes"),
        (lambda env: dual_lower_bound(env, np.zeros((2, 3)), known_costs=np.ones(3)), "known_costs"),
        (lambda env: riccati(np.eye(2), np.eye(2), np.eye(2), np.eye(2), 0), "horizon"),
    ],
)
def test_lqr_solvers_refuse_bad_arguments(solve, message) -> None:
    with pytest.raises(ValueError, match=message):
        solve(small_lqr())


def test_dual_lower_bound_refuses_a_singular_state_cost() -> None:
    env = HybridSwitchedLQREnv(A=np.eye(2), Q=np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="Q must be positive definite"):
        dual_lower_bound(env, np.zeros((1, 2)))


def test_the_bound_of_one_period_is_what_the_start_costs() -> None:
    env = HybridSwitchedLQREnv(3, horizon=1)
    starts = np.random.default_rng(0).normal(size=(4, 3))
    expected = ((starts @ env.params.Q) * starts).sum(axis=1)
    np.testing.assert_allclose(dual_lower_bound(env, starts), expected)


def test_a_policy_of_flat_actions_is_not_evaluated_as_one_of_hybrid_ones() -> None:
    env = HybridInventoryEnv(1, horizon=4)
    model = PPO("MlpPolicy", FlatActionWrapper(env), n_steps=8, batch_size=8)
    with pytest.raises(TypeError, match=r"not hybrid but out of Box.*evaluate_policy"):
        evaluate(env, model, n_scenarios=2, seed=0)


def test_evaluate_accepts_reference_policies_of_every_environment() -> None:
    pairs: list[tuple[HybridEnv, ReferencePolicy]] = []
    inventory, lqr = HybridInventoryEnv(1, horizon=20), HybridSwitchedLQREnv(3, 2)
    pairs += [(inventory, SingleItemSS.best(inventory)), (lqr, SwitchedRiccati(lqr, n_starts=32))]
    for env, policy in pairs:
        assert np.isfinite(evaluate(env, policy, 4, seed=0)).all()
