"""Demand as it is: its history, the calendar, a split by time, censored and interrupted demand, synthetic sales."""

import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridInventoryEnv, Uniform, check_hybrid_env
from hybrid_envs.demand import sales_windows, synthetic_sales
from hybrid_envs.solvers import SingleItemSS, evaluate

CONSTANTS = {"mean_demand": 10.0, "holding_cost": 1.0, "underage_cost": 9.0, "fixed_cost": 50.0}
FIRST = 4
"""Observations of one item begin with lead_time = 1 stock and three constants."""


@pytest.fixture
def sales(tmp_path):
    """Twenty weeks: apples sell 1, 2, 3, ..., pears ten times as much; weeks 13, 26, 39, 52 and so on."""
    path = tmp_path / "sales.csv"
    lines = [f"{t + 1},{13 * t},{-t},{10 * (t + 1)}" for t in range(20)]
    path.write_text("\n".join(["apples,week,days,pears", *lines]) + "\n", encoding="utf-8")
    return path


CALENDAR = {"week": 52, "days": None}


def test_the_last_periods_of_demand_are_observed_the_latest_first():
    demand = np.array([[[3.0], [2.0], [5.0], [7.0], [4.0]]])
    env = HybridInventoryEnv(1, lead_time=1, demand=demand, horizon=3, history=2, **CONSTANTS)
    seen = [env.reset(seed=0)[0]] + [env.step((0, np.zeros(1)))[0] for _ in range(3)]
    np.testing.assert_allclose([s[FIRST:] for s in seen], [[0.2, 0.3], [0.5, 0.2], [0.7, 0.5], [0.4, 0.7]], rtol=1e-6)


def test_of_a_distribution_the_past_has_the_same_law():
    env = HybridInventoryEnv(1, history=300, mean_demand=Uniform(4.0, 40.0))
    state, noise = env.sample_scenarios(50, torch.Generator().manual_seed(0))
    mean = env.parameter("mean_demand", state)[:, 0]
    np.testing.assert_allclose(state.history.mean(dim=1)[:, 0] / mean, 1.0, atol=0.15)
    assert (state.history[:, :100].transpose(0, 1) == noise).double().mean() < 0.2  # it is not the future


def test_a_window_of_a_file_goes_on_from_its_history(sales):
    env = HybridInventoryEnv(demand=sales, horizon=5, history=3, calendar=CALENDAR)
    state, noise = env.sample_scenarios(400, torch.Generator().manual_seed(0))
    first = noise[0, :, 0]
    assert set(first.tolist()) == set(range(4, 17))
    assert torch.equal(state.history[..., 0], first[:, None] - torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(state.history[..., 1], 10 * state.history[..., 0])
    assert torch.equal(noise[..., 0], first + torch.arange(5.0)[:, None])


def test_the_calendar_of_the_present_period_is_observed(sales):
    env = HybridInventoryEnv(1, demand=sales, horizon=5, calendar=CALENDAR | {"pears": None}, lead_time=1)
    seen = [env.reset(seed=2)[0]] + [env.step((0, np.zeros(1)))[0] for _ in range(5)]
    start = int(env._noise[0, 0, 0]) - 1
    for t, observation in enumerate(seen):
        week = min(start + t, start + 4)  # the last observation is beyond the window, and no decision follows it
        angle = 2 * np.pi * 13 * week / 52
        np.testing.assert_allclose(observation[FIRST:], [np.sin(angle), np.cos(angle), -week, 10 * (week + 1)], atol=1e-5)
    assert env.observation_scale[FIRST:].tolist() == pytest.approx([1.0, 1.0, 19.0, 200.0])


def test_windows_lie_within_their_part_of_the_split_and_their_past_may_reach_back(sales):
    rows = {}
    for split in ("train", "validation", "test"):
        windows = sales_windows(sales, 3, 2, CALENDAR, split, (0.5, 0.2, 0.3))
        rows[split] = {int(row) for row in windows.demand[..., 0].ravel()}
        assert (windows.past[:, 0, 0] == windows.demand[:, 0, 0] - 1).all()
        assert windows.mean.tolist() == [5.5, 55.0]  # that of training alone, whichever the part
        if split == "test":
            assert windows.past.min() == 13.0
    assert rows == {"train": set(range(3, 11)), "validation": set(range(11, 15)), "test": set(range(15, 21))}
    assert sales_windows(sales, 3, calendar=CALENDAR).demand.shape == (18, 3, 2)


def test_environments_of_the_three_parts_observe_in_the_same_units(sales):
    envs = [
        HybridInventoryEnv(demand=sales, horizon=3, history=1, calendar=CALENDAR, split=part)
        for part in ("train", "validation", "test")
    ]
    assert all(np.array_equal(env.params.mean_demand, envs[0].params.mean_demand) for env in envs)
    assert all(np.array_equal(env.observation_scale[:-1], envs[0].observation_scale[:-1]) for env in envs)


def test_of_lost_sales_what_is_seen_may_be_what_was_sold():
    demand = np.array([[[0.0], [2.0], [5.0], [7.0]]])
    arguments = CONSTANTS | {"demand": demand, "horizon": 3, "history": 1, "lead_time": 1, "lost_sales": True}
    for censored, seen in ((False, [2.0, 5.0, 7.0]), (True, [0.0, 4.0, 6.5])):
        env = HybridInventoryEnv(1, censored=censored, **arguments).to(dtype=torch.float64)
        state, noise = env.sample_scenarios(1, torch.Generator())
        orders = torch.tensor([[4.0], [6.5], [1.0]], dtype=torch.float64, requires_grad=True)
        found = []
        for order, shock in zip(orders, noise, strict=True):
            state = env.step_torch(state, HybridAction(torch.tensor([1]), order[None]), shock).state
            found.append(state.history.sum())
        assert [value.item() for value in found] == seen
        if censored:
            (gradient,) = torch.autograd.grad(found[1], orders)
            assert gradient.tolist() == [[1.0], [0.0], [0.0]]


def test_interrupted_demand_keeps_its_mean_and_is_zero_as_often_as_said():
    env = HybridInventoryEnv(1, mean_demand=6.0, zero_share=0.4, horizon=4000)
    demand = env.sample_noise(5, torch.Generator().manual_seed(0))
    assert demand.mean().item() == pytest.approx(6.0, abs=0.15)  # standard deviation 5.8, 20,000 draws
    assert (demand == 0).double().mean().item() == pytest.approx(0.4, abs=0.015)


@pytest.mark.parametrize("demand", ["poisson", "normal"])
def test_the_optimum_of_interrupted_demand_costs_what_it_says(demand):
    env = HybridInventoryEnv(1, zero_share=0.5, demand=demand, horizon=400, **CONSTANTS)
    policy = SingleItemSS.best(env)
    costs = evaluate(env, policy, 400, seed=1)
    assert abs(costs.mean() - policy.cost) < 4 * costs.std() / 20 + 2e-3 * policy.cost
    other = SingleItemSS.best(HybridInventoryEnv(1, demand=demand, horizon=400, **CONSTANTS))
    assert evaluate(env, other, 400, seed=1).mean() > costs.mean()


def test_the_contract_holds_with_everything_on(sales):
    check_hybrid_env(
        HybridInventoryEnv(
            demand=sales,
            horizon=6,
            history=3,
            calendar=CALENDAR,
            lost_sales=True,
            censored=True,
            holding_cost=Uniform(1.0, 2.0),
        )
    )
    check_hybrid_env(HybridInventoryEnv(2, history=2, zero_share=0.3, demand="normal", horizon=12))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"history": -1}, r"history must be an integer >= 0, got -1"),
        ({"zero_share": 1.0}, r"zero_share = 1.0: must be at least 0 and below 1"),
        ({"zero_share": np.nan}, r"zero_share = nan: must be finite"),
        ({"censored": True}, r"censored = True needs lost_sales = True and history > 0, got False and 0"),
        ({"censored": "yes"}, r"censored must be True or False, got 'yes'"),
        ({"calendar": {"week": 52}}, r"calendar = \{'week': 52\} is of a file of sales"),
        ({"split": "train"}, r"split = 'train' is of a file of sales"),
        ({"split": "holdout"}, r"split must be None or one of 'train', 'validation', 'test', got 'holdout'"),
        ({"demand": np.ones((2, 5, 1)), "horizon": 4, "history": 2}, r"demand has 5 periods, fewer than horizon = 6"),
        ({"demand": np.ones((2, 5, 1)), "horizon": 4, "zero_share": 0.1}, r"zero_share = 0.1 is of a distribution"),
    ],
)
def test_a_bad_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"row 3, column 'days': '-1' is not a finite number >= 0"),
        ({"calendar": {"week": 52, "day": None}}, r"calendar column 'day' is there 0 times; columns are \['apples', 'week'"),
        ({"calendar": {"week": 0, "days": None}}, r"calendar\['week'\] = 0.0: must be finite and > 0"),
        ({"calendar": ["week"]}, r"calendar must map columns to None or the length of a cycle, got \['week'\]"),
        ({"calendar": dict.fromkeys(["apples", "week", "days", "pears"])}, r"every column is of the calendar"),
        ({"calendar": CALENDAR, "split": "test"}, r"4 rows of 'test', fewer than horizon = 5"),
        ({"calendar": CALENDAR, "split_shares": [0.5, 0.5]}, r"split_shares must be a scalar or have shape \(3,\)"),
        ({"calendar": CALENDAR, "split_shares": [0.5, 0.3, 0.1]}, r"split_shares must be three numbers that add up to 1"),
        ({"calendar": CALENDAR, "n_items": 4}, r"demand holds 2 items, but n_items = 4"),
        ({"calendar": CALENDAR, "history": 16}, r"20 rows, fewer than horizon = 5 and history = 16"),
    ],
)
def test_what_a_file_does_not_offer_is_refused(sales, kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridInventoryEnv(demand=sales, horizon=5, **kwargs)


# ---- synthetic sales -------------------------------------------------------------------------------------------------


def test_synthetic_sales_have_the_features_asked_for():
    plain = synthetic_sales(2000, 5, mean=[4.0, 8.0, 12.0, 16.0, 20.0])
    np.testing.assert_allclose(plain.mean(axis=0), [4, 8, 12, 16, 20], rtol=0.05)
    np.testing.assert_allclose(plain.var(axis=0), [4, 8, 12, 16, 20], rtol=0.15)
    growing = synthetic_sales(2000, 3, mean=20.0, trend=2.0)
    np.testing.assert_allclose(growing[1800:].mean(axis=0) / growing[:200].mean(axis=0), 2.9 / 1.1, rtol=0.1)
    seasonal = synthetic_sales(52 * 40, 3, mean=50.0, season=0.6).reshape(40, 52, 3).mean(axis=0)
    np.testing.assert_allclose(np.abs(np.fft.rfft(seasonal, axis=0))[1] / 26 / 50, 0.6, rtol=0.05)
    rough = synthetic_sales(4000, 3, mean=200.0, disturbance=0.5, autocorrelation=0.8)
    log = np.log(np.maximum(rough, 1))
    np.testing.assert_allclose([np.corrcoef(x[1:], x[:-1])[0, 1] for x in log.T], 0.8, atol=0.05)
    np.testing.assert_allclose(rough.mean(axis=0), 200, rtol=0.15)
    rare = synthetic_sales(4000, 3, mean=5.0, zero_share=0.7)
    np.testing.assert_allclose((rare == 0).mean(axis=0), 0.7, atol=0.03)
    np.testing.assert_allclose(rare.mean(axis=0), 5.0, rtol=0.08)
    assert (synthetic_sales(20, 2, seed=1) == synthetic_sales(20, 2, seed=1)).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean": 0.0}, r"mean\[0\] = 0.0: must be finite and > 0"),
        ({"trend": -1.0}, r"trend = -1.0: must be finite and > -1.0"),
        ({"season": 1.5}, r"season = 1.5: must be at least 0 and below 1"),
        ({"season_length": 0}, r"season_length must be an integer >= 1, got 0"),
        ({"autocorrelation": 1.0}, r"autocorrelation = 1.0: must be between -1 and 1"),
        ({"disturbance": -0.1}, r"disturbance = -0.1: must be finite and >= 0"),
        ({"zero_share": -0.1}, r"zero_share = -0.1: must be at least 0 and below 1"),
    ],
)
def test_a_bad_feature_of_synthetic_sales_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        synthetic_sales(10, 2, **kwargs)
