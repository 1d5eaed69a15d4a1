"""
Hybrid action spaces ``Tuple(Discrete(J), Box(n))`` and ``Tuple(MultiDiscrete([J_1..J_m]), Box(n))``, and the one layout of
their actions.

A *hybrid action* is a regime ``x`` together with a point ``b`` in R^n. The regime is one number in ``{0..J-1}``, or consists
of *factors* ``x_1..x_m``; of which, and which of them bounds which coordinate of b, says :class:`RegimeFactors`. Packed into
one float vector an action is ``[x, b_1, ..., b_n]``, or ``[x_1, ..., x_m, b_1, ..., b_n]``: rollout buffers, distributions and
vectorised environments all use this layout through :func:`pack` and :func:`unpack`, and nothing else in the project knows it.
Where the environment masks regimes, the mask under which the action was chosen travels behind it, one column per regime,
factor after factor: ``[x, b_1, ..., b_n, m_1, ..., m_J]``.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from hybrid_envs.factors import NO_FACTOR, RegimeFactors


class HybridAction(NamedTuple):
    """A batch of hybrid actions."""

    regime: torch.Tensor
    """x, int64, shape ``(batch,)``; of several factors ``(batch, m)``."""
    point: torch.Tensor
    """b, floating point, shape ``(batch, n)``."""


def pack(regime: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """
    :param regime: x, shape ``(...)``, or ``(..., m)``
    :param point: b, shape ``(..., n)``
    :return: packed actions ``[x, b]``, shape ``(..., m + n)``, in the dtype of ``point``
    """
    columns = regime if regime.dim() == point.dim() else regime.unsqueeze(-1)
    return torch.cat([columns.to(point.dtype), point], dim=-1)


def unpack(packed: torch.Tensor, factors: RegimeFactors | None = None) -> HybridAction:
    """
    :param packed: packed actions, shape ``(..., m + n)``
    :param factors: of the regime; a Discrete's unless given
    :return: the regime as int64, shape ``(...)``, or ``(..., m)``, and the point, shape ``(..., n)``
    """
    if factors is None or not factors.many:
        return HybridAction(packed[..., 0].long(), packed[..., 1:])
    return HybridAction(packed[..., : factors.n_factors].long(), packed[..., factors.n_factors :])


def append_mask(packed: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    :param packed: packed actions, shape ``(..., m + n)``
    :param mask: which regimes could be taken, flat, bool, shape ``(..., ΣJ_f)``; ``None`` where nothing masks them
    :return: ``[x, b, mask]``, shape ``(..., m + n + ΣJ_f)``, or without a mask the packed actions as they are
    """
    return packed if mask is None else torch.cat([packed, mask.to(packed.dtype)], dim=-1)


def split_mask(packed: torch.Tensor, action_size: int, n_factors: int = 1) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    :param packed: packed actions, masked or not
    :param action_size: n
    :param n_factors: m
    :return: packed actions, shape ``(..., m + n)``, and the mask, flat, bool, shape ``(..., ΣJ_f)``; ``None`` if there is none
    """
    size = n_factors + action_size
    action, mask = packed[..., :size], packed[..., size:]
    return action, mask > 0.5 if mask.shape[-1] else None


def hybrid_action_space(action_bounds: np.ndarray, factors: RegimeFactors | None = None) -> spaces.Tuple:
    """
    The action space of a problem with the given bounds: the Box is the hull of all regimes' intervals.

    :param action_bounds: per-regime bounds of b, shape ``(J, n, 2)``; the last axis is (low, high), infinite where unbounded
    :param factors: of the regime; one Discrete unless given
    :raises ValueError: if the shape is another, a bound is NaN, or a low exceeds its high
    """
    bounds = np.asarray(action_bounds, dtype=np.float32)
    if bounds.ndim != 3 or bounds.shape[-1] != 2 or 0 in bounds.shape:
        raise ValueError(f"action_bounds must have shape (n_regimes, n, 2), got {bounds.shape}")
    invalid = np.isnan(bounds).any(-1) | (bounds[..., 0] > bounds[..., 1])
    if invalid.any():
        regime, coordinate = np.argwhere(invalid)[0]
        low, high = bounds[regime, coordinate]
        raise ValueError(
            f"action_bounds[{regime}, {coordinate}] = ({low}, {high}): low must not exceed high, and neither may be NaN"
        )
    hull = spaces.Box(bounds[..., 0].min(axis=0), bounds[..., 1].max(axis=0), dtype=np.float32)
    if factors is None or not factors.many:
        return spaces.Tuple((spaces.Discrete(len(bounds)), hull))
    return spaces.Tuple((spaces.MultiDiscrete(list(factors.sizes)), hull))


def split_hybrid_space(action_space: spaces.Space) -> tuple[spaces.Discrete | spaces.MultiDiscrete, spaces.Box]:
    """
    :param action_space: the space to take apart
    :return: its Discrete or MultiDiscrete, and its Box
    :raises TypeError: if the space is not ``Tuple(Discrete, Box)`` or ``Tuple(MultiDiscrete, Box)`` with regimes counted from
        0, a list of factors and a one-dimensional Box
    """
    if isinstance(action_space, spaces.Tuple) and len(action_space.spaces) == 2:
        regimes, box = action_space.spaces
        if (
            isinstance(regimes, spaces.Discrete | spaces.MultiDiscrete)
            and isinstance(box, spaces.Box)
            and not np.any(regimes.start)
            and len(regimes.shape or ()) <= 1
            and len(box.shape) == 1
        ):
            return regimes, box
    raise TypeError(
        "the action space must be Tuple(Discrete(J), Box(shape=(n,))) or Tuple(MultiDiscrete([J_1..J_m]), Box(shape=(n,))), "
        f"regimes counted from 0, got {action_space}"
    )


def factors_of(action_space: spaces.Space, factor_of: Any = None, active_limits: Any = None) -> RegimeFactors:
    """
    :param action_space: a hybrid action space
    :param factor_of: as for :class:`~hybrid_envs.factors.RegimeFactors`; unless given, a Discrete bounds every coordinate of
        b, and a MultiDiscrete none
    :param active_limits: likewise
    """
    regimes, box = split_hybrid_space(action_space)
    if isinstance(regimes, spaces.Discrete):
        return RegimeFactors(int(regimes.n), np.zeros(box.shape, np.int64) if factor_of is None else factor_of, active_limits)
    owners = np.full(box.shape, NO_FACTOR) if factor_of is None else factor_of
    return RegimeFactors([int(size) for size in regimes.nvec], owners, active_limits)


def packed_space(action_space: spaces.Space) -> spaces.Box:
    """
    :param action_space: a hybrid action space
    :return: the Box that holds its packed actions, shape ``(m + n,)``
    """
    (_, box), factors = split_hybrid_space(action_space), factors_of(action_space)
    low = np.concatenate([np.zeros(factors.n_factors), box.low])
    high = np.concatenate([np.array(factors.sizes) - 1, box.high])
    return spaces.Box(low.astype(np.float32), high.astype(np.float32))


def packed_size(action_space: spaces.Space, masked: bool) -> int:
    """
    :param action_space: a hybrid action space
    :param masked: whether the mask travels with the action
    :return: the length of a packed action, ``m + n`` or ``m + n + ΣJ_f``
    """
    factors = factors_of(action_space)
    return factors.n_factors + len(factors.factor_of) + (factors.total if masked else 0)


def box_bounds(action_space: spaces.Space) -> np.ndarray:
    """
    :param action_space: a hybrid action space
    :return: the Box's bounds for every regime, shape ``(J, n, 2)``
    """
    _, box = split_hybrid_space(action_space)
    return np.tile(np.stack([box.low, box.high], axis=-1), (factors_of(action_space).largest, 1, 1))


def feasible_actions(
    packed: torch.Tensor, action_bounds: np.ndarray, factors: RegimeFactors | None = None
) -> list[tuple[Any, np.ndarray]]:
    """
    Packed actions one by one, as ``step`` takes them: with b clipped to the bounds of its regime, and without masks.

    :param packed: shape ``(batch, m + n)``, or ``(batch, m + n + ΣJ_f)`` with masks
    :param action_bounds: shape ``(J, n, 2)``
    :param factors: of the regime; a Discrete's unless given
    :return: ``batch`` pairs (x, b): x an int, or with several factors int64 of shape ``(m,)``; b of shape ``(n,)``
    """
    if factors is None:
        factors = RegimeFactors(len(action_bounds), np.zeros(action_bounds.shape[1], np.int64))
    actions, _ = split_mask(packed, action_bounds.shape[1], factors.n_factors)
    regimes, points = (part.cpu().numpy() for part in unpack(actions, factors))
    low, high = factors.bounds_of(regimes, action_bounds)
    of_row = list(regimes) if factors.many else regimes.tolist()
    return list(zip(of_row, np.clip(points, low, high).astype(action_bounds.dtype), strict=True))
