"""Perfect information in joint replenishment: the bound against enumeration, and its orders against the environment."""

from itertools import product

import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridInventoryEnv, Uniform
from hybrid_envs.inventory.milp import PerfectReplenishment
from hybrid_envs.solvers import CappedSS, PeriodicReview
from hybrid_envs.vector import HybridVectorEnv


def make(n_items, n_periods, lead_time, lost_sales, minor, seed, **kwargs):
    rng = np.random.default_rng(seed)
    demand = rng.integers(0, 4, (n_periods, n_items)).astype(float)
    env = HybridInventoryEnv(
        demand=demand[None],
        horizon=n_periods,
        lead_time=lead_time,
        lost_sales=lost_sales,
        mean_demand=2.0,
        holding_cost=rng.uniform(0.5, 1.5, n_items),
        underage_cost=rng.uniform(2, 6, n_items),
        fixed_cost=4.0,
        minor_fixed_cost=rng.uniform(0.5, 2, n_items) if minor else None,
        **kwargs,
    ).to(dtype=torch.float64)
    stock = rng.integers(0, 3, (lead_time, n_items)).astype(float)
    if not lost_sales:
        stock[0] -= 2
    return env, demand, stock


def played(env, demand, stock, quantities):
    """The total cost of orders in the environment, for many alternatives at once: shape ``(alternatives, periods, items)``."""
    quantities = torch.as_tensor(quantities, dtype=torch.float64)
    state = env.standing(torch.as_tensor(stock, dtype=torch.float64).expand(len(quantities), -1, -1))
    total = torch.zeros(len(quantities), dtype=torch.float64)
    for t, of_period in enumerate(demand):
        joined = (quantities[:, t] > 0).long()
        together = joined.amax(dim=1, keepdim=True)
        regime = torch.cat([together, joined], dim=1) if env.itemised else together[:, 0]
        noise = torch.as_tensor(of_period).expand(len(quantities), -1)
        result = env.step_torch(state, HybridAction(regime, quantities[:, t]), noise)
        state, total = result.state, total - result.reward
    return total.numpy()


@pytest.mark.parametrize(
    ("n_items", "n_periods", "lead_time", "lost_sales", "minor"),
    [
        (1, 5, 1, False, False),
        (1, 5, 2, False, False),
        (1, 5, 1, True, False),
        (1, 5, 2, True, True),
        (2, 3, 1, False, True),
        (2, 3, 1, True, True),
        (2, 3, 1, True, False),
    ],
)
def test_it_is_the_least_cost_of_all_orders_there_are(n_items, n_periods, lead_time, lost_sales, minor):
    for seed in range(4):
        margin = 2.5 if lost_sales and seed % 2 else None
        env, demand, stock = make(n_items, n_periods, lead_time, lost_sales, minor, seed, margin=margin)
        most, slots = (17, n_periods - lead_time) if n_items == 1 else (7, n_items * (n_periods - lead_time))
        tried = np.array(list(product(range(most + 1), repeat=slots)), dtype=float)
        quantities = np.zeros((len(tried), n_periods, n_items))
        quantities[:, : n_periods - lead_time] = tried.reshape(len(tried), n_periods - lead_time, n_items)
        least = min(played(env, demand, stock, part).min() for part in np.array_split(quantities, 4))
        found = PerfectReplenishment(env).solve(demand, stock)
        np.testing.assert_allclose([found.bound, found.cost], least, rtol=2e-4)
        np.testing.assert_allclose(played(env, demand, stock, found.quantities[None]), found.cost, rtol=1e-6)


@pytest.mark.parametrize("lost_sales", [False, True])
@pytest.mark.parametrize("minor", [False, True])
def test_its_orders_cost_what_it_says_and_no_policy_costs_less(lost_sales, minor):
    env, demand, stock = make(4, 30, 3, lost_sales, minor, seed=1)
    found = PerfectReplenishment(env).solve(demand, stock)
    np.testing.assert_allclose(played(env, demand, stock, found.quantities[None]), found.cost, rtol=1e-6)
    assert found.cost * (1 - 2e-4) <= found.bound <= found.cost * (1 + 1e-6)

    scenarios = HybridVectorEnv(env, 1)
    observation, _ = scenarios.reset(seed=0)
    scenarios.state = env.standing(torch.as_tensor(stock[None]))
    policy = CappedSS(env, 4.0, 12.0) if lost_sales else PeriodicReview(env, 4, 15.0)
    state, total, observation = None, 0.0, scenarios.observation().numpy()
    for _ in range(env.horizon):
        actions, state = policy.predict(observation, state=state)
        regimes, points = (np.stack(part) for part in zip(*actions, strict=True))
        observation, reward, *_ = scenarios.step((regimes, points))
        total -= float(reward[0])
    assert found.bound < total


def test_nothing_at_the_start_is_the_default_and_instances_that_differ_are_refused():
    env, demand, stock = make(2, 6, 2, True, False, seed=0)
    assert PerfectReplenishment(env).solve(demand).bound == PerfectReplenishment(env).solve(demand, 0 * stock).bound
    with pytest.raises(ValueError, match="PerfectReplenishment: underage_cost differs from scenario to scenario"):
        PerfectReplenishment(HybridInventoryEnv(underage_cost=Uniform(1.0, 2.0)))
    for name in ("gap", "time_limit"):
        with pytest.raises(ValueError, match=name):
            PerfectReplenishment(env, **{name: -1.0})
