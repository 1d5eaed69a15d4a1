"""A flat-Box view of hybrid environments, for algorithms that know nothing of regimes."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from hybrid_envs.spaces import split_hybrid_space


class FlatActionWrapper(gym.ActionWrapper[np.ndarray, np.ndarray, tuple[int, np.ndarray]], RecordConstructorArgs):
    """
    Presents ``Tuple(Discrete(J), Box(shape=(n,)))`` as ``Box(-1, 1, (J + n,))``, so that any algorithm for continuous actions
    (Stable-Baselines3's PPO or SAC, say) trains on a hybrid environment.

    The first J entries score the regimes; the highest score is taken, the first of equals; of an environment with
    ``action_masks()``, the highest score that is allowed. The last n entries are the point b,
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

    def __init__(self, env: gym.Env[np.ndarray, tuple[int, np.ndarray]], span: float = 4.0):
        RecordConstructorArgs.__init__(self, span=span)
        super().__init__(env)
        discrete, box = split_hybrid_space(env.action_space)
        if not 0 < span < np.inf:
            raise ValueError(f"span must be positive and finite, got {span!r}")
        self.n_regimes = int(discrete.n)
        bounds = getattr(env.unwrapped, "action_bounds", None)
        if bounds is None:
            bounds = np.broadcast_to(np.stack([box.low, box.high], axis=-1), (self.n_regimes, *box.shape, 2))
        reach = np.broadcast_to(span * np.asarray(getattr(env.unwrapped, "action_scale", 1.0)), bounds.shape[:2])
        low, high = bounds[..., 0], bounds[..., 1]
        self._low = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - reach, -reach)).astype(np.float32)
        self._high = np.where(np.isfinite(high), high, np.where(np.isfinite(low), low + reach, reach)).astype(np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.n_regimes + box.shape[0],), dtype=np.float32)

    def action(self, action: Any) -> tuple[int, np.ndarray]:
        """
        :param action: scores and scaled point, shape ``(J + n,)``
        :return: the regime and the point
        :raises ValueError: if the shape is another, or a value is NaN or outside [-1, 1]
        """
        flat = np.asarray(action, dtype=np.float32)
        if flat.shape != self.action_space.shape:
            raise ValueError(f"{self._name}: a flat action has shape {self.action_space.shape}, got {flat.shape}")
        outside = np.flatnonzero(~(np.abs(flat) <= 1))
        if outside.size:
            raise ValueError(f"{self._name}: action[{outside[0]}] = {flat[outside[0]]} is outside [-1, 1]")
        scores = flat[: self.n_regimes]
        if self.env.has_wrapper_attr("action_masks"):
            scores = np.where(self.env.get_wrapper_attr("action_masks")(), scores, -np.inf)
        regime = int(scores.argmax())
        low, high = self._low[regime], self._high[regime]
        share = (flat[self.n_regimes :] + 1) / 2
        return regime, (low + share * (high - low)).clip(low, high)  # the clip undoes rounding only

    @property
    def _name(self) -> str:
        return self.env.spec.id if self.env.spec is not None else type(self.env.unwrapped).__name__
