"""Moving and sliding to a target: accelerate, turn or brake, and how hard."""

from hybrid_envs.moving.env import HybridMovingEnv, HybridSlidingEnv

__all__ = ["HybridMovingEnv", "HybridSlidingEnv"]
