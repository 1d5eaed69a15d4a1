"""The test part, played once by every policy, and what can be said of the costs there."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from hybrid_envs.backtest import Backtest, Ledger
from hybrid_envs.evaluation import Policy


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:,.4g} ({self.low:,.4g} to {self.high:,.4g})"


class Verdict(NamedTuple):
    """What one policy did in the test part."""

    name: str
    validation_cost: float
    """Mean per period, by which it was chosen."""
    ledger: Ledger
    cost: Estimate
    """Of all items per period."""
    saving: Estimate
    """How much less the trained policy costs per period; of itself 0."""
    service: float
    """The share of all demand that was met at once."""


class Judgement(NamedTuple):
    """The trained policy first, then the references, the best on validation first."""

    problem: Backtest
    verdicts: list[Verdict]
    bound: float
    """What no policy can undercut, mean per period."""
    earnings: float
    """What all demand would earn per period; a policy's profit is this less its cost. 0 where sales are not said to earn."""

    @property
    def policy(self) -> Verdict:
        """The trained one."""
        return self.verdicts[0]

    @property
    def reference(self) -> Verdict:
        """The one of the references that was best on validation."""
        return self.verdicts[1]

    def saving_of_items(self) -> list[Estimate]:
        """
        :return: how much less the trained policy costs than the reference per period, item by item
        """
        difference = self.reference.ledger.cost.mean(axis=0) - self.policy.ledger.cost.mean(axis=0)
        return [estimate(series, self.problem.block) for series in difference.T]


def estimate(series: np.ndarray, block: int) -> Estimate:
    """
    The mean of a series in time, with an interval that holds although neighbouring periods depend on each other: blocks of
    periods are averaged, and Student's t is asked about the averages.

    :param series: shape ``(periods,)``
    :param block: periods of a block, at least; there must be two blocks
    """
    means = np.array([part.mean() for part in np.array_split(series, len(series) // block)])
    mean, spread = float(np.mean(series)), float(stats.sem(means) * stats.t.ppf(0.975, len(means) - 1))
    return Estimate(mean, mean - spread, mean + spread)


def judge(problem: Backtest, policies: list[tuple[str, Policy, float]]) -> Judgement:
    """
    Play every policy through the test part. This is done once, after everything has been chosen.

    :param policies: names, policies and their costs on validation; the trained one first
    """
    ledgers = [problem.play(policy, "test") for _, policy, _ in policies]
    series = [ledger.cost.mean(axis=0).sum(axis=1) for ledger in ledgers]  # over runs and items, shape (periods,)
    verdicts = [
        Verdict(
            name,
            validation_cost,
            ledger,
            estimate(costs, problem.block),
            estimate(costs - series[0], problem.block),
            float(ledger.met.mean(axis=0).sum() / max(ledger.demand.sum(), 1e-9)),
        )
        for (name, _, validation_cost), ledger, costs in zip(policies, ledgers, series, strict=True)
    ]
    bound = float(problem.bound("test").mean()) / len(series[0])
    return Judgement(problem, verdicts, bound, problem.earnings("test"))
