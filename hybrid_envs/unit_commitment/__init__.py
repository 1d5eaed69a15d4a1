"""Unit commitment: which generators run, at which outputs, and how the battery is charged."""

from hybrid_envs.unit_commitment.env import HybridUnitCommitmentEnv

__all__ = ["HybridUnitCommitmentEnv"]
