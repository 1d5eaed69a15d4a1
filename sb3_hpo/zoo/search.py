"""The search spaces of ``sb3-hpo tune``: samplers and a converter in rl_zoo3's form."""

import math
from typing import Any

import optuna


def convert_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: as a trial keeps them
    :return: as HPO's and HybridPPO's constructors take them
    """
    params = dict(sampled_params)
    width = params.pop("width")
    policy_kwargs: dict[str, Any] = {"net_arch": [width, width]}
    for name in ("gamma", "gae_lambda"):
        params[name] = 1 - params.pop(f"one_minus_{name}")
    params["ent_coef"] = f"lin_{params['ent_coef']}"
    decay = "lin"
    if (spread := params.pop("spread", None)) == "learned":
        policy_kwargs["log_std_init"], params["point_std"] = math.log(params["point_std"]), None
    elif spread == "scheduled":  # steps shrink with the noise of the points
        params["point_std"], decay = f"exp_{params['point_std']}", "exp"
    params["continuous_learning_rate"] = f"{decay}_{params['continuous_learning_rate']}"
    return {**params, "policy_kwargs": policy_kwargs}


def _suggest_common(trial: optuna.Trial) -> dict[str, Any]:
    """What both algorithms share: PPO on the regimes, and the rate of the points."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-3, 0.5, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True),
        "clip_range": trial.suggest_float("clip_range", 0.05, 0.3),
        "n_epochs": trial.suggest_int("n_epochs", 1, 10),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.5, 10.0, log=True),
        "width": trial.suggest_categorical("width", [64, 128, 256, 512]),
        "continuous_learning_rate": trial.suggest_float("continuous_learning_rate", 1e-4, 1e-2, log=True),
    }


def sample_hpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    HPO's search space. The continuous network's rate and the entropy coefficient decay linearly from what is sampled.

    :param trial: that suggests
    :param n_actions: of no use to hybrid actions, like the arguments that follow
    :return: arguments of HPO's constructor
    """
    return convert_params(
        {
            **_suggest_common(trial),
            "cross_term": trial.suggest_categorical("cross_term", [True, False, "auto"]),
        }
    )


def sample_hybrid_ppo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    HybridPPO's search space, like :func:`sample_hpo_params`. The standard deviation of b begins at what is sampled, and is
    learned, or falls to a tenth of it, and the rate of the continuous network with it.

    :return: arguments of HybridPPO's constructor
    """
    return convert_params(
        {
            **_suggest_common(trial),
            "vf_coef": trial.suggest_float("vf_coef", 0.1, 1.0),
            "spread": trial.suggest_categorical("spread", ["learned", "scheduled"]),
            "point_std": trial.suggest_float("point_std", 0.05, 3.0, log=True),
        }
    )
