"""Unit commitment: an operator who plans some hours ahead by mixed-integer linear programming."""

import numpy as np

from hybrid_envs.checks import check_array
from hybrid_envs.evaluation import ReferencePolicy, evaluate
from hybrid_envs.unit_commitment.env import FORECAST_HOURS, HybridUnitCommitmentEnv
from hybrid_envs.unit_commitment.milp import CommitmentProgramme
from hybrid_envs.unit_commitment.net_load import HOURS

N_SCENARIOS = 32
RESERVES = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Values that the search for the best reserve tries."""


class RollingHorizon(ReferencePolicy):
    """
    An operator who solves, every hour, the programme of the hours that the forecast covers (or that are left), as if the
    forecast plus a reserve were certain, and carries out its first hour. What is stored after the last hour is worth nothing.

    :param env: the problem
    :param reserve: served beyond the forecast, in standard deviations of its error in the hour to come
    :param gap: of the solver, relatively
    :param time_limit: seconds per hour
    :raises ValueError: naming the argument, if its value is not allowed
    """

    def __init__(self, env: HybridUnitCommitmentEnv, reserve: float = 1.5, gap: float = 1e-3, time_limit: float = 60.0):
        self.env = env
        self.reserve = float(check_array("reserve", reserve, (), at_least=0.0))
        self.programmes = [CommitmentProgramme(env, hours + 1, gap, time_limit) for hours in range(FORECAST_HOURS)]

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        env, net_load = self.env, self.env.net_load
        parts = np.cumsum([3, env.n_generators, 1, FORECAST_HOURS])
        _, ran, level, forecast, held = np.split(observation.astype(np.float64), parts, axis=1)
        hours = (period[:, None] + np.arange(FORECAST_HOURS)) % HOURS
        required = forecast * net_load.peak + self.reserve * net_load.surprise * net_load.std[hours]
        left = np.minimum(env.horizon - period, FORECAST_HOURS)
        schedules = [
            self.programmes[left[i] - 1].solve(
                required[i, : left[i]],
                np.rint(ran[i]),
                held[i] if env.n_held else None,
                level[i, 0] * env.params.battery_energy,
            )
            for i in range(len(observation))
        ]
        regimes = np.array([schedule.regimes[0] for schedule in schedules])
        low, high = env.factors.bounds_of(regimes, env.action_bounds)
        return regimes, np.clip([schedule.points[0] for schedule in schedules], low, high)

    @classmethod
    def best(cls, env: HybridUnitCommitmentEnv, seed: int = 0) -> "RollingHorizon":
        """
        The best of ``RESERVES`` on common scenarios; ``cost`` is estimated on other scenarios.

        :param seed: of the scenarios
        """
        policies = [cls(env, reserve) for reserve in RESERVES]
        policy = min(policies, key=lambda policy: evaluate(env, policy, N_SCENARIOS, seed).mean())
        policy.state_cost(evaluate(env, policy, N_SCENARIOS, seed + 1))
        return policy
