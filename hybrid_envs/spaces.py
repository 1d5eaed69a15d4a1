"""
Hybrid action spaces ``Tuple(Discrete(J), Box(n))`` and the one packed layout of their actions.

A *hybrid action* is a regime ``x`` in ``{0..J-1}`` together with a point ``b`` in R^n. Packed into one float vector it is
``[x, b_1, ..., b_n]``: rollout buffers, distributions and vectorised environments all use this layout through
:func:`pack` and :func:`unpack`, and nothing else in the project knows it. Where the environment masks regimes, the mask under
which the action was chosen travels behind it, one column per regime: ``[x, b_1, ..., b_n, m_1, ..., m_J]``.
"""

from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces


class HybridAction(NamedTuple):
    """A batch of hybrid actions."""

    regime: torch.Tensor
    """x, int64, shape ``(batch,)``."""
    point: torch.Tensor
    """b, floating point, shape ``(batch, n)``."""


def pack(regime: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """
    :param regime: x, shape ``(...)``
    :param point: b, shape ``(..., n)``
    :return: packed actions ``[x, b]``, shape ``(..., 1 + n)``, in the dtype of ``point``
    """
    return torch.cat([regime.unsqueeze(-1).to(point.dtype), point], dim=-1)


def unpack(packed: torch.Tensor) -> HybridAction:
    """
    :param packed: packed actions, shape ``(..., 1 + n)``
    :return: the regime as int64, shape ``(...)``, and the point, shape ``(..., n)``
    """
    return HybridAction(packed[..., 0].long(), packed[..., 1:])


def append_mask(packed: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    :param packed: packed actions, shape ``(..., 1 + n)``
    :param mask: which regimes could be taken, bool, shape ``(..., J)``; ``None`` where nothing masks them
    :return: ``[x, b, mask]``, shape ``(..., 1 + n + J)``, or without a mask the packed actions as they are
    """
    return packed if mask is None else torch.cat([packed, mask.to(packed.dtype)], dim=-1)


def split_mask(packed: torch.Tensor, action_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    :param packed: packed actions, masked or not
    :param action_size: n
    :return: packed actions, shape ``(..., 1 + n)``, and the mask, bool, shape ``(..., J)``; ``None`` if they have none
    """
    action, mask = packed[..., : 1 + action_size], packed[..., 1 + action_size :]
    return action, mask > 0.5 if mask.shape[-1] else None


def allowed_regimes(regime: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    :param regime: x, shape ``(batch,)``, or ``(batch * k,)`` for k of them in succession per row
    :param mask: which regimes may be taken, shape ``(batch, J)``; all of them if ``None``
    :return: x where allowed, else the first allowed regime of the row
    """
    if mask is None:
        return regime
    of_row = regime.view(len(mask), -1)
    first = mask.int().argmax(dim=1, keepdim=True)
    return torch.where(mask.gather(1, of_row), of_row, first).view_as(regime)


def hybrid_action_space(action_bounds: np.ndarray) -> spaces.Tuple:
    """
    The action space of a problem with the given bounds: the Box is the hull of all regimes' intervals.

    :param action_bounds: per-regime bounds of b, shape ``(J, n, 2)``; the last axis is (low, high), infinite where unbounded
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
    return spaces.Tuple((spaces.Discrete(len(bounds)), hull))


def split_hybrid_space(action_space: spaces.Space) -> tuple[spaces.Discrete, spaces.Box]:
    """
    :param action_space: the space to take apart
    :return: its Discrete and its Box
    :raises TypeError: if the space is not ``Tuple(Discrete, Box)`` with a regime counted from 0 and a one-dimensional Box
    """
    if isinstance(action_space, spaces.Tuple) and len(action_space.spaces) == 2:
        discrete, box = action_space.spaces
        if (
            isinstance(discrete, spaces.Discrete)
            and isinstance(box, spaces.Box)
            and discrete.start == 0
            and len(box.shape) == 1
        ):
            return discrete, box
    raise TypeError(
        f"the action space must be Tuple(Discrete(J), Box(shape=(n,))), regimes counted from 0, got {action_space}"
    )


def packed_space(action_space: spaces.Space) -> spaces.Box:
    """
    :param action_space: ``Tuple(Discrete(J), Box(shape=(n,)))``
    :return: the Box that holds its packed actions, shape ``(1 + n,)``
    """
    discrete, box = split_hybrid_space(action_space)
    low, high = np.append(0, box.low), np.append(int(discrete.n) - 1, box.high)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32))


def packed_size(action_space: spaces.Space, masked: bool) -> int:
    """
    :param action_space: ``Tuple(Discrete(J), Box(shape=(n,)))``
    :param masked: whether the mask travels with the action
    :return: the length of a packed action, ``1 + n`` or ``1 + n + J``
    """
    discrete, box = split_hybrid_space(action_space)
    return 1 + box.shape[0] + (int(discrete.n) if masked else 0)


def box_bounds(action_space: spaces.Space) -> np.ndarray:
    """
    :param action_space: ``Tuple(Discrete(J), Box(shape=(n,)))``
    :return: the Box's bounds for every regime, shape ``(J, n, 2)``
    """
    discrete, box = split_hybrid_space(action_space)
    return np.tile(np.stack([box.low, box.high], axis=-1), (int(discrete.n), 1, 1))


def feasible_actions(packed: torch.Tensor, action_bounds: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """
    Packed actions one by one, as ``step`` takes them: with b clipped to the bounds of its regime, and without masks.

    :param packed: shape ``(batch, 1 + n)``, or ``(batch, 1 + n + J)`` with masks
    :param action_bounds: shape ``(J, n, 2)``
    :return: ``batch`` pairs (x, b), b of shape ``(n,)``
    """
    actions, _ = split_mask(packed, action_bounds.shape[1])
    regimes, points = (part.cpu().numpy() for part in unpack(actions))
    low, high = np.moveaxis(action_bounds[regimes], -1, 0)
    return list(zip(regimes.tolist(), np.clip(points, low, high).astype(action_bounds.dtype), strict=True))
