"""Action and observation spaces as peers write them, gym's or Gymnasium's: known by what they have, not by their class."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from hybrid_envs.factors import NO_FACTOR, RegimeFactors

UNBOUNDED = 1e6
"""Bounds of observations beyond this say nothing of their typical magnitude."""


# ---- layouts of actions --------------------------------------------------------------------------------------------------


class Parameterised:
    """
    One choice, whose regimes have Boxes of their own.

    :param name: of the environment
    :param space: its action space
    :param discrete: the choice
    :param boxes: the Boxes
    :param nested: whether these stand in a Tuple of their own
    :param boxes_of: as for :class:`PeerEnvWrapper`
    """

    def __init__(
        self,
        name: str,
        space: Any,
        discrete: Any,
        boxes: tuple[Any, ...],
        nested: bool,
        boxes_of: Sequence[Sequence[int]] | None,
    ):
        n_regimes = int(discrete.n)
        if boxes_of is None:
            shared = len(boxes) == 1 and not nested
            boxes_of = [[0]] * n_regimes if shared else [[i] for i in range(len(boxes))]
        if len(boxes_of) != n_regimes or not {i for own in boxes_of for i in own} <= set(range(len(boxes))):
            raise ValueError(
                f"{name}: {n_regimes} regimes have {len(boxes)} Boxes in {space}; boxes_of must say for "
                f"each regime which of 0..{len(boxes) - 1} are its own, got {list(map(list, boxes_of))}"
            )
        self._boxes, self._boxes_of, self._nested = boxes, boxes_of, nested
        self._start = int(getattr(discrete, "start", 0))
        own_bounds = [np.concatenate([np.zeros((0, 2)), *(bounds_of(boxes[i]) for i in own)]) for own in boxes_of]
        self.bounds = np.zeros((n_regimes, max(map(len, own_bounds)), 2), dtype=np.float32)
        for regime, bounds in enumerate(own_bounds):
            self.bounds[regime, : len(bounds)] = bounds
        self.factors = RegimeFactors(n_regimes, np.zeros(self.bounds.shape[1], np.int64))

    def peer_action(self, regime: Any, point: np.ndarray) -> tuple[Any, ...]:
        parameters: list[np.ndarray] = [np.zeros(len(bounds_of(box)), dtype=np.float32) for box in self._boxes]
        start = 0
        for i in self._boxes_of[int(regime)]:
            parameters[i] = point[start : start + len(parameters[i])]
            start += len(parameters[i])
        arrays = tuple(within(box, values) for values, box in zip(parameters, self._boxes, strict=True))
        x = int(regime) + self._start
        return (x, arrays) if self._nested else (x, *arrays)


class Nest:
    """
    Choices and Boxes in Tuples and Dicts.

    :param name: of the environment
    :param space: its action space
    :param boxes_of: has to be ``None``
    :raises TypeError: if it is made of something else, or lacks choices or Boxes
    """

    def __init__(self, name: str, space: Any, boxes_of: Sequence[Sequence[int]] | None):
        leaves = list(leaves_of(space))
        choices = [leaf for leaf in leaves if is_choice(leaf)]
        boxes = [leaf for leaf in leaves if is_box(leaf)]
        if not choices or not any(len(bounds_of(box)) for box in boxes) or len(choices) + len(boxes) < len(leaves):
            raise TypeError(
                "the action space must be Tuple(Discrete, Box), Tuple(Discrete, Tuple(Box, ..., Box)), "
                "Tuple(Discrete, Box, ..., Box), or a nest of Tuples and Dicts out of Discrete, MultiDiscrete and Box, with a "
                f"choice and a Box, got {space}"
            )
        if boxes_of is not None:
            raise ValueError(f"{name}: boxes_of = {boxes_of!r} is for one Discrete in front of its Boxes, got {space}")
        self._space = space
        sizes = [size for choice in choices for size in sizes_of(choice)]
        box = np.concatenate([bounds_of(box) for box in boxes]).astype(np.float32)
        many = len(sizes) > 1
        self.factors = RegimeFactors(sizes if many else sizes[0], np.full(len(box), NO_FACTOR if many else 0))
        self.bounds = np.tile(box, (self.factors.largest, 1, 1))

    def peer_action(self, regime: Any, point: np.ndarray) -> Any:
        choices, numbers = iter(np.atleast_1d(regime).tolist()), iter(point)

        def build(space: Any) -> Any:
            parts = parts_of(space)
            if isinstance(parts, Mapping):
                return {key: build(part) for key, part in parts.items()}
            if parts is not None:
                return tuple(build(part) for part in parts)
            if is_box(space):
                return within(space, np.array(list(islice(numbers, len(bounds_of(space)))), dtype=np.float32))
            x = np.array(list(islice(choices, len(sizes_of(space))))).reshape(space.shape or ()) + getattr(space, "start", 0)
            return int(x) if is_discrete(space) else x.astype(np.int64)

        return build(self._space)


def within(box: Any, values: np.ndarray) -> np.ndarray:
    """Parameters as their Box has them: clipped to it, of its shape and dtype, rounded where it is of integers."""
    dtype = np.dtype(getattr(box, "dtype", None) or np.float32)
    clipped = np.clip(values, *bounds_of(box).T).reshape(box.shape)
    return (np.rint(clipped) if np.issubdtype(dtype, np.integer) else clipped).astype(dtype)


# ---- spaces ------------------------------------------------------------------------------------------------------------


def is_box(space: Any) -> bool:
    return all(hasattr(space, name) for name in ("low", "high", "shape"))


def is_discrete(space: Any) -> bool:
    return hasattr(space, "n") and not getattr(space, "shape", None)  # MultiBinary has an n, too, and a shape


def is_choice(space: Any) -> bool:
    return is_discrete(space) or hasattr(space, "nvec")


def sizes_of(choice: Any) -> list[int]:
    """The number of values of each choice in a Discrete or MultiDiscrete."""
    return [int(choice.n)] if is_discrete(choice) else [int(size) for size in np.ravel(choice.nvec)]


def leaves_of(space: Any) -> Iterator[Any]:
    """The spaces in a nest that are neither Tuple nor Dict, in its order."""
    parts = parts_of(space)
    if parts is None:
        yield space
    else:
        for part in parts.values() if isinstance(parts, Mapping) else parts:
            yield from leaves_of(part)


def parts_of(space: Any) -> tuple[Any, ...] | Mapping[str, Any] | None:
    """The spaces in a Tuple or Dict; ``None`` of any other space."""
    parts = getattr(space, "spaces", None)
    return tuple(parts) if isinstance(parts, list | tuple) else parts


def bounds_of(box: Any) -> np.ndarray:
    """Low and high of each number in a Box, shape ``(size, 2)``."""
    return np.stack([np.broadcast_to(limit, box.shape).ravel() for limit in (box.low, box.high)], axis=1)


def parameterised(space: Any) -> tuple[Any, tuple[Any, ...], bool] | None:
    """The Discrete at the front of an action space, its Boxes, and whether these stand in a Tuple of their own."""
    parts = parts_of(space)
    if isinstance(parts, tuple) and len(parts) > 1 and is_discrete(parts[0]):
        inner = parts_of(parts[1]) if len(parts) == 2 else None
        boxes = inner if isinstance(inner, tuple) else parts[1:]
        if boxes and all(map(is_box, boxes)):
            return parts[0], boxes, boxes is inner
    return None


def half_width(bounds: np.ndarray) -> np.ndarray:
    """A typical magnitude of each coordinate: half the width of its interval, the geometric mean over regimes; else 1."""
    width = (bounds[..., 1] - bounds[..., 0]) / 2
    usable = np.isfinite(width) & (width > 0)
    total = np.log(np.where(usable, width, 1.0)).sum(axis=0)
    return np.exp(total / np.maximum(usable.sum(axis=0), 1)).astype(np.float32)


def observation_bounds(space: Any) -> np.ndarray:
    """Low and high of each number in an observation, shape ``(d, 2)``."""
    parts = parts_of(space)
    if parts is not None:
        inner = parts.values() if isinstance(parts, Mapping) else parts
        return np.concatenate([observation_bounds(part) for part in inner])
    if is_discrete(space):
        start = getattr(space, "start", 0)
        return np.array([[start, start + space.n - 1]], dtype=float)
    if is_box(space):
        return bounds_of(space).astype(float)
    raise TypeError(f"observations must be made of Box, Discrete, Tuple and Dict, got {space}")


def numbers_in(space: Any, value: Any) -> Iterator[np.ndarray]:
    """The numbers in an observation, in the order of :func:`observation_bounds`."""
    parts = parts_of(space)
    if isinstance(parts, Mapping):
        for key, part in parts.items():
            yield from numbers_in(part, value[key])
    elif parts is not None:
        for part, item in zip(parts, value, strict=True):
            yield from numbers_in(part, item)
    else:
        yield np.asarray(value, dtype=float).ravel()
