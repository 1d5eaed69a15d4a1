"""A certified lower bound on the cost of any policy of the switched linear-quadratic regulator."""

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.switched_lqr.env import STATE_LIMIT, HybridSwitchedLQREnv

SMOOTHING = (3e-2, 3e-3, 3e-4)  # of the maximum over modes, relative to the mean cost of the starts
ITERATIONS = 60  # of L-BFGS, for each smoothing
MAX_ROWS = 2048  # optimised at a time


def dual_lower_bound(
    env: HybridSwitchedLQREnv,
    starts: np.ndarray,
    first_modes: int = 4,
    known_costs: np.ndarray | None = None,
    tolerance: float = 1e-4,
) -> np.ndarray:
    """
    Lagrangian dual of the dynamics, with the first modes enumerated.

    With multipliers μ_t of s_t = A s_{t-1} + B_j u_{t-1}, t = 1..T-1, and μ_T = 0, the least of the Lagrangian over all states
    s_1..s_{T-1}, controls and modes is

        g(μ) = s_0'Qs_0 + μ_1'A s_0 - ¼ Σ_t (A'μ_{t+1} - μ_t)'Q⁻¹(A'μ_{t+1} - μ_t) - ¼ Σ_t max_j μ_t'B_jR⁻¹B_j'μ_t,  t = 1..T-1

    (the last control is 0, for it moves only s_T, which costs nothing). By weak duality g(μ) is at most the optimal cost for
    any μ, so the bound holds however far its maximisation got. g is concave; what it gives away lies in the maximum over
    modes. That is recovered by enumerating modes: a prefix of fixed modes removes the maximum from its periods, and the least
    bound over all prefixes bounds the optimum. It never falls as ``first_modes`` rises: each prefix is maximised to the end,
    and keeps what was found for the shorter prefixes that it continues.

    A trajectory that meets the clamp of the state costs at least s_0'Qs_0 + λ_min(Q) · 100², so the bound is cut off there.

    :param env: the problem, with Q positive definite
    :param starts: s_0, shape ``(n_starts, p)``
    :param first_modes: number of periods whose modes are enumerated; a period more multiplies the work by up to J
    :param known_costs: costs of any policy from these starts, shape ``(n_starts,)``; prefixes whose bound is within
        ``tolerance`` of them are not extended, which keeps their number small
    :param tolerance: relative
    :return: float64, shape ``(n_starts,)``
    :raises ValueError: if Q is singular, or shapes do not fit
    """
    params, horizon, n_modes = env.params, env.horizon, env.n_regimes
    state_price = float(np.linalg.eigvalsh(params.Q)[0])
    if state_price <= 1e-9:
        raise ValueError(f"dual_lower_bound: Q must be positive definite; its least eigenvalue is {state_price:.3g}")
    starts = check_array("starts", starts, (len(starts), env.n_dims))
    first_modes = min(check_count("first_modes", first_modes, minimum=0), horizon - 1)
    costs = np.inf if known_costs is None else check_array("known_costs", known_costs, (len(starts),))
    good_enough = torch.from_numpy(np.broadcast_to((1 - tolerance) * costs, len(starts)).copy())

    dual = _Dual(env, torch.from_numpy(starts))
    if horizon == 1:  # the control of the last period moves nothing that is paid for
        return dual.offset.numpy()
    rows = torch.arange(len(starts))  # the start of each row
    prefixes = torch.empty((len(starts), 0), dtype=torch.int64)
    multipliers = torch.zeros(len(starts), horizon - 1, env.n_dims, dtype=torch.float64)
    bounds = torch.full((len(starts),), -torch.inf, dtype=torch.float64)
    closed = torch.full((len(starts),), torch.inf, dtype=torch.float64)  # least bound of the prefixes not pursued further
    for depth in range(first_modes + 1):
        if depth > 0:
            modes = torch.arange(n_modes).repeat(len(rows))
            rows, prefixes, multipliers, bounds = (
                part.repeat_interleave(n_modes, dim=0) for part in (rows, prefixes, multipliers, bounds)
            )
            prefixes = torch.cat([prefixes, modes[:, None]], dim=1)
        # whatever bounds a prefix bounds its continuations, so a period more never lowers the result
        multipliers, bounds = dual.maximise(rows, prefixes, multipliers, bounds, SMOOTHING[0])
        pursued = bounds < good_enough[rows]
        closed = closed.scatter_reduce(0, rows[~pursued], bounds[~pursued], "amin")
        rows, prefixes, multipliers, bounds = rows[pursued], prefixes[pursued], multipliers[pursued], bounds[pursued]
        polished = multipliers  # continuations start from the coarse ones, which a further mode moves less
        for smoothing in SMOOTHING[1:]:
            polished, bounds = dual.maximise(rows, prefixes, polished, bounds, smoothing)
    closed = closed.scatter_reduce(0, rows, bounds, "amin")
    return torch.minimum(closed, dual.offset + state_price * STATE_LIMIT**2).numpy()


class _Dual:
    """g(μ) for many starts and prefixes of modes at once; μ has shape ``(rows, T - 1, p)``."""

    def __init__(self, env: HybridSwitchedLQREnv, starts: torch.Tensor):
        params = env.params
        self.n_modes, self.horizon = env.n_regimes, env.horizon
        self.A = torch.from_numpy(params.A)
        self.state_root = torch.from_numpy(np.linalg.inv(np.linalg.cholesky(params.Q))).T  # X with XX' = Q⁻¹
        control_root = np.linalg.inv(np.linalg.cholesky(params.R))
        self.mode_roots = torch.from_numpy(np.concatenate([B @ control_root.T for B in params.B], axis=1))  # (p, J·p)
        self.offset = ((starts @ torch.from_numpy(params.Q)) * starts).sum(dim=1)
        self.first = starts @ self.A.T
        self.scale = float(self.offset.mean())

    def value(self, rows: torch.Tensor, excluded: torch.Tensor, mu: torch.Tensor, smoothing: float) -> torch.Tensor:
        """
        :param excluded: modes that the prefix rules out, bool, shape ``(rows, T - 1, J)``
        :param smoothing: of the maximum over modes, which it only increases: the value stays a bound
        """
        following = torch.cat([mu[:, 1:], torch.zeros_like(mu[:, :1])], dim=1)
        state_part = ((following @ self.A - mu) @ self.state_root).square().sum(dim=(1, 2))
        control = (mu @ self.mode_roots).unflatten(2, (self.n_modes, -1)).square().sum(dim=3).masked_fill(excluded, -torch.inf)
        most = control.amax(dim=2) if smoothing == 0 else smoothing * torch.logsumexp(control / smoothing, dim=2)
        return self.offset[rows] + (mu[:, 0] * self.first[rows]).sum(dim=1) - state_part / 4 - most.sum(dim=1) / 4

    def maximise(
        self, rows: torch.Tensor, prefixes: torch.Tensor, mu: torch.Tensor, bounds: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param rows: the start of each row
        :param prefixes: the first modes of each row, shape ``(rows, depth)``
        :param mu: where to start from
        :param bounds: that hold already, shape ``(rows,)``
        :param smoothing: relative to the mean cost of the starts' first period
        :return: the multipliers found, and the better of each row's bound and theirs
        """
        if not len(rows):
            return mu, bounds
        split = zip(rows.split(MAX_ROWS), prefixes.split(MAX_ROWS), mu.split(MAX_ROWS), strict=True)
        parts = [self._ascend(part_rows, part_prefixes, part, smoothing) for part_rows, part_prefixes, part in split]
        multipliers, found = zip(*parts, strict=True)
        return torch.cat(multipliers), torch.maximum(bounds, torch.cat(found))

    def _ascend(
        self, rows: torch.Tensor, prefixes: torch.Tensor, mu: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        excluded = torch.zeros(len(rows), self.horizon - 1, self.n_modes, dtype=torch.bool)
        excluded[:, : prefixes.shape[1]] = torch.nn.functional.one_hot(prefixes, self.n_modes) == 0
        mu = mu.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([mu], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            total = -self.value(rows, excluded, mu, smoothing * self.scale).sum()
            total.backward()
            return total

        optimizer.step(loss)
        with torch.no_grad():
            return mu.detach(), self.value(rows, excluded, mu, 0.0)
