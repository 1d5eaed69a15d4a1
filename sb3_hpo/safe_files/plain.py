"""Schedules, spaces, classes and arguments as plain data, and back. Classes are known by name, those of the tables alone."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_hpo.arguments import PROGRESS, make_schedule, notation
from sb3_hpo.safe_files.container import Reader, is_count, require_keys, shown

ACTIVATIONS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6),
        *(nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh),
    )
}
EXTRACTORS: dict[str, type] = {kind.__name__: kind for kind in (CombinedExtractor, FlattenExtractor)}
OPTIMIZERS: dict[str, type] = {kind.__name__: kind for kind in (torch.optim.Adam, torch.optim.AdamW)}
OPTIMIZER_KEYS = ("amsgrad", "betas", "eps", "weight_decay")
CLASSES = {"activation_fn": ACTIVATIONS, "features_extractor_class": EXTRACTORS, "optimizer_class": OPTIMIZERS}
ARRAYS = ("action_bounds", "action_scale", "observation_scale")
"""Arguments of the policy that are tensors of the file."""
NETWORKS = ("linear_path", "quadratic_path", "muon")
"""Arguments of the policy that are names of networks."""
INTEGERS = ("factor_of", "active_limits")
"""Arguments of the policy that are lists of integers, or nothing."""
OTHER_POLICY_KEYS = (
    *("autoregressive", "log_std_init", "net_arch", "normalize_images", "optimizer_kwargs", "ortho_init"),
    *("linear_gain", "linear_laws", "points_see_regime", "project_points", "softplus_beta"),
    *(*INTEGERS, *NETWORKS),
)
POLICY_KEYS = (*CLASSES, *OTHER_POLICY_KEYS)
MAX_LAYERS = 64
MAX_SPACE = 2**20
"""Numbers in the bounds of a space."""


# ---- numbers and schedules -------------------------------------------------------------------------------------------


def scalar(name: str, value: Any) -> bool | int | float | str | None:
    """
    :return: the same as JSON can hold it; infinity becomes text
    :raises ValueError: naming the argument, if it is anything else
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    raise ValueError(f"{name}: {value!r} is not plain data")


def read_scalar(name: str, value: Any) -> bool | int | float | str | None:
    """
    :raises ValueError: naming the argument, if it is a list or an object
    """
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{name}: must be a single value, got {shown(value)}")
    return math.inf if value == "inf" else value


def read_number(where: str, value: Any, low: float = -math.inf) -> Any:
    """
    :raises ValueError: if the value is not a finite number >= ``low``
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
        raise ValueError(f"{where}: must be a number{'' if low == -math.inf else f' >= {low}'}, got {shown(value)}")
    return value


def read_nonnegative(reader: Reader, name: str, required: bool) -> np.ndarray:
    array = reader.tensor(name)
    if required and (array < 0).any():
        raise ValueError(f"tensor {shown(name)}: holds {array.min()}, where numbers must not be negative")
    return array


def schedule(name: str, value: Any) -> Any:
    """
    :return: a number, ``"lin_V"``, ``"quad_V"``, ``"late_V"``, or the three numbers of SB3's LinearSchedule
    :raises ValueError: naming the argument, for any other function
    """
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if value is None or isinstance(value, Real):
        return scalar(name, value)
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, LinearSchedule) and (value.end, value.end_fraction) != (0.0, 1.0):
        return {"start": float(value.start), "end": float(value.end), "end_fraction": float(value.end_fraction)}
    if written := notation(value):
        prefix, number = written
        return f"{prefix}_{float(number)!r}"
    values = np.array([value(float(left)) for left in PROGRESS])
    if np.allclose(values, PROGRESS * values[0], rtol=1e-12, atol=0.0):  # rl_zoo3 has a class of its own for lin_V
        return f"lin_{float(values[0])!r}"
    raise ValueError(f"{name}: {value!r} is a function, which is not plain data; a number, 'lin_V' or SB3's LinearSchedule is")


def read_schedule(name: str, value: Any) -> FloatSchedule | None:
    """
    :raises ValueError: naming the argument, if the value is no schedule or not allowed
    """
    if value is None:
        return None
    if isinstance(value, dict):
        numbers = require_keys(name, value, ("start", "end", "end_fraction")).values()
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise ValueError(f"{name}: must hold numbers, got {shown(value)}")
        if not 0.0 < value["end_fraction"] <= 1.0:
            raise ValueError(f"{name}.end_fraction: must be in (0, 1], got {shown(value['end_fraction'])}")
        value = LinearSchedule(**value)
    elif isinstance(value, list):
        raise ValueError(f"{name}: must be a number, 'lin_V' or an object, got {shown(value)}")
    return make_schedule(name, value)


# ---- arguments of the policy -----------------------------------------------------------------------------------------


def policy_arguments(given: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """
    :param given: the model's ``policy_kwargs``
    :param tensors: gets those of :data:`ARRAYS`
    :return: the others
    :raises ValueError: naming an argument that is not plain data
    """
    plain: dict[str, Any] = {}
    for name, value in given.items():
        where = f"policy_kwargs.{name}"
        if name in ARRAYS:
            if value is not None:
                tensors[where] = np.asarray(value)
        elif name in CLASSES:
            if CLASSES[name].get(getattr(value, "__name__", "")) is not value:
                raise ValueError(f"{where}: {value!r} is none of {', '.join(CLASSES[name])}")
            plain[name] = getattr(value, "__name__", "")
        elif name == "net_arch" and isinstance(value, dict):
            plain[name] = {key: [int(size) for size in layers] for key, layers in value.items()}
        elif name == "net_arch" and value is not None:
            plain[name] = [int(size) for size in value]
        elif name == "optimizer_kwargs" and value is not None:
            plain[name] = {
                key: [float(beta) for beta in entry] if key == "betas" else scalar(f"{where}.{key}", entry)
                for key, entry in require_keys(where, value, (), OPTIMIZER_KEYS).items()
            }
        elif name in NETWORKS and value is not None:
            plain[name] = [str(network) for network in value]
        elif name in INTEGERS and value is not None:
            plain[name] = [int(number) for number in value]
        elif name in OTHER_POLICY_KEYS:
            plain[name] = scalar(where, value)
        else:
            raise ValueError(f"{where}: cannot be kept as plain data; {', '.join((*POLICY_KEYS, *ARRAYS))} can")
    return plain


def read_policy_arguments(plain: Any) -> dict[str, Any]:
    """
    :return: what :func:`policy_arguments` was given, without the arrays; the policy checks the values of numbers
    :raises ValueError: naming an argument that is not known or of a wrong kind
    """
    arguments: dict[str, Any] = {}
    for name, value in require_keys("policy_kwargs", plain, (), POLICY_KEYS).items():
        where = f"policy_kwargs.{name}"
        if name in CLASSES:
            if not isinstance(value, str) or value not in CLASSES[name]:
                raise ValueError(f"{where}: must be one of {', '.join(CLASSES[name])}, got {shown(value)}")
            arguments[name] = CLASSES[name][value]
        elif name == "net_arch" and value is not None:
            for layers in value.values() if isinstance(value, dict) else [value]:
                if not (isinstance(layers, list) and len(layers) <= MAX_LAYERS and all(is_count(n, 2**31) for n in layers)):
                    raise ValueError(
                        f"{where}: must be up to {MAX_LAYERS} layer sizes, or some for each network, got {shown(value)}"
                    )
            arguments[name] = value
        elif name == "optimizer_kwargs" and value is not None:
            for key, entry in require_keys(where, value, (), OPTIMIZER_KEYS).items():
                if key == "betas":
                    numbers = isinstance(entry, list) and len(entry) == 2 and all(isinstance(beta, float) for beta in entry)
                    if not numbers:
                        raise ValueError(f"{where}.betas: must be two numbers, got {shown(entry)}")
                elif isinstance(entry, str) or read_scalar(f"{where}.{key}", entry) is None:
                    raise ValueError(f"{where}.{key}: must be a number or a switch, got {shown(entry)}")
            arguments[name] = value
        elif name in NETWORKS and value is not None:
            if not (isinstance(value, list) and all(isinstance(network, str) for network in value)):
                raise ValueError(f"{where}: must be names of networks, got {shown(value)}")
            arguments[name] = value
        elif name in INTEGERS and value is not None:
            if not (isinstance(value, list) and len(value) <= MAX_SPACE and all(type(number) is int for number in value)):
                raise ValueError(f"{where}: must be a list of integers, got {shown(value)}")
            arguments[name] = value
        else:
            arguments[name] = read_scalar(where, value)
    return arguments


def read_arrays(
    reader: Reader, observation_size: tuple[int, ...] | None, bounds: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """
    :param observation_size: shape of the observation, ``None`` where they are dicts
    :param bounds: shape of the action bounds, ``(J, n, 2)``
    :return: those of :data:`ARRAYS` that the file has
    :raises ValueError: naming the tensor that is of another shape, or beyond what it means
    """
    shapes: dict[str, list[tuple[int, ...]]] = {
        "action_bounds": [bounds],
        "action_scale": [bounds[1:2]],
        "observation_scale": [(), observation_size or ()],
    }
    arrays: dict[str, np.ndarray] = {}
    for name in ARRAYS:
        where = f"policy_kwargs.{name}"
        if where in reader.entries:
            reader.claim(where, [np.dtype("<f4"), np.dtype("<f8")], shapes[name])
            arrays[name] = array = reader.tensor(where, infinite=name == "action_bounds")
            if (array[..., 0] > array[..., 1]).any() if name == "action_bounds" else (array <= 0).any():
                rule = "a low exceeds its high" if name == "action_bounds" else "scales must be positive"
                raise ValueError(f"tensor {where!r}: {rule}")
    return arrays


# ---- spaces ----------------------------------------------------------------------------------------------------------


def space(where: str, value: spaces.Space, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """
    :param tensors: gets the bounds of Boxes
    :return: the rest
    :raises ValueError: for a space of another kind
    """
    plain: dict[str, Any] = {"type": type(value).__name__}
    if type(value) is spaces.Box:
        tensors[f"{where}.low"], tensors[f"{where}.high"] = value.low, value.high
    elif type(value) is spaces.Discrete:
        plain |= {"n": int(value.n), "start": int(value.start)}
    elif type(value) is spaces.MultiDiscrete and value.nvec.ndim == 1 and not value.start.any():
        plain["nvec"] = value.nvec.tolist()
    elif type(value) is spaces.MultiBinary and isinstance(value.n, int):
        plain["n"] = value.n
    elif type(value) is spaces.Dict:
        plain["spaces"] = {key: space(f"{where}.{key}", part, tensors) for key, part in value.spaces.items()}
    elif type(value) is spaces.Tuple:
        plain["spaces"] = {str(i): space(f"{where}.{i}", part, tensors) for i, part in enumerate(value.spaces)}
    else:
        raise ValueError(f"{where}: {value} cannot be kept as plain data")
    return plain


def read_space(where: str, plain: Any, reader: Reader, depth: int = 2) -> spaces.Space:
    """
    :param reader: has the bounds of Boxes
    :raises ValueError: naming what is not as :func:`space` writes it
    """

    def read_box() -> spaces.Box:
        names = (f"{where}.low", f"{where}.high")
        declared = reader.entries.get(names[0])
        dtype, shape = declared[:2] if declared else (np.dtype("<f4"), ())
        if math.prod(shape) > MAX_SPACE:
            raise ValueError(f"tensor {shown(names[0])}: has {math.prod(shape)} numbers; {MAX_SPACE} are allowed")
        for name in names:
            reader.claim(name, [dtype], [shape])
        low, high = (reader.tensor(name, infinite=True) for name in names)
        if (low > high).any():
            raise ValueError(f"tensor {shown(names[0])}: a low exceeds its high")
        return spaces.Box(low, high, dtype=dtype.type)

    def count(key: str, least: int = 1) -> int:
        if not is_count(plain[key], 2**31) or plain[key] < least:
            raise ValueError(f"{where}.{key}: must be a count >= {least}, got {shown(plain[key])}")
        return plain[key]

    def read_multi_discrete() -> spaces.MultiDiscrete:
        nvec = plain["nvec"]
        if not (isinstance(nvec, list) and 0 < len(nvec) <= MAX_SPACE and all(is_count(n, 2**31) and n for n in nvec)):
            raise ValueError(f"{where}.nvec: must be a list of counts, got {shown(nvec)}")
        return spaces.MultiDiscrete(nvec)

    def parts() -> dict[str, spaces.Space]:
        if not isinstance(plain["spaces"], dict) or not plain["spaces"] or not depth:
            raise ValueError(f"{where}.spaces: must be an object of {'spaces' if depth else 'no more depth'}")
        return {key: read_space(f"{where}.{key}", part, reader, depth - 1) for key, part in plain["spaces"].items()}

    kinds: dict[str, tuple[tuple[str, ...], Callable[[], spaces.Space]]] = {
        "Box": ((), read_box),
        "Discrete": (("n", "start"), lambda: spaces.Discrete(count("n"), start=count("start", 0))),
        "MultiDiscrete": (("nvec",), read_multi_discrete),
        "MultiBinary": (("n",), lambda: spaces.MultiBinary(count("n"))),
        "Dict": (("spaces",), lambda: spaces.Dict(parts())),
        "Tuple": (("spaces",), lambda: spaces.Tuple(tuple(parts().values()))),
    }
    kind = plain.get("type") if isinstance(plain, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}.type: must be one of {', '.join(kinds)}, got {shown(kind)}")
    keys, read = kinds[kind]
    require_keys(where, plain, ("type", *keys))
    return read()
