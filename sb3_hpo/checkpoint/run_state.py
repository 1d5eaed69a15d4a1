"""Everything that a training run is, between two iterations: read from the objects that hold it, and put back into them."""

from abc import ABC
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from gymnasium.wrappers import (
    OrderEnforcing,
    PassiveEnvChecker,
    TimeLimit,
    TransformAction,
    TransformObservation,
    TransformReward,
)
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, VecTransposeImage

from hybrid_envs.wrappers import FlatActionWrapper
from sb3_hpo.callback_tree import callback_tree
from sb3_hpo.callbacks import CostCallback, GradientQualityCallback, PeriodicCallback
from sb3_hpo.identity import describe, own_numbers
from sb3_hpo.ranks import load_random_state, random_state
from sb3_hpo.vec_env import HybridActionWrapper

MODEL = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "_last_obs",
    "_last_episode_starts",
    "_last_original_obs",
)
CALLBACKS: dict[Any, tuple[str, ...]] = {
    BaseCallback: ("n_calls",),
    EvalCallback: (
        "best_mean_reward",
        "last_mean_reward",
        "evaluations_results",
        "evaluations_timesteps",
        "evaluations_length",
        "evaluations_successes",
    ),
    EveryNTimesteps: ("last_time_trigger",),
    StopTrainingOnMaxEpisodes: ("n_episodes",),
    StopTrainingOnNoModelImprovement: ("last_best_mean_reward", "no_improvement_evals"),
    PeriodicCallback: ("steps",),
    CostCallback: ("costs",),
    GradientQualityCallback: ("iteration",),
}
VEC_WRAPPERS: dict[type[VecEnvWrapper], tuple[str, ...]] = {
    HybridActionWrapper: (),
    VecTransposeImage: (),
    VecMonitor: ("episode_returns", "episode_lengths", "episode_count"),
    VecNormalize: ("returns", "old_obs", "old_reward"),
}


class AnyTimeLimit(ABC):  # noqa: B024  its one method is the subclass check
    """
    Gymnasium's TimeLimit, as a class that can be sent to a subprocess by name: rl_zoo3 puts a subclass in its place, after
    which the original is not found under its own name any more.
    """

    @classmethod
    def __subclasshook__(cls, wrapper: type) -> bool:
        return issubclass(wrapper, TimeLimit)


ENV_WRAPPERS: dict[type, tuple[str, ...]] = {
    # Monitor also lists all past episodes; nothing in training reads that, and monitor.csv has it. Whether there was a reset
    # need not be known: learn() begins with one, and so does an evaluation.
    Monitor: ("rewards", "total_steps", "current_reset_info"),
    AnyTimeLimit: ("_elapsed_steps",),
    OrderEnforcing: (),
    PassiveEnvChecker: (),
    TransformAction: (),
    TransformObservation: (),
    TransformReward: (),
    FlatActionWrapper: (),
}


class UnknownWrapper(ABC):  # noqa: B024  its one method is the subclass check
    """
    The Gymnasium wrappers that may hold state of which nothing is known here, as a class that ``isinstance`` understands: so
    ``env_is_wrapped`` can look for them in subprocesses too.
    """

    @classmethod
    def __subclasshook__(cls, wrapper: type) -> bool:
        return not issubclass(wrapper, tuple(ENV_WRAPPERS)) and not hasattr(wrapper, "state_dict")


# ---- the state -------------------------------------------------------------------------------------------------------


def run_state(model: PPO, callback: BaseCallback) -> dict[str, Any]:
    """
    :param model: between two iterations
    :param callback: that of its ``learn``
    :return: all that decides how the run goes on, and no objects other than tensors, arrays and plain data
    :raises TypeError: naming the environment or wrapper, if one of them does not tell its state
    """
    assert model.env is not None and model.ep_info_buffer is not None and model.ep_success_buffer is not None
    pending = {name: value for name, value in model.logger.name_to_value.items() if isinstance(value, float | int | np.number)}
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "model": attributes(model, (*MODEL, *getattr(model, "running_estimates", ()))),
        "episodes": list(model.ep_info_buffer),
        "successes": list(model.ep_success_buffer),
        "env": vec_env_state(model.env),
        "callbacks": [callback_state(one) for one in callback_tree(callback)],
        "log": [
            [name, value, model.logger.name_to_count.get(name), model.logger.name_to_excluded.get(name)]
            for name, value in pending.items()
        ],
        "random": random_state(model.device),
    }


def load_run_state(model: PPO, callback: BaseCallback, saved: dict[str, Any]) -> None:
    """
    Put back what :func:`run_state` read. Model, environment and callbacks are built as those of the saved run were.

    :param saved: with numpy arrays where there were some, tensors on the CPU
    """
    assert model.env is not None
    model.policy.load_state_dict(saved["policy"])
    model.policy.optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["model"].items():
        setattr(model, name, value)
    model.ep_info_buffer = deque(saved["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(saved["successes"], maxlen=model._stats_window_size)
    load_vec_env_state(model.env, saved["env"])
    for one, state in zip(callback_tree(callback), saved["callbacks"], strict=True):
        load_callback_state(one, state)
    for name, value, count, excluded in saved["log"]:
        model.logger.name_to_value[name] = value
        model.logger.name_to_excluded[name] = excluded
        if count is not None:
            model.logger.name_to_count[name] = count
    load_random_state(model.device, saved["random"])


def attributes(owner: Any, names: Iterable[str]) -> dict[str, Any]:
    """
    :return: those of the named attributes that the owner has
    """
    return {name: vars(owner)[name] for name in names if name in vars(owner)}


def names_of(table: dict[Any, tuple[str, ...]], owner: Any) -> list[str]:
    """
    :return: the names that the table has for an object's class and its bases
    """
    return [name for kind, names in table.items() if isinstance(owner, kind) for name in names]


# ---- callbacks -------------------------------------------------------------------------------------------------------


def callback_state(callback: BaseCallback) -> dict[str, Any]:
    eval_env = getattr(callback, "eval_env", None)
    return {
        "attributes": attributes(callback, names_of(CALLBACKS, callback)),
        "own": callback.state_dict() if hasattr(callback, "state_dict") else None,
        "eval_env": vec_env_state(eval_env) if isinstance(eval_env, VecEnv) else None,
    }


def load_callback_state(callback: BaseCallback, saved: dict[str, Any]) -> None:
    vars(callback).update(saved["attributes"])
    if saved["own"] is not None:
        callback.load_state_dict(saved["own"])  # type: ignore[attr-defined]
    if saved["eval_env"] is not None:
        load_vec_env_state(callback.eval_env, saved["eval_env"])  # type: ignore[attr-defined]


# ---- environments ----------------------------------------------------------------------------------------------------


def layers(venv: VecEnv) -> list[VecEnv]:
    """
    :return: the wrappers of a VecEnv from the outside in, and what they wrap
    """
    return [venv, *layers(venv.venv)] if isinstance(venv, VecEnvWrapper) else [venv]


def vec_env_state(venv: VecEnv) -> list[dict[str, Any]]:
    """
    :return: one entry for each of :func:`layers`
    :raises TypeError: naming the environment or wrapper, if one of them does not tell its state
    """
    return [_layer_state(layer) for layer in layers(venv)]


def load_vec_env_state(venv: VecEnv, saved: list[dict[str, Any]]) -> None:
    for layer, state in zip(layers(venv), saved, strict=True):
        _load_layer_state(layer, state)


def _layer_state(venv: VecEnv) -> dict[str, Any]:
    # asked of the class: an instance of VecEnvWrapper answers for what it wraps
    if hasattr(type(venv), "state_dict"):
        return venv.state_dict()  # type: ignore[attr-defined]
    if isinstance(venv, VecEnvWrapper):
        if not isinstance(venv, tuple(VEC_WRAPPERS)):
            raise TypeError(
                f"the run cannot be resumed exactly: {type(venv).__name__} does not tell its state. Give it the methods "
                "state_dict() and load_state_dict()."
            )
        return attributes(venv, names_of(VEC_WRAPPERS, venv)) | {"rms": {name: vars(rms) for name, rms in _statistics(venv)}}
    unknown = venv.env_is_wrapped(UnknownWrapper)  # type: ignore[arg-type]
    if any(unknown) or not (venv.has_attr("state_dict") and venv.has_attr("load_state_dict")):
        what = "one of the wrappers of" if any(unknown) else "the environment in"
        raise TypeError(
            f"the run cannot be resumed exactly: {what} {venv.env_method('__str__')[0]} does not tell its state. Give it the "
            "methods state_dict() and load_state_dict(), a wrapper's including the state of what it wraps."
        )
    return {
        "seeds": list(venv._seeds),
        "envs": venv.env_method("state_dict"),
        "wrappers": {
            name: [[i, *venv.get_attr(name, i)] for i, wrapped in enumerate(venv.env_is_wrapped(wrapper)) if wrapped]
            for wrapper, names in ENV_WRAPPERS.items()
            for name in names
        },
    }


def _load_layer_state(venv: VecEnv, saved: dict[str, Any]) -> None:
    if hasattr(type(venv), "load_state_dict"):
        venv.load_state_dict(saved)  # type: ignore[attr-defined]
    elif isinstance(venv, VecEnvWrapper):
        vars(venv).update({name: value for name, value in saved.items() if name != "rms"})
        for name, rms in _statistics(venv):  # in place: HPO's simulation shares them with the wrapper it was given
            vars(rms).update(saved["rms"][name])
    else:
        venv._seeds = list(saved["seeds"])
        for i, state in enumerate(saved["envs"]):
            venv.env_method("load_state_dict", state, indices=i)
        for name, values in saved["wrappers"].items():
            for i, value in values:
                venv.env_method("set_wrapper_attr", name, value, indices=i)


def _statistics(venv: VecEnvWrapper) -> Iterator[tuple[str, RunningMeanStd]]:
    if isinstance(venv, VecNormalize):
        yield "return", venv.ret_rms
        if venv.norm_obs:
            observation = venv.obs_rms
            yield from observation.items() if isinstance(observation, dict) else (("observation", observation),)


# ---- what a run is the run of ----------------------------------------------------------------------------------------


def identity(model: PPO, callback: BaseCallback) -> dict[str, Any]:
    """
    :return: in plain data, what has to be the same when a run is resumed: algorithm, settings, environment, architecture,
        callbacks
    """
    assert model.env is not None
    changing = {*MODEL, *getattr(model, "running_estimates", ()), "verbose", "tensorboard_log", "start_time"}
    if hasattr(model, "ent_coef_schedule"):
        changing.add("ent_coef")
    return {
        "algorithm": type(model).__name__,
        "env": _env_identity(model.env),
        "settings": _settings(model, changing),
        "architecture": str(model.policy).splitlines(),
        "callbacks": [type(one).__name__ for one in callback_tree(callback)],
    }


def difference(saved: Any, current: Any, where: str) -> tuple[str, Any, Any] | None:
    """
    :return: where two pieces of plain data first differ, and both values there; ``None`` if nowhere
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        parts = [(f"{where}.{key}", saved.get(key), current.get(key)) for key in {**saved, **current}]
    elif isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        parts = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(saved, current, strict=True))]
    else:
        return None if saved == current else (where, saved, current)
    return next((found for name, one, other in parts if (found := difference(one, other, name))), None)


def _env_identity(venv: VecEnv) -> dict[str, Any]:
    base = venv.unwrapped
    columns: dict[str, list[Any]] = {"env": base.env_method("__str__")}
    for name in ("spec", "params", "horizon", "action_bounds"):
        if base.has_attr(name):
            values = base.get_attr(name)
            columns[name] = [value and value.kwargs for value in values] if name == "spec" else values
    if "params" not in columns and base.has_attr("step_torch"):
        columns["attributes"] = list(map(own_numbers, base.get_attr("unwrapped")))
    instances = [dict(zip(columns, map(describe, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    return {
        "n_envs": venv.num_envs,
        "instances": instances if any(instance != instances[0] for instance in instances) else instances[:1],
        "wrappers": [type(layer).__name__ for layer in layers(venv)],
        "normalizer": [_settings(layer) for layer in layers(venv) if isinstance(layer, VecNormalize)],
    }


def _settings(owner: Any, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The public attributes of an object that are numbers, strings, schedules, or lists or dicts of such."""
    kinds = (bool, int, float, str, type(None), list, dict, FloatSchedule)
    return {
        name: describe(value)
        for name, value in vars(owner).items()
        if isinstance(value, kinds) and not name.startswith("_") and name not in leave_out
    }
