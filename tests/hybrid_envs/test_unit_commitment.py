"""Every expected number here was worked out by hand from the problem's equations, or by enumerating its actions."""

import itertools

import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridUnitCommitmentEnv
from hybrid_envs.solvers import evaluate, reference_policy
from hybrid_envs.unit_commitment.milp import PerfectInformation, net_loads, perfect_information_bound
from hybrid_envs.unit_commitment.operator import MeritOrderOperator

TWO_UNITS = {
    "n_generators": 2,
    "min_output": [20.0, 5.0],
    "max_output": [50.0, 20.0],
    "fuel_cost": [0.25, 0.5],
    "no_load_cost": [2.0, 1.0],
    "start_cost": [10.0, 3.0],
    "battery_energy": 40.0,
    "battery_power": 10.0,
    "efficiency": 0.8,
    "shortage_cost": 4.0,
    "surplus_cost": 0.25,
}


def one_day(*net_load):
    """A record of one day, hence without deviations, that begins with the given net loads."""
    demand = np.zeros(24)
    demand[: len(net_load)] = net_load
    return np.column_stack([demand + 20, np.full(24, 20.0)])


def deviations_of(env, surprises):
    deviations = [np.zeros_like(surprises[0])]
    for surprise in surprises:
        deviations.append(env.net_load.persistence * deviations[-1] + surprise)
    return np.array(deviations[1:])


def play(env, actions, surprise=0.0):
    """The battery's energy after each period, and the cost of each."""
    state, energies, costs = env.initial(1, torch.Generator()), [], []
    for regime, point in actions:
        action = HybridAction(torch.tensor([regime]), torch.tensor([point]))
        result = env.step_torch(state, action, torch.tensor([[surprise]]))
        state = result.state
        energies.append(state.energy.item())
        costs.append(-result.reward.item())
    return energies, costs


def test_four_hours_by_hand():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, series=one_day(60, 30, 10, 0))
    actions = [
        (3, [40.0, 10.0, -5.0]),  # both start; 5 of 60 are missing although the battery gives 5
        (1, [40.0, 7.0, 8.0]),  # unit 1 is off whatever b says; 2 are left over after charging 8
        (2, [30.0, 3.0, -10.0]),  # unit 1 starts again and cannot run below 5; 5 are left over
        (0, [0.0, 0.0, -10.0]),  # the battery has 7.65 left, 6.12 at the bus, and nobody needs it
    ]
    energies, costs = play(env, actions)
    np.testing.assert_allclose(energies, [20 - 5 / 0.8, 13.75 + 8 * 0.8, 20.15 - 10 / 0.8, 0.0], rtol=1e-6)
    expected = [13 + 3 + 10 + 5 + 5 * 4, 2 + 10 + 2 * 0.25, 3 + 1 + 2.5 + 5 * 0.25, 6.12 * 0.25]
    np.testing.assert_allclose(costs, expected, rtol=1e-5)


def test_a_battery_that_is_almost_full_takes_no_more_than_fits():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, series=one_day(10))
    energies, costs = play(env, [(0, [0.0, 0.0, 10.0])] * 3)
    np.testing.assert_allclose(energies, [28.0, 36.0, 40.0])
    np.testing.assert_allclose(costs, [4 * 20, 4 * 10, 4 * 5], rtol=1e-5)


def test_net_load_is_its_mean_and_so_many_standard_deviations():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, peak_demand=100.0, renewable_share=0.0)
    _, costs = play(env, [(0, [0.0, 0.0, 0.0])], surprise=2.0)
    assert costs[0] == pytest.approx(4 * 50 * (1 + 2 * 0.05), rel=1e-4)  # at midnight half the peak, with 5 % deviation


def test_the_observation_shows_clock_units_battery_and_the_net_load_to_expect():
    env = HybridUnitCommitmentEnv(2, battery_energy=40.0, battery_power=10.0, efficiency=0.8, horizon=48)
    state, action = env.initial(1, torch.Generator()), HybridAction(torch.tensor([2]), torch.tensor([[0.0, 20.0, 10.0]]))
    for surprise in (1.0, 0.6):
        result = env.step_torch(state, action, torch.tensor([[surprise]]))
        state = result.state
    mean, std = env.net_load.mean, env.net_load.std
    forecast = [mean[2 + k] + std[2 + k] * 1.5 * 0.9 ** (k + 1) for k in range(6)]
    expected = [2 / 48, 0.5, np.sqrt(0.75), 0.0, 1.0, 0.9, *(np.array(forecast) / mean.max())]
    np.testing.assert_allclose(result.observation[0], expected, rtol=1e-5, atol=1e-6)


def test_generated_surprises_are_fresh_every_hour_and_add_up_to_deviations_of_variance_one():
    env = HybridUnitCommitmentEnv(1)
    surprises = env.sample_noise(20_000, torch.Generator().manual_seed(0))[..., 0].double().numpy()
    np.testing.assert_allclose(surprises @ surprises.T / 20_000, (1 - 0.9**2) * np.eye(24), atol=0.01)
    assert deviations_of(env, surprises)[-1].std() == pytest.approx(1.0, abs=0.02)


def test_the_forecast_of_a_record_fades_as_the_record_does():
    rng, deviation, loads = np.random.default_rng(0), 0.0, []
    for _ in range(24 * 400):
        deviation = 0.7 * deviation + rng.normal()
        loads.append(50 + deviation)
    env = HybridUnitCommitmentEnv(1, series=np.column_stack([loads, np.zeros(len(loads))]))
    assert env.net_load.persistence == pytest.approx(0.7, abs=0.03)
    assert env.net_load.std.mean() == pytest.approx(1 / np.sqrt(1 - 0.7**2), abs=0.05)


def test_every_set_of_units_is_a_regime_and_off_means_zero():
    env = HybridUnitCommitmentEnv(**TWO_UNITS)
    battery, off, first, second = [-10.0, 10.0], [0.0, 0.0], [20.0, 50.0], [5.0, 20.0]
    expected = [[off, off, battery], [first, off, battery], [off, second, battery], [first, second, battery]]
    assert env.action_bounds.tolist() == expected


def test_in_merit_order_each_regime_adds_the_next_cheapest_unit():
    costs = {"fuel_cost": [0.3, 0.1, 0.2, 0.28], "max_output": 10.0, "min_output": 1.0, "no_load_cost": [0.0, 0.0, 1.5, 0.0]}
    env = HybridUnitCommitmentEnv(4, commitments="merit_order", **costs)  # at full output: 0.3, 0.1, 0.35, 0.28
    assert env.units_on.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_fifty_units_make_fifty_one_regimes_in_merit_order():
    env = HybridUnitCommitmentEnv(50, commitments="merit_order")
    assert (env.n_regimes, env.action_size) == (51, 51)


def test_each_day_of_a_record_is_a_scenario():
    rng = np.random.default_rng(0)
    series = rng.uniform([30, 0], [60, 20], (24 * 5, 2))
    env = HybridUnitCommitmentEnv(2, series=series)
    assert env.net_load.recorded.shape == (5, 24)
    days = (series[:, 0] - series[:, 1]).reshape(5, 24)
    played = net_loads(env, 40, seed=0)
    matches = (np.abs(played[:, None] - days) < 1e-3).all(axis=2)
    assert (matches.sum(axis=1) == 1).all() and matches.any(axis=0).all()


def test_a_scenario_of_two_days_begins_at_midnight_and_runs_into_the_next_day():
    env = HybridUnitCommitmentEnv(2, series=np.random.default_rng(0).uniform(20, 60, (24 * 4 + 5, 2)) * [2, 1], horizon=48)
    assert env.net_load.recorded.shape == (3, 48)
    first, second = (deviations_of(env, surprises) for surprises in env.net_load.recorded[:2])
    np.testing.assert_allclose(first[24:], second[:24], atol=1e-12)


# ---- CSV files -----------------------------------------------------------------------------------------------------------


def csv_lines(first_hour=0, rows=72):
    return ["hour,demand,renewables", *(f"{(first_hour + k) % 24},{50 + k % 7},{k % 5}" for k in range(rows))]


def test_a_csv_file_is_read_from_its_first_midnight_on(tmp_path):
    path = tmp_path / "site.csv"
    path.write_text("\n".join(csv_lines(first_hour=22)) + "\n")
    env = HybridUnitCommitmentEnv(2, series=path)
    played = net_loads(env, 30, seed=0)
    days = np.array([[50 + k % 7 - k % 5 for k in range(start, start + 24)] for start in (2, 26)])
    assert {int(np.abs(days - day).sum(axis=1).argmin()) for day in played} == {0, 1}
    assert np.abs(played[:, None] - days).sum(axis=2).min(axis=1).max() < 1e-2


def edited(row, line):
    lines = csv_lines()
    lines[row - 1 : row] = line
    return lines


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (edited(1, ["hour,load,renewables"]), r"columns must be hour, demand, renewables, got hour, load, renewables"),
        (edited(1, ["demand,renewables"]), r"columns must be hour, demand, renewables, got demand, renewables"),
        ([], r"columns must be hour, demand, renewables, got an empty line"),
        (edited(9, []), r"row 9, column 'hour': 8; 7 was to follow: a gap or a repetition"),
        (edited(9, ["6,50,1"]), r"row 9, column 'hour': 6; 7 was to follow"),
        (edited(2, ["24,50,1"]), r"row 2, column 'hour': 24; it must be one of 0\.\.23"),
        (edited(9, ["7,nan,1"]), r"row 9, column 'demand': 'nan' is not a finite number >= 0"),
        (edited(9, ["7,50,"]), r"row 9, column 'renewables': '' is not a finite number >= 0"),
        (edited(9, ["7,-50,1"]), r"row 9, column 'demand': '-50' is not a finite number >= 0"),
        (edited(9, ["7,50"]), r"row 9 has 2 cells, the header has 3"),
        (edited(9, [""]), r"row 9 has 0 cells, the header has 3"),
        (csv_lines(rows=20), r"20 rows hold no 24 hours from midnight on"),
        (csv_lines(first_hour=3, rows=40), r"40 rows hold no 24 hours from midnight on"),
    ],
)
def test_a_bad_csv_file_is_refused_with_row_and_column(tmp_path, lines, message):
    path = tmp_path / "site.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"site.csv: .*{message}"):
        HybridUnitCommitmentEnv(2, series=str(path))


# ---- bad arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_generators": 0}, r"n_generators must be an integer >= 1, got 0"),
        ({"n_generators": 7}, r"n_generators = 7 with commitments = 'all' makes 2\^7 regimes; at most 64"),
        ({"commitments": "some"}, r"commitments must be 'all', 'merit_order' or 'free', got 'some'"),
        (TWO_UNITS | {"min_output": [20.0, 25.0]}, r"min_output\[1\] = 25.0 exceeds max_output\[1\] = 20.0"),
        (TWO_UNITS | {"min_output": [-1.0, 5.0]}, r"min_output\[0\] = -1.0: must be finite and >= 0"),
        ({"max_output": 0.0}, r"max_output\[0\] = 0.0: must be finite and > 0"),
        ({"max_output": [10.0, 20.0]}, r"max_output must be a scalar or have shape \(3,\), got shape \(2,\)"),
        ({"fuel_cost": -0.1}, r"fuel_cost\[0\] = -0.1: must be finite and >= 0"),
        ({"no_load_cost": [1.0, np.nan, 1.0]}, r"no_load_cost\[1\] = nan: must be finite"),
        ({"start_cost": [1.0, 2.0, -3.0]}, r"start_cost\[2\] = -3.0: must be finite and >= 0"),
        ({"battery_energy": 0.0}, r"battery_energy = 0.0: must be finite and > 0"),
        ({"battery_power": -5.0}, r"battery_power = -5.0: must be finite and > 0"),
        ({"efficiency": 1.2}, r"efficiency = 1.2: must be > 0 and <= 1"),
        ({"efficiency": 0.0}, r"efficiency = 0.0: must be finite and > 0"),
        ({"shortage_cost": -1.0}, r"shortage_cost = -1.0: must be finite and > 0"),
        ({"surplus_cost": -1.0}, r"surplus_cost = -1.0: must be finite and >= 0"),
        ({"peak_demand": 0.0}, r"peak_demand = 0.0: must be finite and > 0"),
        ({"renewable_share": -0.5}, r"renewable_share = -0.5: must be finite and >= 0"),
        ({"series": one_day(10), "peak_demand": 80.0}, r"peak_demand = 80.0 is for the generated day, not for series"),
        ({"series": np.ones((24, 3))}, r"series must have shape \(hours, 2\), demand and renewables, got \(24, 3\)"),
        ({"series": [["a", "b"]]}, r"series must be numeric"),
        ({"series": np.full((24, 2), np.inf)}, r"series\[0, 0\] = inf: demand must be finite and >= 0"),
        ({"series": np.ones((24, 2))}, r"series: the highest mean net load is 0 in hour 0; it must be > 0"),
        ({"series": one_day(10), "horizon": 30}, r"series: 24 rows hold no 30 hours from midnight on, horizon = 30"),
        ({"horizon": 0}, r"horizon must be an integer >= 1, got 0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridUnitCommitmentEnv(**kwargs)


# ---- the optimum under perfect information -------------------------------------------------------------------------------

SMALL = {
    "min_output": [3.0, 1.0],
    "max_output": [6.0, 4.0],
    "fuel_cost": [1.0, 2.0],
    "no_load_cost": [2.0, 0.5],
    "start_cost": [5.0, 1.0],
    "battery_energy": 4.0,
    "battery_power": 2.0,
    "efficiency": 1.0,
    "shortage_cost": 10.0,
    "surplus_cost": 0.5,
}


def enumerated_optimum(env, net_load):
    """Over all whole-numbered actions of two periods: with these whole numbers some optimum is among them."""
    actions = [
        (regime, list(map(float, point)))
        for regime, bounds in enumerate(env.action_bounds.astype(int))
        for point in itertools.product(*(range(low, high + 1) for low, high in bounds))
    ]
    pairs = torch.cartesian_prod(torch.arange(len(actions)), torch.arange(len(actions)))
    regimes, points = torch.tensor([regime for regime, _ in actions]), torch.tensor([point for _, point in actions])
    state, costs = env.initial(len(pairs), torch.Generator()), torch.zeros(len(pairs))
    for period in range(2):
        noise = torch.zeros(len(pairs), 1)
        result = env.step_torch(state, HybridAction(regimes[pairs[:, period]], points[pairs[:, period]]), noise)
        state, costs = result.state, costs - result.reward
    return costs.min().item()


@pytest.mark.parametrize("commitments", ["all", "merit_order"])
@pytest.mark.parametrize("net_load", [(5, 12), (9, 2), (1, 1), (0, 7), (12, 12), (4, 5)])
def test_the_programme_finds_the_optimum_of_two_periods(net_load, commitments):
    env = HybridUnitCommitmentEnv(2, **SMALL, commitments=commitments, series=one_day(*net_load), horizon=2)
    schedule = PerfectInformation(env, gap=0.0).solve(net_load)
    expected = enumerated_optimum(env, net_load)
    assert schedule.bound == pytest.approx(expected, abs=1e-4)
    assert schedule.cost == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [{"n_generators": 2, "surplus_cost": 0.2, "renewable_share": 0.9}, {"n_generators": 4, "commitments": "merit_order"}],
)
def test_the_schedule_of_the_programme_costs_in_the_environment_what_the_programme_says(kwargs):
    env = HybridUnitCommitmentEnv(**kwargs, horizon=10).to(dtype=torch.float64)
    noise = env.sample_noise(1, torch.Generator().manual_seed(1))
    net_load = env.net_load.mean[:10] + env.net_load.std[:10] * deviations_of(env, noise[:, 0, 0].numpy())
    schedule = PerfectInformation(env).solve(net_load)
    bounds = env.action_bounds[schedule.regimes]
    assert (schedule.points > bounds[..., 0] - 1e-4).all() and (schedule.points < bounds[..., 1] + 1e-4).all()
    state, cost = env.initial(1, torch.Generator()), 0.0
    for regime, point, xi in zip(schedule.regimes, schedule.points, noise, strict=True):
        action = HybridAction(torch.tensor([regime]), torch.tensor(point)[None])
        result = env.step_torch(state, action, xi)
        state, cost = result.state, cost - result.reward.item()
    assert cost == pytest.approx(schedule.cost, rel=1e-5)
    assert schedule.bound <= schedule.cost <= schedule.bound * 1.0002


class Careless:
    """Draws any regime and any point inside its bounds."""

    def __init__(self, env):
        self.bounds, self.rng = env.action_bounds, np.random.default_rng(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        regimes = self.rng.integers(len(self.bounds), size=len(observation))
        low, high = np.moveaxis(self.bounds[regimes], -1, 0)
        points = (low + self.rng.random(low.shape) * (high - low)).astype(np.float32)
        return list(zip(regimes.tolist(), points, strict=True)), None


def test_no_policy_costs_less_than_the_bound_on_any_scenario():
    env = HybridUnitCommitmentEnv(2, horizon=16)
    bound = perfect_information_bound(env, 3, seed=3)
    operators = [MeritOrderOperator(env, reserve, look_ahead) for reserve in (0.0, 1.5) for look_ahead in (0, 4)]
    costs = np.array([evaluate(env, policy, 3, seed=3) for policy in [*operators, Careless(env)]])
    assert (costs >= bound).all()
    assert costs.min() < 1.3 * bound.mean()  # it is not far below, either


# ---- the operator --------------------------------------------------------------------------------------------------------


def test_the_operator_decides_one_hour_by_hand():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, series=one_day(60, 30, 10, 0))
    operator = MeritOrderOperator(env, reserve=0.0, look_ahead=1, charge_below=0.4, discharge_above=0.9)
    at_midnight = env.observation(env.initial(1, torch.Generator())).numpy()
    (regime, point), _ = operator.predict(at_midnight[0])
    # 60 are expected; the battery gives 6 to shave them to 54; unit 1 runs at its minimum of 5, unit 0 serves the other 49
    assert regime == 3
    np.testing.assert_allclose(point, [49.0, 5.0, -6.0], atol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"n_generators": 9, "commitments": "merit_order", "renewable_share": 1.2}])
@pytest.mark.parametrize("parameters", [(0.0, 0, -1.0, 2.0), (2.0, 5, 0.5, 0.6)])
def test_what_the_operator_decides_is_feasible_to_the_last_digit(kwargs, parameters):
    env = HybridUnitCommitmentEnv(**kwargs)
    operator = MeritOrderOperator(env, *parameters)
    rng = np.random.default_rng(0)
    observation = rng.uniform(0, 1.2, (500, env.observation_space.shape[0])).astype(np.float32)
    observation[:, 3 : 3 + env.n_generators] = rng.integers(2, size=(500, env.n_generators))
    actions, _ = operator.predict(observation)
    for regime, point in actions:
        low, high = env.action_bounds[regime].T
        assert (point >= low).all() and (point <= high).all()


@pytest.mark.slow
def test_the_best_operator_costs_what_it_says_and_no_more_than_the_one_it_starts_from():
    env = HybridUnitCommitmentEnv(2, horizon=12)
    best = reference_policy(env)
    costs, start = (evaluate(env, policy, 2000, seed=9) for policy in (best, MeritOrderOperator(env)))
    assert abs(costs.mean() - best.cost) < 2 * best.half_width
    assert costs.mean() <= start.mean()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reserve": -1.0}, r"reserve = -1.0: must be finite and >= 0"),
        ({"look_ahead": -1}, r"look_ahead must be an integer >= 0, got -1"),
        ({"look_ahead": 6}, r"look_ahead = 6: forecasts reach 5 hours ahead"),
        ({"charge_below": 0.7, "discharge_above": 0.6}, r"discharge_above = 0.6: must be finite and > 0.7"),
    ],
)
def test_a_bad_parameter_of_the_operator_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MeritOrderOperator(HybridUnitCommitmentEnv(2), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"gap": -1e-3}, r"gap = -0.001"), ({"time_limit": 0.0}, r"time_limit = 0.0")]
)
def test_a_bad_parameter_of_the_programme_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PerfectInformation(HybridUnitCommitmentEnv(2), **kwargs)


def test_a_net_load_that_is_not_finite_or_too_short_is_refused():
    programme = PerfectInformation(HybridUnitCommitmentEnv(2, horizon=3))
    with pytest.raises(ValueError, match=r"net_load\[1\] = nan"):
        programme.solve([1.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"net_load must be a scalar or have shape \(3,\), got shape \(2,\)"):
        programme.solve([1.0, 2.0])
