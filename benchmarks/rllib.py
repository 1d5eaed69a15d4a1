"""
RLlib's PPO on the Tuple space as it stands, with as many environment steps as HPO, for the table of ``benchmarks.baselines``.

RLlib's requirements do not go together with ``constraints.txt``, so it has a virtual environment of its own:

    python3 -m venv .rllib
    .rllib/bin/pip install "ray[rllib]==2.60.*" torch==2.13.0
    .rllib/bin/pip install -e ".[zoo]"
    .rllib/bin/python -m benchmarks.rllib --problem joint_replenishment --seed 0

It gets the units that HPO has, of observations and of b, normalised rewards, and what HybridPPO's config says
of scenarios, minibatches, epochs and discount.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NormalizeReward, TransformAction, TransformObservation
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.tune.registry import register_env

from benchmarks.baselines import PROBLEMS, RLLIB, Problem, file_of
from benchmarks.train import N_SCENARIOS
from benchmarks.zoo import EVALUATION_SEED, read_config
from hybrid_envs.solvers import evaluate
from hybrid_envs.wrappers import ClipActionWrapper


def scaled(problem: Problem) -> gym.Env:
    """
    :return: the environment in its own units, with b clipped to its bounds
    """
    env: gym.Env = ClipActionWrapper(gym.make(problem.env_id, **problem.env_kwargs))
    unit, size = (np.asarray(env.get_wrapper_attr(name), np.float32) for name in ("observation_scale", "action_scale"))
    space = env.observation_space
    assert isinstance(space, gym.spaces.Box)
    observed = gym.spaces.Box(space.low / unit, space.high / unit, dtype=np.float32)
    env = TransformObservation(env, lambda observation: (observation / unit).astype(np.float32), observed)
    return TransformAction(env, lambda action: (action[0], action[1] * size), env.action_space)


class Trained:
    """
    What RLlib has learned, as a policy of the environment itself.

    :param module: with the networks
    :param view: an environment in the wrappers that it was trained in
    """

    def __init__(self, module: RLModule, view: gym.Env):
        self.module, self.distribution = module, module.get_inference_action_dist_cls()
        self.unit, self.size = (np.asarray(view.get_wrapper_attr(name)) for name in ("observation_scale", "action_scale"))
        self.clip = ClipActionWrapper(view.unwrapped)

    @torch.no_grad()
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        observed = torch.as_tensor(np.asarray(observation / self.unit, np.float32))
        inputs = self.module.forward_inference({"obs": observed})["action_dist_inputs"]
        regimes, points = (of.numpy() for of in self.distribution.from_logits(inputs).to_deterministic().sample())
        return [self.clip.action((int(x), b * self.size)) for x, b in zip(regimes, points, strict=True)], None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rllib", description=__doc__.splitlines()[1])
    parser.add_argument("--problem", choices=list(PROBLEMS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, help="instead of the problem's own number: a look, not a result")
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"))
    args = parser.parse_args()
    problem = PROBLEMS[args.problem]
    settings = read_config("hybrid_ppo", problem.env_id)
    n_envs, periods = settings["n_envs"], settings["n_steps"]
    iterations = args.iterations or problem.n_timesteps // (n_envs * periods)
    register_env("hybrid", lambda config: NormalizeReward(scaled(problem), gamma=settings["gamma"]))
    config = (
        PPOConfig()
        .environment("hybrid")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=n_envs, rollout_fragment_length=periods)
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=n_envs * periods,
            minibatch_size=settings["batch_size"],
            num_epochs=settings["n_epochs"],
            lr=3e-4,
            gamma=settings["gamma"],
            lambda_=settings["gae_lambda"],
            clip_param=0.15,
            vf_clip_param=float("inf"),
            entropy_coeff=0.01,
            grad_clip=5.0,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[128, 128], fcnet_activation="tanh", vf_share_layers=False))
        .debugging(seed=args.seed)
    )
    algorithm = config.build_algo()
    start = time.perf_counter()
    for _ in range(iterations):
        algorithm.train()
    seconds = time.perf_counter() - start
    view = scaled(problem)
    costs = evaluate(view, Trained(algorithm.get_module(), view), N_SCENARIOS, EVALUATION_SEED)
    file = file_of(args.runs, args.problem, RLLIB, args.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cost": float(costs.mean()), "seconds": seconds}) + "\n")
    print(f"{args.problem}, seed {args.seed}: cost {costs.mean():,.3f}, {seconds:.0f} s")
    algorithm.stop()


if __name__ == "__main__":
    main()
