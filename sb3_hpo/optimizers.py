"""Adam, but for some matrices, which Muon moves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import ParamsT

__all__ = ["MuonAdam"]

MOMENTUM = 0.9
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a x + b x³ + c x⁵, which in five turns takes every singular value in (0, 1] to about 1 (Jordan et al.)."""
TURNS = 5
ADAMS_SIZE = 0.2
"""
Root mean square of Adam's usual step, in units of its rate; steps of Muon are given the same (Liu et al. 2025, arXiv
2502.16982).
"""


class MuonAdam(Optimizer):
    """
    Adam, but for some matrices, which move along the orthogonalised momentum of their gradient instead (Muon: Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon): all singular values of a step are about the same, so that directions with
    small gradients, of which an ill-conditioned problem has many, are followed as fast as those with large ones.
    :class:`torch.optim.Muon` takes nothing but matrices, and orthogonalises in 16 bits.

    :param params: all parameters, or groups of them
    :param lr: learning rate, of the same size for matrices as for what Adam moves
    :param matrices: those of them that Muon moves
    :param options: Adam's
    """

    def __init__(self, params: ParamsT, lr: float, matrices: Sequence[torch.Tensor], **options: Any):
        self.adam = Adam(params, lr, **options)
        self.matrices = frozenset(matrices)  # by identity
        super().__init__(self.adam.param_groups, self.adam.defaults)

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy, too: torch's own keeps but what every optimizer has.
        return super().__getstate__() | {"adam": self.adam, "matrices": self.matrices}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("MuonAdam takes no closure: it evaluates nothing anew")
        moved = []
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix in self.matrices and matrix.grad is not None:
                    self._move(matrix, matrix.grad, group["lr"])
                    moved.append((matrix, matrix.grad))
                    matrix.grad = None
        # Adam sees what is left. Loading a state puts other groups and another state in the place of those that they shared.
        self.adam.param_groups, self.adam.state = self.param_groups, self.state
        self.adam.step()
        for matrix, gradient in moved:
            matrix.grad = gradient

    def _move(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        state = self.state[matrix]
        if "momentum" not in state:  # it begins, or was Adam's before
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # as Nesterov's
        size = ADAMS_SIZE * math.sqrt(max(matrix.shape))  # of an orthogonal matrix the root mean square is 1/√max
        matrix.add_(orthogonalised(ahead), alpha=-rate * size)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """
    :return: U Vᵀ of the matrix's singular value decomposition U S Vᵀ, with ones that are but about 1; a matrix of zeros as it
        is
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (torch.linalg.matrix_norm(matrix) + 1e-30)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(TURNS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
