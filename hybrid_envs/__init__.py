"""Gymnasium environments with ``Tuple(Discrete, Box)`` actions and differentiable dynamics."""

from functools import partial
from typing import Any, cast

import gymnasium as gym

from hybrid_envs.checker import check_hybrid_env
from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.dual_sourcing import HybridDualSourcingEnv
from hybrid_envs.inventory import HybridInventoryEnv
from hybrid_envs.moving import HybridMovingEnv, HybridSlidingEnv
from hybrid_envs.piecewise import BoxEnv, BoxProblem, PiecewiseEnv, Threshold
from hybrid_envs.portfolio import HybridPortfolioEnv
from hybrid_envs.procurement import HybridProcurementEnv
from hybrid_envs.spaces import HybridAction
from hybrid_envs.switched_lqr import HybridSwitchedLQREnv
from hybrid_envs.unit_commitment import HybridUnitCommitmentEnv
from hybrid_envs.vector import HybridVectorEnv

__all__ = [
    "BoxEnv",
    "BoxProblem",
    "HybridAction",
    "HybridDualSourcingEnv",
    "HybridEnv",
    "HybridInventoryEnv",
    "HybridMovingEnv",
    "HybridPortfolioEnv",
    "HybridProcurementEnv",
    "HybridSlidingEnv",
    "HybridSwitchedLQREnv",
    "HybridUnitCommitmentEnv",
    "HybridVectorEnv",
    "PiecewiseEnv",
    "StepResult",
    "Threshold",
    "check_hybrid_env",
    "register",
]


def register(id: str, env_class: type[HybridEnv]) -> None:
    """
    Register a hybrid environment with Gymnasium, natively batched under ``gymnasium.make_vec``.

    :param id: e.g. ``"HybridNewsvendor-v0"``
    :param env_class: its class
    """
    gym.register(id, entry_point=cast(Any, env_class), vector_entry_point=cast(Any, partial(_make_vec, id)))


def _make_vec(id: str, *, num_envs: int, **kwargs: Any) -> HybridVectorEnv:
    return HybridVectorEnv(cast(HybridEnv, gym.make(id, **kwargs).unwrapped), num_envs)


register("HybridDualSourcing-v0", HybridDualSourcingEnv)
register("HybridInventory-v0", HybridInventoryEnv)
register("HybridMoving-v0", HybridMovingEnv)
register("HybridSliding-v0", HybridSlidingEnv)
register("HybridPortfolio-v0", HybridPortfolioEnv)
register("HybridProcurement-v0", HybridProcurementEnv)
register("HybridSwitchedLQR-v0", HybridSwitchedLQREnv)
register("HybridUnitCommitment-v0", HybridUnitCommitmentEnv)
