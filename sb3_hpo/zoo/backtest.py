"""What ``sb3-hpo backtest`` makes of its command line."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym

from hybrid_envs.backtest import recorded_problem
from sb3_hpo.arguments import argument_names, check_arguments, check_name
from sb3_hpo.backtest import Plan
from sb3_hpo.hpo import HPO
from sb3_hpo.zoo.manager import check_env_kwargs, default_config, read_entries

ENTRY = "backtest"
"""Of the config."""
LOOKS = 50
"""At the validation part, while a policy is trained."""
QUICK = 10
"""The part of the training that ``--quick`` leaves."""
FLAGS = {"demand": "--data", "costs": "--costs", "dates": "--dates", "calendar": "--calendar", "split_shares": "--split"}
"""Arguments of the environment that have a flag of their own."""


def read_entry(env_id: str) -> dict[str, Any]:
    config = default_config("hpo", env_id)
    assert config is not None
    return dict(read_entries(config)[ENTRY])


def make_problem(args: argparse.Namespace) -> gym.Env:
    """
    :param args: the command line
    :return: the environment on the training part of the data
    :raises ValueError: for an environment that is not known or has no backtest, and for whatever is wrong with the data
    :raises FileNotFoundError: if there is no such file
    """
    check_name("there is no environment", args.env, gym.registry)
    creator: Any = gym.spec(args.env).entry_point
    if not isinstance(creator, type) or recorded_problem.dispatch(creator) is recorded_problem.dispatch(object):
        kinds = [spec.id for spec in gym.registry.values() if isinstance(spec.entry_point, type)]
        able = [
            name
            for name in kinds
            if recorded_problem.dispatch(gym.spec(name).entry_point) is not recorded_problem.dispatch(object)
        ]
        raise ValueError(f"{args.env} has no backtest; environments with one are {', '.join(able)}")
    for name in (*FLAGS, "split"):
        if name in args.env_kwargs:
            raise ValueError(f"--env-kwargs: {name!r} is set by the flag {FLAGS.get(name, '--split')}")
    arguments = read_entry(args.env)["env_kwargs"] | args.env_kwargs
    check_env_kwargs(args.env, arguments)
    for flag, path in (("--data", args.data), ("--costs", args.costs)):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{flag}: there is no file {path!r}")
    given = {"demand": args.data, "costs": args.costs, "dates": args.dates, "calendar": args.calendar}
    arguments |= {name: value for name, value in given.items() if value is not None}
    return gym.make(args.env, **arguments, split="train", split_shares=args.split)


def read_plan(args: argparse.Namespace, env: gym.Env) -> Plan:
    """
    :param args: the command line
    :param env: what :func:`make_problem` returned
    :return: how to train
    :raises ValueError: for a hyperparameter that is not known, or not allowed
    """
    hyperparams = read_entry(args.env) | args.hyperparams
    n_timesteps = args.n_timesteps if args.n_timesteps != -1 else int(hyperparams["n_timesteps"])
    hyperparams["n_scenarios"] = hyperparams.pop("n_envs")
    for name in ("n_timesteps", "env_kwargs"):
        hyperparams.pop(name)
    known = argument_names(HPO) - {"env", "seed", "n_scenarios"}
    for name in args.hyperparams:
        check_name("-params: hpo knows no hyperparameter", name, known | {"n_envs"})
    check_arguments(hyperparams)
    if n_timesteps < 1:
        raise ValueError(f"--n-timesteps must be at least 1, got {n_timesteps}")
    n_timesteps = max(n_timesteps // QUICK, 1) if args.quick else n_timesteps
    horizon: int = env.get_wrapper_attr("horizon")
    iterations = -(-n_timesteps // (hyperparams["n_scenarios"] * hyperparams.get("n_steps", horizon)))
    return Plan(hyperparams, n_timesteps, max(iterations // LOOKS, 1), args.seed)
