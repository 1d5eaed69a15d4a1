"""
What an architecture can reach: HPO's networks are fitted to the problem's reference policy, and play.

    python -m benchmarks.cloning --env HybridSwitchedLQR-v0 --env-kwargs n_dims=48 n_modes=4 [--activations Tanh SiLU]

The discrete network learns the reference's regimes by cross entropy, the continuous network its points in these regimes by
least squares, in the states that the reference visits and in those that the clone comes by (DAgger: Ross, Gordon, Bagnell
2011). What a clone costs more than the reference bounds what training can blame on its gradients. A clone is no optimum of its
architecture: a policy that errs where it is cheap may do better than one that errs least.
"""

import numpy as np
import torch
from torch import nn

from benchmarks.defaults import ACTIVATIONS
from benchmarks.train import N_SCENARIOS, run_parser
from benchmarks.zoo import EVALUATION_SEED, make_run, read_config, with_classes
from hybrid_envs import reference_policy
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Policy, ReferencePolicy
from hybrid_envs.solvers import evaluate
from hybrid_envs.vector import HybridVectorEnv
from sb3_hpo import HPO
from sb3_hpo.simulation import point_geometry, points, regime_distribution

ROUNDS, EPISODES, STEPS, ROWS, RATE = 20, 400, 600, 2048, 1e-3
"""Rounds of playing and learning, episodes and steps of each, states of a step, the learning rate, which falls to 0."""

Lesson = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Observations, and the reference's x and b there."""


def lesson(env: HybridEnv, reference: ReferencePolicy, player: Policy, seed: int) -> Lesson:
    """
    :param player: decides which states are visited
    :return: what the reference would do in every period of :data:`EPISODES` episodes
    """
    scenarios = HybridVectorEnv(env, EPISODES)
    observation, _ = scenarios.reset(seed=seed)
    found: list[tuple[np.ndarray, ...]] = []
    state = None
    for t in range(env.horizon):
        regimes, aims = reference.act(observation, np.full(EPISODES, t))
        found.append((observation, regimes, aims))
        actions, state = player.predict(observation, state=state, deterministic=True)
        played, carried_out = (np.stack(part) for part in zip(*actions, strict=True))
        observation, _, terminated, truncated, _ = scenarios.step((played, carried_out))
        if (terminated | truncated).any():  # what follows is another scenario, with a clock of its own
            break
    observations, regimes, aims = (np.concatenate(part) for part in zip(*found, strict=True))
    return (
        torch.as_tensor(observations, dtype=env.dtype),
        torch.as_tensor(regimes, dtype=torch.int64),
        torch.as_tensor(aims, dtype=env.dtype),
    )


def clone(model: HPO, env: HybridEnv, reference: ReferencePolicy, rounds: int, seed: int) -> None:
    """Fit the model's policy to the reference."""
    policy = model.policy
    *_, scale = point_geometry(env, 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    lessons: list[Lesson] = []
    for k in range(rounds):
        lessons.append(lesson(env, reference, model if k else reference, seed=1_000 * (seed + 1) + k))
        obs, x, b = (torch.cat(parts) for parts in zip(*lessons, strict=True))
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (1 - (k + step / STEPS) / rounds)
            rows = torch.randint(len(obs), (ROWS,), generator=generator)
            log_prob = regime_distribution(env, policy, obs[rows], None).log_prob(x[rows])
            miss = (points(env, policy, obs[rows], x[rows]) - b[rows]) / scale
            optimizer.zero_grad()
            (miss.square().sum(dim=1).mean() - log_prob.mean()).backward()
            optimizer.step()


def main() -> None:
    parser = run_parser("cloning", __doc__, "HybridSwitchedLQR-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--activations", nargs="+", choices=ACTIVATIONS, default=["Tanh", "ReLU", "SiLU"])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {EPISODES} episodes (default {ROUNDS})")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_config("hpo", args.env, args.entry) | with_classes(dict(args.hyperparams))
    for activation in args.activations:
        kwargs = settings.get("policy_kwargs", {}) | {"activation_fn": getattr(nn, activation)}
        run = make_run(
            "hpo", args.env, dict(args.env_kwargs), args.seed, args.entry, **dict(args.hyperparams) | {"policy_kwargs": kwargs}
        )
        reference = reference_policy(run.env)
        if not isinstance(reference, ReferencePolicy):
            parser.error(f"{args.env} has no reference policy to clone")
        aim = float(evaluate(run.env, reference, N_SCENARIOS, EVALUATION_SEED).mean())
        clone(run.model, run.env, reference, args.rounds, args.seed)  # type: ignore[arg-type]
        cost = float(evaluate(run.env, run.model, N_SCENARIOS, EVALUATION_SEED).mean())
        shape = ", ".join(f"{name} = {value}" for name, value in kwargs.items() if name != "activation_fn")
        print(f"{activation}, {shape}: {cost:.3f}, reference {aim:.3f} ({(cost - aim) / abs(aim):+.1%})", flush=True)


if __name__ == "__main__":
    main()
