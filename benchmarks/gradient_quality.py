"""
How good are the gradient estimators? Alignment against problem size, a table of all metrics, and Theorem 2 shown.

    python -m benchmarks.gradient_quality [--quick] [--problems inventory switched_lqr] [--out benchmarks/results]

Policies at given distances from the best are snapshots of one HPO run per problem and size: the distance is the mean cost of
the training rollout, relative to the lowest of the run. Writes CSV files and PNG figures.
"""

import argparse
import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F

from hybrid_envs import HybridAction, HybridEnv, HybridInventoryEnv, HybridSwitchedLQREnv
from hybrid_envs.switched_lqr.env import SwitchedLQRState
from sb3_hpo import HPO
from sb3_hpo.gradients import ESTIMATORS, EstimatorOptions, exact_cost, expectation, leave_one_out, measure_quality
from sb3_hpo.policies import DeterministicPointPolicy

SIZES = {"inventory": [1, 3, 5, 10, 20, 40, 60], "switched_lqr": [1, 3, 5, 10, 20, 40, 48, 60]}
N_SCENARIOS = {"inventory": 64, "switched_lqr": 128}
TABLE_SIZE = {"inventory": 20, "switched_lqr": 48}
GAPS = [1.0, 0.3, 0.05]
POINT_STDS = [0.1, 1.0]
BRANCH_DEPTH = 10
EXACT_TITLE = "switched LQR, p = 3, J = 3, T = 4: exact"
IN_FIGURE = {"mixed": "tab:blue", "no_cross": "tab:green", "score_function": "tab:red"}


class Row(NamedTuple):
    """One line of the CSV."""

    problem: str
    size: int
    n_scenarios: int
    target_gap: float
    gap: float
    iteration: int
    estimator: str
    network: str
    alignment: float
    rmse: float
    signal_ratio: float
    cross_alignment: float


class Snapshots(BaseCallback):
    """Keeps the policy of every iteration and the cost of its rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[float] = []
        self.policies: list[dict[str, torch.Tensor]] = []

    def _on_rollout_end(self) -> None:
        self.costs.append(self.logger.name_to_value["rollout/cost_per_period"])
        self.policies.append({name: value.clone() for name, value in self.model.policy.state_dict().items()})

    def _on_step(self) -> bool:
        return True

    def at(self, gap: float) -> int:
        """
        :return: the first iteration whose cost is within the given relative distance of the lowest
        """
        return next(i for i, cost in enumerate(self.costs) if cost <= (1 + gap) * min(self.costs))

    def gap(self, iteration: int) -> float:
        return self.costs[iteration] / min(self.costs) - 1


def make_env(problem: str, size: int) -> HybridEnv:
    return HybridInventoryEnv(size) if problem == "inventory" else HybridSwitchedLQREnv(size, min(2, size))


def train(env: HybridEnv, n_scenarios: int, iterations: int, args: argparse.Namespace) -> tuple[HPO, Snapshots]:
    kwargs: dict[str, Any] = {"net_arch": args.net_arch, "softplus_beta": 1.0}
    if args.plain:
        kwargs["linear_path"] = ()
    model = HPO(
        "MlpPolicy",
        env,
        n_scenarios=n_scenarios,
        continuous_learning_rate="lin_1e-3",
        max_grad_norm=5.0,
        seed=args.seed,
        device="cpu",
        policy_kwargs=kwargs,
    )
    snapshots = Snapshots()
    model.learn(iterations * model.n_steps * model.n_envs, callback=snapshots)
    return model, snapshots


def iterations_of(problem: str, size: int, args: argparse.Namespace) -> int:
    return args.iterations or (100 if problem == "inventory" else 80 + 3 * size)


def rows_of(problem: str, size: int, model: HPO, snapshots: Snapshots, args: argparse.Namespace) -> Iterable[Row]:
    """Measure a run's snapshots: all estimators at the table's size, those of the figure elsewhere."""
    env, n_scenarios = make_env(problem, size), N_SCENARIOS[problem]
    in_table = size == TABLE_SIZE[problem]
    names = tuple(name for name in ESTIMATORS if in_table or name in IN_FIGURE)
    batches = [(n_scenarios, names, args.batches, POINT_STDS[0])]
    if in_table:
        # the same with the Gaussian that HybridPPO starts from, and larger batches
        batches += [(n_scenarios, ("score_function",), args.batches, POINT_STDS[1])]
        batches += [(8 * n_scenarios, tuple(IN_FIGURE), max(args.batches // 2, 2), POINT_STDS[0])]
    for target in GAPS:
        iteration = snapshots.at(target)
        model.policy.load_state_dict(snapshots.policies[iteration])
        for batch_size, estimators, n_batches, std in batches:
            measured = measure_quality(
                env,
                model.policy,
                estimators,
                n_batches=n_batches,
                n_scenarios=batch_size,
                options=EstimatorOptions(baseline=leave_one_out, point_std=std, branch_depth=BRANCH_DEPTH),
                generator=torch.Generator().manual_seed(args.seed),
            )
            for estimator, networks in measured.items():
                label = f"{estimator} (std {std:g})" if estimator == "score_function" else estimator
                for network, result in networks.items():
                    yield Row(problem, size, batch_size, target, snapshots.gap(iteration), iteration, label, network, *result)


# ---- Theorem 2 -------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One policy of a Theorem 2 curve."""

    epsilon: float
    """Suboptimality of the discrete policy at fixed κ, in cost."""
    cross_term: float
    """Norm of the cross term."""
    mixed: float
    """Norm of the whole gradient for κ."""


class ClockedLQR(HybridSwitchedLQREnv):
    """Switched LQR whose observation also holds the period, so that a best response is a function of the observation."""

    def __init__(self, n_dims: int, n_modes: int, horizon: int):
        super().__init__(n_dims, n_modes, horizon=horizon)
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_dims + 1,))
        self.observation_scale = np.append(self.observation_scale, np.float32(1))

    def observation(self, state: SwitchedLQRState) -> torch.Tensor:
        return torch.cat([state.x, state.period.unsqueeze(1).to(state.x.dtype)], dim=1)


class TowardsBestResponse:
    """
    The policy with π_α = (1 - α) π_φ + α [best response to κ], the latter by enumerating what follows; κ is as it was.

    :param env: a problem without noise
    :param policy: π_φ and β_κ
    :param alpha: α < 1
    """

    def __init__(self, env: ClockedLQR, policy: DeterministicPointPolicy, alpha: float):
        self.env, self.policy, self.alpha = env, policy, alpha
        self.components, self.candidates = policy.components, policy.candidates

    @torch.no_grad()
    def costs_to_go(self, state: SwitchedLQRState) -> torch.Tensor:
        """
        :return: of each regime followed by the best ones, shape ``(batch, J)``
        """
        costs = []
        points = self.candidates(self.env.observation(state))
        for regime in range(self.env.n_regimes):
            x = torch.full_like(state.period, regime)
            result = self.env.step_torch(state, HybridAction(x, self.env.factors.choose(points, x)), points[:, 0, :0])
            later = 0.0 if result.truncated.all() else self.costs_to_go(result.state).amin(dim=1)
            costs.append(later - result.reward)
        return torch.stack(costs, dim=1)

    def regime_logits(self, obs: torch.Tensor) -> torch.Tensor:
        state = SwitchedLQRState(obs[:, :-1].detach(), obs[:, -1].detach().long())
        best = F.one_hot(self.costs_to_go(state).argmin(dim=1), self.env.n_regimes)
        return ((1 - self.alpha) * self.policy.regime_logits(obs).softmax(dim=1) + self.alpha * best).log()


def cross_term_exactly(args: argparse.Namespace) -> list[Point]:
    """
    :return: a point for each α, on switched LQR with p = 3, J = 3, T = 4, all regime sequences enumerated
    """
    env = ClockedLQR(3, 3, horizon=4)
    model, _ = train(env, 128, args.iterations or 100, args)
    policy = model.policy
    torch.manual_seed(args.seed)
    for parameter in policy.components["discrete"].parameters():  # a φ that is no best response to κ
        torch.nn.init.normal_(parameter, std=0.3)
    generator = torch.Generator().manual_seed(args.seed)
    state, noise = env.initial(64, generator), env.sample_noise(64, generator)
    best = float(TowardsBestResponse(env, policy, 0.0).costs_to_go(state).amin(dim=1).mean())
    found = []
    for alpha in (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.997):
        mixture = TowardsBestResponse(env, policy, alpha)
        with torch.no_grad():
            epsilon = float(exact_cost(env, mixture, state, noise)) - best
        norms = (float(expectation(name, env, mixture, state, noise)["continuous"].norm()) for name in ("cross_term", "mixed"))
        found.append(Point(epsilon, *norms))
    return found


# ---- output ----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows)


def draw_alignment(rows: list[Row], path: Path) -> None:
    """Alignment for κ against the size, one panel per problem, one line per estimator and distance."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    figure = Figure(figsize=(5 * len(problems) + 3, 4.2), layout="constrained")
    for axes, problem in zip(figure.subplots(1, len(problems), sharey=True, squeeze=False)[0], problems, strict=True):
        for estimator, colour in IN_FIGURE.items():
            label = f"{estimator} (std {POINT_STDS[0]:g})" if estimator == "score_function" else estimator
            for gap, line in zip(GAPS, ("-", "--", ":"), strict=True):
                points = [
                    (row.size, row.alignment)
                    for row in rows
                    if (row.problem, row.estimator, row.network, row.target_gap, row.n_scenarios)
                    == (problem, label, "continuous", gap, N_SCENARIOS[problem])
                ]
                axes.plot(
                    *zip(*points, strict=True), line, color=colour, marker="o", ms=3, lw=1.5, label=f"{label}, gap {gap:.0%}"
                )
        sizes = sorted({row.size for row in rows if row.problem == problem})
        axes.set(xscale="log", xlabel="p", title=f"{problem}, {N_SCENARIOS[problem]} scenarios", ylim=(-0.15, 1.02))
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=4)
    figure.axes[0].set_ylabel("alignment of a batch gradient for κ")
    figure.savefig(path, dpi=150)


def draw_theorem_2(points: list[Point], path: Path) -> None:
    """Norm of the cross term against ε, with a line of slope 1: the bound is linear in ε, and ε alone changes in it here."""
    epsilon, cross, whole = np.array(points).T
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.loglog(epsilon, cross, "o-", label="cross term")
    axes.loglog(epsilon, whole, "s-", color="tab:gray", label="mixed gradient")
    axes.loglog(epsilon, cross[0] * epsilon / epsilon[0], "k:", label="slope 1")
    axes.set(title=EXACT_TITLE, xlabel="ε, suboptimality of the discrete policy (cost)", ylabel="norm for κ")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def print_table(rows: list[Row]) -> None:
    print(f"{'problem':13} {'p':>3} {'batch':>5} {'gap':>6}  {'estimator':26} {'network':10} align   RMSE      signal  cross")
    sizes = {row.problem: row.size for row in rows} | {row.problem: row.size for row in rows if row.estimator == "branched"}
    for row in rows:
        if row.size == sizes[row.problem]:
            print(
                f"{row.problem:13} {row.size:3} {row.n_scenarios:5} {row.gap:6.1%}  {row.estimator:26} {row.network:10} "
                f"{row.alignment:+.3f}  {row.rmse:8.3g}  {row.signal_ratio:+.3f}  {row.cross_alignment:+.3f}"
            )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_quality", description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="two small sizes, few batches: a look, not a result")
    parser.add_argument("--problems", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--sizes", nargs="+", type=int, help="p (default: those of the figure)")
    parser.add_argument("--batches", type=int, default=16, help="batches per measurement (default 16)")
    parser.add_argument("--iterations", type=int, help="training iterations (default 100, and 80 + 3 p for switched LQR)")
    parser.add_argument("--net-arch", nargs="+", type=int, default=[64, 64], help="hidden layers (default 64 64)")
    parser.add_argument("--plain", action="store_true", help="policies without a linear path, as in the paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.batches = args.sizes or [1, 5], min(args.batches, 4)
        args.iterations, args.net_arch = args.iterations or 20, [32, 32]
    if args.batches < 2:
        parser.error(f"--batches must be at least 2, got {args.batches}")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)  # an unwritable folder fails here, before any work
    print(", ".join(f"{name} = {value}" for name, value in vars(args).items()))
    print(f"baseline = leave_one_out, gaps = {GAPS}, point std = {POINT_STDS} · action_scale, branch depth = {BRANCH_DEPTH}")
    start = time.perf_counter()
    rows: list[Row] = []
    points = cross_term_exactly(args)
    for problem in args.problems:
        for size in args.sizes or SIZES[problem]:
            env = make_env(problem, size)
            model, snapshots = train(env, N_SCENARIOS[problem], iterations_of(problem, size, args), args)
            rows += rows_of(problem, size, model, snapshots, args)
            print(f"{problem}, p = {size}: {time.perf_counter() - start:.0f} s", flush=True)
    print_table(rows)
    print(EXACT_TITLE)
    for epsilon, cross, whole in points:
        print(f"  ε = {epsilon:9.4g}   cross term {cross:9.4g}   mixed {whole:9.4g}")
    write_csv(args.out / "gradient_quality.csv", Row._fields, rows)
    write_csv(args.out / "cross_term.csv", Point._fields, points)
    draw_alignment(rows, args.out / "gradient_quality.png")
    draw_theorem_2(points, args.out / "cross_term.png")
    print(f"{time.perf_counter() - start:.0f} s; gradient_quality.csv, .png and cross_term.csv, .png: {args.out}")


if __name__ == "__main__":
    main()
