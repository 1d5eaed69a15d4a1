"""The contract of a hybrid environment: the hooks one problem writes; ``reset``, ``step``, ``step_torch`` built on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from typing_extensions import Self

from hybrid_envs.checks import check_array, check_count, require_choice, require_finite, to_numpy
from hybrid_envs.episode import load_episode, save_episode
from hybrid_envs.factors import RegimeFactors, pad_bounds
from hybrid_envs.spaces import HybridAction, factors_of, hybrid_action_space, split_hybrid_space

StateT = TypeVar("StateT", bound=Any)
"""A NamedTuple of tensors with leading batch dimension; its field ``period`` (int64, shape ``(batch,)``) is the clock."""

WARM_UP_PERIODS = 16


def settled_mean(costs: torch.Tensor) -> torch.Tensor:
    """
    :param costs: costs of whole episodes, shape ``(horizon, batch)``
    :return: their mean per period, without the first 16 if the episode is longer, shape ``(batch,)``
    """
    return costs[WARM_UP_PERIODS if len(costs) > WARM_UP_PERIODS else 0 :].mean(dim=0)


class StepResult(NamedTuple):
    """What one period leads to; every entry has leading batch dimension and is differentiable in the state and in b."""

    state: Any
    """The next state, of the environment's own NamedTuple type."""
    observation: torch.Tensor
    """Shape ``(batch, d)``."""
    reward: torch.Tensor
    """Minus the period's cost, shape ``(batch,)``."""
    terminated: torch.Tensor
    """Bool, shape ``(batch,)``: the problem ended, nothing follows."""
    truncated: torch.Tensor
    """Bool, shape ``(batch,)``: the horizon was reached, the problem itself would go on."""


class Frame(NamedTuple):
    """One period as :meth:`HybridEnv.draw` sees it."""

    state: Any
    """The state that the period led to, batch of one."""
    regime: int | np.ndarray | None
    """The regime taken, of several factors an array of shape ``(m,)``; ``None`` in the starting state."""
    cost: float


class HybridEnv(gym.Env[np.ndarray, tuple[Any, np.ndarray]], ABC, Generic[StateT]):
    """
    A Gymnasium environment with ``Tuple(Discrete, Box)`` or ``Tuple(MultiDiscrete, Box)`` actions whose dynamics are also
    differentiable.

    A subclass writes its problem once, batched and in torch, as four pure functions: :meth:`initial`, :meth:`transition`,
    :meth:`reward` and :meth:`observation` (and :meth:`sample_noise`, :meth:`terminal` where there is noise or an end). They
    return new tensors, write nothing in place, draw no randomness beyond the given generator and detach nothing. Parameters
    are kept as tensor attributes, so that :meth:`to` moves them.

    The randomness of an episode is its *scenario*, drawn whole before the episode and free of states and actions. Hence the
    same scenario can be replayed against any policy.

    A regime is one choice out of J, or, with ``factor_sizes``, m choices made at once: each unit of a power plant, each item
    of an order. Each coordinate of b answers to one of these factors, or to none: then its bounds never change.

    :param action_bounds: per-regime bounds of b, shape ``(J, n, 2)``, infinite where unbounded. The Box of the action space
        is their hull; policies keep to the bounds of the regime they choose. With factors, ``action_bounds[j, i]`` are those
        of coordinate i in regime j of its factor; NaN where that has no regime j
    :param observation_size: d, the length of an observation
    :param horizon: T, the number of periods of an episode
    :param action_scale: typical magnitude of b, scalar or shape ``(n,)``; policies measure b in this unit
    :param observation_scale: typical magnitude of observations, or where decisions turn on much smaller differences, of these;
        scalar or shape ``(d,)``; policies divide by it
    :param factor_sizes: J_1..J_m, the number of regimes of each factor; one factor of J regimes, a Discrete, unless given
    :param factor_of: for each coordinate of b the factor that bounds it, counted from 0, or
        :data:`~hybrid_envs.factors.NO_FACTOR`, shape ``(n,)``; goes with ``factor_sizes``
    :param active_limits: the least and the greatest number of factors in another regime than 0 at once; any unless given
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: if an argument is outside what is allowed
    """

    jumps: tuple[str, ...] = ()
    """
    What jumps on purpose within a regime, as b or the state moves: names out of ``"reward"``, ``"observation"``,
    ``"terminated"`` and ``"next state.<field>"``. Pathwise gradients do not see these jumps;
    :func:`~hybrid_envs.checker.check_hybrid_env` refuses those that are not declared here.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self,
        *,
        action_bounds: np.ndarray,
        observation_size: int,
        horizon: int,
        action_scale: float | np.ndarray = 1.0,
        observation_scale: float | np.ndarray = 1.0,
        factor_sizes: Sequence[int] | None = None,
        factor_of: Sequence[int] | np.ndarray | None = None,
        active_limits: tuple[int, int] | None = None,
        render_mode: str | None = None,
    ):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.horizon = check_count("horizon", horizon)
        if factor_sizes is None:
            for name, value in (("factor_of", factor_of), ("active_limits", active_limits)):
                if value is not None:
                    raise ValueError(f"{name} = {value!r} goes with factor_sizes, which is not given")
            self.action_space = hybrid_action_space(action_bounds)
            self.factors = factors_of(self.action_space)
        else:
            if factor_of is None:
                raise ValueError("factor_sizes needs factor_of: which factor each coordinate of b answers to")
            self.factors = RegimeFactors(list(factor_sizes), factor_of, active_limits)
            action_bounds = pad_bounds(action_bounds, self.factors)
            self.action_space = hybrid_action_space(action_bounds, self.factors)
        self.action_bounds = np.asarray(action_bounds, dtype=np.float32)
        self.n_regimes, self.action_size = self.action_bounds.shape[:2]
        self.action_scale = check_array("action_scale", action_scale, (self.action_size,), above=0.0).astype(np.float32)
        size = (check_count("observation_size", observation_size),)
        self.observation_scale = check_array("observation_scale", observation_scale, size, above=0.0).astype(np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, size, dtype=np.float32)
        self.render_mode = render_mode
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._generator = torch.Generator()
        self._state: StateT | None = None
        self._noise = torch.empty(0)
        self._frames: list[Frame] = []

    # ---- the problem: what a subclass writes -------------------------------------------------------------------------

    @abstractmethod
    def initial(self, batch_size: int, generator: torch.Generator) -> StateT:
        """
        :param batch_size: number of states
        :param generator: the only source of randomness
        :return: starting states with ``period`` 0, on ``self.device`` and in ``self.dtype``
        """

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        Draw scenarios ξ_0..ξ_{T-1}; a problem without noise keeps this default.

        :param batch_size: number of scenarios
        :param generator: the only source of randomness
        :return: shape ``(horizon, batch, ...)``
        """
        return torch.empty((self.horizon, batch_size, 0), dtype=self.dtype, device=self.device)

    def sample_scenarios(self, batch_size: int, generator: torch.Generator) -> tuple[StateT, torch.Tensor]:
        """
        Draw starting states and the noise that goes with them. They are independent of each other unless this is overridden:
        where the noise of a scenario depends on where it starts, on the product it is about for instance.

        :param batch_size: number of scenarios
        :param generator: the only source of randomness
        :return: what :meth:`initial` and :meth:`sample_noise` return, row by row of one scenario
        """
        return self.initial(batch_size, generator), self.sample_noise(batch_size, generator)

    def sample_futures(self, state: StateT, generator: torch.Generator) -> torch.Tensor:
        """
        Draw noise anew for scenarios that are under way. It is that of other scenarios unless this is overridden, as it has to
        be where the noise depends on what the scenario is about.

        :param state: where they are, leading dimension ``batch``
        :param generator: the only source of randomness
        :return: shape ``(horizon, batch, ...)``
        """
        return self.sample_scenarios(len(state.period), generator)[1]

    @abstractmethod
    def transition(self, state: StateT, action: HybridAction, noise: torch.Tensor) -> StateT:
        """
        The dynamics f(s, x, b, ξ).

        :param state: s
        :param action: (x, b), shapes ``(batch,)``, of several factors ``(batch, m)``, and ``(batch, n)``
        :param noise: ξ of this period, shape ``(batch, ...)``
        :return: the next state; its ``period`` is set by the caller
        """

    @abstractmethod
    def reward(self, state: StateT, action: HybridAction, noise: torch.Tensor, next_state: StateT) -> torch.Tensor:
        """
        Minus the cost c(s, x, b, ξ).

        :return: shape ``(batch,)``
        """

    @abstractmethod
    def observation(self, state: StateT) -> torch.Tensor:
        """
        :return: what the policy sees of the state, shape ``(batch, d)``
        """

    def terminal(self, state: StateT) -> torch.Tensor:
        """
        :return: bool, shape ``(batch,)``: whether the problem ends in this state (not: whether the horizon is reached)
        """
        return torch.zeros_like(state.period, dtype=torch.bool)

    def regime_mask(self, state: StateT) -> torch.Tensor:
        """
        Which regimes may be taken; all of them unless overridden. At least one must be left wherever an episode goes on, of
        each factor.

        :return: bool, shape ``(batch, J)``; of several factors ``(batch, ΣJ_f)``, factor after factor
        """
        return torch.ones((len(state.period), self.factors.total), dtype=torch.bool, device=self.device)

    def figure_of_merit(self, costs: torch.Tensor) -> torch.Tensor:
        """
        The cost figure in which this problem's results are quoted; the total cost of the episode unless overridden.

        :param costs: costs of whole episodes, shape ``(horizon, batch)``
        :return: shape ``(batch,)``
        """
        return costs.sum(dim=0)

    def success(self, costs: torch.Tensor) -> torch.Tensor | None:
        """
        :param costs: costs of whole episodes, shape ``(horizon, batch)``
        :return: bool, shape ``(batch,)``: which episodes reached the goal; ``None`` where the problem has no goal to reach
        """
        return None

    def draw(self, frames: list[Frame]) -> np.ndarray:
        """
        :param frames: the episode so far, starting state first
        :return: an RGB picture, uint8, shape ``(height, width, 3)``
        """
        raise NotImplementedError(
            f"{self.name} has no pictures: override draw(frames), or make it without render_mode (sb3-hpo enjoy: --no-render)"
        )

    # ---- the simulator -----------------------------------------------------------------------------------------------

    def step_torch(self, state: StateT, action: HybridAction, noise: torch.Tensor) -> StepResult:
        """
        One period, batched, functional and differentiable.

        :param state: s, leading batch dimension
        :param action: (x, b), shapes ``(batch,)`` or ``(batch, m)`` int64, and ``(batch, n)``
        :param noise: this period's slice of what :meth:`sample_noise` returned, shape ``(batch, ...)``
        :return: next state, observation, reward, terminated and truncated
        """
        period = state.period + 1
        next_state = self.transition(state, action, noise)._replace(period=period)
        terminated = self.terminal(next_state)
        return StepResult(
            next_state,
            self.observation(next_state),
            self.reward(state, action, noise, next_state),
            terminated,
            (period >= self.horizon) & ~terminated,
        )

    @property
    def masks_regimes(self) -> bool:
        """Whether :meth:`regime_mask` is overridden; if it is not, nobody need ask for masks."""
        return type(self).regime_mask is not HybridEnv.regime_mask

    @property
    def may_end_early(self) -> bool:
        """Whether an episode may end before its horizon, as far as the class says: if not, nobody need look."""
        kind = type(self)
        return kind.terminal is not HybridEnv.terminal or kind.step_torch is not HybridEnv.step_torch

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """
        Move every tensor attribute, as ``torch.nn.Module.to`` does; a running episode ends.

        :param device: where to compute
        :param dtype: floating-point precision of states and costs
        :return: this environment
        """
        self.device = self.device if device is None else torch.device(device)
        self.dtype = dtype or self.dtype
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(self.device, self.dtype if value.is_floating_point() else None))
        self._generator = torch.Generator(self.device)
        self._state = None
        return self

    @property
    def present_state(self) -> StateT | None:
        """The state of the running episode, batch of one; ``None`` if none is running."""
        return self._state

    def template(self) -> StateT:
        """
        :return: some starting state, batch of one: it shows what states consist of, and touches no source of randomness
        """
        return self.initial(1, torch.Generator(self.device))

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the running episode and the sources of randomness, as tensors and plain data; after :meth:`load_state_dict`
            another instance of the same problem goes on exactly as this one does
        """
        return save_episode(self, self._state, self._noise, self._generator)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """
        :param saved: what :meth:`state_dict` returned; pictures of the running episode begin with it
        :raises ValueError: if it comes from another problem
        """
        self._state, self._noise = load_episode(self, self.name, self.template(), self.horizon, self._generator, saved)
        self._frames = [] if self._state is None else [Frame(self._state, None, 0.0)]

    # ---- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**63)))
        with torch.no_grad():
            self._state, self._noise = self.sample_scenarios(1, self._generator)
            observation = self.observation(self._state)
        self._frames = [Frame(self._state, None, 0.0)]
        return to_numpy(observation[0]), {}

    def step(self, action: tuple[Any, np.ndarray]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :raises ValueError: if the action lies outside the action space or its regime is masked; nothing is clipped
        :raises FloatingPointError: if the state or the cost is no longer finite
        :raises gymnasium.error.ResetNeeded: if the episode has not begun or has ended
        """
        if self._state is None:
            raise gym.error.ResetNeeded(f"{self.name}: call reset() before step()")
        regime, point = self.check_action(action, self.action_masks() if self.masks_regimes else None)
        batch = HybridAction(
            torch.as_tensor(regime, device=self.device)[None],
            torch.as_tensor(point, dtype=self.dtype, device=self.device)[None],
        )
        period = int(self._state.period)
        with torch.no_grad():
            result = self.step_torch(self._state, batch, self._noise[period])
        require_finite(self.name, "observation", result.observation, period)
        require_finite(self.name, "reward", result.reward, period)
        terminated, truncated = bool(result.terminated), bool(result.truncated)
        self._state = None if terminated or truncated else result.state
        if self.render_mode is not None:
            self._frames.append(Frame(result.state, regime, -float(result.reward)))
        return to_numpy(result.observation[0]), float(result.reward), terminated, truncated, {}

    @property
    def action_masks(self) -> Callable[[], np.ndarray]:
        """
        In the convention of sb3_contrib, a method without arguments: which regimes may be taken in the present state, bool,
        shape ``(J,)``, of several factors ``(ΣJ_f,)``. An environment that masks no regime does not have it, by which
        wrappers and algorithms tell.

        :raises ValueError: if no regime is allowed
        :raises gymnasium.error.ResetNeeded: if the episode has not begun or has ended
        """
        if not self.masks_regimes:
            raise AttributeError(f"{self.name} masks no regime, so it has no action_masks")
        return self._present_mask

    def _present_mask(self) -> np.ndarray:
        if self._state is None:
            raise gym.error.ResetNeeded(f"{self.name}: call reset() before action_masks()")
        mask = self.regime_mask(self._state)
        require_choice(self.name, self.factors.leaves_a_choice(mask), self._state.period)
        return mask[0].cpu().numpy()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """
        :return: an RGB picture of the episode so far, shape ``(height, width, 3)``, or ``None`` without a render mode
        :raises gymnasium.error.ResetNeeded: if no episode has begun
        """
        if self.render_mode is None:
            return None
        if not self._frames:
            raise gym.error.ResetNeeded(f"{self.name}: call reset() before render()")
        return self.draw(self._frames)

    @property
    def name(self) -> str:
        """The registered id, or the class name of an environment made without one: what error messages call it."""
        return self.spec.id if self.spec is not None else type(self).__name__

    def check_action(self, action: tuple[Any, Any], mask: np.ndarray | None = None) -> tuple[int | np.ndarray, np.ndarray]:
        """
        :param mask: which regimes may be taken, bool, shape ``(J,)`` or ``(ΣJ_f,)``; all of them unless given
        :return: the regime, an int or an array of shape ``(m,)``, and the point of an action
        :raises ValueError: naming the environment, the value and what is allowed, if the action is outside the action space
            or its regime is masked
        """
        _, box = split_hybrid_space(self.action_space)
        try:
            regime, point = action
            point = np.asarray(point, dtype=np.float32)
            index = np.asarray(regime).astype(np.int64) if self.factors.many else int(regime)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.name}: an action is a pair (regime, point), got {action!r}") from error
        self.factors.check(self.name, regime, mask)
        if point.shape != box.shape:
            raise ValueError(f"{self.name}: the point of an action has shape {box.shape}, got {point.shape}")
        outside = np.flatnonzero(~((point >= box.low) & (point <= box.high) & np.isfinite(point)))
        if outside.size:
            i = outside[0]
            raise ValueError(f"{self.name}: b[{i}] = {point[i]} is outside [{box.low[i]}, {box.high[i]}]")
        return index, point
