"""Runs that several ranks share, and the processes in which they do; a module of its own, which torchrun's workers import."""

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, unwrap_vec_normalize
from torch.nn.utils import parameters_to_vector

from hybrid_envs import HybridEnv
from sb3_hpo import HPO, HybridPPO, ranks
from sb3_hpo.callbacks import CostCallback
from sb3_hpo.checkpoint import ExactCheckpointCallback
from sb3_hpo.vec_env import HybridVecEnv
from tests.factored import BreweryEnv
from tests.masked import GateEnv, KilnEnv
from tests.sb3_hpo.environments import PurseEnv

SECONDS = 240.0
"""After which no test waits any longer."""


def in_double_precision() -> None:
    """Of this process: networks and what they see. SB3 says float32 by name when it shows a network an observation."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def _work(rank: int, n_ranks: int, store: str, double: bool, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if double:
        in_double_precision()
    if n_ranks > 1:
        timeout = timedelta(seconds=SECONDS)
        dist.init_process_group("gloo", init_method=f"file://{store}/meet", rank=rank, world_size=n_ranks, timeout=timeout)
    try:
        result = run(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    torch.save(result, f"{store}/{rank}.pt")
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)  # without the goodbyes of a group that may have lost a member


def on_ranks(n_ranks: int, run: Callable[..., Any], *arguments: Any, double: bool = False) -> list[Any]:
    """
    :param run: a function of this or another module that can be imported
    :param double: whether to compute in float64
    :return: what it returned, rank by rank; of an exception its name and message
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as store:
        workers = [
            context.Process(target=_work, args=(rank, n_ranks, store, double, run, arguments)) for rank in range(n_ranks)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SECONDS)
            worker.kill()
        files = [Path(store, f"{rank}.pt") for rank in range(n_ranks)]
        return [torch.load(file, weights_only=False) if file.is_file() else None for file in files]


# ---- runs ------------------------------------------------------------------------------------------------------------


def hpo(env: Any, n_scenarios: int = 7, **kwargs: Any) -> HPO:
    """Seven scenarios, which no number of ranks divides, and minibatches of which one may have fewer rows than ranks."""
    arguments = {"n_scenarios": n_scenarios, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [8, 8]}}
    return HPO("MlpPolicy", env, **arguments | kwargs)


def inventory(**kwargs: Any) -> HybridEnv:
    env = gym.make("HybridInventory-v0", n_items=2, horizon=5, **kwargs).unwrapped
    assert isinstance(env, HybridEnv)
    return env.to(dtype=torch.get_default_dtype())


def hpo_inventory() -> HPO:
    """VecNormalize; a KL stop that bites; rollouts that end within episodes; a cross term that is measured and weighed."""
    env = VecNormalize(VecMonitor(HybridVecEnv(inventory(), 7)))
    return hpo(env, n_steps=4, target_kl=0.0002, n_epochs=6, cross_term="auto", point_noise=0.1)


def hpo_kiln() -> HPO:
    """Masks; a last minibatch of one row; projected points."""
    nets = {"net_arch": [8, 8], "project_points": True}
    return hpo(KilnEnv().to(dtype=torch.get_default_dtype()), batch_size=9, policy_kwargs=nets)


def hpo_brewery() -> HPO:
    """Three factors with masks, judged by counterfactual credit."""
    return hpo(BreweryEnv().to(dtype=torch.get_default_dtype()))


def hpo_limited_brewery() -> HPO:
    """Factors drawn one after the other, ever more surely; points that see them."""
    nets = {"net_arch": [8, 8], "autoregressive": True, "points_see_regime": True}
    env = BreweryEnv(active_limits=(1, 2)).to(dtype=torch.get_default_dtype())
    return hpo(env, policy_kwargs=nets, temperature="exp_2.0")


def hpo_purse() -> HPO:
    """Episodes that end at different times, and points that maximise λ-returns."""
    env = PurseEnv().to(dtype=torch.get_default_dtype())
    return hpo(env, n_steps=7, value_beyond_horizon="bounded", pathwise_lambda=0.8)


def hpo_muon() -> HPO:
    """Steps that are orthogonalised, corners that are sharp."""
    return hpo(inventory(), policy_kwargs={"net_arch": [8, 8], "muon": ["continuous", "discrete"], "softplus_beta": 8.0})


def hybrid_ppo(env: Any, **kwargs: Any) -> HybridPPO:
    """A gradient that is clipped."""
    arguments = {"n_steps": 5, "batch_size": 11, "n_epochs": 3, "seed": 0, "max_grad_norm": 0.1, "learning_rate": "lin_3e-3"}
    return HybridPPO("MlpPolicy", env, **arguments | {"policy_kwargs": {"net_arch": [8, 8]}} | kwargs)


def hybrid_ppo_inventory() -> HybridPPO:
    return hybrid_ppo(VecNormalize(HybridVecEnv(inventory(), 7)), target_kl=0.0005, n_epochs=6)


def hybrid_ppo_brewery() -> HybridPPO:
    """A ratio by component, values that are clipped, a unit of its own, a deviation by schedule, networks clipped apart."""
    env = HybridVecEnv(BreweryEnv().to(dtype=torch.get_default_dtype()), 7)
    return hybrid_ppo(env, clip_range_vf=0.1, normalize_reward=True, point_std="exp_0.5", clip_networks=True)


def hybrid_ppo_gate() -> HybridPPO:
    """No environment of ours: every rank steps copies of all."""
    return hybrid_ppo(make_vec_env(GateEnv, 3), batch_size=4)


RUNS: dict[str, Callable[[], HybridPPO]] = {
    "HPO, inventory": hpo_inventory,
    "HPO, kiln": hpo_kiln,
    "HPO, brewery": hpo_brewery,
    "HPO, limited brewery": hpo_limited_brewery,
    "HPO, purse": hpo_purse,
    "HPO, inventory, Muon": hpo_muon,
    "HybridPPO, inventory": hybrid_ppo_inventory,
    "HybridPPO, brewery": hybrid_ppo_brewery,
    "HybridPPO, gate": hybrid_ppo_gate,
}


class Finished(NamedTuple):
    """What is compared of two runs."""

    weights: np.ndarray
    steps: int
    updates: int
    stopped: int
    """How many iterations the KL divergence cut short."""
    episodes: list[tuple[float, int]]
    statistics: np.ndarray
    """Of returns, VecNormalize's, and HPO's running estimates."""


class Stops(BaseCallback):
    """Counts the iterations that the KL divergence cut short."""

    reads_arrays = False
    model: HybridPPO

    def __init__(self) -> None:
        super().__init__()
        self.count = self.updates = 0

    def _on_rollout_start(self) -> None:
        self.count += self.num_timesteps > 0 and self.model._n_updates - self.updates < self.model.n_epochs
        self.updates = self.model._n_updates

    def _on_step(self) -> bool:
        return True


def finished(name: str, iterations: int) -> Finished:
    """
    :param name: of one of the ``RUNS``
    """
    model, stops = RUNS[name](), Stops()
    model.learn(iterations * model.n_steps * model.n_envs, stops)
    env: Any = model.env
    value = model.policy.component("value")
    weights = parameters_to_vector(model.policy.parameters()).detach().double().numpy()
    statistics = [float(value.mean), float(value.std)]
    statistics += [getattr(model, name) for name in getattr(model, "running_estimates", ())]
    if (normalizer := unwrap_vec_normalize(env)) is not None:
        statistics += [normalizer.ret_rms.mean, normalizer.ret_rms.var, *normalizer.obs_rms.mean, *normalizer.obs_rms.var]
    episodes = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    return Finished(weights, model.num_timesteps, model._n_updates, stops.count, episodes, np.array(statistics))


def all_finished(iterations: int) -> dict[str, Finished]:
    return {name: finished(name, iterations) for name in RUNS}


# ---- runs that are looked at, stopped, killed and resumed -------------------------------------------------------------


class Ends(BaseCallback):
    """On one rank, stops training at a step, or kills the process after some seconds."""

    reads_arrays = False

    def __init__(self, rank: int = 0, step: float = math.inf, seconds: float | None = None):
        super().__init__()
        self.rank, self.step, self.seconds = rank, step, seconds

    @property
    def here(self) -> bool:
        return ranks.count() == 1 or dist.get_rank() == self.rank

    def _on_training_start(self) -> None:
        if self.seconds is not None and self.here:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step or not self.here


def stopped(name: str, rank: int) -> tuple[int, int]:
    model = RUNS[name]()
    model.learn(20 * model.n_steps * model.n_envs, Ends(rank, 3 * model.n_steps * model.n_envs - model.n_envs))
    return model.num_timesteps, model._n_updates


def watched(folder: str) -> np.ndarray:
    """With evaluations that draw random numbers, best models, checkpoints and logs."""
    model = hpo(inventory(), tensorboard_log=f"{folder}/tensorboard", verbose=1)
    looks = EvalCallback(
        HybridVecEnv(inventory(), 2),
        n_eval_episodes=2,
        eval_freq=4,
        deterministic=False,
        log_path=folder,
        best_model_save_path=folder,
        verbose=0,
    )
    looks.eval_env.seed(3)
    saves = EveryNTimesteps(4 * 35, CheckpointCallback(1, folder))
    model.learn(6 * 35, [looks, saves, CostCallback(every=35, n_scenarios=4, gap=False)])
    model.save(f"{folder}/last")
    return parameters_to_vector(model.policy.parameters()).detach().numpy()


def unseeded() -> np.ndarray:
    model = hpo(inventory(), seed=None).learn(35)
    return parameters_to_vector(model.policy.parameters()).detach().numpy()


def drifting() -> None:
    """A callback that changes the networks on one rank only."""
    model = hpo(inventory())
    with torch.no_grad():
        model.policy.component("value").output.bias.add_(1e-3 * dist.get_rank())
    model.learn(35)


def checkpointed(name: str, folder: str, iterations: int = 8, end: Ends | None = None) -> np.ndarray:
    model = RUNS[name]()
    callbacks = [ExactCheckpointCallback(folder, every=2), end or Ends()]
    model.learn(iterations * model.n_steps * model.n_envs, callbacks)
    return parameters_to_vector(model.policy.parameters()).detach().double().numpy()


def zoo(folder: str, algo: str, *arguments: str) -> None:
    from sb3_hpo.zoo import main

    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    main(["train", "--algo", algo, *arguments])
