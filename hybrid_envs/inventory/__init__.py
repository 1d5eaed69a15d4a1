"""Joint replenishment: when to order for all items at once, and how much of each."""

from hybrid_envs.inventory.env import HybridInventoryEnv

__all__ = ["HybridInventoryEnv"]
