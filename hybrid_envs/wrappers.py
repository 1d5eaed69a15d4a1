"""Other views: of hybrid environments as flat ones, and of peers' parameterised environments as hybrid ones."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from hybrid_envs.factors import RegimeFactors
from hybrid_envs.peer_spaces import (
    UNBOUNDED,
    Nest,
    Parameterised,
    half_width,
    numbers_in,
    observation_bounds,
    parameterised,
    parts_of,
)
from hybrid_envs.spaces import box_bounds, factors_of, hybrid_action_space

__all__ = ["ClipActionWrapper", "FlatActionWrapper", "PeerEnvWrapper"]


def _stated(env: gym.Env[Any, Any]) -> tuple[RegimeFactors, np.ndarray]:
    """The factors and the bounds that an environment states, else those of its action space."""
    factors, bounds = (getattr(env.unwrapped, name, None) for name in ("factors", "action_bounds"))
    return (
        factors_of(env.action_space) if factors is None else factors,
        box_bounds(env.action_space) if bounds is None else bounds,
    )


def _name_of(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


class ClipActionWrapper(gym.ActionWrapper[Any, tuple[Any, np.ndarray], tuple[Any, np.ndarray]], RecordConstructorArgs):
    """
    Clips b to the bounds of the regime taken: the environment's ``action_bounds`` if it has them, else its Box. For libraries
    that send what a Gaussian drew: RLlib clips to a Box only where both of its bounds are finite. Environments here refuse
    what is outside their space, since clipping in silence hides mistakes; this is how to ask for it. The action space stays as
    it is.

    :param env: an environment with hybrid actions
    :raises TypeError: if the action space is not hybrid
    """

    def __init__(self, env: gym.Env[Any, tuple[Any, np.ndarray]]):
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        factors_of(env.action_space)  # refuses what is not hybrid
        self.factors, self._bounds = _stated(env)

    def action(self, action: tuple[Any, Any]) -> tuple[Any, np.ndarray]:
        """
        :param action: the regime and the point, shape ``(n,)``
        :return: the same with the point within bounds, float32
        :raises ValueError: if there is no such regime, or the point has another shape
        """
        regime, point = action[0], np.asarray(action[1], dtype=np.float32)
        self.factors.check(_name_of(self.env), regime)
        low, high = self.factors.bounds_of(np.asarray(regime, dtype=np.int64), self._bounds)
        if point.shape != low.shape:
            raise ValueError(f"{_name_of(self.env)}: the point of an action has shape {low.shape}, got {point.shape}")
        return regime, np.clip(point, low, high)


class FlatActionWrapper(gym.ActionWrapper[np.ndarray, np.ndarray, tuple[Any, np.ndarray]], RecordConstructorArgs):
    """
    Presents ``Tuple(Discrete(J), Box(shape=(n,)))`` as ``Box(-1, 1, (J + n,))``, so that any algorithm for continuous actions
    (Stable-Baselines3's PPO or SAC, say) trains on a hybrid environment. With ``MultiDiscrete([J_1..J_m])`` J is the sum ΣJ_f.

    The first J entries score the regimes, factor after factor; of each factor the highest score is taken, the first of equals;
    of an environment with ``action_masks()``, the highest score that is allowed. With ``active_limits``, it is of all
    regimes that keep to them the one whose scores sum to the most. The last n entries are the point b,
    each mapped affinely onto its interval in the regime taken. An infinite bound is replaced by a finite reach, so that -1 and
    1 stand for

    - ``low`` and ``high`` where both are finite,
    - ``low`` and ``low + reach``, or ``high - reach`` and ``high``, where one is,
    - ``-reach`` and ``reach`` where none is.

    :param env: an environment with hybrid actions; its ``action_bounds`` and ``action_scale`` are used if it has them,
        else the bounds of its Box for every regime and the scale 1
    :param span: reach in multiples of the environment's ``action_scale``
    :raises TypeError: if the action space is not hybrid
    :raises ValueError: if ``span`` is not positive and finite
    """

    def __init__(self, env: gym.Env[np.ndarray, tuple[Any, np.ndarray]], span: float = 4.0):
        RecordConstructorArgs.__init__(self, span=span)
        super().__init__(env)
        if not 0 < span < np.inf:
            raise ValueError(f"span must be positive and finite, got {span!r}")
        self.factors, bounds = _stated(env)
        reach = np.broadcast_to(span * np.asarray(getattr(env.unwrapped, "action_scale", 1.0)), bounds.shape[:2])
        low, high = bounds[..., 0], bounds[..., 1]
        low, high = (
            np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - reach, -reach)),
            np.where(np.isfinite(high), high, np.where(np.isfinite(low), low + reach, reach)),
        )
        self._bounds = np.stack([low, high], axis=-1).astype(np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.factors.total + bounds.shape[1],), dtype=np.float32)

    def action(self, action: Any) -> tuple[Any, np.ndarray]:
        """
        :param action: scores and scaled point, shape ``(J + n,)``
        :return: the regime and the point
        :raises ValueError: if the shape is another, or a value is NaN or outside [-1, 1]
        """
        flat = np.asarray(action, dtype=np.float32)
        if flat.shape != self.action_space.shape:
            raise ValueError(f"{_name_of(self.env)}: a flat action has shape {self.action_space.shape}, got {flat.shape}")
        outside = np.flatnonzero(~(np.abs(flat) <= 1))
        if outside.size:
            raise ValueError(f"{_name_of(self.env)}: action[{outside[0]}] = {flat[outside[0]]} is outside [-1, 1]")
        scores = flat[: self.factors.total]
        if self.env.has_wrapper_attr("action_masks"):
            scores = np.where(self.env.get_wrapper_attr("action_masks")(), scores, -np.inf)
        regime = self._highest(self.factors.by_factor(torch.from_numpy(scores), -np.inf).numpy())
        low, high = self.factors.bounds_of(regime, self._bounds)
        share = (flat[self.factors.total :] + 1) / 2
        # the clip undoes rounding only
        return (regime if self.factors.many else int(regime)), (low + share * (high - low)).clip(low, high)

    def _highest(self, scores: np.ndarray) -> np.ndarray:
        """
        :param scores: of each factor's regimes, shape ``(J,)`` or ``(m, J)``
        :return: the regimes taken, shape ``()`` or ``(m,)``
        """
        regime = scores.argmax(axis=-1)
        if self.factors.active_limits is None:
            return regime
        number = np.clip(np.count_nonzero(regime), *self.factors.active_limits)
        others = scores[:, 1:]
        first = (scores[:, 0] - others.max(axis=1)).argsort(kind="stable")[:number]
        active = np.isin(np.arange(len(regime)), first)
        return np.where(active, 1 + others.argmax(axis=1), 0)


class PeerEnvWrapper(gym.Env[np.ndarray, tuple[Any, np.ndarray]]):
    """
    Presents an environment with parameterised actions that was written for another library as one with
    ``Tuple(Discrete(J), Box(shape=(n,)))`` actions, or ``Tuple(MultiDiscrete([J_1..J_m]), Box(shape=(n,)))``, and Box
    observations, so that HybridPPO trains on it.

    The environment may have the API of Gymnasium or of the old ``gym`` (``reset()`` returns the observation alone, ``step()``
    four values, ``seed()`` sets the seed), and spaces of either. Its action space is one of

    - ``Tuple(Discrete(J), Box)``, one Box for all regimes: its actions are ``(x, array)``,
    - ``Tuple(Discrete(J), Tuple(Box, ..., Box))``, one Box per regime: ``(x, (array, ..., array))``,
    - ``Tuple(Discrete(J), Box, ..., Box)``, one Box per regime: ``(x, array, ..., array)``,
    - any other nest of Tuples and Dicts out of Discrete, MultiDiscrete and Box, with at least one choice and one Box in it:
      ``Dict(mode=Discrete, valve=Discrete, power=Box)``, for example. Its choices become the factors of one regime, its Boxes
      the point, both in the order of the nest; no factor changes the bounds of b.

    With one Box per regime n is the number of parameters of the regime that has most. The first coordinates of b are the
    parameters of the regime taken, in the Box's own units and clipped to it; the others are ignored, and their
    ``action_bounds`` are (0, 0). The environment gets zero, or the bound nearest to it, for the parameters of the regimes not
    taken.

    Observations out of Tuples and Dicts are put side by side in one vector; a Discrete gives one number.

    :param env: the environment; an object with ``reset``, ``step``, ``action_space`` and ``observation_space``
    :param boxes_of: for each regime, which Boxes hold its parameters, counted from 0; for environments in which a regime has
        several, or none; not for nests with several choices
    :raises TypeError: naming the space, if actions or observations have another layout
    :raises ValueError: if ``boxes_of`` does not fit the action space
    """

    def __init__(self, env: Any, boxes_of: Sequence[Sequence[int]] | None = None):
        self.env = env
        self.name = type(getattr(env, "unwrapped", env)).__name__
        self.render_mode = getattr(env, "render_mode", None)
        self.metadata = {"render_modes": []} | (getattr(env, "metadata", None) or {})
        parts = parameterised(env.action_space)
        if parts is not None:
            self._layout: Parameterised | Nest = Parameterised(self.name, env.action_space, *parts, boxes_of)
        else:
            self._layout = Nest(self.name, env.action_space, boxes_of)
        self.factors, self.action_bounds = self._layout.factors, self._layout.bounds
        self.action_space = hybrid_action_space(self.action_bounds, self.factors)
        self.action_scale = half_width(self.action_bounds)
        low, high = observation_bounds(env.observation_space).astype(np.float32).T
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        reach = np.maximum(np.abs(low), np.abs(high))
        self.observation_scale = np.where((reach > 0) & (reach < UNBOUNDED), reach, 1.0).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        # of the innermost environment: wrappers of the old gym take any argument and hand it on
        takes = inspect.signature(getattr(self.env, "unwrapped", self.env).reset).parameters
        any_name = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        if seed is not None and not ("seed" in takes or any_name):
            self._seed(seed)
        given = {"seed": seed, "options": options}
        result = self.env.reset(**{name: value for name, value in given.items() if name in takes or any_name})
        observation, info = result if self._comes_with_info(result) else (result, {})
        return self._flat(observation), info

    def _seed(self, seed: int) -> None:
        if hasattr(self.env, "seed"):
            self.env.seed(seed)
        else:
            warnings.warn(f"{self.name} has no seed(): its episodes cannot be repeated", stacklevel=3)

    def _comes_with_info(self, result: Any) -> bool:
        """Whether ``reset()`` returned (observation, info); a Tuple observation, too, may be a pair that ends in a dict."""
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            return False
        parts = parts_of(self.env.observation_space)
        last = getattr(parts[1], "spaces", None) if isinstance(parts, tuple) and len(parts) == 2 else None
        return not (isinstance(last, Mapping) and set(last) == set(result[1]))

    def step(self, action: tuple[Any, np.ndarray]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :raises ValueError: if the action lies outside the action space, or what the environment returns is not four or five
            values with an observation of its space
        :raises FloatingPointError: if the observation or the reward is not finite
        """
        result = self.env.step(self.peer_action(action))
        if len(result) == 5:
            observation, reward, terminated, truncated, info = result
        elif len(result) == 4:
            observation, reward, done, info = result
            truncated = done and info.get("TimeLimit.truncated", False)
            terminated = done and not truncated
        else:
            raise ValueError(f"{self.name}: step() must return 4 or 5 values, got {len(result)}")
        reward = float(np.asarray(reward).item())
        if not np.isfinite(reward):
            raise FloatingPointError(f"{self.name}: non-finite reward {reward}")
        return self._flat(observation), reward, bool(terminated), bool(truncated), info

    def peer_action(self, action: tuple[Any, np.ndarray]) -> Any:
        """
        :param action: the regime and the point, shape ``(n,)``
        :return: the same in the layout of the wrapped environment
        :raises ValueError: if the action lies outside the action space
        """
        regime, point = action[0], np.asarray(action[1], dtype=np.float32)
        if self.factors.many:
            regime = np.asarray(regime)
        if not (self.action_space.contains((regime, point)) and np.isfinite(point).all()):
            raise ValueError(f"{self.name}: the action {action!r} is outside {self.action_space}")
        return self._layout.peer_action(regime, point)

    def _flat(self, observation: Any) -> np.ndarray:
        space = self.env.observation_space
        try:
            flat = np.concatenate(list(numbers_in(space, observation))).astype(np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: the observation {observation!r} is not one of {space}") from error
        if flat.shape != self.observation_space.shape:
            raise ValueError(f"{self.name}: the observation {observation!r} is not one of {space}")
        if not np.isfinite(flat).all():
            raise FloatingPointError(f"{self.name}: non-finite observation {observation!r}")
        return flat

    @property
    def action_masks(self) -> Callable[[], np.ndarray]:
        """The environment's own; one that masks no regime does not have it."""
        of = getattr(self.env, "get_wrapper_attr", None)  # Gymnasium's wrappers hand on no attributes by themselves
        masks: Callable[[], np.ndarray] = self.env.action_masks if of is None else of("action_masks")
        return masks

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()
