"""
The paper's evidence: HPO, with and without the cross term, and HybridPPO on its two problems, from one dimension to sixty.

    python -m benchmarks.paper [--problems NAME ...] [--sizes P ...] [--variants V ...] [--algos NAME ...] [--seeds S ...]

Single runs are kept in a folder and not repeated, so that the command can be stopped and started again; the report is on all
that are there, and says what the rest would take. Rows of the table without a run in the folder stay as they are.
"""

import argparse
import csv
import json
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, PercentFormatter
from rliable import library, metrics

from benchmarks.suite import reference
from benchmarks.train import train
from benchmarks.zoo import kept, kept_runs_arguments, read_table, run_all

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "HPO": ("hpo", {}),
    "no_cross": ("hpo", {"cross_term": False}),
    "HybridPPO": ("hybrid_ppo", {}),
}
LINES = {"HPO": ("tab:blue", "-"), "no_cross": ("tab:green", "--"), "HybridPPO": ("tab:red", "-")}
"""Colour and style, told apart where curves lie on each other."""
SEEDS = [0, 1, 2, 3, 4]
BOOTSTRAPS = 2_000
KEY = ("problem", "variant", "p", "algorithm")
"""The columns of ``paper.csv`` that name a row."""


class Problem(NamedTuple):
    """One of the paper's problems, and how it is varied."""

    env_id: str
    size: str
    """The environment's argument for p."""
    sizes: list[int]
    variant: str
    """What is varied beside p: B, scenarios of an iteration, or J, modes."""
    variants: list[int]
    iterations: int
    published: dict[tuple[int, int], dict[str, float]]
    """The costs that the paper states, by p and variant."""


PROBLEMS = {
    "joint_replenishment": Problem(
        "HybridInventory-v0",
        "n_items",
        [1, 3, 5, 10, 20, 40, 60],
        "B",
        [16, 64],
        500,
        {(60, 16): {"HPO": 50.28, "HybridPPO": 89.29}, (60, 64): {"HPO": 40.70, "HybridPPO": 59.18}},
    ),
    "switched_lqr": Problem(
        "HybridSwitchedLQR-v0",
        "n_dims",
        [8, 16, 24, 48],
        "J",
        [1, 2, 4, 8],
        500,
        {(48, 2): {"HPO": 53.89, "HybridPPO": 79.36}},
    ),
}


class Cell(NamedTuple):
    """A problem at one size."""

    problem: str
    p: int
    variant: int

    @property
    def of(self) -> Problem:
        return PROBLEMS[self.problem]

    @property
    def panel(self) -> tuple[str, str]:
        """Where it belongs in tables and figures: the problem, and the variant in words."""
        return self.problem, f"{self.of.variant}={self.variant}"

    @property
    def env_kwargs(self) -> dict[str, int]:
        return {self.of.size: self.p} | ({"n_modes": self.variant} if self.of.variant == "J" else {})

    @property
    def hyperparams(self) -> dict[str, int]:
        return {"n_envs": self.variant} if self.of.variant == "B" else {}

    def __str__(self) -> str:
        return f"{self.problem}_p{self.p}_{self.of.variant}{self.variant}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__.splitlines()[1])
    sizes, variants = [sorted({v for of in PROBLEMS.values() for v in getattr(of, n)}) for n in ("sizes", "variants")]
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), metavar="NAME")
    parser.add_argument(
        "--sizes", type=int, nargs="+", choices=sizes, default=sizes, metavar="P", help="p, of a problem's own"
    )
    parser.add_argument("--variants", type=int, nargs="+", choices=variants, default=variants, metavar="V", help="B or J")
    parser.add_argument("--algos", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="none: the report alone")
    parser.add_argument("--iterations", type=int, help="instead of each problem's own number: a look, not a result")
    args = kept_runs_arguments(parser, "paper")
    chosen = [
        cell for cell in cells() if cell.problem in args.problems and cell.p in args.sizes and cell.variant in args.variants
    ]
    calls = [(args.runs, cell, algo, seed, args.iterations) for seed, cell, algo in product(args.seeds, chosen, args.algos)]
    run_all(run, calls, args.jobs)
    report(args.runs, args.out)


def cells() -> list[Cell]:
    """
    :return: every problem at every size and variant
    """
    return [Cell(name, p, variant) for name, of in PROBLEMS.items() for variant in of.variants for p in of.sizes]


def run(folder: Path, cell: Cell, algo: str, seed: int, iterations: int | None) -> dict[str, Any]:
    """Train one run, unless its file is in the folder; HybridPPO gets as many environment steps as HPO."""
    name, hyperparams = ALGORITHMS[algo]
    options = {"iterations": iterations or cell.of.iterations} | hyperparams | cell.hyperparams
    return kept(folder / f"{cell}_{algo}_{seed}.json", partial(train, name, cell.of.env_id, cell.env_kwargs, seed, **options))


class Found(NamedTuple):
    """The runs of one algorithm in one cell."""

    cell: Cell
    algo: str
    reference: float
    runs: list[dict[str, Any]]

    @property
    def gaps(self) -> np.ndarray:
        """How far each seed's cost is above the reference's, relatively."""
        return np.array([run["cost"] for run in self.runs]) / self.reference - 1


def find(folder: Path) -> list[Found]:
    """
    :return: what is in the folder
    """
    found = []
    for cell, algo in product(cells(), ALGORITHMS):
        if runs := [json.loads(file.read_text()) for file in sorted(folder.glob(f"{cell}_{algo}_*.json"))]:
            # joint replenishment has one reference for all B
            name = f"{cell.problem}_" + "_".join(f"{argument}{value}" for argument, value in cell.env_kwargs.items())
            cost = reference(folder / f"reference_{name}.json", cell.of.env_id, cell.env_kwargs)["reference"]
            found.append(Found(cell, algo, cost, runs))
    return found


def interquartile_mean(gaps: np.ndarray) -> tuple[float, float, float]:
    """
    :param gaps: shape ``(seeds, cells)``
    :return: their interquartile mean, and its 95 % interval by a bootstrap over seeds, cell by cell (Agarwal et al. 2021)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of rliable's own dependency, on RandomState
        estimates, intervals = library.get_interval_estimates(
            {"gaps": gaps},
            lambda scores: np.array([metrics.aggregate_iqm(scores)]),
            reps=BOOTSTRAPS,
            random_state=np.random.RandomState(0),
        )
    return float(estimates["gaps"][0]), float(intervals["gaps"][0, 0]), float(intervals["gaps"][1, 0])


def report(runs: Path, out: Path) -> None:
    """
    Print the tables; in the folder ``out`` write ``paper.csv`` and draw ``paper.png`` of all its rows, and
    ``paper_curves_*.png`` of the problems with runs.
    """
    found = find(runs)
    rows_by_key = read_table(out / "paper.csv", *KEY)
    rows_by_key |= {tuple(row[name] for name in KEY): row for row in map(summary, found)}
    order = [(*cell.panel, cell.p, algo) for cell, algo in product(cells(), ALGORITHMS)]
    rows = sorted(rows_by_key.values(), key=lambda row: order.index(tuple(row[name] for name in KEY)))
    columns = ["problem", "p", "variant", "algorithm", "seeds", "reference", "iqm", "low", "high", "worst_cost", "worst_gap"]
    with open(out / "paper.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "published"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(
        "\n| problem | p |  | reference | algorithm | above the reference | worst seed | paper |",
        f"|{'---|' * 8}",
        sep="\n",
    )
    for row in rows:
        spread = f" ({row['low']:+.2%} to {row['high']:+.2%})" if row["seeds"] > 1 else " (one seed)"
        published = f"{row['published']:.2f}" if "published" in row else ""
        start = f"| {row['problem']} | {row['p']} | {row['variant']} | {row['reference']:.3f} | {row['algorithm']} "
        print(f"{start}| {row['iqm']:+.2%}{spread} | {row['worst_cost']:,.3f} | {published} |")
    report_over_sizes(found)
    report_rest(found)
    if rows:
        draw_gaps(rows, out / "paper.png")
    for problem in {one.cell.problem for one in found}:
        draw_curves([one for one in found if one.cell.problem == problem], out / f"paper_curves_{problem}.png")


def summary(found: Found) -> dict[str, Any]:
    """
    :return: a row of the table
    """
    cell, gaps = found.cell, found.gaps
    iqm, low, high = interquartile_mean(gaps[:, None])
    problem, variant = cell.panel
    stated = cell.of.published.get((cell.p, cell.variant), {}).get(found.algo)
    return {
        "problem": problem,
        "p": cell.p,
        "variant": variant,
        "algorithm": found.algo,
        "seeds": len(gaps),
        "reference": found.reference,
        "iqm": iqm,
        "low": low,
        "high": high,
        "worst_cost": max(run["cost"] for run in found.runs),
        "worst_gap": gaps.max(),
    } | ({} if stated is None else {"published": stated})


def report_over_sizes(found: list[Found]) -> None:
    """Print the interquartile mean over sizes and seeds of each algorithm, where all algorithms have the same runs."""
    for name, of in PROBLEMS.items():
        for variant in of.variants:
            of_algo = {
                algo: {
                    one.cell.p: one.gaps
                    for one in found
                    if (one.cell.problem, one.cell.variant, one.algo) == (name, variant, algo)
                }
                for algo in ALGORITHMS
            }
            common = sorted(set.intersection(*(set(gaps) for gaps in of_algo.values())))
            seeds = min((len(gaps[p]) for gaps in of_algo.values() for p in common), default=0)
            if len(common) < 2:
                continue
            print(f"\n{name}, {of.variant} = {variant}, p in {common}, seeds of each: {seeds}")
            print("  above the reference, interquartile mean")
            for algo, gaps in of_algo.items():
                iqm, low, high = interquartile_mean(np.stack([gaps[p][:seeds] for p in common], axis=1))
                print(f"  {algo:10} {iqm:+.2%} ({low:+.2%} to {high:+.2%})")


def report_rest(found: list[Found]) -> None:
    """Print how many runs are missing, and the hours of one core that they would take, as the others of their kind did."""
    missing, unknown, seconds = 0, 0, 0.0
    for name, algo in product(PROBLEMS, ALGORITHMS):
        of_kind = [one for one in found if (one.cell.problem, one.algo) == (name, algo)]
        done = [run["seconds"] for one in of_kind for run in one.runs]
        rest = len(PROBLEMS[name].sizes) * len(PROBLEMS[name].variants) * len(SEEDS) - len(done)
        missing += rest
        unknown += 0 if done else rest
        seconds += rest * float(np.mean(done)) if done else 0.0
    untried = f" and those of {unknown} of a kind that has none yet" if unknown else ""
    print(f"\n{missing} runs are missing, about {seconds / 3600:.1f} hours of one core{untried}")


def draw_gaps(rows: list[dict[str, Any]], path: Path) -> None:
    """The figure "gap against p": a panel for each problem and variant."""
    shown = list(dict.fromkeys((row["problem"], row["variant"]) for row in rows))
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown) + 1, 3.8), layout="constrained", squeeze=False)
    for ax, (problem, variant) in zip(axes[0], shown, strict=True):
        for algo, (colour, style) in LINES.items():
            line = [row for row in rows if (row["problem"], row["variant"], row["algorithm"]) == (problem, variant, algo)]
            if not line:
                continue
            sizes, middle = [row["p"] for row in line], [row["iqm"] for row in line]
            ax.plot(sizes, middle, style, marker="o", markersize=4, color=colour, label=algo)
            ax.fill_between(sizes, [r["low"] for r in line], [r["high"] for r in line], color=colour, alpha=0.2, linewidth=0)
            stated = [row for row in line if "published" in row]
            ax.plot(
                [row["p"] for row in stated],
                [row["published"] / row["reference"] - 1 for row in stated],
                "x",
                color=colour,
                clip_on=False,
                label=f"{algo}, the paper's" if stated else None,
            )
        ax.axhline(0, color="grey", linewidth=1)
        ax.set_yscale("symlog", linthresh=0.01)
        ax.set_ylim(bottom=-0.005)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set(title=f"{problem.replace('_', ' ')}, {variant}", xlabel="p")
        ax.set_xticks(sorted({row["p"] for row in rows if (row["problem"], row["variant"]) == (problem, variant)}))
        ax.legend(fontsize="small")
    axes[0, 0].set_ylabel("cost above the reference's\n(interquartile mean over seeds, 95 % interval)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(found: list[Found], path: Path) -> None:
    """Learning curves of a problem against steps and against seconds, at its largest p for each variant."""
    largest: dict[tuple[str, str], int] = {}
    for one in found:
        largest[one.cell.panel] = max(largest.get(one.cell.panel, 0), one.cell.p)
    figure, axes = plt.subplots(2, len(largest), figsize=(3.6 * len(largest) + 1, 6), layout="constrained", squeeze=False)
    for column, ((problem, variant), p) in zip(axes.T, largest.items(), strict=True):
        for one in found:
            if (*one.cell.panel, one.cell.p) != (problem, variant, p):
                continue
            steps = np.array(one.runs[0]["steps"])
            costs = np.median([run["costs"] for run in one.runs], axis=0)
            seconds = float(np.median([run["seconds"] for run in one.runs]))
            colour, style = LINES[one.algo]
            column[0].plot(steps, costs, style, color=colour, label=one.algo)
            column[1].plot(seconds * steps / steps[-1], costs, style, color=colour)
        column[0].set(title=f"{problem.replace('_', ' ')}, p={p}, {variant}", xlabel="environment steps")
        column[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        column[1].set(xlabel="seconds")
        column[0].legend(fontsize="small")
        for ax in column:
            ax.set_yscale("log")
            ax.grid(alpha=0.3)
    for ax in axes[:, 0]:
        ax.set_ylabel("cost (median over seeds)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
