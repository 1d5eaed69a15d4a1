"""
Train from a zoo config with several seeds and report the cost on held-out scenarios: the command behind the published figures.

    python -m benchmarks.train --algo hpo --env HybridInventory-v0 --env-kwargs n_items=20 --seeds 0 1 2
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml

from benchmarks.zoo import ALGORITHMS, EVALUATION_SEED, add_jobs, make_run, mean_and_interval, run_all
from hybrid_envs.evaluation import Policy
from hybrid_envs.solvers import WholeUnits, evaluate, success_rate
from sb3_hpo.callbacks import CostCallback

N_SCENARIOS = 2000


def main() -> None:
    parser = run_parser("train", __doc__, "HybridInventory-v0")
    parser.add_argument("--algo", choices=list(ALGORITHMS), default="hpo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_jobs(parser)
    parser.add_argument("--curve-points", type=int, default=10, help="evaluations during training")
    parser.add_argument("--whole-units", action="store_true", help="round b to whole numbers before it is evaluated")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    args = parser.parse_args()

    env_kwargs, hyperparams = dict(args.env_kwargs), dict(args.hyperparams)
    common = (args.iterations, args.entry, args.curve_points, args.whole_units)
    calls = [(args.algo, args.env, env_kwargs, seed, *common) for seed in args.seeds]
    runs = run_all(partial(train, **hyperparams), calls, args.jobs)
    costs = np.array([run["cost"] for run in runs])
    spread = f" ± {costs.std(ddof=1):.3f} (standard deviation over seeds)" if len(costs) > 1 else ""
    print(f"{args.algo} {args.env} {env_kwargs}: mean {costs.mean():.3f}{spread}, worst {costs.max():.3f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"algo": args.algo, "env": args.env, "env_kwargs": env_kwargs, "n_scenarios": N_SCENARIOS}
        args.out.write_text(json.dumps(settings | {"hyperparams": hyperparams, "runs": runs}, indent=1) + "\n")


def train(
    algo: str,
    env_id: str,
    env_kwargs: dict[str, Any],
    seed: int,
    iterations: int | None = None,
    entry: str | None = None,
    curve_points: int = 10,
    whole_units: bool = False,
    **hyperparams: Any,
) -> dict[str, Any]:
    """
    One run; prints a line.

    :param iterations: instead of the config's ``n_timesteps``
    :param entry: of the config
    :param curve_points: evaluations during training
    :param whole_units: whether the trained policy's b is rounded to whole numbers (:class:`~hybrid_envs.solvers.WholeUnits`);
        then ``"unrounded_cost"`` is that of the policy as it was trained
    :param hyperparams: replace the config's
    :return: seed, cost on :data:`N_SCENARIOS` held-out scenarios and the half width of its interval, seconds, learning curve
    """
    run = make_run(algo, env_id, env_kwargs, seed, entry, **hyperparams)
    steps = run.steps(iterations)
    curve = CostCallback(run.env, every=max(1, steps // curve_points))
    start = time.perf_counter()
    run.model.learn(steps, callback=curve)
    seconds = time.perf_counter() - start
    policy: Policy = WholeUnits(run.model) if whole_units else run.model
    mean, half_width = mean_and_interval(evaluate(run.env, policy, N_SCENARIOS, EVALUATION_SEED))
    rate = success_rate(run.env, policy, N_SCENARIOS, EVALUATION_SEED)
    done = run.model.num_timesteps // run.iteration_steps
    print(
        f"{algo} {env_id} {env_kwargs} seed {seed}: {done} iterations, "
        f"cost {mean:.3f} ± {half_width:.3f} over {N_SCENARIOS} scenarios, "
        + (f"{100 * rate:.1f} % of them a success, " if rate is not None else "")
        + ("b rounded to whole numbers, " if whole_units else "")
        + f"{seconds:.0f} s",
        flush=True,
    )
    result = {"seed": seed, "cost": mean, "half_width": half_width, "seconds": seconds, "iterations": done}
    if rate is not None:
        result["success"] = rate
    if whole_units:
        result["unrounded_cost"] = float(evaluate(run.env, run.model, N_SCENARIOS, EVALUATION_SEED).mean())
    return result | {"steps": curve.steps, "costs": curve.costs}


def run_parser(name: str, description: str, env_id: str) -> argparse.ArgumentParser:
    """
    :param name: of the benchmark
    :param description: the docstring of its module
    :param env_id: the default
    :return: the arguments by which a benchmark says what is trained
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.splitlines()[1])
    parser.add_argument("--env", type=registered, default=env_id)
    parser.add_argument("--env-kwargs", type=assignment, nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--hyperparams", type=assignment, nargs="*", default=[], metavar="NAME=VALUE", help="override the config"
    )
    parser.add_argument("--entry", help="entry of the config (default: the environment's)")
    parser.add_argument("--iterations", type=int, help="instead of the config's n_timesteps")
    return parser


def registered(text: str) -> str:
    """An environment's id, as it stands."""
    try:
        gym.spec(text)
    except gym.error.Error as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def assignment(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with the value read as YAML."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    main()
