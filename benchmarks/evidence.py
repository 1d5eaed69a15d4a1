"""
Rerun a row of the published tables, and fail where a figure has drifted out of its interval.

    python -m benchmarks.evidence [--rows NAME ...] [--jobs N]

A training is repeated with seed 0 alone. On another processor it takes another course, as another seed would, so the interval
is that in which the published seeds let one more be expected: mean ± t s √(1 + 1/n), 95 % each. What a solver computes has to
agree in all digits that are published.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from benchmarks.suite import PROBLEMS, Problem, published
from benchmarks.train import N_SCENARIOS, train
from benchmarks.zoo import EVALUATION_SEED, add_jobs, mean_and_interval, run_all
from hybrid_envs.core import HybridEnv
from hybrid_envs.solvers import LostSalesOptimum, evaluate, lower_bound, reference_policy

SUITE = Path(__file__).parent / "results" / "suite.csv"
SLOW = ("HybridMoving-v0", "HybridSliding-v0")
"""Their runs take ten minutes."""
LOST_SALES: dict[str, Any] = {"n_items": 1, "lost_sales": True, "mean_demand": 5.0, "holding_cost": 1.0}


class Row(NamedTuple):
    """A figure that is published, and how it is found."""

    where: str
    """The page, and what it says there."""
    low: float
    high: float
    measure: Callable[[], float]


def expected(costs: Sequence[float]) -> tuple[float, float]:
    """
    :param costs: of the published seeds
    :return: the interval that holds that of one more with a probability of 95 %
    """
    return one_more(*mean_and_interval(list(costs)), len(costs))


def one_more(mean: float, half_width: float, n: int) -> tuple[float, float]:
    """
    :param half_width: of the 95 % interval of the mean of ``n`` seeds, t s / √n
    :return: as from :func:`expected`
    """
    spread = half_width * math.sqrt(n + 1)
    return mean - spread, mean + spread


def rows() -> dict[str, Row]:
    """
    :return: by name
    """
    found = {f"suite-{problem.env_id}": suite_row(problem) for problem in PROBLEMS if problem.env_id not in SLOW}
    lqr = {"n_dims": 48, "n_modes": 2}
    found["switched-lqr-48"] = trained(
        "suite.md: switched LQR, p = 48",
        [51.989, 51.947, 51.958, 51.970, 51.980],
        "HybridSwitchedLQR-v0",
        lqr,
    )
    lost = partial(trained, env_id="HybridInventory-v0", iterations=250, whole_units=True, entry="published")
    found["lost-sales"] = lost(
        "references.md: lost sales", [25.975, 25.982, 25.962], env_kwargs=LOST_SALES | {"underage_cost": 9.0}
    )
    profit = LOST_SALES | {"underage_cost": 0.0, "margin": 9.0}
    found["profit"] = lost("references.md: profit", [-19.065, -19.054, -19.027], env_kwargs=profit)
    found["lost-sales-optimum"] = exact("references.md: the optimum of lost sales", 25.900, lost_sales_optimum)
    found["bound"] = exact("references.md: the bound of joint replenishment, 20 items", 36.894, inventory_bound)
    found["best-known"] = exact(
        "suite.md: switched LQR, p = 48, best known", 51.774, partial(reference_cost, "HybridSwitchedLQR-v0", lqr)
    )
    return found


def suite_row(problem: Problem) -> Row:
    """The first size of a problem in the suite, but of joint replenishment, whose first one varies most, the second."""
    size = "large" if problem.env_id == "HybridInventory-v0" else "small"
    env_kwargs, arguments = getattr(problem, size), problem.arguments(size)
    row = published(SUITE)[problem.env_id, arguments]
    interval = one_more(row["hpo_cost"], row["hpo_half_width"], row["hpo_seeds"])
    options = {"whole_units": problem.whole_units, "n_timesteps": problem.steps(size)}
    return Row(
        f"suite.md: {problem.env_id}, {arguments}", *interval, partial(train_cost, problem.env_id, env_kwargs, **options)
    )


def trained(where: str, costs: Sequence[float], env_id: str, env_kwargs: dict[str, Any], **options: Any) -> Row:
    return Row(where, *expected(costs), partial(train_cost, env_id, env_kwargs, **options))


def exact(where: str, figure: float, measure: Callable[[], float]) -> Row:
    return Row(where, figure - 0.001, figure + 0.001, measure)


def train_cost(env_id: str, env_kwargs: dict[str, Any], **options: Any) -> float:
    return float(train("hpo", env_id, env_kwargs, 0, curve_points=1, **options)["cost"])


def made(env_id: str, env_kwargs: dict[str, Any]) -> Any:
    return gym.make(env_id, **env_kwargs).unwrapped


def lost_sales_optimum() -> float:
    return LostSalesOptimum(made("HybridInventory-v0", LOST_SALES | {"underage_cost": 9.0})).cost


def inventory_bound() -> float:
    return lower_bound(made("HybridInventory-v0", {"n_items": 20}))


def reference_cost(env_id: str, env_kwargs: dict[str, Any]) -> float:
    env: HybridEnv = made(env_id, env_kwargs)
    reference = reference_policy(env)
    assert reference is not None
    return float(evaluate(env, reference, N_SCENARIOS, EVALUATION_SEED).mean())


def measured(name: str) -> float:
    return rows()[name].measure()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[1])
    table = rows()
    parser.add_argument("--rows", nargs="+", choices=list(table), default=list(table), metavar="NAME", help=", ".join(table))
    add_jobs(parser)
    args = parser.parse_args()
    found = run_all(measured, [(name,) for name in args.rows], args.jobs)
    print(f"\n{'published':>21}   {'found':>8}")
    drifted = 0
    for name, value in zip(args.rows, found, strict=True):
        row = table[name]
        holds = row.low <= value <= row.high
        drifted += not holds
        print(f"{row.low:9.3f} to {row.high:8.3f}   {value:8.3f}   {'' if holds else 'DRIFTED   '}{row.where}")
    if drifted:
        sys.exit(f"{drifted} of {len(found)} figures are not what was published")


if __name__ == "__main__":
    main()
