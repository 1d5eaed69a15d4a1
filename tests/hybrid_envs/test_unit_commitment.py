"""Every expected number here was worked out by hand from the problem's equations, or by enumerating its actions."""

import itertools

import numpy as np
import pytest
import torch

from hybrid_envs import HybridAction, HybridUnitCommitmentEnv, check_hybrid_env
from hybrid_envs.solvers import evaluate, reference_policy
from hybrid_envs.unit_commitment import env as env_module
from hybrid_envs.unit_commitment.milp import CommitmentProgramme, PerfectInformation, net_loads, perfect_information_bound
from hybrid_envs.unit_commitment.operator import MeritOrderOperator
from hybrid_envs.unit_commitment.rolling import RollingHorizon
from sb3_hpo import HPO

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


def test_an_hour_that_never_varied_in_training_is_simulated_as_it_was_recorded():
    record = np.random.default_rng(0).uniform(40, 60, (240, 2)) * [2, 1]
    record[: 24 * 6].reshape(6, 24, 2)[:, :5] = [90, 50]
    record[24 * 8 :].reshape(2, 24, 2)[:, :5] = [120, 50]
    env = HybridUnitCommitmentEnv(2, series=record, split="test")
    days = (record[24 * 8 :, 0] - record[24 * 8 :, 1]).reshape(2, 24)
    played = net_loads(env, 20, seed=0)
    assert (np.abs(played[:, None] - days) < 1e-3).all(axis=2).any(axis=1).all()


# ---- CSV files -----------------------------------------------------------------------------------------------------------


def csv_lines(first_hour=0, rows=72):
    return ["hour,demand,renewables", *(f"{(first_hour + k) % 24},{50 + k % 7},{k % 5}" for k in range(rows))]


@pytest.mark.parametrize(("split", "days"), [("train", range(6)), ("validation", range(6, 8)), ("test", range(8, 10))])
def test_parts_of_a_record_are_days_apart_measured_by_the_first(split, days):
    record = np.random.default_rng(1).uniform(40, 60, (240, 2)) * [2, 1]
    record[24 * 6 :] *= 3  # what came later must not be known
    env = HybridUnitCommitmentEnv(series=record, split=split)
    net = (record[:, 0] - record[:, 1]).reshape(10, 24)
    np.testing.assert_allclose(env.net_load.mean, net[:6].mean(axis=0))
    np.testing.assert_allclose(env.net_load.std, net[:6].std(axis=0))
    z = (net[days] - net[:6].mean(axis=0)) / net[:6].std(axis=0)
    surprises = np.column_stack([z[:, 0], z[:, 1:] - env.net_load.persistence * z[:, :-1]])
    np.testing.assert_allclose(env.net_load.recorded, surprises)
    assert env.net_load.persistence == HybridUnitCommitmentEnv(series=record, split="train").net_load.persistence


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


# ---- free commitments ----------------------------------------------------------------------------------------------------


def bits_of(regime, n_generators):
    return torch.tensor([[x >> i & 1 for i in range(n_generators)] for x in regime.tolist()])


def test_free_commitments_are_all_commitments_step_by_step():
    every, free = (HybridUnitCommitmentEnv(3, commitments=commitments, surplus_cost=0.1) for commitments in ("all", "free"))
    generator = torch.Generator().manual_seed(0)
    state = other = every.initial(200, generator)
    assert all(a.equal(b) for a, b in zip(state, free.initial(200, generator), strict=True))
    for noise in every.sample_noise(200, generator):
        regime = torch.randint(8, (200,), generator=generator)
        low, high = torch.from_numpy(every.action_bounds)[regime].unbind(-1)
        point = low + torch.rand(200, 4, generator=generator) * (high - low)
        expected = every.step_torch(state, HybridAction(regime, point), noise)
        result = free.step_torch(other, HybridAction(bits_of(regime, 3), point), noise)
        state, other = expected.state, result.state
        for a, b in zip((*expected.state, *expected[1:]), (*result.state, *result[1:]), strict=True):
            assert a.equal(b)


def test_each_output_answers_to_its_unit_and_the_battery_to_none():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, commitments="free")
    assert env.action_space.spaces[0].nvec.tolist() == [2, 2]
    low, high = env.factors.bounds_of(np.array([[0, 1], [1, 0]]), env.action_bounds)
    assert low.tolist() == [[0.0, 5.0, -10.0], [20.0, 0.0, -10.0]]
    assert high.tolist() == [[0.0, 20.0, 10.0], [50.0, 0.0, 10.0]]
    assert env.factors.factor_of.tolist() == [0, 1, -1]


def test_fifty_free_units_make_fifty_factors():
    env = HybridUnitCommitmentEnv(50, commitments="free")
    assert (env.factors.n_factors, env.action_size) == (50, 51)


@pytest.mark.parametrize("kwargs", [{}, {"min_up_time": 3, "min_down_time": 2, "min_units_on": 1}])
def test_the_checker_finds_nothing_wrong_with_free_commitments(kwargs):
    check_hybrid_env(HybridUnitCommitmentEnv(3, commitments="free", **kwargs))


def test_a_mask_of_ones_own_is_heeded_where_nothing_holds_a_unit():
    class InRepair(HybridUnitCommitmentEnv):
        def regime_mask(self, state):
            mask = super().regime_mask(state).clone()
            mask[:, 1] = False  # the first unit stays off
            return mask

    env = InRepair(2, commitments="free")
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False, True, True]
    with pytest.raises(ValueError, match="masked"):
        env.step((np.array([1, 0]), env.action_space[1].low))


def test_nobody_pays_for_masks_where_nothing_holds_a_unit():
    env = HybridUnitCommitmentEnv(3, commitments="free", min_units_on=1)
    assert not env.masks_regimes
    assert env.regime_mask(env.initial(2, torch.Generator())).all()
    assert env.observation_space.shape == (13,)


def held_by_history(history, up, down):
    """For how many hours a unit with these runs of hours on (1) and off (0) must stay as it is; off without limit before."""
    same = next((k for k, x in enumerate(reversed(history)) if x != history[-1]), None)
    return 0 if same is None else max((up if history[-1] else down) - same, 0)


def test_the_mask_honours_up_and_down_times():
    up, down = [1, 3, 4, 2], [2, 1, 5, 3]
    env = HybridUnitCommitmentEnv(4, commitments="free", min_up_time=up, min_down_time=down, horizon=60)
    rng, batch = np.random.default_rng(0), 20
    state = env.initial(batch, torch.Generator())
    history = np.zeros((1, batch, 4), dtype=int)  # off the hour before
    point, noise = torch.zeros(batch, 5), torch.zeros(batch, 1)
    blocked = 0
    for _ in range(env.horizon):
        held = np.array([[held_by_history(history[:, b, i].tolist(), up[i], down[i]) for i in range(4)] for b in range(batch)])
        np.testing.assert_array_equal(env.observation(state)[:, -4:], held)
        expected = np.ones((batch, 4, 2), dtype=bool)
        rows, units = np.nonzero(held)
        expected[rows, units, 1 - history[-1, rows, units]] = False
        mask = env.regime_mask(state)
        np.testing.assert_array_equal(mask, expected.reshape(batch, 8))
        blocked += (~mask).sum().item()
        regime = env.factors.allowed(torch.from_numpy(rng.integers(2, size=(batch, 4))), mask)
        state = env.step_torch(state, HybridAction(regime, point), noise).state
        history = np.concatenate([history, regime.numpy()[None]])
    assert blocked > 1000
    for i in range(4):
        for b in range(batch):
            runs = [(x, len(list(hours))) for x, hours in itertools.groupby(history[:, b, i].tolist())][1:-1]
            assert all(length >= (up[i] if x else down[i]) for x, length in runs)


def test_a_unit_that_has_started_cannot_be_stopped_at_once():
    env = HybridUnitCommitmentEnv(2, commitments="free", min_up_time=[2, 1], min_down_time=2)
    env.reset(seed=0)
    env.step((np.array([1, 1]), env.action_bounds[1, :, 0]))
    with pytest.raises(ValueError, match=r"regime\[0\] = 0 is masked in this state; allowed are \[1\]"):
        env.step((np.array([0, 0]), env.action_bounds[0, :, 0]))
    env.step((np.array([1, 0]), env.action_bounds[1, :, 0]))
    with pytest.raises(ValueError, match=r"regime\[1\] = 1 is masked in this state; allowed are \[0\]"):
        env.step((np.array([1, 1]), env.action_bounds[1, :, 0]))


def test_too_few_units_on_are_refused():
    env = HybridUnitCommitmentEnv(3, commitments="free", min_units_on=2)
    env.reset(seed=0)
    env.step((np.array([1, 0, 1]), env.action_bounds[1, :, 0]))
    with pytest.raises(ValueError, match=r"1 factors are in another regime than 0; allowed are 2 to 3"):
        env.step((np.array([0, 0, 1]), env.action_bounds[1, :, 0]))


def test_a_policy_keeps_to_up_and_down_times_and_least_units():
    env = HybridUnitCommitmentEnv(3, commitments="free", min_up_time=3, min_down_time=[1, 2, 4], min_units_on=1, horizon=12)
    model = HPO("MlpPolicy", env, n_scenarios=8, seed=0, policy_kwargs={"net_arch": [8]}).learn(2 * 8 * 12)
    costs = evaluate(env, model, 20, seed=0)  # which refuses what is masked and too few units
    assert np.isfinite(costs).all()


def test_the_picture_marks_the_number_of_units_on(monkeypatch):
    pictures = []
    monkeypatch.setattr(env_module, "draw_episode", lambda *args: pictures.append(args) or np.zeros((1, 1, 3), np.uint8))
    env = HybridUnitCommitmentEnv(4, commitments="free", render_mode="rgb_array")
    env.reset(seed=0)
    for regime in ([1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]):
        env.step((np.array(regime), np.zeros(5)))
    env.render()
    frames, series, _, names, _ = pictures[0]
    assert [frame.regime for frame in frames] == [None, 3, 0, 1]
    assert names == {0: "no unit", 1: "1 on", 3: "3 on"}
    np.testing.assert_allclose(series[:, 1], [0.0, 0.75, 0.0, 0.25])


@pytest.mark.parametrize("kwargs", [{}, {"n_generators": 20}, {"n_generators": 50}, {"n_generators": 20, "min_up_time": 3}])
def test_networks_see_a_unit_more_of_demand_as_a_number_near_1(kwargs):
    env = HybridUnitCommitmentEnv(**kwargs, commitments="free")
    state = env.template()
    scale = torch.as_tensor(env.observation_scale)
    seen = env.observation(state) / scale
    unit = env.params.max_output.mean() / env.net_load.std[0] / env.net_load.persistence  # in deviations of the last hour
    level = env.params.battery_power  # kWh in an hour
    more = state._replace(deviation=state.deviation + unit, energy=state.energy + level)
    change = (env.observation(more) / scale - seen)[0, 3 + env.n_generators :]
    assert change[0] == pytest.approx(1.0)  # of the battery
    assert 0.2 < change[1] < 1.0  # of the forecast for this hour


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_up_time": 0}, r"min_up_time\[0\] = 0.0: must be finite and >= 1"),
        ({"min_down_time": [1, 2.5, 3]}, r"min_down_time\[1\] = 2.5: must be a whole number of hours"),
        ({"min_up_time": [1, 2]}, r"min_up_time must be a scalar or have shape \(3,\), got shape \(2,\)"),
        ({"min_down_time": np.nan}, r"min_down_time\[0\] = nan: must be finite"),
        ({"min_units_on": -1}, r"min_units_on must be an integer >= 0, got -1"),
        ({"min_units_on": 1.5}, r"min_units_on must be an integer >= 0, got 1.5"),
        ({"min_units_on": 4}, r"min_units_on = 4 exceeds n_generators = 3"),
        ({"commitments": "all", "min_up_time": 2}, r"min_up_time = 2 is for commitments = 'free', not for 'all'"),
        (
            {"commitments": "merit_order", "min_down_time": [1, 1, 3]},
            r"min_down_time = \[1, 1, 3\] is for .* not for 'merit_order'",
        ),
        ({"commitments": "all", "min_units_on": 1}, r"min_units_on = 1 is for commitments = 'free', not for 'all'"),
    ],
)
def test_a_bad_argument_of_free_commitments_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HybridUnitCommitmentEnv(**{"n_generators": 3, "commitments": "free"} | kwargs)


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
        ({"split": "test"}, r"split = 'test' is of series, and there are none"),
        ({"series": one_day(10), "split": "tset"}, r"split must be None or one of 'train', 'validation', 'test', got 'tset'"),
        ({"series": one_day(10), "split": "test"}, r"series: 5 rows of 'test' hold no 24 hours from midnight on"),
        ({"series": one_day(10), "split": "test", "split_shares": [0.5, 0.5]}, r"split_shares must .*shape \(3,\)"),
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
    regimes = env.factors.every().numpy()
    low, high = env.factors.bounds_of(regimes, env.action_bounds.astype(int))
    actions = [
        (regime.tolist(), list(map(float, point)))
        for regime, least, most in zip(regimes, low, high, strict=True)
        for point in itertools.product(*(range(a, b + 1) for a, b in zip(least, most, strict=True)))
    ]
    pairs = torch.cartesian_prod(torch.arange(len(actions)), torch.arange(len(actions)))
    regimes, points = torch.tensor([regime for regime, _ in actions]), torch.tensor([point for _, point in actions])
    state, costs = env.initial(len(pairs), torch.Generator()), torch.zeros(len(pairs))
    for period in range(2):
        noise = torch.zeros(len(pairs), 1)
        result = env.step_torch(state, HybridAction(regimes[pairs[:, period]], points[pairs[:, period]]), noise)
        state, costs = result.state, costs - result.reward
    return costs.min().item()


@pytest.mark.parametrize("commitments", ["all", "merit_order", "free"])
@pytest.mark.parametrize("net_load", [(5, 12), (9, 2), (1, 1), (0, 7), (12, 12), (4, 5)])
def test_the_programme_finds_the_optimum_of_two_periods(net_load, commitments):
    env = HybridUnitCommitmentEnv(2, **SMALL, commitments=commitments, series=one_day(*net_load), horizon=2)
    schedule = PerfectInformation(env, gap=0.0).solve(net_load)
    expected = enumerated_optimum(env, net_load)
    assert schedule.bound == pytest.approx(expected, abs=1e-4)
    assert schedule.cost == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_generators": 2, "surplus_cost": 0.2, "renewable_share": 0.9},
        {"n_generators": 4, "commitments": "merit_order"},
        {"n_generators": 4, "commitments": "free", "min_up_time": 3, "min_down_time": [1, 2, 3, 4], "min_units_on": 1},
    ],
)
def test_the_schedule_of_the_programme_costs_in_the_environment_what_the_programme_says(kwargs):
    env = HybridUnitCommitmentEnv(**kwargs, horizon=10).to(dtype=torch.float64)
    noise = env.sample_noise(1, torch.Generator().manual_seed(1))
    net_load = env.net_load.mean[:10] + env.net_load.std[:10] * deviations_of(env, noise[:, 0, 0].numpy())
    schedule = PerfectInformation(env).solve(net_load)
    low, high = env.factors.bounds_of(schedule.regimes, env.action_bounds)
    assert (schedule.points > low - 1e-4).all() and (schedule.points < high + 1e-4).all()
    state, cost = env.initial(1, torch.Generator()), 0.0
    for regime, point, xi in zip(schedule.regimes, schedule.points, noise, strict=True):
        action = HybridAction(torch.as_tensor(regime)[None], torch.tensor(point)[None])
        assert env.factors.permits(action.regime, env.regime_mask(state))
        result = env.step_torch(state, action, xi)
        state, cost = result.state, cost - result.reward.item()
    assert cost == pytest.approx(schedule.cost, rel=1e-5)
    assert schedule.bound <= schedule.cost <= schedule.bound * 1.0002


NO_BATTERY = SMALL | {"battery_energy": 1e-6, "battery_power": 1e-6, "surplus_cost": 0.0}


def dispatch_cost(on, net_load):
    """Of one hour without a battery: minimum outputs, then the cheaper unit first, then shortage."""
    least, most, fuel = (np.array(SMALL[name]) * on for name in ("min_output", "max_output", "fuel_cost"))
    missing, cost = max(net_load - least.sum(), 0.0), least @ fuel
    for i in range(2):
        served = min(missing, most[i] - least[i])
        missing, cost = missing - served, cost + served * fuel[i]
    return cost + 10.0 * missing


def cheapest_sequence(net_load, up, down, before, min_units_on):
    """Over all sequences of commitments whose runs are long enough; ``before``: what each unit did in the hours before."""
    hours, on_costs, start_costs = len(net_load), np.array([2.0, 0.5]), np.array([5.0, 1.0])
    allowed = []
    for i in range(2):
        sequences = []
        for sequence in itertools.product((0, 1), repeat=hours):
            past = list(before[i])
            for x in sequence:
                if x != past[-1] and held_by_history(past, up[i], down[i]):
                    break
                past.append(x)
            else:
                sequences.append(sequence)
        allowed.append(sequences)
    hourly = {
        (on, t): dispatch_cost(np.array(on), x) for on in itertools.product((0, 1), repeat=2) for t, x in enumerate(net_load)
    }
    best = np.inf
    for pair in itertools.product(*allowed):
        units = np.array(pair).T
        if (units.sum(axis=1) < min_units_on).any():
            continue
        previous = np.vstack([[before[0][-1], before[1][-1]], units[:-1]])
        cost = (units @ on_costs).sum() + ((units > previous) @ start_costs).sum()
        best = min(best, cost + sum(hourly[tuple(on), t] for t, on in enumerate(units.tolist())))
    return best


@pytest.mark.parametrize(
    ("up", "down", "before", "min_units_on"),
    [
        ([1, 1], [1, 1], ([0], [0]), 0),
        ([3, 2], [2, 3], ([0], [0]), 0),
        ([4, 1], [1, 9], ([0], [0]), 1),
        ([4, 2], [3, 3], ([0, 1], [1, 0]), 0),
        ([2, 9], [2, 4], ([1, 1], [0, 1, 1]), 0),
        ([1, 3], [4, 2], ([1, 0, 0], [0, 1]), 1),
    ],
)
def test_the_programme_finds_the_optimum_under_up_and_down_times(up, down, before, min_units_on):
    for net_load in ([7.0, 0.0, 9.0, 3.0, 0.0], [0.0, 10.0, 1.0, 2.0, 8.0], [4.0, 4.0, 0.0, 0.0, 6.0]):
        env = HybridUnitCommitmentEnv(
            2,
            **NO_BATTERY,
            commitments="free",
            min_up_time=up,
            min_down_time=down,
            min_units_on=min_units_on,
            series=one_day(9),
        )
        held = [held_by_history(before[i], up[i], down[i]) for i in range(2)]
        schedule = CommitmentProgramme(env, 5, gap=0.0).solve(net_load, [past[-1] for past in before], np.array(held), 0.0)
        assert schedule.cost == pytest.approx(cheapest_sequence(net_load, up, down, before, min_units_on), abs=1e-3)


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


# ---- planning ahead ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commitments", ["all", "free"])
@pytest.mark.parametrize("net_load", [(5, 12), (1, 1), (0, 7)])
def test_with_a_certain_forecast_of_all_hours_left_planning_ahead_is_optimal(net_load, commitments):
    env = HybridUnitCommitmentEnv(2, **SMALL, commitments=commitments, series=one_day(*net_load), horizon=2)
    costs = evaluate(env, RollingHorizon(env, reserve=0.0, gap=0.0), 1, seed=0)
    assert costs[0] == pytest.approx(enumerated_optimum(env, net_load), abs=1e-4)


def test_planning_ahead_keeps_to_up_and_down_times_and_plans_with_them():
    net_load, up, down = [7.0, 0.0, 9.0, 3.0, 0.0], [3, 2], [2, 3]
    series = one_day(*net_load)
    env = HybridUnitCommitmentEnv(
        2, **NO_BATTERY, commitments="free", min_up_time=up, min_down_time=down, min_units_on=1, series=series, horizon=5
    )
    costs = evaluate(env, RollingHorizon(env, reserve=0.0, gap=0.0), 1, seed=0)
    assert costs[0] == pytest.approx(cheapest_sequence(net_load, up, down, ([0], [0]), 1), abs=1e-3)


def test_the_reserve_is_planned_beyond_the_forecast():
    env = HybridUnitCommitmentEnv(
        1, max_output=500.0, min_output=0.0, start_cost=0.0, battery_energy=1e-3, battery_power=1e-3, horizon=1
    )
    observation = env.observation(env.initial(1, torch.Generator())).numpy()
    outputs = [RollingHorizon(env, reserve).act(observation, np.zeros(1, dtype=int))[1][0, 0] for reserve in (0.0, 2.0)]
    expected = env.net_load.mean[0] + np.array([0.0, 2.0]) * env.net_load.std[0] * np.sqrt(1 - 0.9**2)
    np.testing.assert_allclose(outputs, expected, atol=0.01)


@pytest.mark.slow
def test_the_best_reserve_costs_what_it_says_and_less_than_the_operator():
    env = HybridUnitCommitmentEnv(2, commitments="free", horizon=6)
    best = RollingHorizon.best(env)
    costs, operator = (evaluate(env, policy, 64, seed=9) for policy in (best, MeritOrderOperator.best(env)))
    assert abs(costs.mean() - best.cost) < 2 * best.half_width
    assert costs.mean() < operator.mean()


# ---- the operator --------------------------------------------------------------------------------------------------------


def test_the_operator_decides_one_hour_by_hand():
    env = HybridUnitCommitmentEnv(**TWO_UNITS, series=one_day(60, 30, 10, 0))
    operator = MeritOrderOperator(env, reserve=0.0, look_ahead=1, charge_below=0.4, discharge_above=0.9)
    at_midnight = env.observation(env.initial(1, torch.Generator())).numpy()
    (regime, point), _ = operator.predict(at_midnight[0])
    # 60 are expected; the battery gives 6 to shave them to 54; unit 1 runs at its minimum of 5, unit 0 serves the other 49
    assert regime == 3
    np.testing.assert_allclose(point, [49.0, 5.0, -6.0], atol=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"n_generators": 9, "commitments": "merit_order", "renewable_share": 1.2},
        {"n_generators": 9, "commitments": "free"},
    ],
)
@pytest.mark.parametrize("parameters", [(0.0, 0, -1.0, 2.0), (2.0, 5, 0.5, 0.6)])
def test_what_the_operator_decides_is_feasible_to_the_last_digit(kwargs, parameters):
    env = HybridUnitCommitmentEnv(**kwargs)
    operator = MeritOrderOperator(env, *parameters)
    rng = np.random.default_rng(0)
    observation = rng.uniform(0, 1.2, (500, env.observation_space.shape[0])).astype(np.float32)
    observation[:, 3 : 3 + env.n_generators] = rng.integers(2, size=(500, env.n_generators))
    actions, _ = operator.predict(observation)
    for regime, point in actions:
        low, high = (bound[0] for bound in env.factors.bounds_of(np.array([regime]), env.action_bounds))
        assert (point >= low).all() and (point <= high).all()


@pytest.mark.parametrize("kwargs", [{"n_generators": 3}, {"n_generators": 9, "renewable_share": 1.2, "fuel_cost": 0.2}])
def test_the_operator_costs_the_same_on_free_commitments(kwargs):
    envs = [HybridUnitCommitmentEnv(**kwargs, commitments=commitments) for commitments in ("merit_order", "free")]
    expected, costs = (evaluate(env, MeritOrderOperator(env), 50, seed=1) for env in envs)
    np.testing.assert_array_equal(costs, expected)


def test_the_operator_leaves_held_units_as_they_are():
    env = HybridUnitCommitmentEnv(
        5, commitments="free", min_up_time=[5, 4, 3, 2, 1], min_down_time=[4, 4, 1, 3, 2], min_units_on=2, renewable_share=1.2
    )
    free = HybridUnitCommitmentEnv(5, commitments="free", renewable_share=1.2)
    costs, without = (evaluate(each, MeritOrderOperator(each), 50, seed=1) for each in (env, free))  # refuses what is masked
    assert without.mean() < costs.mean() < 1.5 * without.mean()


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


def test_a_bad_parameter_of_planning_ahead_is_named():
    with pytest.raises(ValueError, match=r"reserve = -0.5: must be finite and >= 0"):
        RollingHorizon(HybridUnitCommitmentEnv(2), reserve=-0.5)
    with pytest.raises(ValueError, match=r"hours must be an integer >= 1, got 0"):
        CommitmentProgramme(HybridUnitCommitmentEnv(2), hours=0)


def test_a_net_load_that_is_not_finite_or_too_short_is_refused():
    programme = PerfectInformation(HybridUnitCommitmentEnv(2, horizon=3))
    with pytest.raises(ValueError, match=r"net_load\[1\] = nan"):
        programme.solve([1.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"net_load must be a scalar or have shape \(3,\), got shape \(2,\)"):
        programme.solve([1.0, 2.0])
