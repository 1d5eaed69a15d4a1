"""SB3's rollout buffers for hybrid actions: they store the packed layout."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from hybrid_envs.spaces import packed_space


class HybridRolloutBuffer(RolloutBuffer):
    """A rollout buffer whose actions are packed, shape ``(n_steps, n_envs, 1 + n)``."""

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any
    ):
        super().__init__(buffer_size, observation_space, packed_space(action_space), *args, **kwargs)


class HybridDictRolloutBuffer(DictRolloutBuffer):
    """The same for Dict observations."""

    def __init__(
        self, buffer_size: int, observation_space: spaces.Dict, action_space: spaces.Space, *args: Any, **kwargs: Any
    ):
        super().__init__(buffer_size, observation_space, packed_space(action_space), *args, **kwargs)
