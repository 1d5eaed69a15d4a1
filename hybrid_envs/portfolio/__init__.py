"""Portfolio rebalancing: whether to trade, and to which weights."""

from hybrid_envs.portfolio.env import HybridPortfolioEnv

__all__ = ["HybridPortfolioEnv"]
