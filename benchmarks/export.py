"""
Every environment's policy as a graph: how far it decides as ``predict`` does, and how fast.

    python -m benchmarks.export [--envs ID ...] [--algo hybrid_ppo] [--iterations 5] [--normalize] [--format torch]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from hybrid_envs.core import HybridEnv
from sb3_hpo import HPO, HybridPPO
from sb3_hpo.export import agreement, export_onnx, export_torch, load_onnx, load_torch
from sb3_hpo.vec_env import HybridVecEnv

FORMATS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "onnx": (export_onnx, load_onnx),
    "torch": (export_torch, load_torch),
}
N_ENVS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__.splitlines()[1])
    parser.add_argument("--observations", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, default=5, help="of training, before the export")
    parser.add_argument("--normalize", action="store_true", help="train under VecNormalize")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--algo", choices=("hpo", "hybrid_ppo"), default="hpo")
    parser.add_argument("--envs", nargs="+", metavar="ID", help="these alone (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("regimes equal", "relative diff.", "largest distance", "predict, ms", f"{args.format}, ms", "times faster")
    print(f"{'environment':<26}" + "".join(f"{column:>18}" for column in columns))
    for env_id, spec in sorted(gym.registry.items()):
        if not (isinstance(spec.entry_point, type) and issubclass(spec.entry_point, HybridEnv)):
            continue
        if args.envs and env_id not in args.envs:
            continue
        model = trained(env_id, args.algo, args.iterations, args.normalize)
        export, load = FORMATS[args.format]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "policy")
            export(model, path)
            decide = load(path)
        observations, masks = visited(model, args.observations)
        found = agreement(model, decide, observations, masks)
        predict_ms, decide_ms = latency(model, decide, observations, masks)
        print(
            f"{env_id:<26}{found.regimes_equal:>18.2%}{found.largest_point_difference:>18.1e}{found.largest_distance:>18.1e}"
            f"{predict_ms:>18.4f}{decide_ms:>18.4f}{predict_ms / decide_ms:>18.1f}",
            flush=True,
        )


def trained(env_id: str, algo: str, iterations: int, normalize: bool) -> HybridPPO:
    """
    :return: a model with default networks after a few iterations
    """
    venv: Any = HybridVecEnv(gym.make(env_id).unwrapped, N_ENVS)  # type: ignore[arg-type]
    if normalize:
        venv = VecNormalize(venv)
    model = HPO("MlpPolicy", venv, seed=0) if algo == "hpo" else HybridPPO("MlpPolicy", venv, n_steps=32, seed=0)
    model.set_logger(configure(None, []))
    return model.learn(iterations * model.n_steps * model.n_envs)


def visited(model: HybridPPO, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """
    :return: raw observations of the states to which the model's own policy leads, and the masks of the moment
    """
    assert model.env is not None
    base = model.env.unwrapped
    assert isinstance(base, HybridVecEnv)
    venv = HybridVecEnv(base.simulator.env, N_ENVS)
    normalizer = model.get_vec_normalize_env()
    venv.seed(1)
    seen: Any = venv.reset()
    observations: list[np.ndarray] = []
    masks: list[np.ndarray | None] = []
    while len(observations) * N_ENVS < count:
        observations.append(seen)
        mask = np.stack(venv.env_method("action_masks")) if venv.has_attr("action_masks") else None
        masks.append(mask)
        scaled = seen if normalizer is None else normalizer.normalize_obs(seen)
        actions, _ = model.predict(scaled, action_masks=mask)
        seen, _, _, _ = venv.step(actions)
    given = [mask for mask in masks if mask is not None]
    return np.concatenate(observations)[:count], np.concatenate(given)[:count] if given else None


def latency(
    model: HybridPPO, decide: Callable[..., Any], observations: np.ndarray, masks: np.ndarray | None
) -> tuple[float, float]:
    """
    :return: the time of one decision on one observation by ``predict`` and by the graph, in milliseconds; each is asked in a
        loop of its own, as it is used
    """

    def predict(rows: slice) -> None:
        model.predict(observations[rows][0], deterministic=True, action_masks=None if masks is None else masks[rows])

    def graph(rows: slice) -> None:
        decide(observation=observations[rows], **({} if masks is None else {"action_masks": masks[rows]}))

    return median_time(predict, len(observations)), median_time(graph, len(observations))


def median_time(ask: Callable[[slice], None], count: int, calls: int = 1_000) -> float:
    """
    :param ask: for a decision on the observation in this row, of ``count``
    :return: the median of so many calls in milliseconds, after a tenth of them to warm up
    """
    times = []
    for i in range(calls + calls // 10):
        row = i % count
        start = time.perf_counter()
        ask(slice(row, row + 1))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[calls // 10 :]))


if __name__ == "__main__":
    main()
