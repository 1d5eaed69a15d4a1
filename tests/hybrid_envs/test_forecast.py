"""The planner's policy: its forecasts by hand, and what a season is worth to it."""

import numpy as np
import pytest
import torch

from hybrid_envs import HybridInventoryEnv, Uniform
from hybrid_envs.demand import synthetic_sales
from hybrid_envs.solvers import CappedSS, ForecastSS, evaluate


def test_forecasts_by_hand():
    env = HybridInventoryEnv(1, lead_time=1, history=4)
    past = np.array([[[4.0], [8.0], [2.0], [6.0]]])
    smooth = ForecastSS(env, smoothing=0.5).forecast(past)
    assert smooth.item() == pytest.approx(2 * (8 * 4 + 4 * 8 + 2 * 2 + 6) / 15)
    assert ForecastSS(env, season=3).forecast(past).item() == 8.0 + 2.0  # this period and the next, three periods ago
    assert ForecastSS(env, smoothing=1.0).forecast(past).item() == 8.0


def test_the_error_is_that_of_the_demand_to_be_covered():
    env = HybridInventoryEnv(2, lead_time=2, history=40, mean_demand=[4.0, 25.0], horizon=30)
    policy = ForecastSS(env, smoothing=0.1)
    weights = policy.weights / 3
    variance = np.array([4.0, 25.0]) * (3 + 9 * (weights**2).sum())
    np.testing.assert_allclose(policy.error, np.sqrt(variance), rtol=0.05)


@pytest.mark.parametrize("given", [{}, {"mean_demand": Uniform(5.0, 20.0), "fixed_cost": Uniform(50.0, 90.0)}])
def test_it_orders_up_to_the_level_of_its_forecast(given):
    env = HybridInventoryEnv(1, lead_time=1, history=2, **given)
    state, _ = env.sample_scenarios(3, torch.Generator().manual_seed(0))
    state = state._replace(stock=torch.tensor([[[0.0]], [[5.0]], [[500.0]]]))
    policy = ForecastSS(env, smoothing=1.0, safety=0.0, lots=1.0, review_period=2)
    regimes, quantities = policy.act(env.observation(state).numpy(), np.array([0, 2, 4]))
    level = 2 * state.history[:, 0, 0] + env.action_scale[0]
    assert regimes.tolist() == [1, 1, 0]
    np.testing.assert_allclose(quantities[:, 0], [level[0], level[1] - 5, 0], rtol=1e-5)
    assert policy.act(env.observation(state).numpy(), np.array([1, 3, 5]))[0].tolist() == [0, 0, 0]


def test_a_season_is_forecast_and_pays(tmp_path):
    sales = synthetic_sales(240, 2, mean=20.0, season=0.9, season_length=12, seed=3)
    np.savetxt(tmp_path / "sales.csv", sales, "%d", ",", header="a,b", comments="")
    arguments = {"demand": tmp_path / "sales.csv", "horizon": 24, "history": 12, "lost_sales": True, "fixed_cost": 10.0}
    train, test = (HybridInventoryEnv(split=part, **arguments) for part in ("train", "test"))
    seasonal, blind = ForecastSS.best(train, season=12), CappedSS.best(train)
    assert np.flatnonzero(seasonal.weights).tolist() == [9, 10, 11]
    costs = [evaluate(test, policy, 60, seed=0).mean() for policy in (seasonal, blind)]
    assert costs[0] < 0.95 * costs[1]


@pytest.mark.parametrize(
    ("history", "kwargs", "message"),
    [
        (0, {}, "ForecastSS: history = 0"),
        (4, {"season": 5}, r"season = 5: must be from 3 \(lead_time \+ 1\) to 4 \(history\)"),
        (4, {"season": 2}, r"season = 2: must be from 3"),
        (4, {"smoothing": 0.0}, r"smoothing = 0.0: must be above 0"),
        (4, {"lots": -1.0}, r"lots = -1.0: must be finite and >= 0"),
        (4, {"review_period": 0}, r"review_period must be an integer >= 1, got 0"),
    ],
)
def test_a_bad_argument_is_named(history, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ForecastSS(HybridInventoryEnv(1, history=history), **kwargs)
