"""
How much sooner an iteration is over when several ranks share it, what they send, and what that says of more ranks.

    python -m benchmarks.ranks [--env ID] [--env-kwargs NAME=VALUE ...] [--scenarios B] [--hidden W] [--ranks N]
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import gymnasium as gym
import torch
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

import hybrid_envs  # noqa: F401  registers the environments
from benchmarks.train import assignment, registered
from sb3_hpo import HPO

LATENCY, BANDWIDTH = 50e-6, 1.25e9
"""Of one step of a message, in seconds, and of a link (10 Gbit/s), in bytes per second: assumptions of the simulated table."""
WARM_UP = 2
"""The first iterations are not counted: memory is allocated in them."""


class Iteration(NamedTuple):
    wall: float
    processor: float
    messages: int
    numbers: int
    """That this rank puts into its messages."""


class Clock(BaseCallback):
    """Measures every iteration, from the start of a rollout to the start of the next."""

    reads_arrays, idle_at_steps = False, True

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[Iteration] = []
        self.messages = self.numbers = 0

    def counted(self, send: Any, position: int) -> Any:
        def counting(*args: Any) -> Any:
            self.messages, self.numbers = self.messages + 1, self.numbers + args[position].numel()
            return send(*args)

        return counting

    def _on_rollout_start(self) -> None:
        self.marks.append(Iteration(time.perf_counter(), time.process_time(), self.messages, self.numbers))

    def _on_step(self) -> bool:
        return True

    def iterations(self) -> list[Iteration]:
        pairs = zip(self.marks[WARM_UP:-1], self.marks[WARM_UP + 1 :], strict=True)
        return [Iteration(*(after - before for before, after in zip(*pair, strict=True))) for pair in pairs]  # type: ignore[arg-type]


def work(rank: int, n_ranks: int, store: str, args: argparse.Namespace, results: Any) -> None:
    """One rank of a training of so many iterations."""
    torch.set_num_threads(1)
    clock = Clock()
    if n_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}/meet", rank=rank, world_size=n_ranks)
        dist.all_gather, dist.all_reduce = clock.counted(dist.all_gather, 1), clock.counted(dist.all_reduce, 0)
    env = gym.make(args.env, **dict(args.env_kwargs))
    nets = {"net_arch": [args.hidden, args.hidden]}
    model = HPO("MlpPolicy", env, n_scenarios=args.scenarios, target_kl=None, seed=0, policy_kwargs=nets)
    model.set_logger(configure(None, []))
    model.learn((args.iterations + 1) * model.n_steps * model.n_envs, clock)
    parameters = sum(parameter.numel() for parameter in model.policy.parameters())
    results.put((rank, clock.iterations(), parameters))
    if n_ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def measured(n_ranks: int, args: argparse.Namespace) -> tuple[list[Iteration], int]:
    """
    :return: the iterations of rank 0, and the number of parameters
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as store:
        processes = [context.Process(target=work, args=(rank, n_ranks, store, args, results)) for rank in range(n_ranks)]
        for process in processes:
            process.start()
        of_ranks = sorted(results.get() for _ in processes)
        for process in processes:
            process.join()
    return of_ranks[0][1], of_ranks[0][2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[1])
    parser.add_argument("--env", type=registered, default="HybridInventory-v0")
    parser.add_argument("--env-kwargs", nargs="*", type=assignment, default=[("n_items", 20)], metavar="NAME=VALUE")
    parser.add_argument("--scenarios", type=int, default=1024, help="of all ranks together")
    parser.add_argument("--hidden", type=int, default=128, help="width of the two hidden layers")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=5, help="measured in a turn, after two that are not")
    parser.add_argument("--turns", type=int, default=3, help="of one rank and several, alternately")
    args = parser.parse_args()

    one: list[Iteration] = []
    several: list[Iteration] = []
    for _ in range(args.turns):
        one += measured(1, args)[0]
        more, parameters = measured(args.ranks, args)
        several += more
    print(f"{args.env} {dict(args.env_kwargs)}, {args.scenarios} scenarios, p = {parameters:,} parameters, one thread a rank")
    for field in ("wall", "processor"):
        times = [[getattr(iteration, field) for iteration in iterations] for iterations in (one, several)]
        for name, of in (("median", statistics.median), ("least", min)):
            alone, shared = of(times[0]), of(times[1])
            print(
                f"{field} time of an iteration, {name}: {alone:.3f} s alone, {shared:.3f} s on {args.ranks} ranks: "
                f"{shared / alone:.2f}"
            )
    sent = statistics.median(iteration.numbers for iteration in several)
    messages = statistics.median(iteration.messages for iteration in several)
    print(f"an iteration takes {messages:.0f} messages, into which each rank puts {4 * sent / 1e6:.2f} MB")
    alone, shared = (min(iteration.processor for iteration in iterations) for iterations in (one, several))
    same = max((args.ranks * shared - alone) / (args.ranks - 1), 0.0)
    simulate(alone, same, messages, 4 * sent, args.ranks)


def simulate(alone: float, same: float, messages: float, sent: float, n_ranks: int) -> None:
    """
    Print what the measurement says of more ranks, on machines of their own. Strong scaling: the same batch. Weak: the same
    share of it for every rank; what each rank does for everybody then grows with N.

    :param alone: seconds of processor time, of an iteration by one rank
    :param same: how many of them every rank spends, however many there are
    :param messages: of an iteration
    :param sent: bytes that a rank puts into them
    """
    print(
        f"of the {alone:.3f} s alone, {same:.3f} s ({same / alone:.0%}) are spent by every rank; simulated with a latency of"
    )
    print(f"{LATENCY * 1e6:.0f} us for each of 2 log2 N steps of a message, and {BANDWIDTH / 1e9:.2f} GB/s; speed-up")
    print("ranks   strong, the same batch   weak, N times the batch")
    for n in (1, 2, 4, 8, 16, 32, 64):
        steps = messages * 2 * math.log2(n) * LATENCY
        traffic = 2 * (n - 1) / n * sent / BANDWIDTH
        strong = same + (alone - same) / n + steps + traffic
        weak = n * same + (alone - same) + steps + n * traffic
        print(f"{n:5} {alone / strong:24.1f} {n * alone / weak:25.1f}")


if __name__ == "__main__":
    main()
