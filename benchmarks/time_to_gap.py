"""
How much processor time training takes until the policy is within 5 % of the reference policy.

    python -m benchmarks.time_to_gap --env-kwargs n_items=20 --seeds 0 1 2

Evaluations, one after every iteration, are not counted.
"""

import time

import torch
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.train import run_parser
from benchmarks.zoo import EVALUATION_SEED, Run, make_run
from hybrid_envs import reference_policy
from hybrid_envs.solvers import evaluate

N_SCENARIOS = 256


class Arrival(BaseCallback):
    """
    Stops training once the policy costs no more than a given cost.

    :param run: what is trained
    :param cost: to arrive at
    """

    reads_arrays = False  # else every step would be copied to numpy for it

    def __init__(self, run: Run, cost: float):
        super().__init__()
        self.run, self.aim = run, cost
        self.start = time.process_time()
        self.seconds: float | None = None
        """Of training alone, once it is there."""

    def _on_rollout_start(self) -> None:
        before = time.process_time()
        if evaluate(self.run.env, self.run.model, N_SCENARIOS, EVALUATION_SEED).mean() <= self.aim:
            self.seconds = before - self.start
        self.start += time.process_time() - before

    def _on_step(self) -> bool:
        return self.seconds is None


def main() -> None:
    parser = run_parser("time_to_gap", __doc__, "HybridInventory-v0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gap", type=float, default=0.05, help="above the reference, as a share of its cost (default: 0.05)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        run = make_run("hpo", args.env, dict(args.env_kwargs), seed, args.entry, **dict(args.hyperparams))
        reference = reference_policy(run.env)
        if reference is None:
            parser.error(f"{args.env} has no reference policy")
        cost = float(evaluate(run.env, reference, N_SCENARIOS, EVALUATION_SEED).mean())
        arrival = Arrival(run, cost + args.gap * abs(cost))
        run.model.learn(run.steps(args.iterations), callback=arrival)
        iterations = run.model.num_timesteps // run.iteration_steps
        arrived = "not there" if arrival.seconds is None else f"{arrival.seconds:.1f} s of processor time"
        print(f"seed {seed}: {arrived}, {iterations} iterations", flush=True)


if __name__ == "__main__":
    main()
