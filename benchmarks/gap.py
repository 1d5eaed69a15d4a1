"""
Which half of a policy holds it back: after training, each is trained on with the other left as it is.

    python -m benchmarks.gap --env HybridSwitchedLQR-v0 --env-kwargs n_dims=48 n_modes=4 --seed 0
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.train import N_SCENARIOS, run_parser
from benchmarks.zoo import EVALUATION_SEED, make_run
from hybrid_envs import reference_policy
from hybrid_envs.solvers import evaluate
from sb3_hpo import HPO

HALVES = {"points": ("continuous",), "regimes": ("discrete",), "both": ("continuous", "discrete")}
"""Which networks are trained on; the value network always is."""


def main() -> None:
    parser = run_parser("gap", __doc__, "HybridSwitchedLQR-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--further", type=int, default=100, help="iterations for which each half is trained on (default 100)")
    parser.add_argument("--rate", default="lin_1e-3", help="learning rate of what is trained on (default lin_1e-3)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    run = make_run("hpo", args.env, dict(args.env_kwargs), args.seed, args.entry, **dict(args.hyperparams))

    def cost(policy: object) -> float:
        return float(evaluate(run.env, policy, N_SCENARIOS, EVALUATION_SEED).mean())  # type: ignore[arg-type]

    reference = reference_policy(run.env)
    if reference is not None:
        print(f"reference policy: {cost(reference):.3f}", flush=True)
    run.model.learn(run.steps(args.iterations))
    before = cost(run.model)
    print(f"as trained: {before:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        run.model.save(path)
        for half, networks in HALVES.items():
            rates = {name: args.rate if name in networks else 0.0 for name in ("discrete", "continuous")}
            model = HPO.load(
                path,
                env=run.model.get_env(),
                learning_rate=rates["discrete"],
                continuous_learning_rate=rates["continuous"],
                value_learning_rate=args.rate,
            )
            after = cost(model.learn(args.further * run.iteration_steps))
            print(f"{half} trained on for {args.further} iterations: {after:.3f} ({after / before - 1:+.1%})", flush=True)


if __name__ == "__main__":
    main()
