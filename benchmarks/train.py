"""
Train from a zoo config with several seeds and report the cost on held-out scenarios: the command behind the published figures.

    python -m benchmarks.train --algo hpo --env HybridInventory-v0 --env-kwargs n_items=20 --seeds 0 1 2
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.zoo import ALGORITHMS, EVALUATION_SEED, make_run, mean_and_interval
from hybrid_envs.solvers import evaluate, success_rate
from sb3_hpo.callbacks import CostCallback

N_SCENARIOS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.splitlines()[1])
    parser.add_argument("--algo", choices=list(ALGORITHMS), default="hpo")
    parser.add_argument("--env", default="HybridInventory-v0")
    parser.add_argument("--env-kwargs", type=assignment, nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--hyperparams", type=assignment, nargs="*", default=[], metavar="NAME=VALUE", help="override the config"
    )
    parser.add_argument("--entry", help="entry of the config (default: the environment's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, help="instead of the config's n_timesteps")
    parser.add_argument("--curve-points", type=int, default=10, help="evaluations during training")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)

    runs = []
    for seed in args.seeds:
        run = make_run(args.algo, args.env, dict(args.env_kwargs), seed, args.entry, **dict(args.hyperparams))
        steps = args.iterations * run.iteration_steps if args.iterations else run.n_timesteps
        curve = CostCallback(run.env, every=max(1, steps // args.curve_points))
        start = time.perf_counter()
        run.model.learn(steps, callback=curve)
        seconds = time.perf_counter() - start
        mean, half_width = mean_and_interval(evaluate(run.env, run.model, N_SCENARIOS, EVALUATION_SEED))
        runs.append({"seed": seed, "cost": mean, "half_width": half_width, "seconds": seconds})
        rate = success_rate(run.env, run.model, N_SCENARIOS, EVALUATION_SEED)
        if rate is not None:
            runs[-1]["success"] = rate
        runs[-1] |= {"iterations": run.model.num_timesteps // run.iteration_steps, "steps": curve.steps, "costs": curve.costs}
        print(
            f"{args.algo} {args.env} {dict(args.env_kwargs)} seed {seed}: {runs[-1]['iterations']} iterations, "
            f"cost {mean:.3f} ± {half_width:.3f} over {N_SCENARIOS} scenarios, "
            + (f"{100 * rate:.1f} % of them a success, " if rate is not None else "")
            + f"{seconds:.0f} s",
            flush=True,
        )
    costs = np.array([run["cost"] for run in runs])
    spread = f" ± {costs.std(ddof=1):.3f} (standard deviation over seeds)" if len(costs) > 1 else ""
    print(f"{args.algo} {args.env} {dict(args.env_kwargs)}: mean {costs.mean():.3f}{spread}, worst {costs.max():.3f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"algo": args.algo, "env": args.env, "env_kwargs": dict(args.env_kwargs), "n_scenarios": N_SCENARIOS}
        args.out.write_text(json.dumps(settings | {"hyperparams": dict(args.hyperparams), "runs": runs}, indent=1) + "\n")


def assignment(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with the value read as YAML."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    main()
