"""What a problem on recorded data offers, so that a policy can be judged on periods that it never saw."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import singledispatch
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Policy, ReferencePolicy


class Ledger(NamedTuple):
    """What happened when one policy was played through the periods of a part, in several runs."""

    demand: np.ndarray
    """Shape ``(periods, items)``."""
    met: np.ndarray
    """Demand that was met at once, shape ``(runs, periods, items)``."""
    on_hand: np.ndarray
    """At the start of each period, negative where items are owed, likewise."""
    ordered: np.ndarray
    """Likewise."""
    costs: dict[str, np.ndarray]
    """Holding, shortage, orders and so on, likewise."""

    @property
    def cost(self) -> np.ndarray:
        """Of all kinds, shape ``(runs, periods, items)``."""
        return np.sum(list(self.costs.values()), axis=0)

    @property
    def service(self) -> np.ndarray:
        """The share of each item's demand that was met at once; of one without demand 1; shape ``(items,)``."""
        demanded = self.demand.sum(axis=0)
        return np.where(demanded > 0, self.met.mean(axis=0).sum(axis=0) / np.maximum(demanded, 1e-9), 1.0)


class Backtest(ABC):
    """
    A problem on recorded data, split by time into the parts ``"train"``, ``"validation"`` and ``"test"``.

    :param env: the problem in its first part, made by ``gymnasium.make``
    """

    env: HybridEnv
    items: list[str]
    unit: str
    """What a period is: ``"week"``, for instance."""
    block: int
    """Periods that are judged as one: beyond as many, costs say little about each other."""

    @abstractmethod
    def periods(self, part: str) -> list[str]:
        """
        :return: what the periods of a part are called
        """

    @abstractmethod
    def references(self) -> Iterator[tuple[str, ReferencePolicy]]:
        """
        :return: policies fitted on the first part, each under the name of its family, of which validation chooses one
        """

    @abstractmethod
    def play(self, policy: Policy, part: str) -> Ledger:
        """
        Let a policy decide in every period of a part. All policies take over in the same states, one for each run.

        :param policy: a trained model, or one of :meth:`references`
        """

    @abstractmethod
    def bound(self, part: str) -> np.ndarray:
        """
        :return: what no policy can undercut from these states in total, whatever it knows, shape ``(runs,)``
        """

    def earnings(self, part: str) -> float:
        """
        :return: what sales would earn per period if all demand were met, before the costs of the ledger, in which what is lost
            of it has to be; 0 unless the problem says what a sale earns
        """
        return 0.0


@singledispatch
def recorded_problem(env: gym.Env) -> Backtest | None:
    """
    How an environment is judged on recorded data. ``@recorded_problem.register`` gives a problem of one's own its backtest, as
    with :func:`~hybrid_envs.evaluation.reference_policy`.

    :param env: the problem, made by ``gymnasium.make``, on the first part of the data
    :return: ``None`` where there is no backtest
    :raises ValueError: naming what keeps the data from being judged
    """
    return None if env.unwrapped is env else recorded_problem(env.unwrapped)
