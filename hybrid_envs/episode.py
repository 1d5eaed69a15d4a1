"""Running episodes as tensors and plain data, from which they go on exactly as they would have."""

from typing import Any

import gymnasium as gym
import torch
from gymnasium.utils import seeding


def save_episode(
    env: gym.Env | gym.vector.VectorEnv, state: Any, noise: torch.Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """
    :param env: whose ``np_random`` is saved
    :param state: of the running episodes; ``None`` before the first and after the last
    :param noise: their scenarios
    :param generator: which draws the next ones
    :return: all of it, as tensors and plain data
    """
    random = env._np_random
    return {
        "state": None if state is None else {name: field.detach() for name, field in state._asdict().items()},
        "noise": noise,
        "generator": generator.get_state(),
        "np_random": None if random is None else random.bit_generator.state,
        "np_random_seed": env._np_random_seed,
    }


def load_episode(
    env: gym.Env | gym.vector.VectorEnv,
    name: str,
    template: Any,
    horizon: int,
    generator: torch.Generator,
    saved: dict[str, Any],
) -> tuple[Any, torch.Tensor]:
    """
    Set ``np_random`` and the generator to what :func:`save_episode` found.

    :param name: of the problem
    :param template: any state of the problem
    :param horizon: of the problem
    :return: the state, on the template's device, and the noise
    :raises ValueError: if the state is that of another problem
    """
    state = saved["state"]
    if state is not None:
        expected, found = ({key: _kind(field) for key, field in of.items()} for of in (template._asdict(), state))
        if found != expected:
            raise ValueError(f"{name}: a state consists of {expected}, but {found} was saved")
        if len(saved["noise"]) != horizon:
            raise ValueError(f"{name}: horizon = {horizon}, but a scenario of {len(saved['noise'])} periods was saved")
        state = type(template)(**{key: field.to(template.period.device) for key, field in state.items()})
    generator.set_state(saved["generator"])
    env._np_random, env._np_random_seed = None, saved["np_random_seed"]
    if saved["np_random"] is not None:
        env._np_random, _ = seeding.np_random()
        env._np_random.bit_generator.state = saved["np_random"]
    return state, saved["noise"].to(template.period.device)


def _kind(field: torch.Tensor) -> str:
    return f"{str(field.dtype).removeprefix('torch.')}{list(field.shape[1:])}"
