"""
One policy for a range of products, against the optimum of each and against policies trained for one of them.

    python -m benchmarks.instances --seeds 0 1 2
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train import assignment
from benchmarks.zoo import EVALUATION_SEED, make_run
from hybrid_envs import HybridInventoryEnv
from hybrid_envs.evaluation import Policy
from hybrid_envs.solvers import SingleItemSS, evaluate

RANGE = {"underage_cost": (6.3, 11.7), "holding_cost": (0.7, 1.3), "mean_demand": (6.0, 14.0)}
SINGLE = {
    "centre": {name: (low + high) / 2 for name, (low, high) in RANGE.items()},
    "slow": {"underage_cost": 6.3, "holding_cost": 1.3, "mean_demand": 6.0},
    "fast": {"underage_cost": 11.7, "holding_cost": 0.7, "mean_demand": 14.0},
}
"""Points of the range that policies are trained for alone: its centre and two corners."""
COMMON = {"n_items": 1, "lead_time": 2}
N_SCENARIOS = 2000
"""Of each instance, the same for every policy."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instances", description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--single", nargs="*", choices=list(SINGLE), default=list(SINGLE), help="trained for one instance")
    parser.add_argument("--instances", type=int, default=200, help="of the test")
    parser.add_argument("--scenarios", type=int, default=N_SCENARIOS, help="of each instance")
    parser.add_argument("--iterations", type=int, help="of each training (default: the config's n_timesteps)")
    parser.add_argument(
        "--hyperparams", type=assignment, nargs="*", default=[], metavar="NAME=VALUE", help="override the config"
    )
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)

    products = [SingleProduct(numbers, args.scenarios) for numbers in drawn(args.instances)]
    drawn_anew: dict[str, Any] = {name: {"uniform": list(ends)} for name, ends in RANGE.items()}
    trainings = [("range", drawn_anew, seed) for seed in args.seeds]
    trainings += [(f"alone: {name}", SINGLE[name], 0) for name in args.single]
    results = []
    for name, env_kwargs, seed in trainings:
        run = make_run("hpo", "HybridInventory-v0", COMMON | env_kwargs, seed, **dict(args.hyperparams))
        begin = time.perf_counter()
        run.model.learn(run.steps(args.iterations))
        seconds = time.perf_counter() - begin
        ratios = np.array([product.ratio(run.model) for product in products])
        worst = products[int(ratios.argmax())]
        print(
            f"{name}, seed {seed}: cost / optimum of each of {len(products)} instances: mean {ratios.mean():.4f}, "
            f"95 % {np.quantile(ratios, 0.95):.4f}, worst {ratios.max():.4f} ({worst}); {seconds:.0f} s of training",
            flush=True,
        )
        results.append({"trained_on": name, "seed": seed, "ratios": ratios.tolist(), "seconds": seconds})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        instances = [product.numbers for product in products]
        args.out.write_text(json.dumps({"instances": instances, "runs": results}, indent=1) + "\n")


def drawn(n_instances: int) -> list[dict[str, float]]:
    """The instances of the test, drawn from the range and used in no training."""
    shares = np.random.default_rng(EVALUATION_SEED).uniform(size=(n_instances, len(RANGE)))
    return [
        {name: low + share * (high - low) for (name, (low, high)), share in zip(RANGE.items(), row, strict=True)}
        for row in shares.tolist()
    ]


class SingleProduct:
    """
    One instance and its optimum.

    :param numbers: its arguments
    :param n_scenarios: on which policies are compared
    """

    def __init__(self, numbers: dict[str, float], n_scenarios: int):
        self.numbers, self.n_scenarios = numbers, n_scenarios
        self.env = HybridInventoryEnv(**COMMON, **numbers)  # type: ignore[arg-type]
        self.optimal_cost = self._cost(SingleItemSS.best(self.env))

    def ratio(self, policy: Policy) -> float:
        """
        :return: its cost over that of the optimum on the same scenarios
        """
        return self._cost(policy) / self.optimal_cost

    def _cost(self, policy: Policy) -> float:
        return float(evaluate(self.env, policy, self.n_scenarios, EVALUATION_SEED).mean())

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.numbers.items())


if __name__ == "__main__":
    main()
