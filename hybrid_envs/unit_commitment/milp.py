"""Unit commitment as a mixed-integer linear programme, and the perfect-information optimum."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.signal import lfilter

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.unit_commitment.env import HybridUnitCommitmentEnv
from hybrid_envs.unit_commitment.net_load import HOURS
from hybrid_envs.vector import HybridVectorEnv

Rows = dict[int, np.ndarray]
"""Coefficients by lag: 0 for variables of the present hour, 1 for those of the hour before, -1 for those of the next."""


class Schedule(NamedTuple):
    """What an operator would do who knew the net load of the hours ahead."""

    bound: float
    """No policy whatever costs less on this scenario."""
    cost: float
    """Of this schedule; above the bound by no more than the solver's gap, unless the time ran out."""
    regimes: np.ndarray
    """Int64, shape ``(hours,)``; of free commitments ``(hours, n_generators)``."""
    points: np.ndarray
    """Shape ``(hours, n_generators + 1)``."""


class CommitmentProgramme:
    """
    The environment's equations over some hours as a mixed-integer linear programme, solved by HiGHS for one net load at a
    time. All costs are linear, so that the programme is exact: its schedule, played in the environment, costs what the
    programme says. A unit may not run shorter than its ``min_up_time``, nor stay off shorter than its ``min_down_time``,
    where the last hour does not cut it (Rajan and Takriti 2005).

    :param env: the problem
    :param hours: that a schedule covers
    :param gap: by which ``cost`` may exceed ``bound``, relatively
    :param time_limit: seconds per schedule; the bound is valid even where it ends the search
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridUnitCommitmentEnv, hours: int, gap: float = 1e-4, time_limit: float = 60.0):
        self.options = {
            "mip_rel_gap": float(check_array("gap", gap, (), at_least=0.0)),
            "time_limit": float(check_array("time_limit", time_limit, (), above=0.0)),
        }
        self.env, self.hours, grid, p = env, check_count("hours", hours), env.params, env.n_generators
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
        starts: Rows = {0: coefficients(on=each, started=-each), 1: coefficients(on=-each)}
        inequalities: list[tuple[Rows, float]] = [  # and what their sums must not exceed
            ({0: coefficients(output=each, on=-np.diag(grid.max_output))}, 0.0),
            ({0: coefficients(output=-each, on=np.diag(grid.min_output))}, 0.0),
            (starts, 0.0),
            ({0: coefficients(charge=1.0, charging=-power)}, 0.0),
            ({0: coefficients(discharge=1.0, charging=power)}, power),
        ]
        if env.commitments == "merit_order" and p > 1:
            inequalities.append(({0: coefficients(on=each[order[1:]] - each[order[:-1]])}, 0.0))
        if env.factors.active_limits is not None:
            inequalities.append(({0: coefficients(on=-np.ones((1, p)))}, -env.factors.active_limits[0]))
        if env.n_held:
            times = grid.min_up_time, grid.min_down_time
            up, down = ([np.diag(1.0 * (k < time)) for k in range(hours)] for time in times)
            since = {k: coefficients(started=started) for k, started in enumerate(up)}
            until = {-k: coefficients(started=started) for k, started in enumerate(down)}
            inequalities += [
                (since | {0: coefficients(started=up[0], on=-each)}, 0.0),  # it started lately: it is on
                (until | {1: coefficients(on=each)}, 1.0),  # it was on: if it stops now, it does not start soon
            ]
        stored = coefficients(energy=1.0, charge=-grid.efficiency, discharge=1 / grid.efficiency)
        balance = coefficients(output=np.ones((1, p)), charge=-1.0, discharge=1.0, shortage=1.0, surplus=-1.0)
        equations: list[tuple[Rows, float]] = [({0: stored, 1: coefficients(energy=-1.0)}, 0.0), ({0: balance}, 0.0)]

        blocks = inequalities + equations  # the last row of each hour, the balance, has the net load on its right side
        by_lag = {
            lag: np.concatenate([rows.get(lag, np.zeros_like(rows[0])) for rows, _ in blocks])
            for lag in range(1 - hours, hours + 1)
        }
        self.matrix = sparse.csr_array(
            sum(sparse.kron(sparse.eye(hours, k=-lag), by_lag[lag]) for lag in range(1 - hours, hours) if by_lag[lag].any())
        )
        self.limits = np.concatenate([np.full(len(rows[0]), limit) for rows, limit in blocks])
        self.before = by_lag[1]
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
        self.most = np.tile(most, (hours, 1))
        self.costs, self.integer = (np.tile(row[0], hours) for row in (costs, coefficients(on=1.0, charging=1.0)))

    def solve(
        self,
        net_load: np.ndarray,
        on: np.ndarray | None = None,
        held: np.ndarray | None = None,
        energy: float | None = None,
    ) -> Schedule:
        """
        :param net_load: kW, shape ``(hours,)``
        :param on: units that ran the hour before, 0 or 1, shape ``(n_generators,)``; none unless given
        :param held: hours for which each unit has to stay as it is, likewise
        :param energy: in the battery, kWh; that of an episode's start unless given
        :raises RuntimeError: if the time ran out before any schedule was found
        """
        start = np.zeros(len(self.most[0]))
        start[self.columns["on"]] = 0.0 if on is None else on
        start[self.columns["energy"]] = self.env.params.start_energy if energy is None else energy
        upper = np.tile(self.limits, (self.hours, 1))
        upper[0] -= self.before @ start
        upper[:, -1] = check_array("net_load", net_load, (self.hours,))
        lower = np.full_like(upper, -np.inf)
        lower[:, -2:] = upper[:, -2:]
        least, most = np.zeros_like(self.most), self.most.copy()
        if on is not None and held is not None:
            fixed = np.arange(self.hours)[:, None] < held - 0.5
            least[:, self.columns["on"]][fixed] = most[:, self.columns["on"]][fixed] = np.tile(on, (self.hours, 1))[fixed]
        result = milp(
            self.costs,
            integrality=self.integer,
            bounds=Bounds(least.ravel(), most.ravel()),
            constraints=LinearConstraint(self.matrix, lower.ravel(), upper.ravel()),
            options=self.options,
        )
        if result.x is None:
            raise RuntimeError(f"{self.env.name}: HiGHS found no schedule: {result.message}")
        values = result.x.reshape(self.hours, -1)
        on, output, charge, discharge = (values[:, self.columns[name]] for name in ("on", "output", "charge", "discharge"))
        points = np.concatenate([output, charge - discharge], axis=1)
        return Schedule(result.mip_dual_bound, result.fun, self.env.regimes_of(np.rint(on)), points)


class PerfectInformation(CommitmentProgramme):
    """
    The programme over a whole episode, whose net load is known beforehand: no policy costs less than its ``bound``.

    :param env: the problem
    :param gap: by which ``cost`` may exceed ``bound``, relatively
    :param time_limit: seconds per scenario; the bound is valid even where it ends the search
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridUnitCommitmentEnv, gap: float = 1e-4, time_limit: float = 60.0):
        super().__init__(env, env.horizon, gap, time_limit)


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
