"""What planners use: a forecast from the history of demand, and levels with a safety stock by its error."""

from itertools import product

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import evaluate
from hybrid_envs.inventory.env import HybridInventoryEnv, typical_lot
from hybrid_envs.inventory.order_up_to import OrderUpTo, inventory_position, placed

SMOOTHING = (0.05, 0.1, 0.2, 0.4)
SAFETY = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
LOTS = (0.25, 0.5, 0.75, 1.0, 1.5)
"""What :meth:`ForecastSS.best` tries."""
ERROR_SCENARIOS = 2**9
SEARCH_SCENARIOS = 2**7


class ForecastSS(OrderUpTo):
    """
    An (R, s, S) policy on a forecast. In periods 0, R, 2R, ... demand of the lead time and the present period is forecast from
    the observed history, by exponential smoothing or as what was demanded one season ago (seasonal naive). s_i is the forecast
    and ``safety`` standard deviations of its error; once any item's inventory position is s_i or less, every item is raised to
    S_i, which is s_i and ``lots`` of its economic lot size.

    :param env: the problem, with ``history``; the error is that on its scenarios
    :param smoothing: α of exponential smoothing, above 0 and at most 1, over the periods of the history
    :param season: periods of a season, for the seasonal naive forecast instead; longer than the lead time
    :param safety: in standard deviations of the error of the forecast
    :param lots: S - s in Wilson's lot sizes, the joint cost shared
    :param review_period: R
    :raises ValueError: naming the argument, its value and what is allowed
    """

    def __init__(
        self,
        env: HybridInventoryEnv,
        *,
        smoothing: float = 0.2,
        season: int | None = None,
        safety: float = 1.5,
        lots: float = 1.0,
        review_period: int = 1,
    ):
        super().__init__(env, 0.0)
        covered = env.lead_time + 1
        if env.history == 0:
            raise ValueError("ForecastSS: history = 0; it forecasts from the history of demand")
        if season is not None and not covered <= check_count("season", season) <= env.history:
            raise ValueError(f"season = {season}: must be from {covered} (lead_time + 1) to {env.history} (history)")
        if not 0 < float(check_array("smoothing", smoothing, ())) <= 1:
            raise ValueError(f"smoothing = {smoothing}: must be above 0 and at most 1")
        self.weights = smoothing * (1 - smoothing) ** np.arange(env.history)  # of the past, the latest first
        self.weights = covered * self.weights / self.weights.sum()
        if season is not None:
            self.weights = np.zeros(env.history)
            self.weights[season - covered : season] = 1.0
        self.safety = float(check_array("safety", safety, ()))
        self.lot = float(check_array("lots", lots, (), at_least=0.0)) * typical_lot(env)
        self.review_period = check_count("review_period", review_period)
        self.error = self._forecast_error()
        """Root mean square of the error of the forecast of the lead time and a period, shape ``(n_items,)``."""

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        env = self.env
        past = env.observed_history(observation)
        position, reorder_point = inventory_position(env, observation), self.forecast(past) + self.safety * self.error
        due = self.due(position - reorder_point, period)
        quantities = np.maximum(reorder_point + self.lot - position, 0.0)
        return placed(env.itemised, due, quantities * due[:, None])

    def due(self, position: np.ndarray, period: np.ndarray) -> np.ndarray:
        """Of positions relative to s."""
        return np.any(position <= 0, axis=1) & (period % self.review_period == 0)

    def forecast(self, past: np.ndarray) -> np.ndarray:
        """
        :param past: demand of the last periods, the latest first, shape ``(batch, history, n_items)``
        :return: of the lead time and the present period, shape ``(batch, n_items)``
        """
        return np.einsum("k,bki->bi", self.weights, past)

    def _forecast_error(self) -> np.ndarray:
        """Root mean square of the error over the scenarios of the environment."""
        env, covered = self.env, self.env.lead_time + 1
        state, noise = env.sample_scenarios(ERROR_SCENARIOS, torch.Generator(env.device).manual_seed(0))
        demand = torch.cat([state.history.flip(1), noise.transpose(0, 1)], dim=1).double().cpu().numpy()
        last = max(env.horizon - covered, 0)  # a horizon shorter than the lead time is judged on what there is of it
        errors = [
            self.forecast(demand[:, t : t + env.history][:, ::-1])
            - demand[:, t + env.history : t + env.history + covered].sum(1)
            for t in range(last + 1)
        ]
        return np.sqrt(np.mean(np.square(errors), axis=(0, 1)))

    @classmethod
    def best(cls, env: HybridInventoryEnv, season: int | None = None, review_period: int = 1, seed: int = 0) -> "ForecastSS":
        """
        The forecast with the least error on the environment's scenarios, out of four constants of smoothing and the seasonal
        naive one; then the best of 30 pairs of safety and lots by simulation on common scenarios. ``cost`` is that on others.

        :param season: of the seasonal naive forecast; not tried unless given
        :param review_period: R
        :param seed: of the scenarios
        :raises ValueError: without ``history``, and for a season that it does not hold
        """
        tried = [{"smoothing": constant} for constant in SMOOTHING] + ([{"season": season}] if season is not None else [])
        scale = env.typical_demand
        forecasts = [cls(env, review_period=review_period, **options) for options in tried]  # type: ignore[arg-type]
        best = min(forecasts, key=lambda policy: float(np.mean(policy.error / scale)))
        lot = typical_lot(env)
        costs = {}
        for best.safety, lots in product(SAFETY, LOTS):
            best.lot = lots * lot
            costs[best.safety, lots] = float(evaluate(env, best, SEARCH_SCENARIOS, seed).mean())
        best.safety, lots = min(costs, key=lambda pair: costs[pair])
        best.lot = lots * lot
        best.state_cost(evaluate(env, best, SEARCH_SCENARIOS, seed + 1))
        return best
