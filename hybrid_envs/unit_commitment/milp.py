"""Unit commitment: the perfect-information optimum by mixed-integer linear programming."""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.signal import lfilter

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.unit_commitment.env import HybridUnitCommitmentEnv
from hybrid_envs.unit_commitment.net_load import HOURS
from hybrid_envs.vector import HybridVectorEnv


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
