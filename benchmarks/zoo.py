"""Training from a zoo config: what the demo and the published figures share."""

import argparse
import csv
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
import yaml
from scipy import stats
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

import hybrid_envs  # noqa: F401  registers the environments
from hybrid_envs.checks import check_count
from hybrid_envs.core import HybridEnv
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.vec_env import simulated

ALGORITHMS: dict[str, type[HybridPPO]] = {"hpo": HPO, "hybrid_ppo": HybridPPO}
CONFIGS = Path(__file__).resolve().parent.parent / "zoo_configs"
Result = TypeVar("Result")
EVALUATION_SEED = 10_000
"""Seed of the evaluation scenarios: the same for every algorithm, used in no training."""


def read_config(algo: str, env_id: str, entry: str | None = None) -> dict[str, Any]:
    """
    :param entry: name of an entry of ``zoo_configs/{algo}.yml``; that of the environment, or ``default``, unless given
    :return: its hyperparameters
    :raises ValueError: if there is no entry of the given name
    """
    with open(CONFIGS / f"{algo}.yml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    if entry is None:
        entry = env_id if env_id in config else "default"
    if entry not in config:
        raise ValueError(f"zoo_configs/{algo}.yml has no entry {entry!r}; it has {', '.join(config)}")
    return with_classes(config[entry])


def with_classes(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :return: the same, with ``policy_kwargs`` read as the RL Zoo reads them: text with classes, which YAML does not know
    """
    if isinstance(hyperparams.get("policy_kwargs"), str):
        return hyperparams | {"policy_kwargs": eval(hyperparams["policy_kwargs"], {"nn": nn})}
    return dict(hyperparams)


@dataclass
class Run:
    """One training run: the model, its environment, and how many environment steps the config asks for."""

    model: HybridPPO
    env: HybridEnv
    n_timesteps: int

    @property
    def iteration_steps(self) -> int:
        """Environment steps of one iteration."""
        return self.model.n_steps * self.model.n_envs

    def steps(self, iterations: int | None) -> int:
        """
        :return: environment steps of so many iterations; without a number those that the config asks for
        """
        return iterations * self.iteration_steps if iterations else self.n_timesteps


def make_run(algo: str, env_id: str, env_kwargs: dict[str, Any], seed: int, entry: str | None = None, **overrides: Any) -> Run:
    """
    Build a run from its zoo config.

    :param algo: a key of :data:`ALGORITHMS`
    :param env_kwargs: arguments of the environment
    :param entry: of the config, the environment id unless given
    :param overrides: hyperparameters that replace the config's, or further constructor arguments
    """
    hyperparams = read_config(algo, env_id, entry) | with_classes(overrides)
    n_timesteps, normalize = int(hyperparams.pop("n_timesteps")), hyperparams.pop("normalize", None)
    env = gym.make(env_id, **env_kwargs)
    venv: VecEnv = simulated(env, hyperparams.pop("n_envs"))
    if normalize:
        venv = VecNormalize(venv, gamma=hyperparams.get("gamma", 0.99), **normalize)
    model = ALGORITHMS[algo](env=venv, seed=seed, **hyperparams)
    unwrapped = env.unwrapped
    assert isinstance(unwrapped, HybridEnv)
    return Run(model, unwrapped, n_timesteps)


def mean_and_interval(values: np.ndarray | list[float]) -> tuple[float, float]:
    """
    :param values: independent values, shape ``(n,)``
    :return: their mean and the half width of its 95 % confidence interval by Student's t, NaN for a single value
    """
    n = len(values)
    return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, n - 1)) if n > 1 else float("nan")


def kept(file: Path, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    :param file: where the result is kept
    :param find: how it is found, if it is not there
    :return: the result
    """
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(find(), indent=1) + "\n")
        part.replace(file)  # whole or not at all, whenever the command is stopped
    return dict(json.loads(file.read_text()))


def read_table(file: Path, *key: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """
    :param file: a table of results, which need not be there
    :param key: the columns that name a row
    :return: its rows by these columns, numbers as numbers, without what is blank
    """
    if not file.exists():
        return {}
    with open(file, encoding="utf-8", newline="") as lines:
        rows = [{name: number_or_word(text) for name, text in row.items() if text} for row in csv.DictReader(lines)]
    return {tuple(row[name] for name in key): row for row in rows}


def number_or_word(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run in N processes of one thread each (default: 1)")


def kept_runs_arguments(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """
    Parse the arguments of a command whose single runs are kept, with ``--jobs``, ``--runs`` and ``--out`` beside its own. The
    folders are there afterwards, and torch has one thread.

    :param name: of the folder of the runs, in ``runs``
    """
    add_jobs(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs", name), help="folder of the single runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in (args.runs, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    return args


def finite(find: Callable[[], dict[str, Any]], *errors: type[Exception]) -> dict[str, Any]:
    """
    :param find: a run
    :param errors: what else than ``FloatingPointError`` says that a number is not finite
    :return: what the run finds; if it meets a number that is not finite, no cost, and the error
    """
    caught: tuple[type[Exception], ...] = (FloatingPointError, *errors)
    try:
        return find()
    except caught as error:
        return {"cost": float("nan"), "error": str(error)}


def run_all(run: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], jobs: int) -> list[Result]:
    """
    :param run: a function that another process can import
    :param arguments: of each call
    :param jobs: processes, of one torch thread each; one is this process itself
    :return: what the calls returned, in their order; they do not depend on the number of processes
    :raises ValueError: if ``jobs`` is below 1
    """
    if check_count("--jobs", jobs) == 1:
        torch.set_num_threads(1)
        return [run(*of_call) for of_call in arguments]
    context = multiprocessing.get_context("spawn")  # a forked process would wait for threads of torch that it does not have
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, *zip(*arguments, strict=True)))
