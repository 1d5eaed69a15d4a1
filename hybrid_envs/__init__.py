"""Gymnasium environments with ``Tuple(Discrete, Box)`` actions and differentiable dynamics."""

import gymnasium as gym

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.inventory import HybridInventoryEnv
from hybrid_envs.spaces import HybridAction
from hybrid_envs.switched_lqr import HybridSwitchedLQREnv
from hybrid_envs.vector import HybridVectorEnv

__all__ = ["HybridAction", "HybridEnv", "HybridInventoryEnv", "HybridSwitchedLQREnv", "HybridVectorEnv", "StepResult", "register"]


def register(id: str, env_class: type[HybridEnv]) -> None:
    """
    Register a hybrid environment with Gymnasium, natively batched under ``gymnasium.make_vec``.

    :param id: e.g. ``"HybridNewsvendor-v0"``
    :param env_class: its class
    """
    gym.register(
        id,
        entry_point=env_class,
        vector_entry_point=lambda num_envs, **kwargs: HybridVectorEnv(env_class(**kwargs), num_envs),
    )


register("HybridInventory-v0", HybridInventoryEnv)
register("HybridSwitchedLQR-v0", HybridSwitchedLQREnv)
