"""Switched linear-quadratic regulation: which input matrix to use, and which control."""

from hybrid_envs.switched_lqr.env import HybridSwitchedLQREnv

__all__ = ["HybridSwitchedLQREnv"]
