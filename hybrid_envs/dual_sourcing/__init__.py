"""Dual sourcing: which supplier, and how much of each item from each."""

from hybrid_envs.dual_sourcing.env import HybridDualSourcingEnv

__all__ = ["HybridDualSourcingEnv"]
