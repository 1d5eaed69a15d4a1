"""
What exact checkpoints cost, and whether a run that is killed again and again ends as one that never was.

    python -m benchmarks.checkpoint overhead [--iterations 50] [--every 10]
    python -m benchmarks.checkpoint kills [--kills 20] [--seed 0] [--out DIR]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

import hybrid_envs  # noqa: F401  registers the environments
from sb3_hpo import HPO
from sb3_hpo.checkpoint import ExactCheckpointCallback, newest_checkpoint, read_checkpoint
from sb3_hpo.vec_env import HybridVecEnv

ITERATIONS_PER_KILL = 12


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__.splitlines()[1])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("overhead", help="share of the training time that checkpoints take")
    command.add_argument("--iterations", type=int, default=50)
    command.add_argument("--every", type=int, default=10, help="iterations between checkpoints")
    command = commands.add_parser("kills", help="kill and resume a run, and compare it with an unbroken one")
    command.add_argument("--kills", type=int, default=20)
    command.add_argument("--seed", type=int, default=0, help="of the moments")
    command.add_argument("--out", type=Path, help="where both runs are kept; nowhere unless given")
    command = commands.add_parser("run", help="the run that is killed")
    command.add_argument("folder", type=Path)
    command.add_argument("iterations", type=int)
    command.add_argument("keep", type=int)
    args = vars(parser.parse_args())
    torch.set_num_threads(1)
    commands_by_name: dict[str, Callable[..., None]] = {"overhead": overhead, "kills": kills, "run": run}
    commands_by_name[args.pop("command")](**args)


# ---- overhead --------------------------------------------------------------------------------------------------------


class TimedCheckpoints(ExactCheckpointCallback):
    """With a clock around the callback, in which checkpoints are collected, written and synchronised with the disk."""

    seconds, count = 0.0, 0

    def _timed(self, work: Callable[[], None]) -> None:
        before, start = self._saved_at, time.perf_counter()
        work()
        self.seconds += time.perf_counter() - start
        self.count += self._saved_at != before

    def _on_training_start(self) -> None:
        self._timed(super()._on_training_start)

    def _on_rollout_start(self) -> None:
        self._timed(super()._on_rollout_start)

    def _on_training_end(self) -> None:
        self._timed(super()._on_training_end)


def overhead(iterations: int, every: int) -> None:
    """Print the share of the time of one training run that was spent in the callback."""
    env = gym.make("HybridInventory-v0", n_items=20)
    with tempfile.TemporaryDirectory() as folder:
        model = HPO("MlpPolicy", env, n_scenarios=64, seed=0)
        model.set_logger(configure(None, []))
        callback = TimedCheckpoints(folder, every=every)
        start = time.perf_counter()
        model.learn(iterations * model.n_steps * model.n_envs, callback=callback)
        total = time.perf_counter() - start
        size = max(path.stat().st_size for path in Path(folder).iterdir())
    print(f"HPO, 20 items, 64 scenarios, default networks, one thread: {iterations} iterations in {total:.1f} s")
    print(
        f"{callback.count} checkpoints of {size / 1e6:.1f} MB, one per {every} iterations: {callback.seconds:.3f} s, "
        f"{1000 * callback.seconds / callback.count:.1f} ms each, {callback.seconds / total:.2%} of the time"
    )


# ---- kills -----------------------------------------------------------------------------------------------------------


class Progress(BaseCallback):
    """A line for every iteration."""

    def _on_rollout_end(self) -> None:
        print(self.num_timesteps, flush=True)

    def _on_step(self) -> bool:
        return True


def run(folder: Path, iterations: int, keep: int) -> None:
    """A small run in which everything matters: rollouts that end within episodes, VecNormalize, the measured cross term."""
    env = gym.make("HybridInventory-v0", n_items=2, horizon=10)
    normalized = VecNormalize(HybridVecEnv(env.unwrapped, 8))  # type: ignore[arg-type]
    model = HPO(
        "MlpPolicy", normalized, n_steps=7, cross_term="auto", seed=0, n_epochs=2, policy_kwargs={"net_arch": [16, 16]}
    )
    model.set_logger(configure(None, []))
    checkpoints = ExactCheckpointCallback(folder, every=2, keep=keep, verbose=0)
    model.learn(iterations * model.n_steps * model.n_envs, callback=[checkpoints, Progress()])


def kills(kills: int, seed: int, out: Path | None) -> None:
    """Print how often the killed run stood where the unbroken one stands; exit code 1 if it ever did not."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return compare(kills, random.Random(seed), Path(folder))
    compare(kills, random.Random(seed), out)


def compare(kills: int, rng: random.Random, out: Path) -> None:
    unbroken, killed = out / "unbroken", out / "killed"
    iterations = (kills + 1) * ITERATIONS_PER_KILL
    started(unbroken, iterations, keep=iterations).wait()
    equal = while_saving = 0
    for number in range(kills):
        process = started(killed, iterations, keep=3)
        # On average half as many iterations as there are for each kill, so that the run outlives all of them.
        for _ in range(rng.randint(0, ITERATIONS_PER_KILL // 2)):
            process.stdout.readline()
        if number % 2:
            time.sleep(rng.uniform(0, 0.1))
        else:
            while not list(killed.glob(".*.tmp")) and process.poll() is None:
                pass
        process.kill()
        if process.wait() == 0:
            sys.exit("the run ended before it was killed")
        partial = bool(list(killed.glob(".*.tmp")))
        while_saving += partial
        found = newest_checkpoint(killed) if killed.exists() else None
        same = found is None or same_weights(found[0], unbroken)
        equal += same
        print(
            f"kill {number + 1}: {'while a checkpoint was written, ' if partial else ''}newest checkpoint "
            f"{found[0].name if found else 'none'}: {'as' if same else 'NOT as'} in the unbroken run",
            flush=True,
        )
    started(killed, iterations, keep=3).wait()
    last = sorted(killed.glob("checkpoint_*.pt"))[-1]
    end = sorted(unbroken.glob("checkpoint_*.pt"))[-1].name == last.name and same_weights(last, unbroken)
    print(f"SIGKILL at {kills} moments, {while_saving} of them while a checkpoint was written: {equal} of {kills} times the")
    print(
        f"newest checkpoint, and in the end the weights, are bit for bit those of the unbroken run: {end and equal == kills}"
    )
    sys.exit(0 if end and equal == kills else 1)


def started(folder: Path, iterations: int, keep: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.checkpoint", "run", str(folder), str(iterations), str(keep)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def same_weights(path: Path, unbroken: Path) -> bool:
    """
    :return: whether all weights in a checkpoint equal those of the unbroken run at the same step
    """
    ours, theirs = (read_checkpoint(one)["state"]["policy"] for one in (path, unbroken / path.name))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


if __name__ == "__main__":
    main()
