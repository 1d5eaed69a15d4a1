"""A model as one file of plain data, and back."""

import io
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from hybrid_envs.spaces import box_bounds, packed_size, split_hybrid_space
from sb3_hpo.arguments import SCHEDULES, check_arguments, check_spelling
from sb3_hpo.buffers import HybridDictRolloutBuffer, HybridRolloutBuffer
from sb3_hpo.checkpoint.files import write_whole
from sb3_hpo.hpo import HPO
from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.policies import HybridActorCriticPolicy
from sb3_hpo.safe_files import plain
from sb3_hpo.safe_files.container import Reader, compose, is_count, require_keys, shown
from sb3_hpo.safe_files.normalizer import claim_statistics, describe_normalizer, normalized, read_normalizer
from sb3_hpo.vec_env import simulated

ALGORITHMS: dict[str, type[HybridPPO]] = {"HPO": HPO, "HybridPPO": HybridPPO}
ARGUMENTS = (
    *("batch_size", "clip_range", "clip_range_vf", "ent_coef", "gae_lambda", "gamma", "learning_rate", "max_grad_norm"),
    *("n_epochs", "n_steps", "normalize_advantage", "ratio", "seed", "stats_window_size", "target_kl", "verbose", "vf_coef"),
    *("clip_networks", "continuous_learning_rate", "normalize_reward", "point_std", "value_beyond_horizon"),
    *("temperature", "value_learning_rate"),
)
HPO_ARGUMENTS = (
    *("credit", "cross_term", "gradient_checkpointing", "n_scenarios"),
    *("pathwise_lambda", "pathwise_weight", "point_noise"),
)
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")
DERIVED = ("tower.", "std_unit", "obs_unit", "coupling.before")
"""Buffers of a policy that follow from its arguments, and are not in the file."""
SIGNED = ("exp_avg", "momentum")
"""What of the optimizer's state may be negative."""
MAX_STEPS, MAX_ENVS, MAX_ROLLOUT = 2**20, 2**17, 2**28
"""Periods and scenarios of a rollout, and numbers in it."""


class Content(NamedTuple):
    """What a file holds, once all of it has been checked."""

    algorithm: type[HybridPPO]
    policy: str
    observation_space: spaces.Space
    action_space: spaces.Space
    n_envs: int
    arguments: dict[str, Any]
    policy_kwargs: dict[str, Any]
    counters: dict[str, Any]
    learning_rates: list[float]
    weights: dict[str, np.ndarray]
    moments: dict[int, dict[str, np.ndarray]]
    """The optimizer's, by the parameter's number."""
    normalizer: dict[str, Any] | None
    statistics: dict[str, np.ndarray]
    """VecNormalize's, by the tensor's name."""


def save_safe(model: HybridPPO, path: str | Path) -> None:
    """
    Save a model as plain data: weights, the optimizer's state, arguments, counters and VecNormalize's statistics. The file is
    a safetensors file, whole or not there at all.

    :param model: HPO or HybridPPO
    :param path: of the file, ``model.safetensors``
    :raises ValueError: naming what of the model is not plain data: a policy, features extractor or optimizer of another class
        than those of this package and SB3, or a schedule that is a function
    :raises OSError: if it cannot be written
    """
    content = compose(*_describe(model))
    try:
        _read(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"the model cannot be saved as plain data: {error}") from error
    write_whole(Path(path), content)


def load_safe(
    path: str | Path,
    env: GymEnv | str | None = None,
    *,
    algorithm: type[HybridPPO] | None = None,
    device: torch.device | str = "auto",
    **overrides: Any,
) -> HybridPPO:
    """
    Load what :func:`save_safe` wrote; nothing in the file can be executed. The model predicts and trains on as the saved one,
    as after SB3's ``load``. A model trained under VecNormalize brings its statistics: the environment is put into a
    VecNormalize, unless it is in one already, which then takes them over.

    :param path: of the file
    :param env: to train in or to export with; predicting needs none
    :param algorithm: HPO or HybridPPO, if it has to be that one
    :param device: where to compute
    :param overrides: arguments of the algorithm's constructor, instead of the file's
    :raises ValueError: naming file and field, for anything in the file that :func:`save_safe` does not write; or if the
        environment is another than the model's
    :raises OSError: if the file cannot be read
    """
    content = read(path)
    if algorithm is not None and content.algorithm is not algorithm:
        raise ValueError(f"{path}: algorithm: must be {algorithm.__name__}, is {content.algorithm.__name__}")
    check_spelling(content.algorithm, overrides)
    check_arguments(overrides)
    if env is not None:
        env = _prepared(content, env, overrides.get("n_scenarios", content.n_envs))
        for name in ("observation_space", "action_space"):
            if getattr(env, name) != getattr(content, name):
                ours, theirs = getattr(env, name), getattr(content, name)
                raise ValueError(f"{path} was trained on another environment: its {name} is {theirs}, this one's {ours}")
        env = normalized(env, content.normalizer, content.statistics)
    model = content.algorithm(
        content.policy,
        env,  # type: ignore[arg-type]
        device=device,
        policy_kwargs=dict(content.policy_kwargs),
        _init_setup_model=False,
        **content.arguments | overrides,
    )
    if env is None:
        model.observation_space, model.action_space = content.observation_space, content.action_space
        model.n_envs = content.n_envs
    model._setup_model()
    weights = {name: torch.from_numpy(array) for name, array in content.weights.items()}
    model.policy.load_state_dict(model.policy.state_dict() | weights)
    optimizer = model.policy.optimizer.state_dict()
    optimizer["state"] = {
        i: {key: torch.from_numpy(array) for key, array in moments.items()} for i, moments in content.moments.items()
    }
    for group, rate in zip(optimizer["param_groups"], content.learning_rates, strict=True):
        group["lr"] = rate
    model.policy.optimizer.load_state_dict(optimizer)
    for name, value in content.counters.items():
        setattr(model, name, value)
    return model


def load_normalizer(path: str | Path, env: VecEnv) -> VecEnv:
    """
    As ``VecNormalize.load``, from the model's own file.

    :param path: of a file of :func:`save_safe`
    :param env: the environment
    :return: the environment in a VecNormalize with the file's settings and statistics; as it is if the model had none
    :raises ValueError: as :func:`load_safe`
    """
    content = read(path)
    return normalized(env, content.normalizer, content.statistics)


def read(path: str | Path) -> Content:
    """
    :return: what the file holds, checked
    :raises ValueError: naming file and field
    """
    with open(path, "rb") as file:
        try:
            return _read(file)
        except ValueError as error:
            raise ValueError(f"{path} is refused: {error}") from error


# ---- writing ---------------------------------------------------------------------------------------------------------


def _describe(model: HybridPPO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    :return: what :func:`~sb3_hpo.safe_files.container.compose` takes
    """
    if ALGORITHMS.get(type(model).__name__) is not type(model):
        raise ValueError(f"{type(model).__name__} is none of {', '.join(ALGORITHMS)}")
    policies = {kind: name for name, kind in model.policy_aliases.items()}
    if type(model.policy) not in policies:
        raise ValueError(f"policy: {type(model.policy).__name__} is none of {', '.join(kind.__name__ for kind in policies)}")
    if model.use_sde or model.rollout_buffer_class not in (HybridRolloutBuffer, HybridDictRolloutBuffer):
        raise ValueError("use_sde and rollout buffers of another class are not plain data")
    tensors: dict[str, np.ndarray] = {}
    for name, value in _saved_weights(model.policy).items():
        tensors[f"policy.{name}"] = value.detach().cpu().numpy()
    optimizer = model.policy.optimizer.state_dict()
    for i, state in optimizer["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{i}.{key}"] = value.detach().cpu().numpy()
    values: dict[str, Any] = {name: getattr(model, name, None) for name in _argument_names(type(model))}
    values |= {name: getattr(model, f"{name}_schedule") for name in (*model.scheduled, "point_std")}
    values |= {
        "stats_window_size": model._stats_window_size,
        "max_grad_norm": model.norm_limit,
    }
    rates = model.component_learning_rates
    values |= {f"{name}_learning_rate": rates.get(name) for name in ("continuous", "value")}
    if isinstance(model, HPO):
        values["n_scenarios"] = model.n_envs
    description = {
        "algorithm": type(model).__name__,
        "policy": policies[type(model.policy)],
        "observation_space": plain.space("observation_space", model.observation_space, tensors),
        "action_space": plain.space("action_space", model.action_space, tensors),
        "n_envs": model.n_envs,
        "arguments": {
            name: (plain.schedule if name in SCHEDULES else plain.scalar)(name, value) for name, value in values.items()
        },
        "policy_kwargs": plain.policy_arguments(model.policy_kwargs, tensors),
        "counters": {name: plain.scalar(name, getattr(model, name)) for name in _counter_names(type(model))},
        "learning_rates": [float(group["lr"]) for group in optimizer["param_groups"]],
        "normalizer": describe_normalizer(model.get_vec_normalize_env(), tensors),
    }
    return description, {name: np.asarray(array) for name, array in tensors.items()}


def _argument_names(algorithm: type[HybridPPO]) -> tuple[str, ...]:
    return (*ARGUMENTS, *(HPO_ARGUMENTS if algorithm is HPO else ()))


def _counter_names(algorithm: type[HybridPPO]) -> tuple[str, ...]:
    return (*COUNTERS, *algorithm.running_estimates)


def _saved_weights(policy: HybridActorCriticPolicy) -> dict[str, torch.Tensor]:
    return {name: value for name, value in policy.state_dict().items() if not name.startswith(DERIVED)}


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(file: BinaryIO) -> Content:
    """
    :raises ValueError: naming the field that is not as :func:`save_safe` writes it
    """
    try:
        return _checked(Reader(file))
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        # Gymnasium, torch and SB3 have further words for arguments that cannot be meant.
        raise ValueError(f"{type(error).__name__}: {shown(str(error))}") from error


def _checked(reader: Reader) -> Content:
    keys = ("algorithm", "policy", "observation_space", "action_space", "n_envs", "arguments", "policy_kwargs", "counters")
    description = require_keys("description", reader.description, (*keys, "learning_rates", "normalizer"))
    algorithm = _named("algorithm", description["algorithm"], ALGORITHMS)
    policy_class = _named("policy", description["policy"], algorithm.policy_aliases)
    observation_space, action_space = (
        plain.read_space(name, description[name], reader) for name in ("observation_space", "action_space")
    )
    n_envs = description["n_envs"]
    arguments = _read_arguments(algorithm, description["arguments"])
    _check_rollout(observation_space, action_space, n_envs, arguments)

    policy_kwargs = plain.read_policy_arguments(description["policy_kwargs"])
    check_arguments({"policy_kwargs": policy_kwargs})
    bounds = box_bounds(action_space).shape
    size = observation_space.shape if isinstance(observation_space, spaces.Box) else None
    policy_kwargs |= plain.read_arrays(reader, size, bounds)
    with torch.device("meta"):  # its shapes, and no memory for them
        skeleton = policy_class(observation_space, action_space, FloatSchedule(0.0), **policy_kwargs | {"ortho_init": False})

    weights = _saved_weights(skeleton)
    for name, value in weights.items():
        reader.claim(f"policy.{name}", [_dtype(value)], [tuple(value.shape)])
    moments = _claim_moments(reader, skeleton)
    normalizer = read_normalizer(description["normalizer"], observation_space)
    statistics = claim_statistics(reader, normalizer, observation_space)
    counters = _read_counters(algorithm, description["counters"])
    rates = _read_rates(description["learning_rates"], len(skeleton.optimizer.param_groups))
    reader.refuse_unclaimed()
    # Nothing has been read so far but the header, the bounds and scales. What follows is as large as the networks.
    return Content(
        algorithm,
        description["policy"],
        observation_space,
        action_space,
        n_envs,
        arguments,
        policy_kwargs,
        counters,
        rates,
        {name: reader.tensor(f"policy.{name}") for name in weights},
        {
            i: {key: plain.read_nonnegative(reader, f"optimizer.{i}.{key}", key not in SIGNED) for key in keys}
            for i, keys in moments.items()
        },
        normalizer,
        {name: plain.read_nonnegative(reader, name, not name.endswith(".mean")) for name in statistics},
    )


def _named(where: str, name: Any, table: Any) -> Any:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{where}: must be one of {', '.join(table)}, got {shown(name)}")
    return table[name]


def _dtype(tensor: torch.Tensor) -> np.dtype:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def _read_arguments(algorithm: type[HybridPPO], given: Any) -> dict[str, Any]:
    arguments = {
        name: (plain.read_schedule if name in SCHEDULES else plain.read_scalar)(name, value)
        for name, value in require_keys("arguments", given, _argument_names(algorithm)).items()
    }
    check_arguments(arguments)
    return arguments


def _check_rollout(
    observation_space: spaces.Space, action_space: spaces.Space, n_envs: Any, arguments: dict[str, Any]
) -> None:
    """
    :raises ValueError: if a rollout of this size would take more memory than any that was meant
    """
    n_steps = arguments["n_steps"]
    if not is_count(n_envs, MAX_ENVS) or not n_envs:
        raise ValueError(f"n_envs: must be a count in [1, {MAX_ENVS}], got {shown(n_envs)}")
    if arguments.get("n_scenarios", n_envs) != n_envs:
        raise ValueError(f"arguments.n_scenarios: must be n_envs, {n_envs}, got {shown(arguments['n_scenarios'])}")
    n_regimes = packed_size(action_space, masked=True) - packed_size(action_space, masked=False)
    _, box = split_hybrid_space(action_space)
    if n_regimes * box.shape[0] > plain.MAX_SPACE:
        raise ValueError(
            f"action_space: {n_regimes} regimes of {box.shape[0]} coordinates are too many; {plain.MAX_SPACE} bounds are "
            "allowed"
        )
    row = spaces.flatdim(observation_space) + packed_size(action_space, masked=True)
    if n_steps > MAX_STEPS or n_steps * n_envs * row > MAX_ROLLOUT:
        raise ValueError(
            f"arguments.n_steps: rollouts of {shown(n_steps)} steps, {n_envs} environments and {row} numbers each are too "
            f"large; {MAX_STEPS} steps and {MAX_ROLLOUT} numbers are allowed"
        )
    if arguments["batch_size"] < 2 or n_steps * n_envs < 2:
        raise ValueError(f"arguments.batch_size: must be >= 2, got {arguments['batch_size']}, of {n_steps * n_envs} samples")


def _claim_moments(reader: Reader, skeleton: HybridActorCriticPolicy) -> dict[int, list[str]]:
    """
    :return: the names of the optimizer's state by the parameter's number; a parameter that was never optimised has none
    """
    groups = skeleton.optimizer.param_groups
    by_muon: frozenset[torch.Tensor] = getattr(skeleton.optimizer, "matrices", frozenset())
    parameters = [(parameter, group) for group in groups for parameter in group["params"]]
    started = {name.split(".")[1] for name in reader.entries if name.startswith("optimizer.")}
    moments = {}
    for i, (parameter, group) in enumerate(parameters):
        if str(i) in started:
            adams = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []), "step"]
            moments[i] = ["momentum"] if parameter in by_muon else adams
            for key in moments[i]:
                dtype, shape = (np.dtype("<f4"), ()) if key == "step" else (_dtype(parameter), tuple(parameter.shape))
                reader.claim(f"optimizer.{i}.{key}", [dtype], [shape])
    return moments


def _read_counters(algorithm: type[HybridPPO], given: Any) -> dict[str, Any]:
    counters = require_keys("counters", given, _counter_names(algorithm))
    for name, value in counters.items():
        where = f"counters.{name}"
        if name in COUNTERS[:3] and not is_count(value):
            raise ValueError(f"{where}: must be a count, got {shown(value)}")
        plain.read_number(where, value)
    return counters


def _read_rates(given: Any, count: int) -> list[float]:
    if not isinstance(given, list) or len(given) != count:
        raise ValueError(f"learning_rates: must be {count} numbers, got {shown(given)}")
    return [float(plain.read_number("learning_rates", rate, 0.0)) for rate in given]


# ---- environments ----------------------------------------------------------------------------------------------------


def _prepared(content: Content, env: GymEnv | str, n_scenarios: int) -> VecEnv:
    """The environment vectorised as the algorithm would do it, so that a VecNormalize fits around it."""
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, str):
        env = gym.make(env)
    return simulated(env, n_scenarios) if content.algorithm is HPO else PPO._wrap_env(env)
