"""Unit commitment: a rule-based operator."""

import numpy as np

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.unit_commitment.env import FORECAST_HOURS, HybridUnitCommitmentEnv
from hybrid_envs.unit_commitment.net_load import HOURS

N_SCENARIOS = 512
GRIDS: dict[str, tuple[float, ...]] = {
    "reserve": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    "look_ahead": tuple(range(FORECAST_HOURS)),
    "charge_below": (-1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "discharge_above": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 2.0),
}
"""Values that the search for the best operator tries."""


class MeritOrderOperator(ReferencePolicy):
    """
    An operator by rule of thumb. The battery charges to lift a low forecast of net load to one level, and discharges to shave
    a high one to another. The cheapest units that can serve what remains, plus a reserve, run; those that ran and will be
    needed again within some hours are kept; units that are held stay as they are. They are loaded in merit order, and what
    their minimum outputs leave over is charged.

    :param env: the problem
    :param reserve: served beyond the forecast, in standard deviations of its error
    :param look_ahead: hours for which a unit is kept, 0 to 5
    :param charge_below: share of peak net load to which the battery lifts
    :param discharge_above: share of peak net load to which the battery shaves
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(
        self,
        env: HybridUnitCommitmentEnv,
        reserve: float = 1.5,
        look_ahead: int = 3,
        charge_below: float = 0.4,
        discharge_above: float = 0.7,
    ):
        self.env, self.grid, self.net_load = env, env.params, env.net_load
        self.reserve = float(check_array("reserve", reserve, (), at_least=0.0))
        self.look_ahead = check_count("look_ahead", look_ahead, minimum=0)
        if look_ahead >= FORECAST_HOURS:
            raise ValueError(f"look_ahead = {look_ahead}: forecasts reach {FORECAST_HOURS - 1} hours ahead")
        self.charge_below = float(check_array("charge_below", charge_below, ()))
        self.discharge_above = float(check_array("discharge_above", discharge_above, (), above=self.charge_below))
        self.rank = np.argsort(self.grid.merit_order)
        self.min_units_on = 0 if env.factors.active_limits is None else env.factors.active_limits[0]

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid, order = self.grid, self.grid.merit_order
        n_generators = len(order)
        parts = np.cumsum([3, n_generators, 1, FORECAST_HOURS])
        _, ran, level, forecast, held = np.split(observation.astype(np.float64), parts, axis=1)
        energy, forecast = level[:, 0] * grid.battery_energy, forecast * self.net_load.peak
        low, high = self.charge_below * self.net_load.peak, self.discharge_above * self.net_load.peak
        error = self.net_load.std[period % HOURS] * self.net_load.surprise

        most = np.minimum(grid.battery_power, np.maximum(grid.battery_energy - energy, 0) / grid.efficiency)
        least = -np.minimum(grid.battery_power, np.maximum(energy, 0) * grid.efficiency)
        now = forecast[:, 0]
        charge = np.clip(np.maximum(low - now, 0) - np.maximum(now - high, 0), least, most)
        required = now + charge + self.reserve * error
        soon = np.clip(forecast[:, : self.look_ahead + 1], low, high).max(axis=1) + self.reserve * error

        capacity = np.cumsum(grid.max_output[order])
        needed, kept = (np.minimum(np.searchsorted(capacity, x - 1e-9), n_generators) for x in (required, soon))
        needed = needed + (required > 0)
        kept = np.minimum(kept + (soon > 0), np.rint(ran.sum(axis=1)).astype(int))
        count = np.clip(np.maximum(needed, kept), self.min_units_on, n_generators)

        on = self._running(count, ran, held)
        minimum = on * grid.min_output
        excess = minimum.sum(axis=1) - required
        charge = np.minimum(charge + np.maximum(excess, 0), most)
        room = (on * (grid.max_output - grid.min_output))[:, order]
        before = np.cumsum(room, axis=1) - room
        output = minimum
        output[:, order] += np.clip(np.maximum(-excess, 0)[:, None] - before, 0, room)
        limits = on * grid.max_output
        return self.env.regimes_of(on), np.column_stack([np.minimum(output, limits), charge])

    def _running(self, count: np.ndarray, ran: np.ndarray, held: np.ndarray) -> np.ndarray:
        """The ``count`` cheapest units, but for those that are held: 1 where on, shape ``(batch, n_generators)``."""
        n_generators = len(self.rank)
        rank = np.tile(self.rank, (len(ran), 1))
        if held.size:
            rank[held > 0.5] = np.where(ran > 0.5, -1, n_generators)[held > 0.5]
        place = rank.argsort(axis=1, kind="stable").argsort(axis=1)
        return np.where((place < count[:, None]) & (rank < n_generators) | (rank < 0), 1.0, 0.0)

    @classmethod
    def best(cls, env: HybridUnitCommitmentEnv, seed: int = 0) -> "MeritOrderOperator":
        """
        The best parameters found by varying one at a time over ``GRIDS`` until none improves, on common scenarios;
        ``cost`` is estimated on other scenarios.

        :param seed: of the scenarios
        """
        chosen: dict[str, float] = {"reserve": 1.5, "look_ahead": 3, "charge_below": 0.4, "discharge_above": 0.7}
        costs: dict[tuple[float, ...], float] = {}

        def cost(parameters: dict[str, float]) -> float:
            key = tuple(parameters.values())
            if key not in costs:
                costs[key] = float(evaluate(env, cls(env, **parameters), N_SCENARIOS, seed).mean())  # type: ignore[arg-type]
            return costs[key]

        improved = True
        while improved:
            before = cost(chosen)
            for name, grid in GRIDS.items():
                trials = [chosen | {name: value} for value in grid]
                chosen = min((t for t in trials if t["charge_below"] < t["discharge_above"]), key=cost)
            improved = cost(chosen) < before
        policy = cls(env, **chosen)  # type: ignore[arg-type]
        policy.state_cost(evaluate(env, policy, N_SCENARIOS, seed + 1))
        return policy


def best_known(env: HybridUnitCommitmentEnv) -> MeritOrderOperator:
    """
    :return: the rule-based operator, its parameters chosen by simulation
    """
    return MeritOrderOperator.best(env)
