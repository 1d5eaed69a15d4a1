"""Switched linear-quadratic regulation: which actuator group to use, and how hard."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count, check_definite
from hybrid_envs.core import Frame, HybridEnv
from hybrid_envs.rendering import draw_episode
from hybrid_envs.spaces import HybridAction

STATE_LIMIT = 100.0


@dataclass(frozen=True)
class SwitchedLQRParams:
    """The matrices of one instance."""

    A: np.ndarray
    """Shape ``(p, p)``."""
    B: np.ndarray
    """Shape ``(J, p, p)``, one input matrix per mode."""
    Q: np.ndarray
    """State cost, shape ``(p, p)``, symmetric positive semidefinite."""
    R: np.ndarray
    """Control cost, shape ``(p, p)``, symmetric positive definite."""


def reference_instance(n_dims: int, n_modes: int) -> SwitchedLQRParams:
    """
    The instance of the paper's experiments (arXiv 2605.14297, switched LQR): mode j drives its own group of coordinates at
    full strength and the others at 0.15.

    :param n_dims: p, the length of state and control
    :param n_modes: J
    """
    noise = np.random.default_rng(0).standard_normal((n_dims, n_dims))
    noise = (noise + noise.T) / 2
    noise /= np.abs(noise).max()
    B = np.zeros((n_modes, n_dims, n_dims))
    for mode, group in enumerate(np.array_split(np.arange(n_dims), n_modes)):
        strength = np.full(n_dims, 0.15)
        strength[group] = 1.0
        B[mode] = np.diag(strength)
    return SwitchedLQRParams(1.10 * np.eye(n_dims) + 0.05 * noise, B, np.eye(n_dims), 0.1 * np.eye(n_dims))


class SwitchedLQRState(NamedTuple):
    """``x``: the plant's state s, shape ``(batch, p)``."""

    x: torch.Tensor
    period: torch.Tensor


class HybridSwitchedLQREnv(HybridEnv[SwitchedLQRState]):
    """
    ## Description
    Regulate an unstable linear plant to the origin. In each period one of J input matrices is switched on, and a control is
    applied through it.

    ## Action Space
    ``Tuple(Discrete(J), Box(-inf, inf, (p,)))``: the mode j and the control u.

    ## Observation Space
    ``Box(-inf, inf, (p,))``: the state s. It holds no clock.

    ## Dynamics
    s' = A s + B_j u, clamped to [-100, 100] in each coordinate.

    ## Rewards
    Minus the cost of the current state and control, s'Qs + u'Ru. Results are quoted as the total cost of an episode.

    ## Starting State
    Uniform on [-10/√p, 10/√p]^p; nothing else is random.

    ## Episode End
    Truncated after ``horizon`` periods; never terminated.

    ## Differentiability
    State, observation and reward carry gradients to s and u everywhere except where the clamp binds; there the gradient
    through the clamped coordinate is zero.

    ## Arguments
    :param n_dims: p; 8 unless matrices are given
    :param n_modes: J; 2 unless matrices are given
    :param A: ``(p, p)``; the reference instance's unless given
    :param B: ``(J, p, p)``; the reference instance's unless given
    :param Q: ``(p, p)``, symmetric positive semidefinite; the identity unless given
    :param R: ``(p, p)``, symmetric positive definite; 0.1 times the identity unless given
    :param horizon: T, periods of an episode
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: naming the argument, its value and what is allowed

    ## References
    Problem and reference instance: Alvo, Russo, Kanoria (2026), arXiv 2605.14297, switched LQR.

    ## Version History
    v0: initial version
    """

    def __init__(
        self,
        n_dims: int | None = None,
        n_modes: int | None = None,
        *,
        A: np.ndarray | None = None,
        B: np.ndarray | None = None,
        Q: np.ndarray | None = None,
        R: np.ndarray | None = None,
        horizon: int = 20,
        render_mode: str | None = None,
    ):
        n_dims = _agreed("n_dims", n_dims, {"A": A, "B": B, "Q": Q, "R": R}, axis=-1, default=8)
        n_modes = _agreed("n_modes", n_modes, {"B": B}, axis=0, default=2)
        if n_modes > n_dims and B is None:
            raise ValueError(f"n_modes = {n_modes} must not exceed n_dims = {n_dims}: every mode needs its own coordinate")
        reference = reference_instance(n_dims, n_modes)
        square = (n_dims, n_dims)
        self.params = SwitchedLQRParams(
            A=check_array("A", reference.A if A is None else A, square),
            B=check_array("B", reference.B if B is None else B, (n_modes, *square)),
            Q=check_definite("Q", reference.Q if Q is None else Q, n_dims, strictly=False),
            R=check_definite("R", reference.R if R is None else R, n_dims),
        )
        self.start_limit = 10.0 / n_dims**0.5
        super().__init__(
            action_bounds=np.tile([-np.inf, np.inf], (n_modes, n_dims, 1)),
            observation_size=n_dims,
            horizon=horizon,
            action_scale=self.start_limit,
            render_mode=render_mode,
        )
        self.n_dims = n_dims
        self.A, self.Q, self.R = (torch.tensor(m, dtype=self.dtype) for m in (self.params.A, self.params.Q, self.params.R))
        self.B_transposed = torch.tensor(np.concatenate([B.T for B in self.params.B], axis=1), dtype=self.dtype)  # (p, J·p)

    def initial(self, batch_size: int, generator: torch.Generator) -> SwitchedLQRState:
        uniform = torch.rand(batch_size, self.n_dims, generator=generator, dtype=self.dtype, device=self.device)
        return SwitchedLQRState(
            self.start_limit * (2 * uniform - 1), torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        )

    def transition(self, state: SwitchedLQRState, action: HybridAction, noise: torch.Tensor) -> SwitchedLQRState:
        driven = (action.point @ self.B_transposed).unflatten(1, (self.n_regimes, self.n_dims))  # B_j u for every j
        rows = torch.arange(len(driven), device=driven.device)
        x = state.x @ self.A.T + driven[rows, action.regime]
        return SwitchedLQRState(x.clamp(-STATE_LIMIT, STATE_LIMIT), state.period)

    def reward(
        self, state: SwitchedLQRState, action: HybridAction, noise: torch.Tensor, next_state: SwitchedLQRState
    ) -> torch.Tensor:
        x, u = state.x, action.point
        return -((x @ self.Q * x).sum(1) + (u @ self.R * u).sum(1))

    def observation(self, state: SwitchedLQRState) -> torch.Tensor:
        return state.x

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """Norm of the state, and the cost of each period with the mode marked."""
        norms = np.array([[float(frame.state.x.norm())] for frame in frames])
        return draw_episode(frames, norms, "norm of the state", {j: f"mode {j}" for j in range(self.n_regimes)}, self.horizon)


def _agreed(name: str, value: int | None, arrays: dict[str, np.ndarray | None], axis: int, default: int) -> int:
    """The size that argument ``name`` and the given arrays state, if they agree on one."""
    stated = {name: check_count(name, value)} if value is not None else {}
    for key, array in arrays.items():
        if array is not None:
            if np.ndim(array) < 2:
                raise ValueError(f"{key} must be given as matrices, got shape {np.shape(array)}")
            stated[key] = np.shape(array)[axis]
    if len(set(stated.values())) > 1:
        raise ValueError(f"{name}: sizes disagree, {', '.join(f'{key} says {size}' for key, size in stated.items())}")
    return next(iter(stated.values()), default)
