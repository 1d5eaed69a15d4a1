"""The commands of README and docs run, in a small form."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import baselines, evidence, learning_curves, paper, suite
from benchmarks.zoo import run_all

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_quick_demo_prints_the_table_and_leaves_model_log_and_picture(tmp_path):
    result = run("benchmarks.demo", "--quick", "--items", "2", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    for row in ("HPO", "HybridPPO", "periodic review", "proven lower bound"):
        assert row in result.stdout
    assert (tmp_path / "hpo.zip").stat().st_size > 0
    assert (tmp_path / "hybrid_ppo.zip").stat().st_size > 0
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("tensorboard/hpo_1/events*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmarks.demo", "--items", "0"], "--items must be at least 1, got 0"),
        (["benchmarks.train", "--env", "HybridInventry-v0"], "Did you mean: `HybridInventory`?"),
    ],
)
def test_a_wrong_argument_is_a_line_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_training_reports_every_seed_and_writes_its_results_the_same_in_one_process_and_in_two(tmp_path):
    lqr = ("--env", "HybridSwitchedLQR-v0", "--env-kwargs", "n_dims=3", "horizon=5", "--hyperparams", "gamma=0.98")
    lines, runs = [], []
    for jobs in ("1", "2"):
        file = tmp_path / f"{jobs}.json"
        result = run("benchmarks.train", *lqr, "--seeds", "0", "1", "--iterations", "3", "--jobs", jobs, "--out", str(file))
        assert result.returncode == 0, result.stderr
        lines.append(sorted(re.sub(r"\d+ s$", "", line) for line in result.stdout.splitlines()))
        runs.append([entry | {"seconds": None} for entry in json.loads(file.read_text())["runs"]])
    assert [entry["seed"] for entry in runs[0]] == [0, 1]
    assert "seed 1: 3 iterations" in lines[0][1]
    assert lines[0] == lines[1]
    assert runs[0] == runs[1]


def test_runs_come_back_in_order_and_an_error_of_one_is_raised():
    assert run_all(divmod, [(7, 2), (5, 3)], jobs=2) == [(3, 1), (1, 2)]
    with pytest.raises(ZeroDivisionError):
        run_all(divmod, [(7, 2), (5, 0)], jobs=2)
    with pytest.raises(ValueError, match="--jobs must be an integer >= 1, got 0"):
        run_all(divmod, [(7, 2)], jobs=0)


def test_the_lookahead_benchmark_compares_depths_with_the_policy_itself():
    lqr = ("--env", "HybridSwitchedLQR-v0", "--env-kwargs", "n_dims=3", "horizon=5")
    few = ("--iterations", "2", "--scenarios", "5", "--futures", "1", "--depths", "2")
    teaching = ("--teach", "1", "--teach-points", "1", "--episodes", "4")
    result = run("benchmarks.lookahead", *lqr, *few, *teaching)
    assert result.returncode == 0, result.stderr
    titles = [line.split(":")[0] for line in result.stdout.splitlines()]
    taught = [f"taught {what} in 1 rounds of 4 episodes" for what in ("regimes", "points")]
    looks = [f"looking {depth} periods ahead, {steps} refinements" for depth in ("all", "2") for steps in (0, 20)]
    assert titles == ["reference policy", "policy as trained", *taught, *looks]


def test_the_evidence_is_found_again_and_what_has_drifted_is_an_error(monkeypatch, capsys):
    result = run("benchmarks.evidence", "--rows", "lost-sales-optimum", "bound")
    assert result.returncode == 0, result.stderr
    assert "DRIFTED" not in result.stdout and result.stdout.count(".md: ") == 2

    drifted = evidence.rows()["bound"]._replace(low=0.0, high=36.0)
    monkeypatch.setattr(evidence, "rows", lambda: {"bound": drifted})
    monkeypatch.setattr(sys, "argv", ["evidence"])
    with pytest.raises(SystemExit, match="1 of 1 figures are not what was published"):
        evidence.main()
    assert "DRIFTED" in capsys.readouterr().out


def test_an_interval_holds_one_more_seed_nineteen_times_in_twenty():
    seeds = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    intervals = np.array([evidence.expected(costs) for costs in seeds[:, :3]])
    held = (intervals[:, 0] <= seeds[:, 3]) & (seeds[:, 3] <= intervals[:, 1])
    assert abs(held.mean() - 0.95) < 0.015


def test_the_gap_benchmark_trains_each_half_on():
    lqr = ("--env", "HybridSwitchedLQR-v0", "--env-kwargs", "n_dims=3", "horizon=5")
    result = run("benchmarks.gap", *lqr, "--iterations", "2", "--further", "1")
    assert result.returncode == 0, result.stderr
    titles = [line.split(":")[0].split(" for")[0] for line in result.stdout.splitlines()]
    trained_on = [f"{half} trained on" for half in ("points", "regimes", "both")]
    assert titles == ["reference policy", "as trained", *trained_on]


def test_the_time_to_a_gap_is_that_of_training_until_it_is_reached():
    lqr = (
        "--env",
        "HybridSwitchedLQR-v0",
        "--env-kwargs",
        "n_dims=3",
        "horizon=5",
        "--seeds",
        "0",
        "--hyperparams",
        "gamma=0.98",
    )
    result = run("benchmarks.time_to_gap", *lqr, "--iterations", "3", "--gap", "0")
    assert result.stdout == "seed 0: not there, 3 iterations\n", result.stderr
    result = run("benchmarks.time_to_gap", *lqr, "--iterations", "300", "--gap", "0.5")
    arrived = re.fullmatch(r"seed 0: (\d+\.\d) s of processor time, (\d+) iterations\n", result.stdout)
    assert arrived is not None, result.stdout + result.stderr
    assert float(arrived[1]) > 0
    assert 0 < int(arrived[2]) < 300


def test_the_speed_benchmark_reports_the_parts_of_an_iteration_and_the_simulators():
    result = run("benchmarks.speed", "--iterations", "1", "--hidden", "8", "--scenarios", "4", "--seconds", "0.01")
    assert result.returncode == 0, result.stderr
    for part in ("rollout", "backward", "PPO epochs", "SyncVectorEnv"):
        assert part in result.stdout
    for problem in ("inventory", "inventory-512", "switched-lqr", "unit-commitment"):
        (row,) = (line for line in result.stdout.splitlines() if line.split()[:1] == [problem])
        assert row.count("=") == 4  # time / that of the matrix products = how many times as long


def test_the_trace_of_an_iteration_is_one_that_browsers_open(tmp_path):
    chosen = ("--problems", "unit-commitment", "--hidden", "8", "--iterations", "1")
    result = run("benchmarks.speed", *chosen, "--profile", str(tmp_path / "traces"))
    assert result.returncode == 0, result.stderr
    assert "SyncVectorEnv" not in result.stdout
    events = json.loads((tmp_path / "traces" / "unit-commitment.json").read_text())["traceEvents"]
    assert {"aten::addmm", "aten::mm"} <= {event.get("name") for event in events}


def test_the_export_benchmark_reports_agreement_and_latency():
    result = run(
        "benchmarks.export", "--envs", "HybridPortfolio-v0", "--observations", "100", "--iterations", "1", "--normalize"
    )
    assert result.returncode == 0, result.stderr
    titles, row = result.stdout.splitlines()
    assert "regimes equal" in titles
    assert "times faster" in titles
    assert row.split()[:2] == ["HybridPortfolio-v0", "100.00%"]


def test_the_suite_compares_both_algorithms_with_the_reference_and_repeats_no_run(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    command = (
        "benchmarks.suite",
        "--envs",
        "HybridSwitchedLQR-v0",
        "--sizes",
        "small",
        "--seeds",
        "0",
        "1",
        "--iterations",
        "1",
    )
    command = (*command, "--runs", str(runs), "--out", str(results))
    first = run(*command)
    assert first.returncode == 0, first.stderr
    (row,) = csv.DictReader((results / "suite.csv").read_text().splitlines())
    assert row["reference_policy"] == "SwitchedRiccati"
    for algo in ("hpo", "hybrid_ppo"):
        a, b = (json.loads((runs / f"HybridSwitchedLQR-v0_small_{algo}_{seed}.json").read_text())["cost"] for seed in (0, 1))
        assert float(row[f"{algo}_cost"]) == pytest.approx((a + b) / 2)
        assert float(row[f"{algo}_half_width"]) == pytest.approx(12.706 * abs(a - b) / 2, rel=1e-4)  # t(0.975, 1) = 12.706
    curves = [json.loads((runs / f"HybridSwitchedLQR-v0_small_hpo_{seed}.json").read_text())["costs"] for seed in (0, 1)]
    ends = [
        json.loads((runs / f"HybridSwitchedLQR-v0_small_hybrid_ppo_{seed}.json").read_text())["costs"][-1] for seed in (0, 1)
    ]
    there = [sum(pair) <= sum(ends) for pair in zip(*curves, strict=True)]
    assert float(row["steps_to_match"]) == (0.0 if all(there) else 1.0 if there[-1] else math.inf)  # two points: start and end
    assert (results / "suite.png").read_bytes().startswith(b"\x89PNG")
    files = {file: file.stat().st_mtime_ns for file in runs.iterdir()}
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert "seed" not in again.stdout
    assert {file: file.stat().st_mtime_ns for file in runs.iterdir()} == files


def test_rows_of_the_suite_without_runs_stay_as_they_are(tmp_path):
    table = ROOT / "benchmarks" / "results" / "suite.csv"
    rows = list(suite.published(table).values())
    assert len(rows) == 2 * len(suite.PROBLEMS)
    suite.report(rows, tmp_path)
    assert (tmp_path / "suite.csv").read_text() == table.read_text()


def test_a_row_of_the_suite_keeps_what_is_published_of_an_algorithm_without_runs(tmp_path):
    (tmp_path / "HybridMoving-v0_small_hpo_0.json").write_text('{"cost": -1.5}')
    (tmp_path / "HybridMoving-v0_small.json").write_text('{"reference_policy": "AlignAndStop", "reference": -1.9}')
    problem = next(problem for problem in suite.PROBLEMS if problem.env_id == "HybridMoving-v0")
    before = {"hpo_cost": -1.4, "hybrid_ppo_cost": -1.3, "hybrid_ppo_seeds": 3, "steps_to_match": 0.7}
    row = suite.summary(tmp_path, problem, "small", before)
    assert (row["hpo_cost"], row["hybrid_ppo_cost"], row["hybrid_ppo_seeds"], row["reference"]) == (-1.5, -1.3, 3, -1.9)
    assert "steps_to_match" not in row
    assert suite.summary(tmp_path, problem, "large", before) == before


def test_the_papers_evidence_is_on_all_runs_that_are_there_and_repeats_none(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    folders = ("--runs", str(runs), "--out", str(results))
    chosen = ("--problems", "switched_lqr", "--sizes", "8", "16", "--variants", "2", "--seeds", "0", "1")
    first = run("benchmarks.paper", *chosen, "--iterations", "1", *folders)
    assert first.returncode == 0, first.stderr
    assert "Warning" not in first.stderr
    rows = list(csv.DictReader((results / "paper.csv").read_text().splitlines()))
    assert [(row["p"], row["algorithm"]) for row in rows] == [
        (p, algo) for p in ("8", "16") for algo in ("HPO", "no_cross", "HybridPPO")
    ]
    assert "switched_lqr, J = 2, p in [8, 16], seeds of each: 2" in first.stdout
    assert f"{7 * 2 * 3 * 5 + 4 * 4 * 3 * 5 - 12} runs are missing" in first.stdout
    for row in rows:
        files = [runs / f"switched_lqr_p{row['p']}_J2_{row['algorithm']}_{seed}.json" for seed in (0, 1)]
        gaps = [json.loads(file.read_text())["cost"] / float(row["reference"]) - 1 for file in files]
        assert float(row["iqm"]) == pytest.approx(sum(gaps) / 2)
        assert float(row["worst_gap"]) == pytest.approx(max(gaps))
        assert [float(row["low"]), float(row["high"])] == pytest.approx([min(gaps), max(gaps)])
    for picture in ("paper.png", "paper_curves_switched_lqr.png"):
        assert (results / picture).read_bytes().startswith(b"\x89PNG")
    for file in runs.glob("switched_lqr_p8_*"):  # of another machine, say: what was published of it stays
        file.unlink()
    again = run("benchmarks.paper", *chosen[:-3], "--seeds", *folders)
    assert again.returncode == 0, again.stderr
    assert "seed 0" not in again.stdout  # no training
    assert list(csv.DictReader((results / "paper.csv").read_text().splitlines())) == rows


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    iqm, low, high = paper.interquartile_mean(np.array([[1.0], [2.0], [3.0], [10.0]]))
    assert iqm == 2.5
    assert 1.0 <= low < 2.5 < high <= 10.0


def test_defaults_are_compared_with_the_tuned_entry_and_what_is_not_finite_is_named(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "results" / "suite.csv", tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "HybridSwitchedLQR-v0_small_ReLU_0.json").write_text('{"cost": NaN}')
    result = run(
        *("benchmarks.defaults", "--envs", "HybridSwitchedLQR-v0", "--sizes", "small", "--activations", "Tanh"),
        *("--iterations", "2", "--runs", str(runs), "--out", str(tmp_path)),
    )
    assert result.returncode == 0, result.stderr
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("| HybridSwitchedLQR-v0"))
    problem, size, tuned, tanh, relu, silu, elu = (cell.strip() for cell in row.strip("|").split("|"))
    assert (problem, size, relu, silu, elu) == ("HybridSwitchedLQR-v0", "n_dims=8", "not finite", "", "")
    cost = json.loads((runs / "HybridSwitchedLQR-v0_small_Tanh_0.json").read_text())["cost"]
    entry = suite.published(tmp_path / "suite.csv")["HybridSwitchedLQR-v0", "n_dims=8"]["hpo_cost"]
    assert (tuned, tanh) == (f"{entry:.3f}", f"{cost:,.3f}, {cost / entry - 1:+.1%}")


def test_baselines_are_trained_and_compared_on_the_same_scenarios(tmp_path):
    arguments = ("--problems", "switched_lqr", "--steps", "5120", "--runs", str(tmp_path), "--out", str(tmp_path))
    (tmp_path / "switched_lqr_SAC--flat-view_0.json").write_text('{"cost": NaN, "seconds": 1.0}')
    result = run("benchmarks.baselines", *arguments)
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "baselines.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(baselines.METHODS)
    assert "not finite" in result.stdout
    for method, row in rows.items():
        assert float(row["cost"]) > float(row["reference"]) or method == "SAC, flat view"
    again = run("benchmarks.baselines", *arguments, "--methods", "HPO")
    assert again.returncode == 0, again.stderr
    assert "seed 0" not in again.stdout  # no training


def test_a_clone_of_the_reference_comes_near_it():
    lqr = ("--env", "HybridSwitchedLQR-v0", "--env-kwargs", "n_dims=2", "n_modes=2", "horizon=8")
    result = run("benchmarks.cloning", *lqr, "--activations", "SiLU", "--rounds", "3")
    assert result.returncode == 0, result.stderr
    cost, reference = (float(figure) for figure in re.search(r": ([\d.]+), reference ([\d.]+)", result.stdout).groups())
    assert reference <= cost < 1.05 * reference


@pytest.mark.slow
def test_the_reference_figures_are_printed():
    result = run("benchmarks.references", "--quick")
    assert result.returncode == 0, result.stderr
    assert "34.9011" in result.stdout


@pytest.mark.parametrize("algo", ["hpo", "hybrid_ppo"])
def test_every_config_is_a_mapping_with_a_default_and_an_entry_for_every_id(algo):
    config = yaml.safe_load((ROOT / "zoo_configs" / f"{algo}.yml").read_text())
    assert {"default", "HybridInventory-v0", "HybridSwitchedLQR-v0"} <= set(config)


def test_learning_curves_replace_their_own_environment_alone(tmp_path, monkeypatch):
    kept = {"env": "HybridMoving-v0", "arguments": "n_agents=1", "steps": "0", "cost": "1.0", "reference": "0.0"}
    learning_curves.write([kept], tmp_path / "learning_curves.csv")
    monkeypatch.setattr(learning_curves, "SHARE", 0.01)
    monkeypatch.setattr(sys, "argv", ["learning_curves", "--envs", "HybridSwitchedLQR-v0", "--out", str(tmp_path)])
    learning_curves.main()
    first, *rows = learning_curves.read(tmp_path / "learning_curves.csv")
    assert first == kept
    assert {row["env"] for row in rows} == {"HybridSwitchedLQR-v0"}
    assert [int(row["steps"]) for row in rows] == list(range(0, 5 * 128 * 20 + 1, 128 * 20))
    assert float(rows[-1]["cost"]) < float(rows[0]["cost"])
    assert (tmp_path / "learning_curve_HybridSwitchedLQR-v0.png").read_bytes().startswith(b"\x89PNG")


def test_a_published_row_of_one_seed_has_no_interval(tmp_path):
    file = tmp_path / "suite.csv"
    file.write_text(
        "env,arguments,reference_policy,hpo_cost,hpo_half_width,hpo_seeds,steps_to_match\nA-v0,n=1,Best,1.5,nan,1,inf\n"
    )
    row = suite.published(file)["A-v0", "n=1"]
    assert (row["hpo_cost"], row["hpo_seeds"], row["steps_to_match"]) == (1.5, 1, np.inf)
    assert np.isnan(row["hpo_half_width"])
