"""
HPO's own defaults on every problem of the suite, with each of SB3's usual activations, against the problem's tuned entry.

    python -m benchmarks.defaults [--envs ID ...] [--sizes small] [--activations Tanh] [--seeds 0]

Steps and held-out scenarios are those of the suite. Runs already in the folder are not repeated. A run that meets a number
that is not finite ends there, and its place in the table says so.
"""

import csv
import json
import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.suite import PROBLEMS, SIZES, Problem, published, suite_parser
from benchmarks.train import train
from benchmarks.zoo import finite, kept, kept_runs_arguments, run_all

ACTIVATIONS = ("Tanh", "ReLU", "SiLU", "ELU")
COLUMNS = ("env", "arguments", "activation", "seed", "cost", "tuned")


def main() -> None:
    parser = suite_parser("defaults", __doc__, [0])
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=ACTIVATIONS)
    args = kept_runs_arguments(parser, "defaults")
    chosen = [problem for problem in PROBLEMS if problem.env_id in args.envs]
    calls = [
        (args.runs, problem, size, activation, seed, args.iterations)
        for activation, size, problem, seed in product(args.activations, args.sizes, chosen, args.seeds)
    ]
    run_all(run, calls, args.jobs)
    report(args.runs, args.out)


def run(folder: Path, problem: Problem, size: str, activation: str, seed: int, iterations: int | None) -> dict[str, Any]:
    """One training with HPO's defaults, unless its file is in the folder."""
    training = partial(
        train,
        "hpo",
        problem.env_id,
        getattr(problem, size),
        seed,
        entry="default",
        iterations=iterations,
        whole_units=problem.whole_units,
        curve_points=1,
        n_timesteps=problem.steps(size),
        policy_kwargs={"activation_fn": getattr(nn, activation)},
    )
    return kept(folder / f"{problem.env_id}_{size}_{activation}_{seed}.json", partial(finite, training))


def report(runs: Path, out: Path) -> None:
    """Print the table of the runs that are there, and write ``defaults.csv``."""
    tuned = published(out / "suite.csv")
    rows = []
    print(f"\n| problem |  | tuned entry | {' | '.join(ACTIVATIONS)} |\n|{'---|' * (3 + len(ACTIVATIONS))}")
    for problem, size in product(PROBLEMS, SIZES):
        reached = tuned[problem.env_id, problem.arguments(size)]["hpo_cost"]
        cells = []
        for activation in ACTIVATIONS:
            costs = []
            for file in sorted(runs.glob(f"{problem.env_id}_{size}_{activation}_*.json")):
                costs.append(json.loads(file.read_text())["cost"])
                seed = int(file.stem.rpartition("_")[2])
                rows.append((problem.env_id, problem.arguments(size), activation, seed, costs[-1], reached))
            cells.append(cell(costs, reached))
        if any(cells):
            print(f"| {problem.env_id} | {problem.arguments(size)} | {reached:.3f} | {' | '.join(cells)} |")
    with open(out / "defaults.csv", "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def cell(costs: list[float], tuned: float) -> str:
    """What the table says of the runs of one activation: the worst of them."""
    if not costs:
        return ""
    if any(map(math.isnan, costs)):
        return "not finite"
    return f"{max(costs):,.3f}, {(max(costs) - tuned) / abs(tuned):+.1%}"


if __name__ == "__main__":
    main()
