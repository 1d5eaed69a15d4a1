"""Procurement: which price and how many trucks, and how much of each item."""

from hybrid_envs.procurement.env import HybridProcurementEnv

__all__ = ["HybridProcurementEnv"]
