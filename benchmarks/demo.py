"""
The main job: HPO and HybridPPO learn joint replenishment on the same budget and are held against classical policies.

    python -m benchmarks.demo [--quick] [--items P] [--seed S] [--algo hpo|hybrid_ppo]

Hyperparameters come from ``zoo_configs/``. Model, TensorBoard log and learning curve are written to ``runs/demo``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import ALGORITHMS, EVALUATION_SEED, make_run, mean_and_interval
from hybrid_envs import HybridInventoryEnv
from hybrid_envs.solvers import PeriodicReview, Policy, best_classical, evaluate, lower_bound
from sb3_hpo.callbacks import CostCallback

ENV_ID = "HybridInventory-v0"
NAMES = {"hpo": "HPO", "hybrid_ppo": "HybridPPO"}
QUICK_ITERATIONS = 20
CURVE_POINTS = 20


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)  # an unwritable folder fails here, before any work
    console = Console()
    env = HybridInventoryEnv(args.items)
    n_scenarios = 200 if args.quick else 1000

    periodic = PeriodicReview.best(env)
    references: dict[str, Policy] = {"periodic review (R, S)": periodic}
    if not args.quick:
        references["best classical"] = best_classical(env)
    best_reference = list(references.values())[-1]
    costs = {name: evaluate(env, policy, n_scenarios, EVALUATION_SEED) for name, policy in references.items()}
    curves, seconds = {}, {}
    for algo in args.algo or list(ALGORITHMS):
        run = make_run(algo, ENV_ID, {"n_items": args.items}, args.seed, tensorboard_log=str(args.out / "tensorboard"))
        steps = run.steps(QUICK_ITERATIONS if args.quick else None)
        curve = CostCallback(run.env, every=steps // CURVE_POINTS, n_scenarios=n_scenarios // 4, reference=best_reference)
        console.print(f"[bold]{NAMES[algo]}[/bold]: {args.items} items, {run.model.n_envs} scenarios, {steps:,} steps")
        start = time.perf_counter()
        run.model.learn(steps, callback=curve, tb_log_name=algo, progress_bar=True)
        seconds[NAMES[algo]] = time.perf_counter() - start
        run.model.save(args.out / algo)
        curves[NAMES[algo]] = curve
        costs[NAMES[algo]] = evaluate(env, run.model, n_scenarios, EVALUATION_SEED)

    benchmark = float(costs["periodic review (R, S)"].mean())
    bound = lower_bound(env)
    console.print(result_table(costs, seconds, benchmark, bound, n_scenarios))
    draw_curves(curves, benchmark, args.out / "learning_curve.png", f"{args.items} items, seed {args.seed}")
    console.print(
        f"models, TensorBoard log and learning_curve.png: {args.out}    (tensorboard --logdir {args.out}/tensorboard)"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITERATIONS} iterations: a look, not a result")
    parser.add_argument("--items", type=int, default=20, help="number of items (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algo", choices=list(ALGORITHMS), action="append", help="one algorithm (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    if args.items < 1:
        parser.error(f"--items must be at least 1, got {args.items}")
    return args


def result_table(
    costs: dict[str, np.ndarray], seconds: dict[str, float], benchmark: float, bound: float, n_scenarios: int
) -> Table:
    """
    :param costs: per policy, the cost of each evaluation scenario
    :param seconds: training time of the learned ones
    :param benchmark: cost of the (R, S) policy, against which gaps are given
    :param bound: proven lower bound on the long-run cost of any policy
    """
    table = Table(title=f"cost per item and period, {n_scenarios} evaluation scenarios")
    for column in ("policy", "cost", "95 %", "vs (R, S)", "vs bound", "seconds"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, values in sorted(costs.items(), key=lambda item: item[1].mean()):
        mean, half_width = mean_and_interval(values)
        time_taken = f"{seconds[name]:.0f}" if name in seconds else ""
        gap, above = f"{mean / benchmark - 1:+.1%}", f"{mean / bound - 1:+.1%}"
        table.add_row(name, f"{mean:.2f}", f"± {half_width:.2f}", gap, above, time_taken)
    table.add_row("proven lower bound", f"{bound:.2f}", "", f"{bound / benchmark - 1:+.1%}", "", "")
    return table


def draw_curves(curves: dict[str, CostCallback], benchmark: float, path: Path, title: str) -> None:
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve.steps, curve.costs, marker="o", markersize=3, label=f"{name}: {curve.costs[-1]:.2f}")
    axes.axhline(benchmark, color="gray", linestyle="--", label=f"periodic review (R, S): {benchmark:.2f}")
    axes.set(
        xlabel="environment steps", ylabel="cost per item and period", yscale="log", title=f"Joint replenishment, {title}"
    )
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 5, 7)))  # a short curve may span less than a power of ten
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
