"""
One problem that jumps, four ways to optimise it: through the jump, straight-through, PPO on the Box, HPO on the rewrite.

    python -m benchmarks.jumps [--quick] [--seeds 0 1 2] [--out benchmarks/results]

The problem is HybridProcurement-v0 with one item and 50 periods, whose optimum is known by dynamic programming. All methods
get the same number of environment steps. Writes jumps.csv and jumps.png.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from benchmarks.zoo import EVALUATION_SEED, mean_and_interval
from hybrid_envs import HybridAction, HybridEnv, HybridProcurementEnv, PiecewiseEnv
from hybrid_envs.piecewise import BoxAction
from hybrid_envs.procurement.env import ProcurementProblem
from hybrid_envs.procurement.policies import TotalOrders
from hybrid_envs.solvers import evaluate
from sb3_hpo import HPO
from sb3_hpo.callbacks import CostCallback
from sb3_hpo.vec_env import HybridVecEnv

HORIZON = 50
N_SCENARIOS = 64
ITERATIONS = 80
REACH = 60.0
"""PPO's Box [-1, 1] stands for orders from 0 to this."""
TEMPERATURE = 2.0
"""Width, in units, of the sigmoid whose slope straight-through gradients take for a jump's."""
NET_ARCH = [64, 64]


class Row(NamedTuple):
    """One line of the CSV."""

    method: str
    seed: int
    steps: int
    n_scenarios: int
    """Of the evaluation; the same for all methods."""
    cost: float
    gap: float
    """Cost over that of the optimal policy on the same scenarios, minus 1."""


class StraightThroughProblem(ProcurementProblem):
    """The same problem, in which each jump is given the slope of a sigmoid."""

    def exceeds(self, level: torch.Tensor, threshold: torch.Tensor, below: bool = False) -> torch.Tensor:
        soft = torch.sigmoid((level - threshold) / TEMPERATURE)
        return super().exceeds(level, threshold, below) + soft - soft.detach()


class BoxVecEnv(VecEnvWrapper):
    """The plain problem as stock SB3 takes it, many scenarios at once: actions in [-1, 1], observations of magnitude 1."""

    def __init__(self, problem: ProcurementProblem):
        super().__init__(
            HybridVecEnv(PiecewiseEnv(problem, None), N_SCENARIOS),
            action_space=spaces.Box(-1.0, 1.0, (problem.action_size,), dtype=np.float32),
        )
        self.scale = problem.observation_scale

    def step_async(self, actions: np.ndarray) -> None:
        regimes = torch.zeros(len(actions), dtype=torch.int64)
        self.venv.step_async(HybridAction(regimes, torch.as_tensor(orders_of(actions))))  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, done, infos = self.venv.step_wait()
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = self._scaled(infos[i]["terminal_observation"])
        return self._scaled(observation), reward, done, infos

    def reset(self) -> VecEnvObs:
        return self._scaled(self.venv.reset())

    def _scaled(self, observation: Any) -> np.ndarray:
        return (observation / self.scale).astype(np.float32)


class BoxCostCallback(CostCallback):
    """The same curve for a model that was trained on :class:`BoxVecEnv`."""

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        scaled = (observation / self.problem.observation_scale).astype(np.float32)
        actions, _ = self.model.predict(scaled, deterministic=True)
        return [(0, order) for order in orders_of(actions)], None


def orders_of(actions: np.ndarray) -> np.ndarray:
    return (REACH * (actions + 1) / 2).astype(np.float32)


def hpo(env: HybridEnv, evaluated_on: HybridEnv, seed: int, steps: int, points: int) -> CostCallback:
    model = HPO(
        "MlpPolicy",
        env,
        n_scenarios=N_SCENARIOS,
        continuous_learning_rate="lin_3e-3",
        max_grad_norm=5.0,
        policy_kwargs={"net_arch": NET_ARCH, "softplus_beta": 1.0},
        seed=seed,
    )
    curve = CostCallback(evaluated_on, every=steps // points, gap=False)
    model.learn(steps, callback=curve)
    return curve


def through_the_jump(seed: int, steps: int, points: int) -> CostCallback:
    plain = PiecewiseEnv(ProcurementProblem(1, horizon=HORIZON), None)
    return hpo(plain, plain, seed, steps, points)  # with one regime HPO is the pathwise gradient alone


def straight_through(seed: int, steps: int, points: int) -> CostCallback:
    relaxed = PiecewiseEnv(StraightThroughProblem(1, horizon=HORIZON), None)
    return hpo(relaxed, PiecewiseEnv(ProcurementProblem(1, horizon=HORIZON), None), seed, steps, points)


def rewritten(seed: int, steps: int, points: int) -> CostCallback:
    env = HybridProcurementEnv(1, horizon=HORIZON)
    return hpo(env, env, seed, steps, points)


def ppo(seed: int, steps: int, points: int) -> CostCallback:
    problem = ProcurementProblem(1, horizon=HORIZON)
    model = PPO(
        "MlpPolicy",
        VecNormalize(BoxVecEnv(problem), norm_obs=False, gamma=0.99),
        learning_rate=1e-3,
        n_steps=problem.horizon,
        batch_size=problem.horizon * N_SCENARIOS // 4,
        n_epochs=5,
        gae_lambda=0.96,
        target_kl=0.03,
        policy_kwargs={"net_arch": NET_ARCH, "log_std_init": -1.0},
        seed=seed,
        device="cpu",
    )
    curve = BoxCostCallback(PiecewiseEnv(problem, None), every=steps // points, gap=False)
    model.learn(steps, callback=curve)
    return curve


METHODS: dict[str, Callable[[int, int, int], CostCallback]] = {
    "pathwise through the jump": through_the_jump,
    "straight-through": straight_through,
    "PPO on the Box": ppo,
    "HPO on the rewrite": rewritten,
}


def draw(rows: list[Row], path: Path) -> None:
    """Left: what an order costs. Right: distance from the optimum against environment steps."""
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    supply, curves = figure.subplots(1, 2, width_ratios=(1, 1.6))
    problem = ProcurementProblem(1, horizon=HORIZON)
    orders = torch.linspace(0, REACH, 2401).unsqueeze(1)
    cost = problem.supply_cost(BoxAction(orders, orders)).squeeze(1).numpy()
    ends = [
        np.searchsorted(orders.squeeze(1).numpy(), q, side="right" if below else "left") for q, below in problem.thresholds
    ]
    for piece in np.split(np.arange(len(cost)), ends):
        supply.plot(orders[piece].numpy(), cost[piece], color="black")
    supply.set(xlabel="order b (units)", ylabel="price of units and trucks", title="a cost that jumps")
    for colour, method in enumerate(METHODS):
        of_method = [row for row in rows if row.method == method]
        final = max(row.n_scenarios for row in of_method)
        steps = sorted({row.steps for row in of_method if row.n_scenarios < final})
        gaps = np.array([[r.gap for r in of_method if r.steps == s and r.n_scenarios < final] for s in steps])
        gaps = np.maximum(gaps, 1e-3)  # what is nearer to the optimum is noise
        mean, half_width = mean_and_interval([row.gap for row in of_method if row.n_scenarios == final])
        curves.plot(
            steps, gaps.mean(axis=1), color=f"C{colour}", marker=".", label=f"{method}: {mean:+.1%} ± {half_width:.1%}"
        )
        curves.fill_between(steps, gaps.min(axis=1), gaps.max(axis=1), color=f"C{colour}", alpha=0.2)
    curves.set(xlabel="environment steps", ylabel="cost over the optimum", yscale="log", title="mean and range over seeds")
    curves.grid(alpha=0.3, which="both")
    curves.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jumps", description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="3 iterations: a look, not a result")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"(default {ITERATIONS})")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)  # an unwritable folder fails here, before any work
    env = HybridProcurementEnv(1, horizon=HORIZON)
    iterations, points, n_scenarios = (3, 3, 400) if args.quick else (args.iterations, 10, 2000)
    steps = iterations * N_SCENARIOS * env.horizon
    optimum = TotalOrders.best(env)
    print(f"optimum {optimum.cost:.3f} per period in the long run; {steps:,} environment steps, {iterations} iterations")

    start = time.perf_counter()
    references: dict[int, float] = {}
    rows: list[Row] = []
    for method, train in METHODS.items():
        for seed in args.seeds:
            curve = train(seed, steps, points)
            final = float(evaluate(curve.problem, curve, n_scenarios, EVALUATION_SEED).mean())
            measured = [(s, curve.n_scenarios, cost) for s, cost in zip(curve.steps, curve.costs, strict=True)]
            for done, count, cost in [*measured, (curve.steps[-1], n_scenarios, final)]:
                if count not in references:
                    references[count] = float(evaluate(env, optimum, count, EVALUATION_SEED).mean())
                rows.append(Row(method, seed, done, count, cost, cost / references[count] - 1))
            print(f"{method}, seed {seed}: {rows[-1].gap:+.2%}, {time.perf_counter() - start:.0f} s", flush=True)
    with open(args.out / "jumps.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows((*row[:4], f"{row.cost:.4f}", f"{row.gap:.5f}") for row in rows)
    draw(rows, args.out / "jumps.png")
    print(f"\ncost over the optimum on {n_scenarios} scenarios, mean and 95 % interval over {len(args.seeds)} seeds")
    for method in METHODS:
        mean, half_width = mean_and_interval(
            [row.gap for row in rows if row.method == method and row.n_scenarios == n_scenarios]
        )
        print(f"  {method:28}{mean:+8.2%} ± {half_width:.2%}")
    print(f"{time.perf_counter() - start:.0f} s; jumps.csv, jumps.png: {args.out}")


if __name__ == "__main__":
    main()
