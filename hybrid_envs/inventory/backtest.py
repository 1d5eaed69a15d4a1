"""Joint replenishment on a file of sales: references fitted on its first part, and every policy played week by week."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hybrid_envs.backtest import Backtest, Ledger
from hybrid_envs.demand import SPLITS, check_calendar, part_of_split
from hybrid_envs.evaluation import Policy, ReferencePolicy
from hybrid_envs.inventory.env import HybridInventoryEnv
from hybrid_envs.inventory.forecast import ForecastSS
from hybrid_envs.inventory.lost_sales import CappedSS
from hybrid_envs.inventory.milp import PerfectReplenishment
from hybrid_envs.inventory.order_up_to import OrderUpTo
from hybrid_envs.inventory.policies import CanOrder, PeriodicReview, TotalDemandTrigger
from hybrid_envs.replenishment import StockState
from hybrid_envs.sales import read_sales_file
from hybrid_envs.spaces import HybridAction

RUNS = 8
"""Each takes over one period later in the cycle of orders."""
WARM_UP = 16
"""Periods that the shelves are managed before a policy takes over, at least, where the file goes back so far."""
FORECAST_HISTORY = 12
"""Periods that exponential smoothing looks back, at least."""
REVIEW_PERIODS = (1, 2, 3, 4, 6)
MIN_BLOCKS = 3


class InventoryBacktest(Backtest):
    """
    Every policy takes over the same shelves in the first period of a part: those that a rule without forecasts, fitted on the
    training part, has left. It began with nothing on them some periods before, in each of the runs in another one.

    :param env: with demand from a file of sales and ``split="train"``, made by ``gymnasium.make``
    :raises ValueError: naming the argument, if it has another, and a part with too few periods
    """

    env: HybridInventoryEnv

    def __init__(self, env: HybridInventoryEnv):
        if env.spec is None:
            raise ValueError("a backtest needs an environment made by gymnasium.make, which knows its arguments")
        self.env, self.arguments = env, dict(env.spec.kwargs)
        if self.arguments.get("split") != "train":
            raise ValueError(f"split must be 'train' in a backtest, got {self.arguments.get('split')!r}")
        env.instances.require_one("a backtest")
        self.path = self.arguments["demand"]
        calendar = check_calendar(self.arguments.get("calendar"))
        self.file = read_sales_file(self.path, tuple(calendar), self.arguments.get("dates"))
        self.items, self.unit = self.file.items, self.file.unit
        self.shares = self.arguments.get("split_shares", (0.6, 0.2, 0.2))
        self.seasons = _seasons(self.file.calendar, calendar)
        least = min(self.rows(part)[1] - self.rows(part)[0] for part in SPLITS[1:])
        self.block = max(4, env.lead_time + 1, least // 10)
        for part in SPLITS[1:]:
            first, last = self.rows(part)
            if last - first < MIN_BLOCKS * self.block:
                raise ValueError(
                    f"{self.path}: the part {part!r} has {last - first} periods of {len(self.file.sales)}; it is judged in "
                    f"blocks of {self.block}, and needs {MIN_BLOCKS} of them"
                )

    def rows(self, part: str) -> tuple[int, int]:
        """
        :return: the first row of a part, and the one after its last
        """
        first, last, _ = part_of_split(len(self.file.sales), part, self.shares)
        return first, last

    def periods(self, part: str) -> list[str]:
        return self.file.periods[slice(*self.rows(part))]

    def references(self) -> Iterator[tuple[str, ReferencePolicy]]:
        """
        Each is fitted on the recorded windows of the training part, and if there are some on the resampled ones, too: it has
        seen no less than a trained policy.
        """
        tries = [0, *({self.arguments.get("resampled", 0)} - {0})]
        for resampled in tries:
            env = self._made(split="train", resampled=resampled)
            if env.params.lost_sales:
                yield "(s, S) with a largest order", CappedSS.best(env)
            else:
                yield "periodic (R, S)", PeriodicReview.best(env)
                yield "total demand trigger", TotalDemandTrigger.best(env)
                yield "can-order (s, c, S)", CanOrder.best(env)
        _, n_train = self.rows("train")
        for season in (None, *self.seasons):
            history = max(self.env.history, FORECAST_HISTORY, season or 0)
            if (season or history) <= self.env.lead_time or history + self.env.horizon > n_train:
                continue
            for resampled in tries:
                env = self._made(split="train", resampled=resampled, history=history)
                for review_period in REVIEW_PERIODS:
                    yield "forecast and (R, s, S)", ForecastSS.best(env, season=season, review_period=review_period)

    def play(self, policy: Policy, part: str) -> Ledger:
        first, last = self.rows(part)
        stage, state = self._stage(first, last, self._history_of(policy), part)
        ledger, _ = self._played(policy, stage, state._replace(stock=self._shelves[part]))
        return ledger

    def bound(self, part: str) -> np.ndarray:
        programme = PerfectReplenishment(self.env)
        demand = self.file.sales[slice(*self.rows(part))]
        costs = np.array([programme.solve(demand, stock.double().numpy()).bound for stock in self._shelves[part]])
        return costs + len(demand) * self.earnings(part)

    def earnings(self, part: str) -> float:
        return float((self.file.sales[slice(*self.rows(part))] * self.env.params.margin).sum(axis=1).mean())

    # ---- how it is played ----------------------------------------------------------------------------------------------

    def _made(self, **changes: Any) -> HybridInventoryEnv:
        return HybridInventoryEnv(**self.arguments | changes)

    def _history_of(self, policy: Policy) -> int:
        return policy.env.history if isinstance(policy, OrderUpTo) else self.env.history

    @cached_property
    def _shelves(self) -> dict[str, torch.Tensor]:
        """On hand and on order when a part begins, shape ``(runs, lead_time, items)``."""
        train = self._made(split="train", resampled=0)
        keeper: OrderUpTo = CappedSS.best(train) if train.params.lost_sales else PeriodicReview.best(train)
        shelves = {}
        for part in SPLITS[1:]:
            first, _ = self.rows(part)
            begin = max(first - WARM_UP - RUNS, self.env.history)
            if first - begin < RUNS + self.env.lead_time:
                raise ValueError(
                    f"{self.path}: {first} periods before the part {part!r} are too few for history = {self.env.history}, "
                    f"lead_time = {self.env.lead_time} and {RUNS} runs"
                )
            stage, state = self._stage(begin, first, self.env.history)
            _, state = self._played(keeper, stage, state, staggered=True)
            shelves[part] = state.stock
        return shelves

    def _stage(self, first: int, last: int, history: int, part: str | None = None) -> tuple[HybridInventoryEnv, StockState]:
        """
        The problem in these periods, measured in the units of the training part, and its start in each run.

        :param part: that has these periods, if one has: there is but one window of its length
        """
        arguments = {"split": part, "resampled": 0, "history": history, "horizon": last - first}
        stage = self._made(**arguments, mean_demand=self.env.params.mean_demand)
        nothing = torch.zeros(RUNS, stage.lead_time, stage.n_items)
        # else windows begin in every period that has a history
        window = torch.full((RUNS,), 0 if part is not None else first - history)
        state = stage.standing(nothing)._replace(window=window)
        return stage, state if history == 0 else state._replace(history=stage.past_data[window])

    @torch.no_grad()
    def _played(
        self, policy: Policy, stage: HybridInventoryEnv, state: StockState, staggered: bool = False
    ) -> tuple[Ledger, StockState]:
        """
        :param staggered: whether run k begins with nothing on the shelves in period k, whatever was before
        :return: what happened, and the last states
        """
        demand = stage.demand_data[state.window[0]]
        params, memory = stage.params, None
        episode_start = np.ones(RUNS, dtype=bool)
        on_hand, ordered, joined = [], [], []
        for t in range(stage.horizon):
            if staggered:
                episode_start = np.arange(RUNS) == t
                begins = torch.from_numpy(episode_start)[:, None, None]
                state = state._replace(stock=torch.where(begins, 0.0, state.stock))
            actions, memory = policy.predict(
                stage.observation(state).numpy(), state=memory, episode_start=episode_start, deterministic=True
            )
            regimes, points = (torch.as_tensor(np.stack(part)) for part in zip(*actions, strict=True))
            action = HybridAction(regimes, points.to(stage.dtype))
            on_order = stage.on_order(action).expand_as(points)
            on_hand.append(state.stock[:, 0])
            ordered.append(action.point * on_order)
            joined.append(on_order)
            state = stage.step_torch(state, action, demand[t].expand(RUNS, -1)).state
            episode_start = np.zeros(RUNS, dtype=bool)
        held, sent, joins = (torch.stack(series, dim=1).double().numpy() for series in (on_hand, ordered, joined))
        needed = demand.double().numpy()
        left = held - needed
        costs = {
            "holding": params.holding_cost * np.maximum(left, 0),
            "shortage": params.underage_cost * np.maximum(-left, 0),
            "orders": joins * (params.item_fixed_cost + params.fixed_cost / np.maximum(joins.sum(axis=2, keepdims=True), 1)),
        }
        if self.env.earns:
            costs["lost margin"] = params.margin * np.maximum(-left, 0)
        return Ledger(needed, np.clip(held, 0, needed), held, sent, costs), state


def _seasons(columns: np.ndarray, calendar: dict[str, float | None]) -> list[int]:
    """The lengths, in periods, of the cycles of a calendar."""
    seasons = set()
    for column, cycle in zip(columns.T, calendar.values(), strict=True):
        if cycle is not None:
            step = float(np.median(np.diff(column) % cycle))
            if step > 0:
                seasons.add(round(cycle / step))
    return sorted(seasons)
