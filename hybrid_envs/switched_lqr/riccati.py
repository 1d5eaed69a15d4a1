"""Switched linear-quadratic regulation: Riccati controllers of one mode and of switched modes."""

import numpy as np

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.evaluation import ReferencePolicy
from hybrid_envs.switched_lqr.env import STATE_LIMIT, HybridSwitchedLQREnv


def riccati(A: np.ndarray, B: np.ndarray, Q: np.ndarray, R: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The optimal controls u_t = -K_t s_t of s_{t+1} = A s_t + B u_t under the cost Σ_{t<T} s_t'Qs_t + u_t'Ru_t, which ends with
    period T-1: the state s_T costs nothing. From period t on, the optimum costs s_t'P_t s_t.

    :param A: shape ``(p, p)``
    :param B: shape ``(p, m)``
    :param Q: shape ``(p, p)``
    :param R: shape ``(m, m)``
    :param horizon: T
    :return: P_0..P_T, shape ``(T + 1, p, p)``, and K_0..K_{T-1}, shape ``(T, m, p)``
    """
    values = [np.zeros_like(Q)]
    gains = []
    for _ in range(check_count("horizon", horizon)):
        value, gain = backup(values[-1], A, B, Q, R)
        values.append(value)
        gains.append(gain)
    return np.stack(values[::-1]), np.stack(gains[::-1])


def backup(P: np.ndarray, A: np.ndarray, B: np.ndarray, Q: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    One step of the Riccati recursion.

    :param P: cost matrices of the next period, shape ``(..., p, p)``
    :return: cost matrices of this period, shape ``(..., p, p)``, and the gains that attain them, shape ``(..., m, p)``
    """
    gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    value = Q + A.T @ P @ (A - B @ gain)
    return (value + np.swapaxes(value, -1, -2)) / 2, gain  # rounding would otherwise grow an antisymmetric part


class RiccatiPolicy(ReferencePolicy):
    """
    A controller of the switched plant that sees the clock.

    :param env: the problem
    """

    def __init__(self, env: HybridSwitchedLQREnv):
        self.params = env.params
        self.horizon = env.horizon

    def trajectories(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The plant under this controller, in float64.

        :param starts: s_0, shape ``(n_starts, p)``
        :return: states s_0..s_{T-1}, shape ``(T, n_starts, p)``, and the total costs, shape ``(n_starts,)``
        """
        A, B, Q, R = self.params.A, self.params.B, self.params.Q, self.params.R
        state = check_array("starts", starts, (len(starts), len(A)))
        states, costs = [], np.zeros(len(state))
        for t in range(self.horizon):
            modes, controls = self.act(state, np.full(len(state), t))
            states.append(state)
            costs += ((state @ Q) * state).sum(axis=1) + ((controls @ R) * controls).sum(axis=1)
            driven = (B[modes] @ controls[..., None])[..., 0]
            state = np.clip(state @ A.T + driven, -STATE_LIMIT, STATE_LIMIT)
        return np.stack(states), costs


class SingleMode(RiccatiPolicy):
    """
    Keep to one mode and control it optimally: the time-varying Riccati controller. ``cost`` is its mean over the starting
    states, exact while the clamp of the state does not bind.

    :param env: the problem
    :param mode: the mode kept to
    :raises ValueError: if there is no such mode
    """

    def __init__(self, env: HybridSwitchedLQREnv, mode: int):
        super().__init__(env)
        if check_count("mode", mode, minimum=0) >= env.n_regimes:
            raise ValueError(f"mode = {mode} is not one of 0..{env.n_regimes - 1}")
        params = env.params
        values, self.gains = riccati(params.A, params.B[mode], params.Q, params.R, env.horizon)
        self.mode = mode
        # E[s_0 s_0'] = limit²/3 · I for starts uniform on the cube, so E[s_0'Ps_0] = limit²/3 · tr P
        self.cost = float(env.start_limit**2 / 3 * np.trace(values[0]))

    @classmethod
    def best(cls, env: HybridSwitchedLQREnv) -> "SingleMode":
        """
        The mode of least mean cost over the starting states; for one mode, the optimum of all policies.
        """
        return min((cls(env, mode) for mode in range(env.n_regimes)), key=lambda policy: policy.cost)

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = observation.astype(np.float64)
        return np.full(len(state), self.mode), -(self.gains[period] @ state[..., None])[..., 0]


class SwitchedRiccati(RiccatiPolicy):
    """
    Dynamic programming over sets of Riccati matrices. With t periods gone, the optimum costs V_t(s) = min s'Ps over the
    matrices P of all mode sequences that can follow; each step of the recursion multiplies their number by J. Kept are those
    that are least, or within ``slack`` of the least, at some sampled state (relaxed dynamic programming: Lincoln and Rantzer
    2006). Every kept matrix is the cost of an actual mode sequence, so V_0 bounds the policy's cost from above whatever was
    pruned; the policy chooses afresh in each period.

    :param env: the problem
    :param max_matrices: matrices kept per period, at most
    :param slack: relative cost increase at the sampled states that is accepted for smaller sets
    :param n_starts: number of sampled starting states
    :param n_passes: the first pass prunes on the starting states; each further one on the states that the policy of the pass
        before visits in the period in question
    :param seed: of the sampled states
    """

    def __init__(
        self,
        env: HybridSwitchedLQREnv,
        max_matrices: int = 128,
        slack: float = 0.0,
        n_starts: int = 512,
        n_passes: int = 2,
        seed: int = 0,
    ):
        super().__init__(env)
        self.max_matrices, self.slack = (
            check_count("max_matrices", max_matrices),
            float(check_array("slack", slack, (), at_least=0.0)),
        )
        rng = np.random.default_rng(seed)
        shape = (check_count("n_starts", n_starts), env.n_dims)
        starts = rng.uniform(-env.start_limit, env.start_limit, shape)
        samples = np.broadcast_to(starts, (env.horizon, *shape))
        for _ in range(check_count("n_passes", n_passes)):
            self._solve(samples)
            samples, _ = self.trajectories(starts)
        _, costs = self.trajectories(rng.uniform(-env.start_limit, env.start_limit, shape))  # starts not pruned on
        self.state_cost(costs)

    def _solve(self, samples: np.ndarray) -> None:
        """
        :param samples: states at which the sets have to be good, shape ``(T, n_samples, p)``
        """
        A, B, Q, R = self.params.A, self.params.B, self.params.Q, self.params.R
        self.sets = [np.zeros((1, *Q.shape))]  # matrices P of each period, shape (n_matrices, p, p)
        self.modes: list[np.ndarray] = []  # the first mode of each matrix's sequence
        self.gains: list[np.ndarray] = []
        for states in samples[::-1]:
            values, gains = zip(*(backup(self.sets[-1], A, mode, Q, R) for mode in B), strict=True)
            modes = np.repeat(np.arange(len(B)), len(self.sets[-1]))
            candidates = np.concatenate(values)
            kept = cover(quadratic(candidates, states), self.max_matrices, self.slack)
            self.sets.append(candidates[kept])
            self.modes.append(modes[kept])
            self.gains.append(np.concatenate(gains)[kept])
        for per_period in (self.sets, self.modes, self.gains):
            per_period.reverse()

    def act(self, observation: np.ndarray, period: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = observation.astype(np.float64)
        modes, controls = np.empty(len(state), dtype=np.int64), np.empty_like(state)
        for t in np.unique(period):
            rows = np.flatnonzero(period == t)
            best = quadratic(self.sets[t], state[rows]).argmin(axis=0)
            modes[rows] = self.modes[t][best]
            controls[rows] = -(self.gains[t][best] @ state[rows, :, None])[..., 0]
        return modes, controls


def quadratic(matrices: np.ndarray, states: np.ndarray) -> np.ndarray:
    """
    :param matrices: P, shape ``(n_matrices, p, p)``
    :param states: s, shape ``(n_states, p)``
    :return: s'Ps, shape ``(n_matrices, n_states)``
    """
    squares = states[:, :, None] * states[:, None, :]
    return matrices.reshape(len(matrices), -1) @ squares.reshape(len(states), -1).T


def cover(costs: np.ndarray, max_kept: int, slack: float) -> np.ndarray:
    """
    Choose candidates until each state has one within ``1 + slack`` of its least cost, the worst served state first.

    :param costs: shape ``(n_candidates, n_states)``
    :return: indices of at most ``max_kept`` candidates
    """
    least, best = costs.min(axis=0), costs.argmin(axis=0)
    kept: list[int] = [int(np.bincount(best).argmax())]
    served = costs[kept[0]]
    while len(kept) < max_kept and (excess := served - (1 + slack) * least).max() > 0:
        kept.append(int(best[excess.argmax()]))
        served = np.minimum(served, costs[kept[-1]])
    return np.array(kept)
