"""Gymnasium environments with ``Tuple(Discrete, Box)`` actions and differentiable dynamics."""

from functools import partial
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from hybrid_envs.backtest import recorded_problem
from hybrid_envs.checker import check_hybrid_env
from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.dual_sourcing.env import HybridDualSourcingEnv
from hybrid_envs.evaluation import policy_figure, reference_policy
from hybrid_envs.instances import Uniform
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.moving.env import HybridMovingEnv, HybridSlidingEnv
from hybrid_envs.piecewise import BoxEnv, BoxProblem, PiecewiseEnv, Threshold
from hybrid_envs.portfolio.env import HybridPortfolioEnv
from hybrid_envs.procurement.env import HybridProcurementEnv
from hybrid_envs.spaces import HybridAction
from hybrid_envs.switched_lqr.env import HybridSwitchedLQREnv
from hybrid_envs.unit_commitment.env import HybridUnitCommitmentEnv
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
    "Uniform",
    "check_hybrid_env",
    "policy_figure",
    "recorded_problem",
    "reference_policy",
    "register",
]


def register(
    id: str,
    env_class: type[HybridEnv],
    *,
    reference: str | None = None,
    figure: str | None = None,
    backtest: str | None = None,
) -> None:
    """
    Register a hybrid environment with Gymnasium, natively batched under ``gymnasium.make_vec``.

    :param id: e.g. ``"HybridNewsvendor-v0"``
    :param env_class: its class
    :param reference: what :func:`reference_policy` calls for this class, ``"module:function"``, imported when it is asked for
    :param figure: what :func:`policy_figure` calls, likewise
    :param backtest: what :func:`recorded_problem` calls, likewise
    """
    gym.register(id, entry_point=cast(Any, env_class), vector_entry_point=cast(Any, partial(_make_vec, id)))
    entry_points = ((reference_policy, reference), (policy_figure, figure), (recorded_problem, backtest))
    for function, entry_point in entry_points:
        if entry_point is not None:
            function.register(env_class, partial(_call, entry_point))


def _make_vec(id: str, *, num_envs: int, **kwargs: Any) -> HybridVectorEnv:
    for name, cure in (("max_episode_steps", "horizon"), ("additional_wrappers", "a wrapper of vector environments")):
        if kwargs.get(name):
            raise ValueError(f"{name} = {kwargs[name]!r}: scenarios are stepped in one batch, without wrappers; use {cure}")
    return HybridVectorEnv(cast(HybridEnv, gym.make(id, **kwargs).unwrapped), num_envs)


def _call(entry_point: str, *args: Any) -> Any:
    return load_env_creator(entry_point)(*args)


register("HybridDualSourcing-v0", HybridDualSourcingEnv, reference="hybrid_envs.dual_sourcing.policies:best_dual_sourcing")
register(
    "HybridInventory-v0",
    HybridInventoryEnv,
    reference="hybrid_envs.inventory.policies:best_known",
    figure="hybrid_envs.inventory.figures:replenishment_figure",
    backtest="hybrid_envs.inventory.backtest:InventoryBacktest",
)
register("HybridMoving-v0", HybridMovingEnv, reference="hybrid_envs.moving.policies:AlignAndStop")
register("HybridSliding-v0", HybridSlidingEnv, reference="hybrid_envs.moving.policies:AlignAndStop")
register("HybridPortfolio-v0", HybridPortfolioEnv, reference="hybrid_envs.portfolio.policies:best_rebalancing")
register("HybridProcurement-v0", HybridProcurementEnv, reference="hybrid_envs.procurement.policies:best_known")
register(
    "HybridSwitchedLQR-v0",
    HybridSwitchedLQREnv,
    reference="hybrid_envs.switched_lqr.riccati:SwitchedRiccati",
    figure="hybrid_envs.switched_lqr.figures:mode_figure",
)
register("HybridUnitCommitment-v0", HybridUnitCommitmentEnv, reference="hybrid_envs.unit_commitment.operator:best_known")
