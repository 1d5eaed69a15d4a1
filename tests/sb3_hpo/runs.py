"""Small training runs that can be killed, for the tests of checkpoints; in a module of their own for subprocesses."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor, VecNormalize

import hybrid_envs  # noqa: F401  registers the environments
from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.checkpoint import ExactCheckpointCallback
from sb3_hpo.vec_env import HybridVecEnv
from tests.factored import BreweryEnv
from tests.sb3_hpo.environments import PurseEnv

ITERATIONS = 12
SMALL = {"n_items": 2, "horizon": 10}
NETS = {"net_arch": [8]}
FORK: dict[str, Any] = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
"""Subprocesses that need not import everything anew."""


class Killed(BaseException):
    """Not an Exception, so that nothing on the way handles it."""


class Troubled(BaseCallback):
    """
    Shakes the weights by Python's and numpy's global generators and by a count of its own, so that the weights depend on all
    of these; and kills the run at a given step.
    """

    def __init__(self, kill_at: int | None = None):
        super().__init__()
        self.kill_at, self.count = kill_at, 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.count = saved["count"]

    def _on_training_start(self) -> None:
        # once in the unbroken run, and after every resume
        self.count = torch.randint(5, ()).item() + random.randrange(5) + np.random.randint(5)

    def _on_rollout_start(self) -> None:
        self.count += 1
        with torch.no_grad():
            for parameter in self.model.policy.parameters():
                parameter += 1e-4 * (random.random() + np.random.random() + self.count)

    def _on_step(self) -> bool:
        if self.kill_at is not None and self.num_timesteps >= self.kill_at:
            raise Killed
        return True


def inventory() -> gym.Env:
    return gym.make("HybridInventory-v0", **SMALL)


def hpo(env: Any = None, **kwargs: Any) -> HPO:
    """Rollouts of 7 periods in episodes of 10: checkpoints fall within episodes."""
    arguments = {"n_scenarios": 6, "n_steps": 7, "n_epochs": 2, "batch_size": 21, "seed": 0, "policy_kwargs": NETS}
    return HPO("MlpPolicy", env or inventory(), **arguments | kwargs)


def hpo_normalized(**kwargs: Any) -> HPO:
    return hpo(VecNormalize(VecMonitor(HybridVecEnv(inventory().unwrapped, 6))), **kwargs)


def hpo_purse() -> HPO:
    return hpo(PurseEnv(), cross_term="auto", gamma=0.9)


def hybrid_ppo(env: Any = None, **kwargs: Any) -> HybridPPO:
    arguments = {"n_steps": 7, "batch_size": 7, "n_epochs": 2, "seed": 0, "policy_kwargs": NETS, "ent_coef": "lin_0.1"}
    return HybridPPO("MlpPolicy", env or make_vec_env(inventory, 3), **arguments | kwargs)


def hybrid_ppo_normalized() -> HybridPPO:
    return hybrid_ppo(VecNormalize(make_vec_env(inventory, 3)), learning_rate="lin_3e-3")


def hybrid_ppo_own_unit() -> HybridPPO:
    return hybrid_ppo(normalize_reward=True, point_std="exp_0.5")


def hybrid_ppo_subprocesses() -> HybridPPO:
    return hybrid_ppo(VecNormalize(make_vec_env(inventory, 2, **FORK)))


def hpo_factors() -> HPO:
    return hpo(BreweryEnv(10), temperature="exp_2.0")


def hybrid_ppo_factors() -> HybridPPO:
    return hybrid_ppo(make_vec_env(BreweryEnv, 2, env_kwargs={"horizon": 10, "active_limits": (1, 2)}))


def limited() -> gym.Env:
    """The wrappers count: time limit, scaled observation, flat actions."""
    env = gym.make("HybridInventory-v0", max_episode_steps=9, **SMALL)
    return gym.wrappers.TransformObservation(FlatActionWrapper(env), lambda obs: obs / 10, env.observation_space)


def stock_ppo() -> PPO:
    return PPO("MlpPolicy", make_vec_env(limited, 2), n_steps=7, batch_size=7, n_epochs=2, seed=0, policy_kwargs=NETS)


RUNS: dict[str, Callable[[], PPO]] = {
    "HPO": hpo,
    "HPO, automatic cross term": lambda: hpo(cross_term="auto"),
    "HPO, VecNormalize, VecMonitor": hpo_normalized,
    "HPO, episodes of different lengths": hpo_purse,
    "HPO, several factors": hpo_factors,
    "HybridPPO, DummyVecEnv": hybrid_ppo,
    "HybridPPO, several factors": hybrid_ppo_factors,
    "HybridPPO, VecNormalize": hybrid_ppo_normalized,
    "HybridPPO, unit of its own": hybrid_ppo_own_unit,
    "HybridPPO, SubprocVecEnv": hybrid_ppo_subprocesses,
    "PPO, flat actions, time limit": stock_ppo,
}


def train(
    model: PPO,
    folder: Path,
    *,
    kill_at: float | None = None,
    callbacks: tuple[BaseCallback, ...] = (),
    iterations: int = ITERATIONS,
    every: int = 2,
    keep: int = 3,
) -> PPO:
    """
    Train, or resume training in the same folder, in a process whose global random numbers are somewhere else.

    :param kill_at: the iteration, and share of its rollout, at which the run is killed
    """
    model.set_logger(configure(None, []))
    for seed_globally in (random.seed, np.random.seed, torch.manual_seed):
        seed_globally(int.from_bytes(random.randbytes(4), "big")) if _resumes(folder) else seed_globally(0)
    step = model.n_steps * model.n_envs
    troubled = Troubled(None if kill_at is None else round(kill_at * step))
    checkpoints = ExactCheckpointCallback(folder, every=every, keep=keep, verbose=0)
    try:
        model.learn(iterations * step, callback=[checkpoints, *callbacks, troubled])
    finally:
        model.env.close()
    return model


def _resumes(folder: Path) -> bool:
    return folder.exists() and any(folder.glob("checkpoint_*.pt"))


def episodes(model: PPO) -> list[tuple[float, int]]:
    """
    :return: return and length of the last episodes, as SB3 logs them
    """
    return [(float(info["r"]), info["l"]) for info in model.ep_info_buffer]


def same_weights(one: PPO, other: PPO) -> bool:
    """
    :return: whether all weights and the optimizer's state are equal, bit for bit
    """
    states = [model.policy.state_dict() for model in (one, other)]
    moments = [model.policy.optimizer.state_dict()["state"] for model in (one, other)]
    return (
        states[0].keys() == states[1].keys()
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        and moments[0].keys() == moments[1].keys()
        and all(torch.equal(moments[0][i][name], moments[1][i][name]) for i in moments[0] for name in moments[0][i])
    )
