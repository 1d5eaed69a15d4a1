"""What the arguments of HPO and HybridPPO have to be: one table for constructors, ``load`` and configs alike."""

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from torch import nn
from torch.optim import Optimizer

from hybrid_envs.checks import check_switch

__all__ = [
    "ALLOWED",
    "Allowed",
    "GeometricSchedule",
    "HeldSchedule",
    "LateSchedule",
    "QuadraticSchedule",
    "check_arguments",
    "check_policy",
    "make_schedule",
]

PROGRESS = np.linspace(1.0, 0.0, 101)
"""Shares of training left, at which a schedule has to be in its range."""


class Allowed(NamedTuple):
    """The values of one argument. NaN is never among them."""

    kind: type
    """``int``, ``float``, ``bool``, or ``FloatSchedule`` for a number or a schedule of numbers."""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether ``low`` itself is excluded."""
    optional: bool = False
    """Whether ``None`` is allowed."""
    infinite: bool = False
    """Whether infinity is allowed: there is no limit then."""

    def holds(self, number: Any) -> bool:
        """
        :return: whether it is a number and in the range
        """
        if isinstance(number, bool) or not isinstance(number, Integral if self.kind is int else Real):
            return False
        if number == math.inf:
            return self.infinite
        real: Any = number  # an integer may be too large for a float
        return bool((self.low < real if self.above else self.low <= real) and real <= self.high)

    def range(self) -> str:
        """In words, to follow "a number"."""
        if self.high < math.inf:
            return f" in {'(' if self.above else '['}{self.low}, {self.high}]"
        return "" if self.low == -math.inf else f" {'>' if self.above else '>='} {self.low}"


@dataclass(frozen=True)
class LateSchedule:
    """
    Almost 0 at first, at half of training half of ``peak``, and from there linearly to 0. As the rate of the continuous
    network it lets points wait until the regimes make sense: what is best while these are drawn at random may drive points to
    the ends of their ranges, where they have no gradient left.
    """

    peak: float

    def __call__(self, progress_remaining: float) -> float:
        return self.peak * progress_remaining * min(1.0, (2.0 * (1.0 - progress_remaining)) ** 4)


@dataclass(frozen=True)
class QuadraticSchedule:
    """
    ``start`` times the square of what is left of training. As the entropy coefficient it lets regimes settle while their rate
    lasts, and yet leave a choice that was wrong until the end.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        return self.start * progress_remaining**2


@dataclass(frozen=True)
class GeometricSchedule:
    """
    From ``start`` to a tenth of it, by the same share in equal times. As the standard deviation of points it keeps pace with a
    policy that gets better by the same share in equal times.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        return self.start * 0.1 ** (1.0 - progress_remaining)


@dataclass(frozen=True)
class HeldSchedule:
    """
    ``start`` in the first half of training, and from there to a tenth of it, by the same share in equal times. As the
    temperature of regimes it leaves the first half to exploration.
    """

    start: float

    def __call__(self, progress_remaining: float) -> float:
        return GeometricSchedule(self.start)(min(1.0, 2.0 * progress_remaining))


EARLY_END = 0.5
"""Share of training after which ``"early_V"`` has fallen to 0."""
NOTATIONS: dict[str, Callable[[float], Schedule]] = {
    "lin": lambda start: LinearSchedule(start, 0.0, 1.0),
    "quad": QuadraticSchedule,
    "early": lambda start: LinearSchedule(start, 0.0, EARLY_END),
    "late": LateSchedule,
    "exp": GeometricSchedule,
    "hold": HeldSchedule,
}
"""Schedules that can be written as text, such as ``"lin_3e-4"``; the first is RL Zoo's notation."""
COUNT, SWITCH = Allowed(int, 1), Allowed(bool)
SHARE = Allowed(float, 0, 1)
RATE = Allowed(FloatSchedule, 0)
ALLOWED = {
    "n_scenarios": COUNT,
    "n_steps": COUNT,
    "batch_size": COUNT,
    "n_epochs": COUNT,
    "gamma": SHARE,
    "gae_lambda": SHARE,
    "learning_rate": RATE,
    "continuous_learning_rate": RATE._replace(optional=True),
    "value_learning_rate": RATE._replace(optional=True),
    "ent_coef": RATE,
    "temperature": RATE._replace(above=True),
    "point_noise": RATE,
    "point_std": RATE._replace(above=True, optional=True),
    "clip_range": RATE._replace(above=True),
    "clip_range_vf": RATE._replace(above=True, optional=True),
    "vf_coef": Allowed(float, 0),
    "pathwise_weight": Allowed(float, 0),
    "pathwise_lambda": SHARE._replace(above=True),
    "max_grad_norm": Allowed(float, 0, above=True, infinite=True),
    "target_kl": Allowed(float, 0, above=True, optional=True),
    "normalize_advantage": SWITCH,
    "normalize_reward": SWITCH,
    "clip_networks": SWITCH,
    "gradient_checkpointing": SWITCH,
    "use_sde": SWITCH,
    "sde_sample_freq": Allowed(int, -1),
    "stats_window_size": COUNT,
    "verbose": Allowed(int, 0, 2),
    "seed": Allowed(int, 0, 2**32 - 1, optional=True),
    # policy_kwargs
    "log_std_init": Allowed(float),
    "ortho_init": SWITCH,
    "share_features_extractor": SWITCH,
    "normalize_images": SWITCH,
    "squash_output": SWITCH,
    "autoregressive": SWITCH,
    "points_see_regime": SWITCH,
    "project_points": SWITCH,
    "linear_laws": COUNT,
    "linear_gain": Allowed(float, 0, above=True),
    "softplus_beta": Allowed(float, 1, optional=True),
    # optimizer_kwargs
    "eps": Allowed(float, 0),
    "weight_decay": Allowed(float, 0),
    "amsgrad": SWITCH,
    "betas": SHARE,
}
"""Arguments by name, those of the policy and of its optimizer included."""
SCHEDULES = tuple(name for name, allowed in ALLOWED.items() if allowed.kind is FloatSchedule)
"""Arguments that may change with training."""
CLASSES: dict[str, tuple[type, str]] = {
    "activation_fn": (nn.Module, "a class of torch.nn, such as torch.nn.Tanh"),
    "optimizer_class": (Optimizer, "a class of torch.optim, such as torch.optim.Adam"),
    "features_extractor_class": (BaseFeaturesExtractor, "a subclass of Stable-Baselines3's BaseFeaturesExtractor"),
    "rollout_buffer_class": (RolloutBuffer, "a subclass of Stable-Baselines3's RolloutBuffer, or None"),
}
"""Arguments that are classes: from what they have to be derived, and how to say so."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "cross_term": (True, False, "auto"),
    "value_beyond_horizon": (True, False, "bounded"),
    "ratio": ("joint", "component", None),
    "credit": ("joint", "counterfactual", None),
}
"""Arguments that are one of a few values."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: of an algorithm, by name; what the table does not know passes
    :raises ValueError: naming the argument, its value and what is allowed
    """
    for name, value in arguments.items():
        if name.endswith("_kwargs") and value is not None:
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} must be a dict, got {value!r}")
            if name in ("policy_kwargs", "optimizer_kwargs"):
                check_arguments(value)
        elif name == "net_arch" and value is not None:
            check_net_arch(value)
        elif name in CLASSES and not (value is None and name == "rollout_buffer_class"):
            base, words = CLASSES[name]
            if not (isinstance(value, type) and issubclass(value, base)):
                raise ValueError(f"{name} must be {words}, got {value!r}")
        elif name in CHOICES:
            check_choice(name, value, CHOICES[name])
        elif name == "device":
            check_device(value)
        elif name == "tensorboard_log" and not isinstance(value, str | os.PathLike | None):
            raise ValueError(f"tensorboard_log must be a path or None, got {value!r}")
        elif name == "betas":
            if not isinstance(value, list | tuple) or len(value) != 2:
                raise ValueError(f"betas must be a pair of numbers, got {value!r}")
            for i, beta in enumerate(value):
                check_number(f"betas[{i}]", beta, ALLOWED["betas"])
        elif name in ALLOWED:
            check_argument(name, value)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """
    :raises ValueError: naming the argument, its value and what is allowed
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *first, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")


def check_argument(name: str, value: Any) -> None:
    """
    :param name: one of :data:`ALLOWED`
    :raises ValueError: naming the argument, its value and what is allowed
    """
    allowed = ALLOWED[name]
    if value is None and allowed.optional:
        return
    if allowed.kind is FloatSchedule:
        make_schedule(name, value)
    elif allowed.kind is bool:
        check_switch(name, value)
    else:
        check_number(name, value, allowed)


def check_number(name: str, value: Any, allowed: Allowed) -> None:
    """
    :raises ValueError: naming the argument, its value and what is allowed
    """
    if not allowed.holds(value):
        kind = "an integer" if allowed.kind is int else "a number" if allowed.infinite else "a finite number"
        raise ValueError(f"{name} must be {kind}{allowed.range()}{' or None' * allowed.optional}, got {value!r}")


def check_device(device: Any) -> None:
    """
    :raises ValueError: unless it names a device of torch's, or is SB3's ``"auto"``
    """
    if isinstance(device, torch.device) or device == "auto":
        return
    try:
        if not isinstance(device, str):
            raise TypeError
        torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'auto' or a device of torch's, such as 'cpu' or 'cuda:0', got {device!r}") from None


def check_policy(algorithm: type, policy: Any, policy_kwargs: Mapping[str, Any] | None) -> None:
    """
    :param algorithm: with SB3's ``policy_aliases``
    :param policy: the name of one of them, or a policy class
    :param policy_kwargs: its arguments
    :raises ValueError: for a policy that the algorithm does not have, and for an argument that the policy, or its optimizer,
        does not have
    """
    aliases: Mapping[str, type] = algorithm.policy_aliases  # type: ignore[attr-defined]
    if isinstance(policy, str):
        check_name(f"{algorithm.__name__} knows no policy", policy, aliases)
        policy = aliases[policy]
    elif not (isinstance(policy, type) and issubclass(policy, BasePolicy)):
        raise ValueError(f"policy must be {' or '.join(map(repr, aliases))}, or a policy class, got {policy!r}")
    check_keywords("policy_kwargs", policy, policy_kwargs or {})
    optimizer = {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": None} | dict(policy_kwargs or {})
    given = optimizer["optimizer_kwargs"] or {}
    if "lr" in given:
        raise ValueError(f"optimizer_kwargs must leave out 'lr', which is the algorithm's learning_rate, got {given!r}")
    check_keywords("optimizer_kwargs", optimizer["optimizer_class"], given)


def check_keywords(argument: str, receiver: type, given: Mapping[str, Any]) -> None:
    """
    :param argument: the name of the dict
    :param receiver: whose keywords it holds
    :raises ValueError: for a keyword that the receiver does not have, naming the nearest that it has
    """
    known = argument_names(receiver)
    for name in given:
        check_name(f"{argument}: {receiver.__name__} has no argument", name, known)


def check_name(complaint: str, name: Any, known: Iterable[str]) -> None:
    """
    :param complaint: how the error begins
    :raises ValueError: unless the name is known, naming the nearest that is
    """
    if name not in known:
        nearest = get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{complaint} {name!r}; the nearest known name is {nearest!r}")


def check_net_arch(net_arch: Any) -> None:
    """
    :param net_arch: hidden layers, or a dict of those of each network
    :raises ValueError: if some layer has no units
    """
    for where, layers in net_arch.items() if isinstance(net_arch, Mapping) else [("", net_arch)]:
        if not isinstance(layers, list | tuple):
            raise ValueError(f"net_arch{where and f'[{where!r}]'} must be a list of layer sizes, got {layers!r}")
        for i, size in enumerate(layers):
            check_number(f"net_arch{where and f'[{where!r}]'}[{i}]", size, COUNT)


def make_schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    """
    :param name: of the argument, one of :data:`ALLOWED`
    :param value: a constant, a schedule, ``"lin_V"`` for a linear decay from V to 0, ``"early_V"`` for one that ends after
        half of training, ``"quad_V"`` (:class:`QuadraticSchedule`), ``"late_V"`` (:class:`LateSchedule`), ``"exp_V"``
        (:class:`GeometricSchedule`) or ``"hold_V"`` (:class:`HeldSchedule`)
    :raises ValueError: for anything else, and where it leaves the argument's range
    """
    given, allowed = value, ALLOWED[name]
    texts = ", ".join(f"'{prefix}_V'" for prefix in NOTATIONS)
    unreadable = f"{name} must be a number, a schedule, or one of {texts}, got {given!r}"
    if isinstance(value, str):
        prefix, _, number = value.partition("_")
        try:
            value = NOTATIONS[prefix](float(number))
        except (KeyError, ValueError):
            raise ValueError(unreadable) from None
    elif isinstance(value, bool) or not (isinstance(value, Real) or callable(value)):
        raise ValueError(unreadable)
    schedule = FloatSchedule(value)
    # What decays to 0 has reached it when training ends, so that an excluded 0 may stand there.
    for left in PROGRESS[:-1] if allowed.above else PROGRESS:
        try:
            then = schedule(float(left))
        except Exception as error:  # whatever a function of the user's raises
            raise ValueError(f"{unreadable}: with {left:.0%} of training left it fails, {error!r}") from error
        if not allowed.holds(then):
            where = "" if isinstance(given, Real) else f", which is {then} with {left:.0%} of training left"
            raise ValueError(f"{name} must be a finite number{allowed.range()}, got {given!r}{where}")
    return schedule


def notation(schedule: Schedule) -> tuple[str, float] | None:
    """
    The way back from what :data:`NOTATIONS` makes.

    :return: the prefix and V, ``None`` for any other function
    """
    match schedule:
        case LinearSchedule(start=start, end=0.0, end_fraction=1.0):
            return "lin", start
        case LinearSchedule(start=start, end=0.0, end_fraction=end) if end == EARLY_END:
            return "early", start
        case QuadraticSchedule(start):
            return "quad", start
        case LateSchedule(peak):
            return "late", peak
        case GeometricSchedule(start):
            return "exp", start
        case HeldSchedule(start):
            return "hold", start
    return None


def argument_names(algorithm: type) -> set[str]:
    """
    :return: the names of all arguments of an algorithm, those included that it hands on to its base
    """
    names: set[str] = set()
    for cls in algorithm.__mro__:
        parameters = inspect.signature(cls).parameters.values()
        names.update(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names - {"_init_setup_model"}


def check_spelling(algorithm: type, overrides: Mapping[str, Any]) -> None:
    """
    SB3's ``load`` writes every keyword into an attribute of that name, also a misspelt one, which then changes nothing.

    :param overrides: keywords of ``load``, or of the constructor
    :raises ValueError: for a name that is almost that of an argument
    """
    known = argument_names(algorithm) | set(inspect.signature(algorithm.load).parameters)  # type: ignore[attr-defined]
    for name in set(overrides) - known:
        if nearest := get_close_matches(name, known, n=1, cutoff=0.8):
            raise ValueError(f"{algorithm.__name__} has no argument {name!r}; did you mean {nearest[0]!r}?")
