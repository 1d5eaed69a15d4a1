"""Reference policies and bounds: how far a policy is from the best known, and from the best possible."""

from hybrid_envs.dual_sourcing.policies import CappedDualIndex, DualSourcingOptimum, WholeUnits, best_dual_sourcing
from hybrid_envs.evaluation import Policy, ReferencePolicy, evaluate, reference_policy, success_rate
from hybrid_envs.inventory.forecast import ForecastSS
from hybrid_envs.inventory.item_orders import PeriodicSS, PerItemSS
from hybrid_envs.inventory.lost_sales import CappedSS, LostSalesOptimum
from hybrid_envs.inventory.milp import PerfectOrders, PerfectReplenishment
from hybrid_envs.inventory.policies import (
    CanOrder,
    InstanceSS,
    PeriodicReview,
    SingleItemSS,
    TotalDemandTrigger,
    best_classical,
    lower_bound,
)
from hybrid_envs.moving.policies import AlignAndStop
from hybrid_envs.portfolio.policies import NoTradeBand, RebalancingOptimum, best_rebalancing
from hybrid_envs.procurement.policies import ItemOrders, TotalOrders
from hybrid_envs.switched_lqr.bound import dual_lower_bound
from hybrid_envs.switched_lqr.riccati import SingleMode, SwitchedRiccati, riccati
from hybrid_envs.unit_commitment.milp import CommitmentProgramme, PerfectInformation, perfect_information_bound
from hybrid_envs.unit_commitment.operator import MeritOrderOperator
from hybrid_envs.unit_commitment.rolling import RollingHorizon

__all__ = [
    "AlignAndStop",
    "CanOrder",
    "CappedDualIndex",
    "CappedSS",
    "CommitmentProgramme",
    "DualSourcingOptimum",
    "ForecastSS",
    "InstanceSS",
    "ItemOrders",
    "LostSalesOptimum",
    "MeritOrderOperator",
    "NoTradeBand",
    "PerItemSS",
    "PerfectInformation",
    "PerfectOrders",
    "PerfectReplenishment",
    "PeriodicReview",
    "PeriodicSS",
    "Policy",
    "RebalancingOptimum",
    "ReferencePolicy",
    "RollingHorizon",
    "SingleItemSS",
    "SingleMode",
    "SwitchedRiccati",
    "TotalDemandTrigger",
    "TotalOrders",
    "WholeUnits",
    "best_classical",
    "best_dual_sourcing",
    "best_rebalancing",
    "dual_lower_bound",
    "evaluate",
    "lower_bound",
    "perfect_information_bound",
    "reference_policy",
    "riccati",
    "success_rate",
]
