"""VecNormalize's settings and statistics as plain data, and back."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_hpo.safe_files import plain
from sb3_hpo.safe_files.container import Reader, require_keys, shown

NORMALIZER = ("clip_obs", "clip_reward", "epsilon", "gamma", "norm_obs", "norm_reward", "training")


def describe_normalizer(normalizer: VecNormalize | None, tensors: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """
    :param tensors: gets the statistics
    :return: the settings
    """
    if normalizer is None:
        return None
    for name, rms in _statistics(normalizer).items():
        tensors |= {f"{name}.mean": rms.mean, f"{name}.var": rms.var, f"{name}.count": np.asarray(rms.count)}
    settings = {name: plain.scalar(name, getattr(normalizer, name)) for name in NORMALIZER}
    keys = normalizer.norm_obs_keys if normalizer.norm_obs else None
    return settings | {"norm_obs_keys": keys}


def _statistics(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """Those of rewards and observations, by the beginning of their tensors' names."""
    found = {"normalizer.return": normalizer.ret_rms}
    if normalizer.norm_obs:
        rms = normalizer.obs_rms
        parts = {f".{key}": part for key, part in rms.items()} if isinstance(rms, dict) else {"": rms}
        found |= {f"normalizer.observation{key}": part for key, part in parts.items()}
    return found


def read_normalizer(given: Any, observation_space: spaces.Space) -> dict[str, Any] | None:
    """
    :return: what :func:`describe_normalizer` returned
    :raises ValueError: naming the setting that is not as it writes it
    """
    if given is None:
        return None
    require_keys("normalizer", given, (*NORMALIZER, "norm_obs_keys"))
    settings = {name: plain.read_scalar(f"normalizer.{name}", given[name]) for name in NORMALIZER}
    for name, value in settings.items():
        where = f"normalizer.{name}"
        if name in ("norm_obs", "norm_reward", "training"):
            if not isinstance(value, bool):
                raise ValueError(f"{where}: must be true or false, got {shown(value)}")
        elif plain.read_number(where, value) <= 0:
            raise ValueError(f"{where}: must be positive, got {shown(value)}")
    keys = given["norm_obs_keys"]
    of_dict = settings["norm_obs"] and isinstance(observation_space, spaces.Dict)
    allowed = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else []
    if not (isinstance(keys, list) and all(key in allowed for key in keys)) if of_dict else keys is not None:
        raise ValueError(f"normalizer.norm_obs_keys: must be {f'some of {allowed}' if of_dict else 'null'}, got {shown(keys)}")
    return settings | {"norm_obs_keys": keys}


def claim_statistics(reader: Reader, normalizer: dict[str, Any] | None, observation_space: spaces.Space) -> list[str]:
    """
    :return: the names of VecNormalize's tensors
    """
    if normalizer is None:
        return []
    shapes: dict[str, Any] = {"normalizer.return": ()}
    if normalizer["norm_obs_keys"] is not None:
        assert isinstance(observation_space, spaces.Dict)
        shapes |= {f"normalizer.observation.{key}": observation_space[key].shape for key in normalizer["norm_obs_keys"]}
    elif normalizer["norm_obs"]:
        shapes["normalizer.observation"] = observation_space.shape
    names = []
    for owner, shape in shapes.items():
        for name, its in ((f"{owner}.mean", shape), (f"{owner}.var", shape), (f"{owner}.count", ())):
            reader.claim(name, [np.dtype("<f8")], [its])
            names.append(name)
    return names


def normalized(env: VecEnv, settings: dict[str, Any] | None, statistics: dict[str, np.ndarray]) -> VecEnv:
    """
    :param settings: from :func:`read_normalizer`
    :param statistics: VecNormalize's tensors by name
    :return: the environment in a VecNormalize with these, or with these in the VecNormalize that it is in; as it is without
        settings
    :raises ValueError: if its VecNormalize normalises other observations
    """
    if settings is None:
        return env
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None:
        normalizer = env = VecNormalize(env, **settings)
    owners = _statistics(normalizer)
    if {name.rpartition(".")[0] for name in statistics} != set(owners):
        raise ValueError(
            "the environment's VecNormalize normalises other observations than the model's did: "
            f"norm_obs={normalizer.norm_obs}, norm_obs_keys={normalizer.norm_obs_keys}; there {settings}"
        )
    vars(normalizer).update(settings)
    for name, rms in owners.items():
        # in place: HPO's simulation shares them with the wrapper it was given
        mean, var, count = (statistics[f"{name}.{part}"][()] for part in ("mean", "var", "count"))
        rms.mean, rms.var, rms.count = mean, var, float(count)
    return env
