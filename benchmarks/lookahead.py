"""
What search at decision time adds to a trained policy, and what a decision then costs in time; what is left of it when the
policy is taught what the search finds.

    python -m benchmarks.lookahead --env HybridSwitchedLQR-v0 --env-kwargs n_dims=48 n_modes=4
"""

import time

import torch

from benchmarks.train import run_parser
from benchmarks.zoo import EVALUATION_SEED, make_run, mean_and_interval
from hybrid_envs import reference_policy
from hybrid_envs.evaluation import Policy
from hybrid_envs.solvers import evaluate
from sb3_hpo import HPO
from sb3_hpo.lookahead import Lookahead

DECISIONS = 20
"""How many are timed, one by one."""


def main() -> None:
    parser = run_parser("lookahead", __doc__, "HybridSwitchedLQR-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", type=int, default=200, help="episodes of the evaluation (default 200)")
    parser.add_argument("--futures", type=int, default=16, help="scenarios averaged over in one decision (default 16)")
    parser.add_argument(
        "--depths", type=int, nargs="*", default=[], help="periods to look ahead, beside to the end of the episode"
    )
    parser.add_argument("--refinements", type=int, nargs="*", default=[0, 20])
    parser.add_argument("--teach", type=int, default=0, metavar="ROUNDS", help="of teaching, before the searches (default 0)")
    parser.add_argument(
        "--teach-points", type=int, default=0, metavar="ROUNDS", help="of teaching points, after that (default 0)"
    )
    parser.add_argument("--episodes", type=int, default=400, help="of a round of teaching (default 400)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    run = make_run("hpo", args.env, dict(args.env_kwargs), args.seed, args.entry, **dict(args.hyperparams))
    run.model.learn(run.steps(args.iterations))
    assert isinstance(run.model, HPO)

    def report(name: str, policy: Policy) -> float:
        cost, half_width = mean_and_interval(evaluate(run.env, policy, args.scenarios, EVALUATION_SEED))
        print(f"{name}: {cost:.3f} ± {half_width:.3f}", end="", flush=True)
        return cost

    reference = reference_policy(run.env)
    if reference is not None:
        report("reference policy", reference)
        print()
    before = report("policy as trained", run.model)
    print()
    teacher = Lookahead(run.model, run.env, n_scenarios=args.futures)
    for what, teach, rounds in (("regimes", teacher.teach, args.teach), ("points", teacher.teach_points, args.teach_points)):
        if rounds:
            start = time.process_time()
            teach(rounds, args.episodes)
            seconds = time.process_time() - start
            taught = report(f"taught {what} in {rounds} rounds of {args.episodes} episodes", run.model)
            print(f", {taught / before - 1:+.2%}, {seconds:.0f} s")
            before = taught
    states = run.env.initial(DECISIONS, torch.Generator(run.env.device).manual_seed(0))
    for depth in [None, *args.depths]:
        for refinements in args.refinements:
            policy = Lookahead(run.model, run.env, depth=depth, n_scenarios=args.futures, refinements=refinements)
            after = report(f"looking {depth or 'all'} periods ahead, {refinements} refinements", policy)
            start = time.perf_counter()
            for i in range(DECISIONS):
                policy.decide(type(states)(*(field[i : i + 1] for field in states)))
            milliseconds = 1e3 * (time.perf_counter() - start) / DECISIONS
            print(f", {after / before - 1:+.2%}, {milliseconds:.0f} ms a decision", flush=True)


if __name__ == "__main__":
    main()
