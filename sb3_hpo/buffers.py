"""SB3's rollout buffers for hybrid actions: they store the packed layout."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from hybrid_envs.spaces import packed_space

NAMES = ("observations", "actions", "values", "log_probs", "advantages", "returns")
"""What a minibatch consists of, in SB3's order."""


class HybridRolloutBuffer(RolloutBuffer):
    """
    A rollout buffer whose actions are packed, shape ``(n_steps, n_envs, m + n)``. If ``n_components`` is given, actions have
    as many log-probabilities and advantages, shape ``(n_steps, n_envs, K)``; in samples ``(batch, K)``.

    Minibatches are taken out of tensors on the device, which are made once per rollout.
    """

    n_components: int | None = None

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any
    ):
        super().__init__(buffer_size, observation_space, packed_space(action_space), *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self._tensors: list[Any] | None = None
        if self.n_components is not None:
            self.log_probs = np.zeros((self.buffer_size, self.n_envs, self.n_components), dtype=np.float32)

    def fill(self, **arrays: torch.Tensor) -> None:
        """
        Take in a whole rollout at once. On a CPU the memory is shared with the tensors, where their type allows it.

        :param arrays: by the buffer's names, shapes ``(n_steps, n_envs, ...)``
        """
        for name, values in arrays.items():
            setattr(self, name, values.detach().cpu().numpy().astype(getattr(self, name).dtype, copy=False))
        self.pos, self.full = self.buffer_size, True

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        if self.n_components is not None and self.advantages.shape != self.log_probs.shape:
            self.advantages = np.repeat(self.advantages[..., None], self.n_components, axis=-1)  # one for all components
        return super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        if self._tensors is None:
            self._tensors = [self._of_device(getattr(self, name)) for name in NAMES]
        rows = torch.as_tensor(batch_inds, device=self.device)
        observations, actions, *numbers = (_rows(tensor, rows) for tensor in self._tensors)
        values, log_probs, advantages, returns = (of.flatten() for of in numbers)
        if self.n_components is not None:
            log_probs, advantages = (of.view(len(rows), self.n_components) for of in (log_probs, advantages))
        kind = DictRolloutBufferSamples if isinstance(observations, dict) else RolloutBufferSamples
        return kind(observations, actions, values, log_probs, advantages, returns)

    def _of_device(self, array: Any) -> Any:
        if isinstance(array, dict):
            return {key: self._of_device(of_key) for key, of_key in array.items()}
        return torch.as_tensor(array, device=self.device)


def _rows(tensor: Any, rows: torch.Tensor) -> Any:
    if isinstance(tensor, dict):
        return {key: _rows(of_key, rows) for key, of_key in tensor.items()}
    return tensor.index_select(0, rows)


class HybridDictRolloutBuffer(HybridRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""
