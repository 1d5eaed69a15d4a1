"""Driving to a stop: align, accelerate and brake, as one would by hand."""

import numpy as np

from hybrid_envs.evaluation import ReferencePolicy
from hybrid_envs.moving.env import ACCELERATE, BRAKE, TURN, HybridMovingEnv

ALIGNED = 1e-3
"""Error of the heading that is left alone, in radians: less than a hundredth of the target's radius across the field."""
CLOSE = 1e-3
"""Distance that is not worth moving for: a hundredth of the target's radius, and far more than observations are rounded by."""
BISECTIONS = 40


class AlignAndStop(ReferencePolicy):
    """
    Turn towards the target while at rest; then accelerate, up to the speed from which braking ends at the target's centre;
    then brake. With a common regime, each agent's speed is planned so that all of them begin to brake at once; agents with
    regimes of their own each drive as if alone, and wait. Who misses starts again.

    It moves in a straight line, in which turning and sliding play no part, and so is one policy for both environments. It is
    a heuristic: nothing is proven, though for one agent only the turning and the last fraction of a period leave room.

    :param env: the problem
    """

    def __init__(self, env: HybridMovingEnv):
        self.params = env.params
        self.n_agents, self.factors = env.n_agents, env.factors

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        together = 1 if self.factors.many else self.n_agents  # who has to agree on a regime
        agents = observation[:, :-1].astype(np.float64).reshape(-1, together, 9)
        x, y, speed, cos, sin, target_x, target_y, distance, _ = np.moveaxis(agents, -1, 0)  # each (rows, together)
        bearing = np.arctan2(target_y - y, target_x - x) - np.arctan2(sin, cos)
        bearing = np.where(distance > CLOSE, (bearing + np.pi) % (2 * np.pi) - np.pi, 0.0)
        rotation = np.clip(bearing / self.params.max_turn, -1, 1)
        acceleration = self.plan(speed, distance)
        turn = (speed == 0).all(axis=1) & (np.abs(bearing) > ALIGNED).any(axis=1)
        regimes = np.where(turn, TURN, np.where((acceleration > 0).any(axis=1), ACCELERATE, BRAKE))
        points = [acceleration * (regimes == ACCELERATE)[:, None], rotation * (regimes == TURN)[:, None]]
        batch = len(observation)
        return regimes.reshape(self.factors.shape(batch)), np.concatenate([b.reshape(batch, -1) for b in points], axis=1)

    def plan(self, speed: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """
        The accelerations with which all agents arrive soonest: in the fewest periods K in which everyone can get fast
        enough, each at the speed that K periods of it and braking bring to its target.

        :param speed: shape ``(batch, n_agents)``
        :param distance: to the target, same shape
        :return: in [0, 1], same shape; zero in rows that should brake
        """
        gain = self.params.max_acceleration
        periods, late = np.zeros((len(speed), 1)), np.ones((len(speed), 1), dtype=bool)
        while late.any():
            missing = distance - self.reach(speed, speed + gain * periods, periods)
            late = missing.max(axis=1, keepdims=True) > CLOSE
            periods += late
        slow, fast = speed, speed + gain * periods
        for _ in range(BISECTIONS):
            middle = (slow + fast) / 2
            short = self.reach(speed, middle, periods) < distance
            slow, fast = np.where(short, middle, slow), np.where(short, fast, middle)
        return np.where(periods > 0, np.clip((fast - speed) / gain, 0, 1), 0.0)

    def reach(self, speed: np.ndarray, cruising: np.ndarray, periods: np.ndarray) -> np.ndarray:
        """
        :param speed: at present, shape ``(batch, n_agents)``
        :param cruising: to accelerate to, as fast as possible, same shape
        :param periods: of acceleration and cruising before braking begins, shape ``(batch, 1)``
        :return: the distance covered until the agent stands, same shape as ``speed``
        """
        # |v| after j periods is min(speed + j gain, cruising); braking from u, it is (u - k c)^+ after k
        gain, loss = self.params.max_acceleration, self.params.break_value
        ramp = np.minimum(np.floor((cruising - speed) / gain), periods)
        driven = ramp * speed + gain * ramp * (ramp + 1) / 2 + (periods - ramp) * cruising
        stopping = np.floor(cruising / loss)
        return self.params.delta_t * (driven + stopping * cruising - loss * stopping * (stopping + 1) / 2)
