"""
`sb3-hpo backtest` on files of seasonal sales, each a business of its own: what HPO saves against the planners' best rule.

    python -m benchmarks.backtest --seeds 1 2 3 4 5
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid_envs.demand import synthetic_sales
from sb3_hpo.backtest import estimate
from sb3_hpo.zoo import main as sb3_hpo

N_WEEKS, N_ITEMS = 156, 20
FEATURES: dict[str, Any] = {"trend": 0.1, "season": 0.4, "disturbance": 0.3, "autocorrelation": 0.5, "zero_share": 0.05}
"""Of the sales: every item has its own season, and a good week is followed by good ones."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backtest", description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the files, and of the trainings")
    parser.add_argument("--items", type=int, default=N_ITEMS)
    parser.add_argument("--weeks", type=int, default=N_WEEKS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the training")
    parser.add_argument("--folder", type=Path, default=Path("logs/backtest"), help="for files and reports; runs go on there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in args.seeds:
        folder = args.folder / f"{args.items}x{args.weeks}_{seed}{'_quick' if args.quick else ''}"
        data = write_files(folder, args.items, args.weeks, seed)
        flags = ["--dates", "date", "--calendar", "week:52", "--seed", str(seed), *(["--quick"] if args.quick else [])]
        sb3_hpo(["backtest", *data, *flags, "-o", str(folder / "run")])
        found.append(json.loads((folder / "run" / "results.json").read_text()))
    print(f"\n{'file':>4} {'HPO':>7} {'rule':>7} {'perfect':>8} {'saved':>8}   95 % of the weeks     met at once  seconds")
    for seed, facts in zip(args.seeds, found, strict=True):
        print(f"{seed:4} {described(facts)}")
    saved = np.array([facts["saving_relative"]["mean"] for facts in found])
    if len(saved) > 1:
        print(f"saved, over {len(saved)} files: {percent(estimate(saved, block=1)._asdict())}, worst {saved.min():.1%}")


def write_files(folder: Path, n_items: int, n_weeks: int, seed: int) -> list[str]:
    """
    :return: the flags that name a file of sales and one of costs
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sales = synthetic_sales(n_weeks, n_items, mean=rng.uniform(4, 30, n_items), seed=seed, **FEATURES)
    names = [f"item{k:02d}" for k in range(n_items)]
    days = np.datetime64("2023-01-02") + 7 * np.arange(n_weeks)
    rows = np.column_stack([days.astype(str), 1 + np.arange(n_weeks) % 52, sales.astype(int)])
    np.savetxt(folder / "sales.csv", rows, "%s", ",", header=",".join(["date", "week", *names]), comments="")
    costs = [f"{name},{rng.uniform(0.5, 1.5):.2f},{rng.uniform(5, 12):.2f}" for name in names]
    (folder / "costs.csv").write_text("\n".join(["item,holding_cost,underage_cost", *costs]) + "\n")
    return ["--data", str(folder / "sales.csv"), "--costs", str(folder / "costs.csv")]


def described(facts: dict[str, Any]) -> str:
    """A line of the table."""
    ours, rule = facts["policies"][:2]
    service = f"{ours['service']:.1%}, {rule['service']:.1%}"
    costs = f"{ours['cost']['mean']:7,.0f} {rule['cost']['mean']:7,.0f} {facts['bound']:8,.0f}"
    return f"{costs} {percent(facts['saving_relative']):30} {service}  {facts['seconds']:.0f}   {rule['name']}"


def percent(interval: dict[str, float]) -> str:
    """A mean and its interval."""
    return f"{interval['mean']:8.1%} ({interval['low']:.1%} to {interval['high']:.1%})"


if __name__ == "__main__":
    main()
