"""What arguments, states and costs have to be, and the errors that say so."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """
    :return: a float32 numpy copy that shares neither memory nor graph with the tensor
    """
    return tensor.detach().float().cpu().numpy().copy()


def require_finite(env_name: str, what: str, values: torch.Tensor, period: int | torch.Tensor) -> None:
    """
    :param values: shape ``(batch, ...)``
    :param period: the period they belong to, or one for each row, shape ``(batch,)``
    :raises FloatingPointError: naming the environment, the quantity and the period, if any value is infinite or NaN
    """
    finite = torch.isfinite(values)
    if not finite.all():
        row = int((~finite).nonzero()[0, 0])
        when = int(period[row]) if isinstance(period, torch.Tensor) else period
        raise FloatingPointError(f"{env_name}: non-finite {what} in period {when} (scenario {row})")


def require_finite_observation(observation: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
    """
    :param observation: a batch, or one of each entry of a Dict
    :raises ValueError: naming the first number that is infinite or NaN
    """
    if isinstance(observation, Mapping):
        parts = {f"observation[{key!r}]": values for key, values in observation.items()}
    else:
        parts = {"observation": observation}
    for where, values in parts.items():
        if not torch.isfinite(values).all():
            check_array(where, to_numpy(values), tuple(values.shape))  # which of them it is


def require_choice(env_name: str, choice: torch.Tensor, period: int | torch.Tensor) -> None:
    """
    :param choice: whether a regime is left, bool, shape ``(batch,)``, or of each factor ``(batch, m)``
    :param period: the present one, or one for each row, shape ``(batch,)``
    :raises ValueError: naming the environment, the factor and the period, if some row leaves none
    """
    if not choice.all():
        row, *factor = (~choice).nonzero()[0].tolist()
        when = int(period[row]) if isinstance(period, torch.Tensor) else period
        which = f" of factor {factor[0]}" if factor else ""
        if factor and not choice[row].any():
            which = " of any factor, or none with which all of them keep to active_limits,"
        raise ValueError(f"{env_name}: regime_mask() allows no regime{which} in period {when} (scenario {row})")


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """
    :return: the value as an int
    :raises ValueError: naming the argument, if the value is not an integer of at least ``minimum``
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def check_switch(name: str, value: bool) -> bool:
    """
    :return: the value as a bool
    :raises ValueError: naming the argument, if the value is neither True nor False
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_array(
    name: str, value: Any, shape: tuple[int, ...], *, above: float = -math.inf, at_least: float = -math.inf
) -> np.ndarray:
    """
    :param value: a scalar, which is spread over ``shape``, or an array of that shape
    :param above: every entry must exceed this
    :param at_least: every entry must reach this
    :return: a float64 array of the given shape
    :raises ValueError: naming the argument, the offending value and what is allowed
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric, got {value!r}") from error
    if array.shape not in ((), shape):
        raise ValueError(f"{name} must be a scalar or have shape {shape}, got shape {array.shape}")
    array = np.broadcast_to(array, shape).copy()
    allowed = np.isfinite(array) & (array > above) & (array >= at_least)
    if not allowed.all():
        index = tuple(int(i) for i in np.argwhere(~allowed)[0])
        where = f"{name}{list(index)}" if index else name
        limit = f" and > {above}" if above > -math.inf else f" and >= {at_least}" if at_least > -math.inf else ""
        raise ValueError(f"{where} = {array[index]}: must be finite{limit}")
    return array


def check_definite(name: str, value: Any, size: int, *, strictly: bool = True) -> np.ndarray:
    """
    :param value: a matrix, or a scalar if ``size`` is 1
    :param strictly: whether it has to be positive definite; else semidefinite is enough
    :return: a float64 array of shape ``(size, size)``
    :raises ValueError: naming the argument, if the matrix is not symmetric or not definite
    """
    matrix = check_array(name, value, (size, size))
    if not np.allclose(matrix, matrix.T, atol=1e-9 * np.abs(matrix).max()):  # it may have been computed in float32
        i, j = np.unravel_index(np.abs(matrix - matrix.T).argmax(), matrix.shape)
        raise ValueError(f"{name}[{i}, {j}] = {matrix[i, j]} and [{j}, {i}] = {matrix[j, i]}: must be symmetric")
    least, largest = np.linalg.eigvalsh(matrix)[[0, -1]]
    if least <= 1e-12 * largest if strictly else least < -1e-9 * abs(largest):
        kind = "definite" if strictly else "semidefinite"
        raise ValueError(f"{name} must be positive {kind}; its least eigenvalue is {least:.3g}")
    return matrix
