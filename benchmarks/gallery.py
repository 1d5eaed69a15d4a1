"""
An animation of every environment under its reference policy, for the site.

    python -m benchmarks.gallery
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import hybrid_envs

FRAMES = 24
"""Of an episode, evenly spread; the last one stays longer."""
SMALL: dict[str, dict[str, Any]] = {
    "HybridInventory-v0": {"n_items": 3, "horizon": 60},
    "HybridDualSourcing-v0": {"horizon": 60},
}
"""Arguments that make an episode easier to read; the defaults elsewhere."""


def animate(env_id: str, path: Path) -> None:
    """
    :param env_id: a registered id
    :param path: of the GIF, which is made or replaced
    """
    env = gym.make(env_id, render_mode="rgb_array", **SMALL.get(env_id, {}))
    policy = hybrid_envs.reference_policy(env)
    observation, _ = env.reset(seed=0)
    shown = set(np.linspace(0, env.get_wrapper_attr("horizon"), FRAMES).astype(int).tolist())
    frames: list[Any] = [env.render()]
    state, ended, period = None, False, 0
    while not ended:
        action, state = policy.predict(observation, state=state)
        observation, _, terminated, truncated, _ = env.step(action)
        ended, period = terminated or truncated, period + 1
        if ended or period in shown:  # drawing takes longer than the period
            frames.append(env.render())
    pictures = [Image.fromarray(np.asarray(frame)).quantize(32) for frame in frames]
    durations = [150] * (len(pictures) - 1) + [2500]  # milliseconds
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/media"), help="where the GIFs go (default: docs/media)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for env_id, spec in sorted(gym.registry.items()):
        if isinstance(spec.entry_point, type) and issubclass(spec.entry_point, hybrid_envs.HybridEnv):
            animate(env_id, folder / f"{env_id}.gif")
            print(folder / f"{env_id}.gif")


if __name__ == "__main__":
    main()
