"""SB3's rollout buffers for hybrid actions: they store the packed layout."""

from collections.abc import Generator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from hybrid_envs.spaces import packed_space


class HybridRolloutBuffer(RolloutBuffer):
    """
    A rollout buffer whose actions are packed, shape ``(n_steps, n_envs, m + n)``. If ``n_components`` is given, actions have
    as many log-probabilities and advantages, shape ``(n_steps, n_envs, K)``; in samples ``(batch, K)``.
    """

    n_components: int | None = None

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any
    ):
        super().__init__(buffer_size, observation_space, packed_space(action_space), *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        if self.n_components is not None:
            self.log_probs = np.zeros((self.buffer_size, self.n_envs, self.n_components), dtype=np.float32)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        if self.n_components is not None and self.advantages.shape != self.log_probs.shape:
            self.advantages = np.repeat(self.advantages[..., None], self.n_components, axis=-1)  # one for all components
        return super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        if self.n_components is None:
            return samples
        shape = (len(batch_inds), self.n_components)  # SB3 flattens them
        return samples._replace(old_log_prob=samples.old_log_prob.view(shape), advantages=samples.advantages.view(shape))


class HybridDictRolloutBuffer(HybridRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""
