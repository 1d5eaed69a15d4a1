"""Problems that jump at known thresholds of a Box action, rewritten exactly as hybrid ones: a regime for each smooth piece."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from typing_extensions import Self

from hybrid_envs.checks import check_array, check_count, check_switch
from hybrid_envs.core import HybridEnv, StateT
from hybrid_envs.factors import NO_FACTOR
from hybrid_envs.spaces import HybridAction, split_hybrid_space

__all__ = ["BoxAction", "BoxEnv", "BoxProblem", "PiecewiseEnv", "Threshold"]


class Threshold(NamedTuple):
    """
    Where the problem jumps. The value itself belongs to the cell above it, as with ``b >= value``, or below, as with
    ``b > value``. Both for one value, first above and then below, make a cell of that single point.
    """

    value: float
    below: bool = False


class BoxAction(NamedTuple):
    """A batch of actions of the original problem."""

    point: torch.Tensor
    """b, shape ``(batch, n)``."""
    level: torch.Tensor
    """
    What the thresholds are stated on: b itself, or with weights Σ_i w_i b_i, shape ``(batch, 1)``. Compare this with
    thresholds, not a sum of your own: in a hybrid action the sum is a coordinate, exact to the last bit, and b its shares.
    """


class BoxProblem(ABC, Generic[StateT]):
    """
    A problem with a plain Box action b whose cost or dynamics may jump in b, written once: batched, in torch, as the same pure
    functions as a :class:`~hybrid_envs.core.HybridEnv`. :class:`PiecewiseEnv` makes a hybrid environment of it, and
    :class:`BoxEnv` the original Gymnasium one.

    Between jumps the functions have to be differentiable almost everywhere. Comparisons such as
    ``action.level >= self.price_break`` are welcome: each picks the branch of the piece that b is in. Keep the numbers
    compared with as float32 tensor attributes: thresholds are rounded to float32, as actions are, and 0.1 is not 0.1 in it.

    :param low: lower bounds of b, scalar or shape ``(n,)``, possibly infinite
    :param high: upper bounds of b, likewise
    :param action_size: n
    :param observation_size: d
    :param horizon: T, the number of periods of an episode
    :param weights: w > 0, scalar or shape ``(n,)``, if the jumps depend on Σ_i w_i b_i, not on single coordinates; b is then
        bounded by 0 below and unbounded above, so that every total can be shared out in every way
    :param action_scale: typical magnitude of b, scalar or shape ``(n,)``
    :param observation_scale: typical magnitude of observations, scalar or shape ``(d,)``
    :raises ValueError: naming the argument, its value and what is allowed
    """

    jumps: tuple[str, ...] = ()
    """As :attr:`HybridEnv.jumps`: what jumps on purpose between thresholds."""

    def __init__(
        self,
        *,
        low: float | np.ndarray,
        high: float | np.ndarray,
        action_size: int,
        observation_size: int,
        horizon: int,
        weights: float | np.ndarray | None = None,
        action_scale: float | np.ndarray = 1.0,
        observation_scale: float | np.ndarray = 1.0,
    ):
        shape = (check_count("action_size", action_size),)
        self.low, self.high = (_bound(name, value, shape) for name, value in (("low", low), ("high", high)))
        empty = np.flatnonzero(~(self.low < self.high))
        if empty.size:
            raise ValueError(f"low[{empty[0]}] = {self.low[empty[0]]} must be less than high = {self.high[empty[0]]}")
        self.weights: torch.Tensor | None = None
        if weights is not None:
            self.weights = torch.tensor(check_array("weights", weights, shape, above=0.0), dtype=torch.float32)
            for name, value, needed in (("low", self.low, 0.0), ("high", self.high, math.inf)):
                if (value != needed).any():
                    raise ValueError(f"{name} = {value} must be {needed} where weights are given")
        self.action_size = shape[0]
        self.observation_size = check_count("observation_size", observation_size)
        self.horizon = check_count("horizon", horizon)
        self.action_scale = check_array("action_scale", action_scale, shape, above=0.0)
        self.observation_scale = observation_scale
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @abstractmethod
    def initial(self, batch_size: int, generator: torch.Generator) -> StateT:
        """As :meth:`HybridEnv.initial`."""

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """As :meth:`HybridEnv.sample_noise`."""
        return torch.empty((self.horizon, batch_size, 0), dtype=self.dtype, device=self.device)

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StateT, torch.Tensor]:
        """As :meth:`HybridEnv.sample_scenarios`."""
        return self.initial(batch_size, generator), self.sample_noise(batch_size, generator)

    def sample_futures(self, state: StateT, generator: torch.Generator) -> torch.Tensor:
        """As :meth:`HybridEnv.sample_futures`."""
        return self.sample_scenarios(len(state.period), generator)[1]

    @abstractmethod
    def transition(self, state: StateT, action: BoxAction, noise: torch.Tensor) -> StateT:
        """
        The dynamics f(s, b, ξ).

        :param state: s
        :param action: b, shape ``(batch, n)``, and the level that thresholds are stated on
        :param noise: ξ of this period, shape ``(batch, ...)``
        :return: the next state; its ``period`` is set by the caller
        """

    @abstractmethod
    def reward(self, state: StateT, action: BoxAction, noise: torch.Tensor, next_state: StateT) -> torch.Tensor:
        """
        Minus the cost c(s, b, ξ).

        :return: shape ``(batch,)``
        """

    @abstractmethod
    def observation(self, state: StateT) -> torch.Tensor:
        """As :meth:`HybridEnv.observation`."""

    def terminal(self, state: StateT) -> torch.Tensor:
        """As :meth:`HybridEnv.terminal`."""
        return torch.zeros_like(state.period, dtype=torch.bool)

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """As :meth:`HybridEnv.figure_of_merit`."""
        return costs.sum(dim=0)

    def success(self, costs: torch.Tensor) -> torch.Tensor | None:
        """As :meth:`HybridEnv.success`."""
        return None

    def level(self, point: torch.Tensor) -> torch.Tensor:
        """
        :param point: b, shape ``(batch, n)``
        :return: what thresholds are stated on: b, or its weighted sum, shape ``(batch, 1)``
        """
        return point if self.weights is None else (point * self.weights).sum(dim=1, keepdim=True)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """As :meth:`HybridEnv.to`: moves every tensor attribute."""
        self.device = self.device if device is None else torch.device(device)
        self.dtype = dtype or self.dtype
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(self.device, self.dtype if value.is_floating_point() else None))
        return self


class PiecewiseEnv(HybridEnv[StateT]):
    """
    The hybrid environment of a problem that jumps: regime x is a cell between thresholds, the point says where in it.

    The cells cover the original Box without overlap, to the last float32: [q1, q2) ends at the largest float32 below q2.
    Whatever the point, b is put into the cell of its regime. Without weights the cells are products of one interval for each
    coordinate, and the point is b itself. With weights a cell is an interval of the total Σ_i w_i b_i, and the point is this
    total followed by n proportions r in [0, 1]: b_i is the total's share r_i / Σ_k r_k, divided by w_i; equal shares where
    all r are 0. A single coordinate needs no proportion.

    With ``factors`` the product is not enumerated: each coordinate that has thresholds is a factor of its own, whose regimes
    are its cells, and the others have none. Thirty coordinates of three cells each make 90 regimes in all, not 3^30.

    :param problem: the original; a copy of it is simulated
    :param thresholds: where it jumps, increasing: for each coordinate a sequence of :class:`Threshold` or of numbers, which
        belong to the cell above; with weights one sequence, on the weighted sum; ``None`` for one regime, the Box as it is,
        with the jumps in it
    :param max_regimes: the largest number of regimes wanted of a product
    :param factors: whether each coordinate with thresholds is a factor, regimes being ``(batch, m)``, in the order of the
        coordinates; else one regime stands for a cell of each
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: for thresholds that are not increasing, not finite or outside the Box, and for too many regimes
    """

    def __init__(
        self,
        problem: BoxProblem[StateT],
        thresholds: Sequence[Any] | None,
        *,
        max_regimes: int = 64,
        factors: bool = False,
        render_mode: str | None = None,
    ):
        self.jumps = problem.jumps
        self.problem = copy.deepcopy(problem)  # which moves with this environment, and not with another view of it
        n = problem.action_size
        self.by_total = thresholds is not None and problem.weights is not None
        if thresholds is None:
            cuts: list[list[Threshold]] = [[] for _ in range(n)]
        elif self.by_total:
            cuts = [_increasing("thresholds", thresholds)]
        elif len(thresholds) != n:
            raise ValueError(f"thresholds must hold one sequence for each of {n} coordinates, got {len(thresholds)}")
        else:
            cuts = [_increasing(f"thresholds[{i}]", values) for i, values in enumerate(thresholds)]
        counts = [len(of_coordinate) + 1 for of_coordinate in cuts]
        if check_switch("factors", factors):
            if self.by_total or max(counts) == 1:
                where = "on a weighted sum" if self.by_total else "on no coordinate"
                raise ValueError(f"factors = True makes a factor of each coordinate with thresholds, got thresholds {where}")
        elif math.prod(counts) > check_count("max_regimes", max_regimes):
            product = " · ".join(str(count) for count in counts if count > 1)
            raise ValueError(
                f"thresholds make {product} = {math.prod(counts)} regimes, more than max_regimes = {max_regimes}; "
                "with factors=True each coordinate has its own"
            )
        cells = [
            _cells(f"thresholds[{i}]" if len(cuts) > 1 else "thresholds", problem.low[i], problem.high[i], of_coordinate)
            for i, of_coordinate in enumerate(cuts)
        ]
        self.jumping = torch.tensor([i for i, count in enumerate(counts) if count > 1], dtype=torch.int64)
        if factors:
            bounds = np.full((max(counts), n, 2), np.nan)
            for i, of_coordinate in enumerate(cells):
                bounds[: counts[i], i] = of_coordinate
        else:
            index = np.array(list(np.ndindex(*counts)))  # (J, m): the cell of each coordinate, the last one varying fastest
            bounds = np.stack([cells[i][index[:, i]] for i in range(len(cells))], axis=1)  # (J, m, 2)
        scale = problem.action_scale
        if self.by_total:
            assert problem.weights is not None
            scale = np.atleast_1d(problem.weights.double().cpu().numpy() @ scale)
            if n > 1:
                bounds = np.concatenate([bounds, np.tile([0.0, 1.0], (len(bounds), n, 1))], axis=1)
                scale = np.append(scale, np.full(n, 0.5))
        super().__init__(
            action_bounds=bounds,
            observation_size=problem.observation_size,
            horizon=problem.horizon,
            action_scale=scale,
            observation_scale=problem.observation_scale,
            factor_sizes=[count for count in counts if count > 1] if factors else None,
            factor_of=np.where(np.array(counts) > 1, np.cumsum(np.array(counts) > 1) - 1, NO_FACTOR) if factors else None,
            render_mode=render_mode,
        )
        self.cell_low, self.cell_high = torch.tensor(self.action_bounds).unbind(-1)
        longest = max(counts)  # shorter lists are filled with thresholds that no level exceeds
        filled = [of_coordinate + [Threshold(math.inf, True)] * (longest - len(of_coordinate)) for of_coordinate in cuts]
        self.threshold = torch.tensor([[cut.value for cut in row] for row in filled], dtype=torch.float32)
        self.belongs_below = torch.tensor([[cut.below for cut in row] for row in filled])
        if not factors:
            self.stride = torch.tensor([math.prod(counts[i + 1 :]) for i in range(len(counts))])

    # ---- from one action space to the other --------------------------------------------------------------------------

    def to_box(self, action: HybridAction) -> BoxAction:
        """
        :param action: (x, b), shapes ``(batch,)``, of several factors ``(batch, m)``, and ``(batch, action_size)``
        :return: the original action it stands for, in cell x, differentiable in the point
        """
        cells = (edge.expand(len(action.regime), -1, -1) for edge in (self.cell_low, self.cell_high))
        low, high = (self.factors.choose(edge, action.regime) for edge in cells)
        point = torch.where(low < high, action.point.clamp(low, high), low)  # clamp would let gradients out of a point
        if not self.by_total:
            return BoxAction(point, self.problem.level(point))
        weights, total, proportions = self.problem.weights, point[:, :1], point[:, 1:]
        assert weights is not None
        if not proportions.shape[1]:
            return BoxAction(total / weights, total)
        whole = proportions.sum(dim=1, keepdim=True)
        shares = torch.where(whole > 0, proportions / torch.where(whole > 0, whole, 1.0), 1 / len(weights))
        return BoxAction(total * shares / weights, total)

    def to_hybrid(self, point: torch.Tensor) -> HybridAction:
        """
        :param point: actions of the original problem, shape ``(batch, n)``
        :return: the regime whose cell holds each, and the point in it
        :raises ValueError: if an action is outside the original Box
        """
        low, high = (torch.as_tensor(bound, device=point.device) for bound in (self.problem.low, self.problem.high))
        outside = (~((point >= low) & (point <= high) & point.isfinite())).nonzero()
        if len(outside):
            row, i = outside[0].tolist()
            raise ValueError(f"{self.name}: b[{i}] = {float(point[row, i])} is outside [{float(low[i])}, {float(high[i])}]")
        level = self.problem.level(point) if self.by_total else point
        measured = level.unsqueeze(-1)  # (batch, m, 1) against (m, thresholds)
        exceeds = torch.where(self.belongs_below, measured > self.threshold, measured >= self.threshold)
        cell = exceeds.sum(dim=-1)
        if self.factors.many:
            return HybridAction(cell[:, self.jumping], point)
        regime = (cell * self.stride).sum(dim=-1)
        if not self.by_total:
            return HybridAction(regime, point)
        if self.problem.action_size == 1:
            return HybridAction(regime, level)
        assert self.problem.weights is not None
        shares = point * self.problem.weights / torch.where(level > 0, level, 1.0)
        return HybridAction(regime, torch.cat([level, shares.clamp(max=1.0)], dim=1))

    # ---- the problem --------------------------------------------------------------------------------------------------

    def initial(self, batch_size: int, generator: torch.Generator) -> StateT:
        return self.problem.initial(batch_size, generator)

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        return self.problem.sample_noise(batch_size, generator)

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StateT, torch.Tensor]:
        return self.problem.sample_scenarios(batch_size, generator)

    def sample_futures(self, state: StateT, generator: torch.Generator) -> torch.Tensor:
        return self.problem.sample_futures(state, generator)

    def transition(self, state: StateT, action: HybridAction, noise: torch.Tensor) -> StateT:
        return self.problem.transition(state, self.to_box(action), noise)

    def reward(self, state: StateT, action: HybridAction, noise: torch.Tensor, next_state: StateT) -> torch.Tensor:
        return self.problem.reward(state, self.to_box(action), noise, next_state)

    def observation(self, state: StateT) -> torch.Tensor:
        return self.problem.observation(state)

    def terminal(self, state: StateT) -> torch.Tensor:
        return self.problem.terminal(state)

    @property
    def may_end_early(self) -> bool:
        kind = type(self)
        overridden = kind.terminal is not PiecewiseEnv.terminal or kind.step_torch is not HybridEnv.step_torch
        return overridden or type(self.problem).terminal is not BoxProblem.terminal

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        return self.problem.figure_of_merit(costs)

    def success(self, costs: torch.Tensor) -> torch.Tensor | None:
        return self.problem.success(costs)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        self.problem.to(device, dtype)
        return super().to(device, dtype)


class BoxEnv(gym.ActionWrapper[np.ndarray, np.ndarray, tuple[int, np.ndarray]]):
    """
    The original problem as a Gymnasium environment with its Box action, for any algorithm that takes one. For gradients
    through its jumps, ``PiecewiseEnv(problem, None)`` offers ``step_torch``.

    :param problem: the problem
    """

    def __init__(self, problem: BoxProblem):
        super().__init__(PiecewiseEnv(problem, None))
        self.action_space = split_hybrid_space(self.env.action_space)[1]

    def action(self, action: np.ndarray) -> tuple[int, np.ndarray]:
        return 0, action


def _bound(name: str, value: float | np.ndarray, shape: tuple[int]) -> np.ndarray:
    """One bound of every coordinate, float32; infinite bounds are allowed."""
    bound = np.asarray(value, dtype=np.float32)
    if bound.shape not in ((), shape) or np.isnan(bound).any():
        raise ValueError(f"{name} must be a number, or numbers of shape {shape}, got {value!r}")
    return np.broadcast_to(bound, shape).copy()


def _increasing(name: str, thresholds: Sequence[Threshold | float]) -> list[Threshold]:
    """The thresholds as float32, in which actions are given, checked to be finite and strictly increasing."""
    cuts: list[Threshold] = []
    for given in thresholds:
        value, below = given if isinstance(given, Threshold) else Threshold(given)
        cut = Threshold(float(np.float32(check_array(name, value, ()))), bool(below))
        if cuts and cut <= cuts[-1]:
            fault = "is given twice" if cut == cuts[-1] else f"comes after {cuts[-1].value}"
            raise ValueError(f"{name}: {cut.value} {fault}; thresholds must increase")
        cuts.append(cut)
    return cuts


def _cells(name: str, low: np.float32, high: np.float32, cuts: list[Threshold]) -> np.ndarray:
    """The cells between the thresholds as closed float32 intervals, shape ``(len(cuts) + 1, 2)``."""
    lows, highs = [low], []
    for value, below in cuts:
        here = np.float32(value)
        highs.append(here if below else np.nextafter(here, np.float32(-np.inf)))
        lows.append(np.nextafter(here, np.float32(np.inf)) if below else here)
        if not (low <= highs[-1] and lows[-1] <= high):
            side = "below" if below else "above"
            raise ValueError(
                f"{name}: {value}, which belongs to the cell {side} it, is outside the Box [{low}, {high}]: that cell is empty"
            )
        if lows[-2] > highs[-1]:
            raise ValueError(f"{name}: no float32 number lies between {value} and the threshold before it")
    return np.stack([lows, [*highs, high]], axis=-1)
