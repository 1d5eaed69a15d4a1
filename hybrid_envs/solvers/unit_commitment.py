"""Unit commitment: a rule-based operator, and the perfect-information optimum by mixed-integer linear programming."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.signal import lfilter

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.net_load import HOURS
from hybrid_envs.unit_commitment import FORECAST_HOURS, HybridUnitCommitmentEnv
from hybrid_envs.vector import HybridVectorEnv

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
    needed again within some hours are kept. They are loaded in merit order, and what their minimum outputs leave over is
    charged.

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
        self.grid, self.net_load = env.params, env.net_load
        self.reserve = float(check_array("reserve", reserve, (), at_least=0.0))
        self.look_ahead = check_count("look_ahead", look_ahead, minimum=0)
        if look_ahead >= FORECAST_HOURS:
            raise ValueError(f"look_ahead = {look_ahead}: forecasts reach {FORECAST_HOURS - 1} hours ahead")
        self.charge_below = float(check_array("charge_below", charge_below, ()))
        self.discharge_above = float(check_array("discharge_above", discharge_above, (), above=self.charge_below))
        units_on = env.units_on.cpu().numpy()
        ranked = np.argsort(self.grid.merit_order) < np.arange(env.n_generators + 1)[:, None]
        self.first_units = ranked.astype(np.float64)  # row k: the k cheapest are on
        self.regime_of = (units_on == ranked[:, None]).all(axis=-1).argmax(axis=-1)

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid, order = self.grid, self.grid.merit_order
        n_generators = len(order)
        _, ran, level, forecast = np.split(observation.astype(np.float64), [3, 3 + n_generators, 4 + n_generators], axis=1)
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
        count = np.clip(np.maximum(needed, kept), 0, n_generators)

        on = self.first_units[count]
        minimum = on * grid.min_output
        excess = minimum.sum(axis=1) - required
        charge = np.minimum(charge + np.maximum(excess, 0), most)
        room = (on * (grid.max_output - grid.min_output))[:, order]
        before = np.cumsum(room, axis=1) - room
        output = minimum
        output[:, order] += np.clip(np.maximum(-excess, 0)[:, None] - before, 0, room)
        limits = on * grid.max_output
        return self.regime_of[count], np.column_stack([np.minimum(output, limits), charge])

    @classmethod
    def best(cls, env: HybridUnitCommitmentEnv, seed: int = 0) -> "MeritOrderOperator":
        """
        The best parameters found by varying one at a time over :data:`GRIDS` until none improves, on common scenarios;
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


class Schedule(NamedTuple):
    """What an operator would have done who knew the net load of the whole episode."""

    bound: float
    """No policy whatever costs less on this scenario."""
    cost: float
    """Of this schedule; above the bound by no more than the solver's gap, unless the time ran out."""
    regimes: np.ndarray
    """Int64, shape ``(horizon,)``."""
    points: np.ndarray
    """Shape ``(horizon, n_generators + 1)``."""


class PerfectInformation:
    """
    The environment's equations as a mixed-integer linear programme, solved by HiGHS for one net load at a time. All costs are
    linear, so that the programme is exact: its schedule, played in the environment, costs what the programme says.

    :param env: the problem
    :param gap: by which ``cost`` may exceed ``bound``, relatively
    :param time_limit: seconds per scenario; the bound is valid even where it ends the search
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridUnitCommitmentEnv, gap: float = 1e-4, time_limit: float = 60.0):
        self.options = {
            "mip_rel_gap": float(check_array("gap", gap, (), at_least=0.0)),
            "time_limit": float(check_array("time_limit", time_limit, (), above=0.0)),
        }
        self.env, grid, p = env, env.params, env.n_generators
        each, power = np.eye(p), grid.battery_power
        widths = dict.fromkeys(("on", "started", "output"), p)
        widths |= dict.fromkeys(("charging", "charge", "discharge", "energy", "shortage", "surplus"), 1)
        ends = np.cumsum(list(widths.values()))
        self.columns = {name: slice(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}

        def coefficients(**entries: np.ndarray | float) -> np.ndarray:
            rows = np.zeros((max(np.shape(np.atleast_2d(entry))[0] for entry in entries.values()), ends[-1]))
            for name, entry in entries.items():
                rows[:, self.columns[name]] = entry
            return rows

        order = grid.merit_order
        inequalities = [  # present coefficients, those of the period before, and what their sum must not exceed
            (coefficients(output=each, on=-np.diag(grid.max_output)), None, 0.0),
            (coefficients(output=-each, on=np.diag(grid.min_output)), None, 0.0),
            (coefficients(on=each, started=-each), coefficients(on=-each), 0.0),
            (coefficients(charge=1.0, charging=-power), None, 0.0),
            (coefficients(discharge=1.0, charging=power), None, power),
        ]
        if env.commitments == "merit_order" and p > 1:
            inequalities.append((coefficients(on=each[order[1:]] - each[order[:-1]]), None, 0.0))
        stored = coefficients(energy=1.0, charge=-grid.efficiency, discharge=1 / grid.efficiency)
        balance = coefficients(output=np.ones((1, p)), charge=-1.0, discharge=1.0, shortage=1.0, surplus=-1.0)
        equations = [(stored, coefficients(energy=-1.0), 0.0), (balance, None, 0.0)]  # the balance's right side: net load

        blocks = inequalities + equations
        present = np.concatenate([now for now, _, _ in blocks])
        previous = np.concatenate([np.zeros_like(now) if before is None else before for now, before, _ in blocks])
        T = env.horizon
        self.matrix = sparse.csr_array(
            sparse.kron(sparse.eye(T), present) + sparse.kron(sparse.eye(T, k=-1), previous)  # nothing precedes period 0
        )
        self.upper = np.tile(np.concatenate([np.full(len(now), limit) for now, _, limit in blocks]), (T, 1))
        self.upper[0, -2] = grid.start_energy
        costs = coefficients(
            on=grid.no_load_cost,
            started=grid.start_cost,
            output=grid.fuel_cost,
            shortage=grid.shortage_cost,
            surplus=grid.surplus_cost,
        )
        most = np.full((1, ends[-1]), np.inf)
        most[:, self.columns["on"]] = most[:, self.columns["charging"]] = 1.0
        most[:, self.columns["energy"]] = grid.battery_energy
        self.costs, self.most, self.integer = (np.tile(row[0], T) for row in (costs, most, coefficients(on=1.0, charging=1.0)))

    def solve(self, net_load: np.ndarray) -> Schedule:
        """
        :param net_load: kW, shape ``(horizon,)``
        :raises RuntimeError: if the time ran out before any schedule was found
        """
        upper = self.upper.copy()
        upper[:, -1] = check_array("net_load", net_load, (self.env.horizon,))
        lower = np.full_like(upper, -np.inf)
        lower[:, -2:] = upper[:, -2:]
        result = milp(
            self.costs,
            integrality=self.integer,
            bounds=Bounds(0.0, self.most),
            constraints=LinearConstraint(self.matrix, lower.ravel(), upper.ravel()),
            options=self.options,
        )
        if result.x is None:
            raise RuntimeError(f"{self.env.name}: HiGHS found no schedule: {result.message}")
        values = result.x.reshape(self.env.horizon, -1)
        on, output, charge, discharge = (values[:, self.columns[name]] for name in ("on", "output", "charge", "discharge"))
        units_on = self.env.units_on.cpu().numpy()
        regimes = (units_on == np.rint(on)[:, None]).all(axis=-1).argmax(axis=-1)
        return Schedule(result.mip_dual_bound, result.fun, regimes, np.concatenate([output, charge - discharge], axis=1))


def perfect_information_bound(env: HybridUnitCommitmentEnv, n_scenarios: int, seed: int) -> np.ndarray:
    """
    What no policy can undercut, scenario by scenario: the optimum of an operator who knew each scenario beforehand. Forecast
    errors keep every policy away from it.

    :param env: the problem
    :param n_scenarios: number of scenarios
    :param seed: of the scenarios; with equal seed and number they are those of :func:`~hybrid_envs.evaluation.evaluate`
    :return: shape ``(n_scenarios,)``
    """
    programme = PerfectInformation(env)
    return np.array([programme.solve(net_load).bound for net_load in net_loads(env, n_scenarios, seed)])


def net_loads(env: HybridUnitCommitmentEnv, n_scenarios: int, seed: int) -> np.ndarray:
    """
    :return: the net load of the scenarios that :func:`~hybrid_envs.evaluation.evaluate` plays, kW, shape ``(n_scenarios,
        horizon)``
    """
    scenarios = HybridVectorEnv(env, check_count("n_scenarios", n_scenarios))
    scenarios.reset(seed=seed)
    surprises = scenarios.noise[..., 0].double().cpu().numpy().T
    deviations = lfilter([1.0], [1.0, -env.net_load.persistence], surprises)
    hour = np.arange(env.horizon) % HOURS
    return env.net_load.mean[hour] + env.net_load.std[hour] * deviations
