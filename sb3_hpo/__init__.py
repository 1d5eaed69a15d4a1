"""Hybrid Policy Optimization and PPO for ``Tuple(Discrete, Box)`` actions, in the manner of Stable-Baselines3."""

from sb3_hpo.hpo import HPO
from sb3_hpo.hybrid_ppo import HybridPPO

__all__ = ["HPO", "HybridPPO"]
