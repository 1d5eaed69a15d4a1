"""
Every problem at a small and a large size: HPO and HybridPPO with equal steps, against the reference on the same scenarios.

    python -m benchmarks.suite [--envs ID ...] [--sizes small] [--seeds 0 1 2]

Runs already in the folder are not repeated, so that the command can be stopped and started again. Rows of the table without
runs in the folder stay as they are, and so does what they say of an algorithm without runs there.
"""

import argparse
import csv
import json
import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from benchmarks.train import N_SCENARIOS, train
from benchmarks.zoo import (
    ALGORITHMS,
    EVALUATION_SEED,
    kept,
    kept_runs_arguments,
    mean_and_interval,
    read_config,
    read_table,
    run_all,
)
from hybrid_envs.core import HybridEnv
from hybrid_envs.solvers import evaluate, reference_policy

SIZES = ("small", "large")


class Problem(NamedTuple):
    """One environment at two sizes of its continuous action."""

    env_id: str
    small: dict[str, Any]
    large: dict[str, Any]
    whole_units: bool = False
    """Whether b is rounded to whole numbers when a trained policy is evaluated: demand comes in whole units."""
    n_timesteps: dict[str, int] | None = None
    """Environment steps of a size, those of HPO's config unless given."""

    def steps(self, size: str) -> int:
        """
        :return: environment steps of a run
        """
        return int((self.n_timesteps or {}).get(size) or read_config("hpo", self.env_id)["n_timesteps"])

    def arguments(self, size: str) -> str:
        """
        :return: the environment's arguments, as the table has them
        """
        return " ".join(f"{name}={value}" for name, value in getattr(self, size).items())


PROBLEMS = [
    # the config of joint replenishment is the demo's, and shorter
    Problem("HybridInventory-v0", {"n_items": 1}, {"n_items": 20}, n_timesteps=dict.fromkeys(SIZES, 1_600_000)),
    Problem("HybridDualSourcing-v0", {"n_items": 1}, {"n_items": 10}, whole_units=True),
    Problem("HybridProcurement-v0", {"n_items": 1}, {"n_items": 10}),
    Problem("HybridPortfolio-v0", {"n_assets": 1}, {"n_assets": 20}),
    Problem("HybridUnitCommitment-v0", {"n_generators": 3}, {"n_generators": 20, "commitments": "merit_order"}),
    Problem("HybridSwitchedLQR-v0", {"n_dims": 8}, {"n_dims": 48}),
    Problem("HybridMoving-v0", {"n_agents": 1}, {"n_agents": 2}, n_timesteps={"large": 1_920_000}),
    Problem("HybridSliding-v0", {"n_agents": 1}, {"n_agents": 2}, n_timesteps={"large": 1_920_000}),
]


def suite_parser(name: str, doc: str, seeds: list[int]) -> argparse.ArgumentParser:
    """
    :param name: of the module
    :param doc: its docstring
    :param seeds: unless others are asked for
    :return: a parser of which problems, sizes and seeds are run
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[1])
    names = [problem.env_id for problem in PROBLEMS]
    parser.add_argument("--envs", nargs="+", choices=names, default=names, metavar="ID", help=", ".join(names))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--iterations", type=int, help="instead of each problem's own number: a look, not a result")
    return parser


def main() -> None:
    parser = suite_parser("suite", __doc__, [0, 1, 2])
    parser.add_argument("--algos", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    args = kept_runs_arguments(parser, "suite")
    chosen = [problem for problem in PROBLEMS if problem.env_id in args.envs]
    calls = [
        (args.runs, algo, problem, size, seed, args.iterations)
        for seed, problem, size, algo in product(args.seeds, chosen, args.sizes, args.algos)
    ]
    run_all(run, calls, args.jobs)
    before = published(args.out / "suite.csv")
    rows = [
        summary(args.runs, problem, size, before.get((problem.env_id, problem.arguments(size)), {}))
        for problem, size in product(PROBLEMS, SIZES)
    ]
    report([row for row in rows if row], args.out)


def run(folder: Path, algo: str, problem: Problem, size: str, seed: int, iterations: int | None) -> dict[str, Any]:
    """Train one run, unless its file is in the folder. HybridPPO gets as many environment steps as HPO."""
    options: dict[str, Any] = {
        "iterations": iterations,
        "whole_units": problem.whole_units,
        "n_timesteps": problem.steps(size),
    }
    training = partial(train, algo, problem.env_id, getattr(problem, size), seed, **options)
    return kept(folder / f"{problem.env_id}_{size}_{algo}_{seed}.json", training)


def summary(folder: Path, problem: Problem, size: str, before: dict[str, Any]) -> dict[str, Any]:
    """
    :param before: the row as it was published
    :return: mean cost and half width of its 95 % interval over seeds for each algorithm, and the reference's cost; what was
        published of an algorithm without runs, but for the steps to match it, which take the curves of both
    """
    env_kwargs = getattr(problem, size)
    runs = {
        algo: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{problem.env_id}_{size}_{algo}_*.json"))]
        for algo in ALGORITHMS
    }
    if not any(runs.values()):
        return before
    row = {name: value for name, value in before.items() if name != "steps_to_match"}
    row |= {"env": problem.env_id, "arguments": problem.arguments(size)}
    for algo, of_algo in runs.items():
        if of_algo:
            mean, half_width = mean_and_interval([run["cost"] for run in of_algo])
            row |= {f"{algo}_cost": mean, f"{algo}_half_width": half_width, f"{algo}_seeds": len(of_algo)}
    if all(runs.values()):
        row["steps_to_match"] = steps_to_match(runs["hpo"], runs["hybrid_ppo"])
    return row | reference(folder / f"{problem.env_id}_{size}.json", problem.env_id, env_kwargs)


def published(file: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """
    :param file: the table, which need not be there
    :return: its rows, by environment and arguments
    """
    return read_table(file, "env", "arguments")


def steps_to_match(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """
    :param ours: what :func:`~benchmarks.train.train` returned for each seed
    :param theirs: likewise
    :return: the share of its steps after which our mean learning curve is at or below the end of theirs, and stays there;
        infinite if it never is
    """
    curve = np.mean([run["costs"] for run in ours], axis=0)
    above = np.flatnonzero(curve > np.mean([run["costs"][-1] for run in theirs]))
    steps = ours[0]["steps"]
    reached = above[-1] + 1 if above.size else 0
    return steps[reached] / steps[-1] if reached < len(steps) else math.inf


def reference(file: Path, env_id: str, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The reference policy's name and cost, from the file if it is there, since finding the policy may take a minute."""

    def find() -> dict[str, Any]:
        env = gym.make(env_id, **env_kwargs).unwrapped
        assert isinstance(env, HybridEnv)
        policy = reference_policy(env)
        cost = float(evaluate(env, policy, N_SCENARIOS, EVALUATION_SEED).mean())
        return {"action_size": env.action_size, "reference_policy": type(policy).__name__, "reference": cost}

    return kept(file, find)


def gap(row: dict[str, Any], algo: str) -> float:
    """How far an algorithm's cost is above the reference's, relatively; costs may be negative."""
    return float((row[f"{algo}_cost"] - row["reference"]) / abs(row["reference"]))


def cell(row: dict[str, Any], algo: str) -> str:
    """What the table says of an algorithm's cost."""
    seeds, half_width = row[f"{algo}_seeds"], row[f"{algo}_half_width"]
    spread = f"± {half_width:.3f}" if seeds > 1 else "(one seed)"
    return f"{row[f'{algo}_cost']:,.3f} {spread}, {gap(row, algo):+.1%}"


def report(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print the table; write ``suite.csv`` and draw ``suite.png`` in the folder."""
    header = ["problem", "", "reference", "", *(cls.__name__ for cls in ALGORITHMS.values()), "steps to match"]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        cells = [cell(row, algo) if f"{algo}_cost" in row else "" for algo in ALGORITHMS]
        stated = [row["env"], row["arguments"], row["reference_policy"], f"{row['reference']:.3f}", *cells]
        stated.append(f"{row['steps_to_match']:.0%}".replace("inf%", "not reached") if "steps_to_match" in row else "")
        print(f"| {' | '.join(stated)} |")
    columns = ["env", "arguments", "action_size", "reference_policy", "reference"]
    columns += [f"{algo}_{what}" for algo in ALGORITHMS for what in ("cost", "half_width", "seeds")]
    columns.append("steps_to_match")
    with open(folder / "suite.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
    for offset, (algo, cls) in zip((-0.12, 0.12), ALGORITHMS.items(), strict=True):
        known = [(index, row) for index, row in enumerate(rows) if f"{algo}_cost" in row]
        gaps = [gap(row, algo) for _, row in known]
        errors = [row[f"{algo}_half_width"] / abs(row["reference"]) for _, row in known]
        axes.errorbar(
            gaps, [index + offset for index, _ in known], xerr=np.nan_to_num(errors), fmt="o", capsize=3, label=cls.__name__
        )
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left=-0.1)  # an interval over few seeds may reach far below
    ticks = [-0.1, -0.01, 0, 0.01, 0.1, 1, 10, 100]
    axes.set_xticks([tick for tick in ticks if tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks(range(len(rows)), [f"{row['env']}\n{row['arguments']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("cost above the reference's, logarithmic beyond 1 %\n(mean and 95 % interval over seeds)")
    axes.legend()
    figure.savefig(folder / "suite.png", dpi=120)


if __name__ == "__main__":
    main()
