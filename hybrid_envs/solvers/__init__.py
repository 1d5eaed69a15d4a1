"""Reference policies and bounds: how far a policy is from the best known, and from the best possible."""

from hybrid_envs.evaluation import Policy, ReferencePolicy, evaluate, success_rate
from hybrid_envs.solvers.dual_sourcing import CappedDualIndex, DualSourcingOptimum, WholeUnits, best_dual_sourcing
from hybrid_envs.solvers.inventory import (
    CanOrder,
    PeriodicReview,
    SingleItemSS,
    TotalDemandTrigger,
    best_classical,
    lower_bound,
)
from hybrid_envs.solvers.lqr import SingleMode, SwitchedRiccati, riccati
from hybrid_envs.solvers.lqr_bound import dual_lower_bound
from hybrid_envs.solvers.moving import AlignAndStop
from hybrid_envs.solvers.portfolio import NoTradeBand, RebalancingOptimum, best_rebalancing

__all__ = [
    "AlignAndStop",
    "CanOrder",
    "CappedDualIndex",
    "DualSourcingOptimum",
    "NoTradeBand",
    "PeriodicReview",
    "Policy",
    "RebalancingOptimum",
    "ReferencePolicy",
    "SingleItemSS",
    "SingleMode",
    "SwitchedRiccati",
    "TotalDemandTrigger",
    "WholeUnits",
    "best_classical",
    "best_dual_sourcing",
    "best_rebalancing",
    "dual_lower_bound",
    "evaluate",
    "lower_bound",
    "riccati",
    "success_rate",
]
