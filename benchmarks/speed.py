"""
How long an HPO iteration takes and where the time goes, and how many environment steps a second every simulator makes.

    python -m benchmarks.speed [--iterations 10] [--hidden 512] [--seconds 1]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import configure

from benchmarks.suite import PROBLEMS, SIZES
from hybrid_envs.core import HybridEnv
from hybrid_envs.probing import draw_actions, permitted
from hybrid_envs.vector import HybridVectorEnv
from sb3_hpo import HPO


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[1])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=512, help="width of the two hidden layers of each network")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each simulator")
    args = parser.parse_args()
    torch.set_num_threads(1)
    iteration_time(args.iterations, args.hidden)
    factor_time(args.iterations)
    steps_per_second(args.seconds)
    throughput(args.seconds)


def iteration_time(iterations: int, hidden: int) -> None:
    """Print the median time of one HPO iteration and of its three parts."""
    env = gym.make("HybridInventory-v0", n_items=20)
    model = TimedHPO("MlpPolicy", env, n_scenarios=64, seed=0, policy_kwargs={"net_arch": [hidden, hidden]})
    model.set_logger(configure(None, []))
    model.learn((iterations + 1) * model.n_steps * model.n_envs)
    seconds = {part: float(np.median(times[1:])) for part, times in model.seconds.items()}
    total = sum(seconds.values())
    print(f"HPO iteration, 20 items, 64 scenarios, 100 periods, 2x{hidden} networks, one thread: {total:.3f} s (median)")
    for part, value in seconds.items():
        print(f"  {part:<16} {value:.3f} s  {value / total:.0%}")


def factor_time(iterations: int, chunks: int = 3) -> None:
    """
    Print what an iteration costs with 21 factors (order or not, and each of 20 items on it or not) against one Discrete(2) at
    equal sizes: processor time, in turns, since other work on the machine slows all alike. Counterfactual credit is dearest as
    long as the policy has not made up its mind.
    """
    one = HPO("MlpPolicy", gym.make("HybridInventory-v0", n_items=20), seed=0, target_kl=None)
    print("\nHPO iteration with 21 factors, against one Discrete(2), 20 items, 64 scenarios, 2x128 networks")
    models = {
        credit: HPO(
            "MlpPolicy",
            gym.make("HybridInventory-v0", n_items=20, minor_fixed_cost=20.0),
            seed=0,
            target_kl=None,
            credit=credit,
        )
        for credit in ("joint", "counterfactual")
    }
    for chunk in range(chunks):
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(iterations):
            for name, model in {"one": one, **models}.items():
                model.set_logger(configure(None, []))
                start = time.process_time()
                model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
                times[name].append(time.process_time() - start)
        ratios = {name: np.median(times[name]) / np.median(times["one"]) for name in models}
        spoken = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        print(f"  iterations {chunk * iterations + 1} to {(chunk + 1) * iterations}: {spoken}")


class TimedHPO(HPO):
    """HPO with a clock around the parts of an iteration."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds: dict[str, list[float]] = defaultdict(list)
        super().__init__(*args, **kwargs)

    @contextmanager
    def _timed(self, part: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[part].append(time.perf_counter() - start)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        with self._timed("rollout"):
            return super().collect_rollouts(*args, **kwargs)

    def _mixed_gradient_step(self) -> None:
        with self._timed("backward"):
            super()._mixed_gradient_step()

    def train(self) -> None:
        start = time.perf_counter()
        super().train()
        self.seconds["PPO epochs"].append(time.perf_counter() - start - self.seconds["backward"][-1])


def steps_per_second(seconds: float) -> None:
    """Print the speed of both environments in single, batched and differentiated form, beside Gymnasium's SyncVectorEnv."""
    columns = "".join(f"{title:>15}" for title in ("scenarios", "no gradient", "with gradient", "SyncVectorEnv"))
    print(f"\n{'environment steps per second':<40}{columns}")
    problems: dict[str, dict[str, Any]] = {"HybridInventory-v0": {"n_items": 20}, "HybridSwitchedLQR-v0": {"n_dims": 48}}
    for env_id, kwargs in problems.items():
        for n in (1, 64, 1024):
            batched = HybridVectorEnv(gym.make(env_id, **kwargs).unwrapped, n)  # type: ignore[arg-type]
            plain = rate(partial(episode, batched, gradient=False), seconds)
            live = rate(partial(episode, batched, gradient=True), seconds)
            sync = gym.make_vec(env_id, n, vectorization_mode="sync", **kwargs) if n <= 64 else None
            looped = f"{rate(partial(sync_steps, sync), seconds):,.0f}" if sync is not None else "-"
            print(f"{env_id + ' ' + str(kwargs):<40}{n:>15}{plain:>15,.0f}{live:>15,.0f}{looped:>15}")


def rate(work: Callable[[], int], seconds: float) -> float:
    """
    :param work: does some steps and returns their number
    :return: steps per second, after one call to warm up
    """
    work()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        steps += work()
    return steps / (time.perf_counter() - start)


def episode(batched: HybridVectorEnv, gradient: bool) -> int:
    """As many steps as an episode has, with one random action per scenario; with gradients, also the backward pass to it."""
    env: HybridEnv = batched.env
    batched.detach() if batched.state is not None else batched.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    regime = env.factors.draw(batched.num_envs, generator)
    action = draw_actions(env, permitted(env, batched.state, regime), generator)
    action.point.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        total = sum(batched.advance(action)[0].reward.sum() for _ in range(env.horizon))
    if gradient:
        total.backward()  # type: ignore[union-attr]
    return env.horizon * batched.num_envs


def throughput(seconds: float) -> None:
    """
    Print the batched speed of every problem of the suite at both its sizes, and the numbers of observed state that it
    advances a second, as a share of joint replenishment's at the same size.
    """
    columns = "".join(f"{title:>15}" for title in ("state", "no gradient", "with gradient", "numbers / s", "share"))
    print(f"\n{'steps per second, 1,024 scenarios':<75}{columns}")
    for size in SIZES:
        yardstick: float | None = None
        for problem in PROBLEMS:
            env_kwargs = getattr(problem, size)
            batched = HybridVectorEnv(gym.make(problem.env_id, **env_kwargs).unwrapped, 1024)  # type: ignore[arg-type]
            plain, live = (rate(partial(episode, batched, gradient), seconds) for gradient in (False, True))
            dims = len(batched.env.observation_scale)
            yardstick = yardstick or plain * dims  # joint replenishment comes first
            print(
                f"{f'{problem.env_id} {env_kwargs}':<75}{dims:>15}{plain:>15,.0f}{live:>15,.0f}{plain * dims:>15,.0f}"
                f"{plain * dims / yardstick:>15.2f}"
            )


def sync_steps(sync: gym.vector.VectorEnv, steps: int = 20) -> int:
    sync.reset(seed=0)
    sync.action_space.seed(0)
    actions = sync.action_space.sample()
    for _ in range(steps):
        sync.step(actions)
    return steps * sync.num_envs


if __name__ == "__main__":
    main()
