"""
How long an HPO iteration takes beside its own matrix products, where the rest goes, and how many environment steps a second
every simulator makes.

    python -m benchmarks.speed [--problems NAME ...] [--iterations 10] [--hidden 128] [--profile FOLDER]
                               [--scenarios 1 64 1024] [--seconds 1] [--memory]

``--memory`` measures what a rollout of many scenarios and its way back take, with gradients as they are and checkpointed, and
nothing else. ``--problems`` names the iterations to measure and leaves the simulators out. ``--profile`` writes a trace of one
iteration of each, ``NAME.json``, which https://ui.perfetto.dev and chrome://tracing open.
"""

import argparse
import multiprocessing
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import configure
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.suite import PROBLEMS, SIZES
from hybrid_envs.core import HybridEnv
from hybrid_envs.probing import draw_actions, permitted
from hybrid_envs.vector import HybridVectorEnv
from sb3_hpo import HPO


class Case(NamedTuple):
    """A problem and the networks that learn it; 64 scenarios unless said."""

    env_id: str
    env_kwargs: dict[str, Any]
    hidden: int = 128
    n_scenarios: int = 64


CASES = {
    "inventory": Case("HybridInventory-v0", {"n_items": 20}),
    "inventory-512": Case("HybridInventory-v0", {"n_items": 20}, hidden=512),
    "switched-lqr": Case("HybridSwitchedLQR-v0", {"n_dims": 48}, n_scenarios=128),
    "unit-commitment": Case("HybridUnitCommitment-v0", {}),
}
FACTORED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "21 factors against order or not, 20 items": ("HybridInventory-v0", {"n_items": 20}, {"minor_fixed_cost": 20.0}),
    "20 factors against merit order, 20 units": (
        "HybridUnitCommitment-v0",
        {"n_generators": 20, "commitments": "merit_order"},
        {"commitments": "free"},
    ),
}
"""Problems with one switch, and what makes many of it."""
PARTS = ("rollout", "backward", "PPO epochs")
PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[1])
    parser.add_argument("--problems", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--hidden", type=int, help="width of the two hidden layers, instead of each problem's own")
    parser.add_argument("--scenarios", type=int, nargs="+", default=[1, 64, 1024], help="side by side in the simulators")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each simulator")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write a trace of one iteration of each problem there")
    parser.add_argument("--memory", action="store_true", help="measure memory, with as many scenarios as are named last")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: CASES[name] for name in args.problems or CASES}
    if args.hidden is not None:
        cases = {name: case._replace(hidden=args.hidden) for name, case in cases.items()}
    if args.memory:
        memory(cases, args.scenarios[-1])
        return
    iteration_times(cases, args.iterations, args.profile)
    if args.problems is None:
        factor_time(args.iterations)
        steps_per_second(args.scenarios, args.seconds)
        throughput(args.scenarios[-1], args.seconds)


def iteration_times(cases: dict[str, Case], iterations: int, folder: Path | None) -> None:
    """
    Print, for an HPO iteration and each of its parts, the processor time it takes, that of its matrix products alone, and how
    many times as long it is. Both are the least of several; epochs are never cut short.
    """
    columns = "".join(f"{part:>24}" for part in ("iteration", *PARTS))
    print(f"HPO iteration / its own matrix products alone, ms, one thread\n{'':<16}{columns}")
    for name, case in cases.items():
        model = timed(case)
        model.iterate(1)  # warms up
        with Products(model) as products:
            model.iterate(1)
        model.seconds.clear()
        floors = []
        for _ in range(iterations):  # in turns, since other work on the machine slows both alike
            model.iterate(1)
            floors.append([products.seconds(part) for part in PARTS])
        times = [(min(model.seconds[part]), min(floor)) for part, floor in zip(PARTS, zip(*floors, strict=True), strict=True)]
        total = tuple(map(sum, zip(*times, strict=True)))
        row = (f"{1e3 * took:.0f} / {1e3 * floor:.0f} = {took / floor:.2f}" for took, floor in (total, *times))
        print(f"{name:<16}" + "".join(f"{entry:>24}" for entry in row), flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with profile(activities=[ProfilerActivity.CPU]) as trace:
                model.iterate(1)
            trace.export_chrome_trace(str(folder / f"{name}.json"))


def memory(cases: dict[str, Case], scenarios: int, repeats: int = 3) -> None:
    """
    Print by how much a rollout and its way back raise the peak of a process's memory, with gradient checkpointing and without,
    each in a process of its own; and how long they take.

    :param scenarios: side by side
    :param repeats: of the time, of which the least counts
    """
    spawn = multiprocessing.get_context("spawn")
    print(f"a rollout of {scenarios:,} scenarios and its way back: peak of memory, MB; processor time, s")
    print(f"{'':<16}{'as it is':>16}{'checkpointed':>16}{'memory':>10}{'time':>8}")
    for name, case in cases.items():
        found = []
        for checkpointing in (False, True):
            with ProcessPoolExecutor(1, spawn) as process:
                found.append(process.submit(peak, case._replace(n_scenarios=scenarios), checkpointing, repeats).result())
        (space, took), (less_space, longer) = found
        both = f"{f'{space:.0f}, {took:.2f}':>16}{f'{less_space:.0f}, {longer:.2f}':>16}"
        print(f"{name:<16}{both}{less_space / space:>10.2f}{longer / took:>8.2f}", flush=True)


def peak(case: Case, checkpointing: bool, repeats: int) -> tuple[float, float]:
    """
    :return: megabytes and seconds, of this process
    """
    torch.set_num_threads(1)
    timed(case._replace(n_scenarios=8)).iterate(1)  # what libraries load is none of the rollout's
    model = timed(case, gradient_checkpointing=checkpointing)
    _, callback = model._setup_learn(1)
    callback.on_training_start({}, {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model._mixed_gradient_step()
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return megabytes, min(map(sum, zip(model.seconds["rollout"], model.seconds["backward"], strict=True)))


def timed(case: Case, **arguments: Any) -> "TimedHPO":
    """
    :param arguments: of HPO
    :return: HPO on this case, whose epochs are never cut short
    """
    model = TimedHPO(
        "MlpPolicy",
        gym.make(case.env_id, **case.env_kwargs),
        n_scenarios=case.n_scenarios,
        target_kl=None,
        seed=0,
        policy_kwargs={"net_arch": [case.hidden, case.hidden]},
        **arguments,
    )
    model.set_logger(configure(None, []))
    return model


def factor_time(tenth: int) -> None:
    """
    Print what an iteration costs with many factors against one at equal sizes, in processor time, over whole trainings, an
    iteration of each by turns, since other work on the machine slows all alike. Counterfactual credit is dearest as long as
    the policy has not made up its mind.

    :param tenth: of the iterations of each training
    """
    iterations = 10 * tenth
    print(f"\nHPO iteration with many factors against one, 64 scenarios, 2x128 networks, trainings of {iterations} iterations")
    for title, (env_id, one, many) in FACTORED.items():
        print(title)
        models = {"one": timed(Case(env_id, one))}
        models |= {credit: timed(Case(env_id, one | many), credit=credit) for credit in ("joint", "counterfactual")}
        for model in models.values():
            model.planned = iterations
        for _ in range(iterations):
            for model in models.values():
                model.iterate(1)
        times = {name: np.sum([model.seconds[part] for part in PARTS], axis=0) for name, model in models.items()}
        yardstick = times.pop("one")
        for credit, took in times.items():
            parts = (slice(None), slice(tenth), slice(-tenth, None))
            whole, first, last = (took[part].sum() / yardstick[part].sum() for part in parts)
            print(f"  {credit} credit: {whole:.2f}, the first tenth {first:.2f}, the last {last:.2f}", flush=True)


class TimedHPO(HPO):
    """HPO with a clock around the parts of an iteration."""

    part: str | None = None
    """The one that runs now."""
    planned: int | None = None
    """Iterations of the whole training, by which its schedules go; those of each call unless given."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds: dict[str, list[float]] = defaultdict(list)
        super().__init__(*args, **kwargs)

    def iterate(self, count: int) -> None:
        self.learn(count * self.n_steps * self.n_envs, reset_num_timesteps=False)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        total = total_timesteps if self.planned is None else self.planned * self.n_steps * self.n_envs
        super()._update_current_progress_remaining(num_timesteps, total)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        self.part, before, start = part, self.part, time.process_time()
        yield
        self.part = before
        self.seconds[part].append(time.process_time() - start)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        with self._timed("rollout"):
            return super().collect_rollouts(*args, **kwargs)

    def _mixed_gradient_step(self) -> None:
        with self._timed("backward"):
            super()._mixed_gradient_step()

    def train(self) -> None:
        with self._timed("PPO epochs"):
            super().train()
        self.seconds["PPO epochs"][-1] -= self.seconds["backward"][-1]


class Products(TorchDispatchMode):
    """
    Notes every matrix product, forward and backward, that is computed while it is active: its function, the shapes and strides
    of what it multiplies, and the part of the iteration it belongs to.
    """

    def __init__(self, model: TimedHPO):
        super().__init__()
        self.model = model
        self.counts: dict[str | None, Counter[Any]] = defaultdict(Counter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            operands = tuple((x.shape, x.stride(), x.dtype) for x in args if isinstance(x, torch.Tensor))
            self.counts[self.model.part][func, operands] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self, part: str) -> float:
        """
        :return: the processor time of the part's products, one after the other and nothing else
        """
        total = 0.0
        for (func, operands), count in self.counts[part].items():
            tensors = [torch.empty_strided(size, stride, dtype=dtype).normal_() for size, stride, dtype in operands]
            func(*tensors)
            start = time.process_time()
            for _ in range(count):
                func(*tensors)
            total += time.process_time() - start
        return total


def steps_per_second(scenarios: list[int], seconds: float) -> None:
    """
    Print the speed of both environments in single, batched and differentiated form, beside Gymnasium's SyncVectorEnv, and how
    many times as fast as that the batched form without gradients is.
    """
    columns = "".join(f"{title:>15}" for title in ("scenarios", "no gradient", "with gradient", "SyncVectorEnv", "times"))
    print(f"\n{'environment steps per second':<40}{columns}")
    problems: dict[str, dict[str, Any]] = {"HybridInventory-v0": {"n_items": 20}, "HybridSwitchedLQR-v0": {"n_dims": 48}}
    for env_id, kwargs in problems.items():
        for n in scenarios:
            batched = HybridVectorEnv(gym.make(env_id, **kwargs).unwrapped, n)  # type: ignore[arg-type]
            plain = rate(partial(episode, batched, gradient=False), seconds)
            live = rate(partial(episode, batched, gradient=True), seconds)
            sync = gym.make_vec(env_id, n, vectorization_mode="sync", **kwargs)
            sync.reset(seed=0)
            sync.action_space.seed(0)
            looped = rate(partial(sync_step, sync, sync.action_space.sample()), seconds)
            name = f"{env_id} {kwargs}"
            print(f"{name:<40}{n:>15,}{plain:>15,.0f}{live:>15,.0f}{looped:>15,.0f}{plain / looped:>15.0f}", flush=True)


def rate(work: Callable[[], int], seconds: float) -> float:
    """
    :param work: does some steps and returns their number
    :return: steps per second of processor time, after one call to warm up
    """
    work()
    start, steps = time.process_time(), 0
    while time.process_time() - start < seconds:
        steps += work()
    return steps / (time.process_time() - start)


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


def throughput(scenarios: int, seconds: float) -> None:
    """
    Print the batched speed of every problem of the suite at both its sizes, and the numbers of observed state that it
    advances a second, as a share of joint replenishment's at the same size.
    """
    columns = "".join(f"{title:>15}" for title in ("state", "no gradient", "with gradient", "numbers / s", "share"))
    print(f"\n{f'steps per second, {scenarios:,} scenarios':<75}{columns}")
    for size in SIZES:
        yardstick: float | None = None
        for problem in PROBLEMS:
            env_kwargs = getattr(problem, size)
            batched = HybridVectorEnv(gym.make(problem.env_id, **env_kwargs).unwrapped, scenarios)  # type: ignore[arg-type]
            plain, live = (rate(partial(episode, batched, gradient), seconds) for gradient in (False, True))
            dims = len(batched.env.observation_scale)
            yardstick = yardstick or plain * dims  # joint replenishment comes first
            print(
                f"{f'{problem.env_id} {env_kwargs}':<75}{dims:>15}{plain:>15,.0f}{live:>15,.0f}{plain * dims:>15,.0f}"
                f"{plain * dims / yardstick:>15.2f}"
            )


def sync_step(sync: gym.vector.VectorEnv, actions: Any) -> int:
    sync.step(actions)
    return sync.num_envs


if __name__ == "__main__":
    main()
