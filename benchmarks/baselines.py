"""
What else trains on these problems, with equal environment steps and on the same held-out scenarios as HPO.

    python -m benchmarks.baselines [--problems NAME ...] [--methods NAME ...] [--seeds 0]

Stable-Baselines3's PPO and SAC and sb3_contrib's TQC see the flat view; the relaxed gradient trains HPO's networks through
Gumbel-softmax; short-horizon value gradients are HPO with rollouts of a few periods. RLlib's PPO, which needs a virtual
environment of its own, is ``benchmarks.rllib``; what that writes into the folder is shown too. Single runs are kept in the
folder and not repeated.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import TQC
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from benchmarks.suite import reference
from benchmarks.train import N_SCENARIOS, train
from benchmarks.zoo import (
    EVALUATION_SEED,
    finite,
    kept,
    kept_runs_arguments,
    make_run,
    mean_and_interval,
    read_config,
    run_all,
)
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Policy
from hybrid_envs.solvers import evaluate
from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo.losses import pathwise_loss
from sb3_hpo.simulation import simulate_relaxed
from sb3_hpo.vec_env import simulated


class Problem(NamedTuple):
    """A problem, and how long everything trains on it."""

    env_id: str
    env_kwargs: dict[str, Any]
    n_timesteps: int
    short: int
    """Periods of a short-horizon rollout."""
    relaxed: str | None = None
    """The entry of HPO with which the relaxed gradient does best, where it is not HPO's own."""


PROBLEMS = {
    "joint_replenishment": Problem("HybridInventory-v0", {"n_items": 20}, 1_600_000, short=20, relaxed="published"),
    "switched_lqr": Problem("HybridSwitchedLQR-v0", {"n_dims": 48}, 1_280_000, short=5),
}
OFF_POLICY: dict[str, Any] = {
    "learning_rate": 3e-4,
    "buffer_size": 300_000,
    "learning_starts": 10_000,
    "batch_size": 256,
    "gamma": 0.99,
    "train_freq": 1,
    "gradient_steps": 2,
    "policy_kwargs": {"net_arch": [128, 128]},
}
"""SB3's defaults, but two gradient steps on every 64 environment steps, and networks of HPO's size."""
TEMPERATURE = 0.5
FAR = 5.0
"""Times the reference, from which on per cents say nothing."""


class FlatVecEnv(VecEnvWrapper):
    """
    Scenarios simulated side by side, in the flat view.

    :param venv: of hybrid environments
    :param view: one of them in the wrapper
    """

    def __init__(self, venv: VecEnv, view: FlatActionWrapper):
        super().__init__(venv, action_space=view.action_space)
        self.view = view

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async([self.view.action(row) for row in actions])  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


class FlatPolicy:
    """
    A model of the flat view as a policy of the environment behind it.

    :param model: of Stable-Baselines3, trained through ``FlatActionWrapper``
    :param view: an environment in that wrapper
    :param normalizer: of what the model observes
    """

    def __init__(self, model: BaseAlgorithm, view: FlatActionWrapper, normalizer: VecNormalize):
        self.model, self.view, self.normalizer = model, view, normalizer

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        flat, _ = self.model.predict(self.normalizer.normalize_obs(observation), deterministic=True)
        return [self.view.action(row) for row in flat], None


def flat_ppo(problem: Problem, seed: int) -> tuple[HybridEnv, Policy]:
    """SB3's PPO by the entry of ``zoo_configs/ppo.yml``."""
    settings = read_config("ppo", problem.env_id)
    for of_zoo in ("env_wrapper", "n_timesteps", "normalize"):
        del settings[of_zoo]
    return flat(PPO, problem, seed, settings.pop("n_envs"), settings)


def flat_off_policy(algorithm: Callable[..., BaseAlgorithm], problem: Problem, seed: int) -> tuple[HybridEnv, Policy]:
    return flat(algorithm, problem, seed, 64, OFF_POLICY)


def flat(
    algorithm: Callable[..., BaseAlgorithm], problem: Problem, seed: int, n_envs: int, settings: dict[str, Any]
) -> tuple[HybridEnv, Policy]:
    view = FlatActionWrapper(gym.make(problem.env_id, **problem.env_kwargs))
    venv = VecNormalize(FlatVecEnv(simulated(view.env, n_envs), view), gamma=settings["gamma"])
    model = algorithm(env=venv, seed=seed, **{"policy": "MlpPolicy"} | settings)
    model.learn(problem.n_timesteps)
    venv.training = False
    return view.unwrapped, FlatPolicy(model, view, venv)  # type: ignore[return-value]


def relaxed(problem: Problem, seed: int, straight_through: bool) -> tuple[HybridEnv, Policy]:
    """
    Both of HPO's networks that act follow the relaxed gradient (:func:`~sb3_hpo.simulation.simulate_relaxed`), with the
    scenarios of HPO's entry and its learning rate of the points.
    """
    run = make_run("hpo", problem.env_id, problem.env_kwargs, seed, problem.relaxed)
    model, env = run.model, run.env
    rate = model.component_learning_rates["continuous"]
    generator = torch.Generator().manual_seed(seed)
    parameters = [*model.policy.components["discrete"].parameters(), *model.policy.components["continuous"].parameters()]
    optimizer = torch.optim.Adam(parameters, eps=1e-5)
    iterations = problem.n_timesteps // run.iteration_steps
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = rate(1 - iteration / iterations)
        state, noise = env.sample_scenarios(model.n_envs, generator)
        rewards = simulate_relaxed(
            env,
            model.policy,
            state,
            noise,
            temperature=TEMPERATURE,
            straight_through=straight_through,
            generator=generator,
        )
        optimizer.zero_grad()
        pathwise_loss(rewards / rewards.detach().std()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    return env, model


def of_ours(problem: Problem, seed: int, algo: str, **changes: Any) -> dict[str, Any]:
    """HPO or HybridPPO by its entry."""
    options = {"n_timesteps": problem.n_timesteps, "curve_points": 1} | changes
    return train(algo, problem.env_id, problem.env_kwargs, seed, **options)


def short_horizon(problem: Problem, seed: int) -> dict[str, Any]:
    return of_ours(problem, seed, "hpo", n_steps=problem.short, value_beyond_horizon=True)


def measured(learn: Callable[..., tuple[HybridEnv, Policy]], problem: Problem, seed: int) -> dict[str, Any]:
    """Seconds of training, and the cost on the held-out scenarios."""
    start = time.perf_counter()
    env, policy = learn(problem, seed)
    seconds = time.perf_counter() - start
    cost, half_width = mean_and_interval(evaluate(env, policy, N_SCENARIOS, EVALUATION_SEED))
    return {"cost": cost, "half_width": half_width, "seconds": seconds}


METHODS: dict[str, Callable[[Problem, int], dict[str, Any]]] = {
    "HPO": partial(of_ours, algo="hpo"),
    "HPO without cross term": partial(of_ours, algo="hpo", cross_term=False),
    "short-horizon value gradients": short_horizon,
    "relaxed (Gumbel-softmax)": partial(measured, partial(relaxed, straight_through=False)),
    "relaxed, straight through": partial(measured, partial(relaxed, straight_through=True)),
    "HybridPPO": partial(of_ours, algo="hybrid_ppo"),
    "PPO, flat view": partial(measured, flat_ppo),
    "SAC, flat view": partial(measured, partial(flat_off_policy, SAC)),
    "TQC, flat view": partial(measured, partial(flat_off_policy, TQC)),
}
"""From a problem and a seed to what a run found."""
RLLIB = "RLlib's PPO, Tuple space"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__.splitlines()[1])
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="instead of each problem's own number: a look, not a result")
    args = kept_runs_arguments(parser, "baselines")
    calls = [
        (args.runs, name, method, seed, args.steps) for seed, name, method in product(args.seeds, args.problems, args.methods)
    ]
    run_all(run, calls, args.jobs)
    report(args.runs, args.out)


def run(folder: Path, name: str, method: str, seed: int, steps: int | None) -> dict[str, Any]:
    """One training, unless its file is in the folder."""
    problem = PROBLEMS[name]._replace(n_timesteps=steps) if steps else PROBLEMS[name]
    # SB3's distributions raise a ValueError of a network that is NaN
    find = partial(finite, partial(METHODS[method], problem, seed), ValueError)
    return kept(file_of(folder, name, method, seed), find)


def file_of(folder: Path, name: str, method: str, seed: int | str) -> Path:
    return folder / f"{name}_{''.join(c if c.isalnum() else '-' for c in method)}_{seed}.json"


def report(runs: Path, out: Path) -> None:
    """Print the table of the runs that are there, and write ``baselines.csv``."""
    rows = []
    print(f"\n| method | {' | '.join(PROBLEMS)} |\n|{'---|' * (1 + len(PROBLEMS))}")
    for method in (*METHODS, RLLIB):
        cells = []
        for name, problem in PROBLEMS.items():
            found = [json.loads(file.read_text()) for file in sorted(runs.glob(file_of(runs, name, method, "*").name))]
            best = reference(runs / f"{name}.json", problem.env_id, problem.env_kwargs)["reference"]
            cells.append(cell(found, best))
            rows += [(name, method, best, one["cost"], one.get("seconds", "")) for one in found]
        print(f"| {method} | {' | '.join(cells)} |")
    with open(out / "baselines.csv", "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("problem", "method", "reference", "cost", "seconds"))
        writer.writerows(rows)


def cell(found: list[dict[str, Any]], best: float) -> str:
    """What the table says of a method's runs: their costs, and how far their mean is above the reference."""
    if not found:
        return ""
    costs = [one["cost"] for one in found]
    words = ", ".join(f"{cost:,.2f}" if np.isfinite(cost) else "not finite" for cost in costs)
    ratio = np.mean(costs) / best
    return f"{words}; " + (f"{ratio - 1:+.1%}" if ratio < FAR else f"{ratio:,.0f} times the reference")


if __name__ == "__main__":
    main()
