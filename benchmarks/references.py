"""
Reference policies and bounds: the command behind docs/references.md.

    python -m benchmarks.references [--problem inventory|lqr|unit_commitment] [--quick]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.zoo import EVALUATION_SEED, mean_and_interval
from hybrid_envs import HybridInventoryEnv, HybridSwitchedLQREnv, HybridUnitCommitmentEnv
from hybrid_envs.solvers import (
    CanOrder,
    PeriodicReview,
    PeriodicSS,
    PerItemSS,
    Policy,
    SingleItemSS,
    SingleMode,
    SwitchedRiccati,
    TotalDemandTrigger,
    dual_lower_bound,
    evaluate,
    lower_bound,
)
from hybrid_envs.unit_commitment.milp import PerfectInformation, net_loads
from hybrid_envs.unit_commitment.operator import MeritOrderOperator

PROBLEMS = ("inventory", "lqr", "unit_commitment")
BOUND_SEED = 5

FIRST_MODES = {2: 4, 4: 4, 6: 4, 8: 4}
N_STARTS = {2: 64, 4: 64, 6: 16, 8: 4}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.references", description=__doc__.splitlines()[1])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="one problem (default: all)")
    parser.add_argument("--quick", action="store_true", help="small instances only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = args.problem or PROBLEMS
    if "inventory" in problems:
        inventory([1, 5] if args.quick else [1, 5, 20, 60])
        minor_costs([2] if args.quick else [20])
    if "lqr" in problems:
        switched_lqr([(8, 2)] if args.quick else [(8, 2), (48, 2), (48, 4), (48, 6), (48, 8)])
    if "unit_commitment" in problems:
        sizes = [(3, "all", 50), (4, "all", 50), (5, "all", 10), (10, "merit_order", 10), (20, "merit_order", 10)]
        unit_commitment([(3, "all", 2)] if args.quick else sizes)


def inventory(sizes: list[int]) -> None:
    print("joint replenishment, long-run cost per item and period")
    print(f"{'p':>3}{'bound':>10}{'(s, S)':>10}{'(R, S)':>10}{'R':>3}{'trigger':>18}{'can-order':>18}")
    for n_items in sizes:
        env = HybridInventoryEnv(n_items)
        periodic = PeriodicReview.best(env)
        single = f"{SingleItemSS.best(env).cost:.4f}" if n_items == 1 else "-"
        simulated = [policy.best(env) for policy in (TotalDemandTrigger, CanOrder)]
        stated: list[Any] = [f"{policy.cost:.3f} ± {policy.half_width:.3f}" for policy in simulated]
        print(
            f"{n_items:>3}{lower_bound(env):>10.3f}{single:>10}{periodic.cost:>10.4f}{periodic.review_period:>3}"
            f"{stated[0]:>18}{stated[1]:>18}",
            flush=True,
        )


def minor_costs(sizes: list[int]) -> None:
    print("\njoint replenishment with minor costs, cost per item and period; simulated (± half width) on 2,000 scenarios")
    families: dict[str, Callable[[HybridInventoryEnv], Sequence[Policy]]] = {
        "PeriodicReview": PeriodicReview.of_each_period,  # R is what suits the episode, not what is best for ever
        "PeriodicSS": PeriodicSS.of_each_period,
        "TotalDemandTrigger": lambda env: [TotalDemandTrigger.best(env)],
        "CanOrder": lambda env: [CanOrder.best(env)],
        "PerItemSS": lambda env: [PerItemSS.best(env)],
    }
    print(f"{'p':>3}{'K':>6}{'k':>9}{'bound':>8}" + "".join(f"{name:>20}" for name in families))
    for n_items in sizes:
        alternating = np.resize([20.0, 200.0], n_items)
        for K, k, name in ((64.0 * n_items, 20.0, "20"), (20.0 * n_items, alternating, "20, 200")):
            env = HybridInventoryEnv(n_items, fixed_cost=K, minor_fixed_cost=k)
            costs = [
                min(mean_and_interval(evaluate(env, policy, 2000, EVALUATION_SEED)) for policy in of_family(env))
                for of_family in families.values()
            ]
            cells = "".join(f"{f'{mean:.3f} ± {half_width:.3f}':>20}" for mean, half_width in costs)
            print(f"{n_items:>3}{K:>6.0f}{name:>9}{lower_bound(env):>8.3f}{cells}", flush=True)


def switched_lqr(instances: list[tuple[int, int]]) -> None:
    print("\nswitched LQR, total cost of an episode; policy / bound on the same starts")
    columns = (("p", 3), ("J", 3), ("single mode", 13), ("switched Riccati", 18), ("/ bound, mean", 15), ("worst", 10))
    print("".join(f"{title:>{width}}" for title, width in (*columns, ("starts", 8), ("seconds", 9))))
    for n_dims, n_modes in instances:
        env = HybridSwitchedLQREnv(n_dims, n_modes)
        begin = time.perf_counter()
        policy = SwitchedRiccati(env)
        starts = env.initial(2000, torch.Generator().manual_seed(1)).x.double().numpy()
        costs = policy.trajectories(starts)[1]
        n_bound = N_STARTS[n_modes]
        ratio = costs[:n_bound] / dual_lower_bound(env, starts[:n_bound], FIRST_MODES[n_modes], known_costs=costs[:n_bound])
        mean, half_width = mean_and_interval(costs)
        print(
            f"{n_dims:>3}{n_modes:>3}{SingleMode.best(env).cost:>13.2f}{f'{mean:.2f} ± {half_width:.2f}':>18}"
            f"{ratio.mean():>15.5f}{ratio.max():>10.5f}{n_bound:>8}{time.perf_counter() - begin:>9.0f}",
            flush=True,
        )


def unit_commitment(sizes: list[tuple[int, str, int]]) -> None:
    print("\nunit commitment, cost of a day")
    columns = (("p", 3), ("commitments", 13), ("scenarios", 11), ("bound", 17), ("operator", 17), ("difference", 17))
    print("".join(f"{title:>{width}}" for title, width in (*columns, ("s / scenario: median", 22), ("worst", 8))))
    for n_generators, commitments, n_scenarios in sizes:
        env = HybridUnitCommitmentEnv(n_generators, commitments=commitments)
        programme, bounds, seconds = PerfectInformation(env), [], []
        for net_load in net_loads(env, n_scenarios, BOUND_SEED):
            begin = time.perf_counter()
            bounds.append(programme.solve(net_load).bound)
            seconds.append(time.perf_counter() - begin)
        costs = evaluate(env, MeritOrderOperator.best(env), n_scenarios, BOUND_SEED)
        print(
            f"{n_generators:>3}{commitments:>13}{n_scenarios:>11}"
            + "".join(
                f"{'{:.1f} ± {:.1f}'.format(*mean_and_interval(values)):>17}"
                for values in (np.array(bounds), costs, costs - bounds)
            )
            + f"{np.median(seconds):>22.2f}{max(seconds):>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
