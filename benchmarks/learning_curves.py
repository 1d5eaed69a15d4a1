"""
How HPO learns each problem of the suite at its small size, on a quarter of the zoo config's steps: a look, not a result.

    python -m benchmarks.learning_curves [--envs ID ...]

Curves of environments that are not named stay as they are in the folder.
"""

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.suite import PROBLEMS, Problem
from benchmarks.train import train
from benchmarks.zoo import EVALUATION_SEED, read_config
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import evaluate, reference_policy

SHARE = 0.25
"""Of the zoo config's environment steps."""
POINTS = 20
N_SCENARIOS = 256
"""Behind each point: those of :class:`~sb3_hpo.callbacks.CostCallback`."""
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_curves", description=__doc__.splitlines()[1])
    names = [problem.env_id for problem in PROBLEMS]
    parser.add_argument("--envs", nargs="+", choices=names, default=names, metavar="ID", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "learning_curves.csv"
    for problem in PROBLEMS:
        if problem.env_id in args.envs:
            rows = learn(problem)
            others = [row for row in read(file) if row["env"] != problem.env_id] if file.exists() else []
            write([*others, *rows], file)
            draw(rows, args.out / f"learning_curve_{problem.env_id}.png")


def learn(problem: Problem) -> list[Row]:
    """
    :return: environment steps and cost at each point of a run with seed 0, beside the reference policy's cost on the same
        scenarios
    """
    env = gym.make(problem.env_id, **problem.small).unwrapped
    assert isinstance(env, HybridEnv)
    reference = float(evaluate(env, reference_policy(env), N_SCENARIOS, EVALUATION_SEED).mean())
    n_timesteps = SHARE * read_config("hpo", problem.env_id)["n_timesteps"]
    run = train("hpo", problem.env_id, problem.small, seed=0, curve_points=POINTS, n_timesteps=n_timesteps)
    return [
        {
            "env": problem.env_id,
            "arguments": problem.arguments("small"),
            "steps": str(steps),
            "cost": str(cost),
            "reference": str(reference),
        }
        for steps, cost in zip(run["steps"], run["costs"], strict=True)
    ]


def read(file: Path) -> list[Row]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write(rows: list[Row], file: Path) -> None:
    with open(file, "w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[Row], path: Path) -> None:
    steps, costs = ([float(row[name]) for row in rows] for name in ("steps", "cost"))
    reference = float(rows[0]["reference"])
    figure = Figure(figsize=(6, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, costs, marker="o", markersize=3, label=f"HPO: {costs[-1]:.2f}")
    axes.axhline(reference, color="gray", linestyle="--", label=f"reference policy: {reference:.2f}")
    low, high = min(*costs, reference), max(*costs[2:], reference)  # the first policies may cost a hundred times as much
    axes.set(xlabel="environment steps", ylabel="cost", ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low)))
    axes.set_title(f"{rows[0]['env']}, {rows[0]['arguments']}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
