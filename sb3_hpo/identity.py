"""By what a problem, or the settings of a run, can be told from another."""

import dataclasses
import hashlib
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import FloatSchedule

from hybrid_envs.core import HybridEnv

__all__ = ["describe", "own_numbers"]


def describe(value: Any) -> Any:
    """
    :return: plain data by which two values can be told apart; of large arrays a digest, of objects the class
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, FloatSchedule):
        return [value(progress) for progress in (1.0, 0.5, 0.0)]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        if array.size <= 1000:
            return array.tolist()
        return f"array of shape {array.shape}, sha256 {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [describe(entry) for entry in value]
    if isinstance(value, PurePath):
        return str(value)
    return getattr(value, "__qualname__", f"{type(value).__name__} object")


def own_numbers(env: HybridEnv) -> dict[str, Any]:
    """
    :return: of a problem that keeps no ``params``, its public numbers, words, arrays and tensors, as :func:`describe` has them
    """
    kinds = (bool, int, float, str, list, tuple, np.ndarray, torch.Tensor)
    own = {name: value for name, value in vars(env).items() if isinstance(value, kinds) and name != "render_mode"}
    return {name: describe(value) for name, value in own.items() if not name.startswith("_")}
