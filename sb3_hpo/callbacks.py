"""Callbacks that watch training."""

import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from hybrid_envs.checks import check_count
from hybrid_envs.core import HybridEnv
from hybrid_envs.evaluation import Choices, Policy, evaluate, policy_figure, reference_policy
from sb3_hpo.arguments import notation
from sb3_hpo.callback_tree import callback_tree, reads_arrays
from sb3_hpo.gradients import ESTIMATORS, EstimatorOptions, measure_quality
from sb3_hpo.hpo import HPO
from sb3_hpo.hybrid_ppo import HybridPPO
from sb3_hpo.lookahead import Lookahead

__all__ = [
    "CostCallback",
    "GapCallback",
    "GradientQualityCallback",
    "HParamCallback",
    "HeldOutCallback",
    "PeriodicCallback",
    "PolicyFigureCallback",
    "callback_tree",
    "hyperparameters",
    "in_words",
    "reads_arrays",
    "simulated_problem",
]

TENSORBOARD_ONLY = ("stdout", "log", "json", "csv")
"""The formats of SB3's logger that hold neither figures nor hyperparameters."""
METRICS = ("eval/cost", "eval/optimality_gap", "eval/mean_reward", "rollout/ep_rew_mean")


def simulated_problem(callback: BaseCallback) -> HybridEnv:
    """
    :return: the problem that the callback's model is trained on
    :raises TypeError: if it is no HybridEnv
    """
    env = callback.training_env.get_attr("unwrapped")[0]
    if not isinstance(env, HybridEnv):
        raise TypeError(f"{type(callback).__name__} simulates; {env} is not a hybrid_envs.HybridEnv")
    return env


class PeriodicCallback(BaseCallback):
    """
    Looks at the policy before, during and after training. What it records is logged at once, so that it stands at the step
    that it belongs to; at the end of training, so is what SB3 has recorded of the last update and would not log any more.

    :param env: the problem to look at it on; that of the training unless given
    :param every: environment steps between looks
    """

    reads_arrays, idle_at_steps, on_rank_0 = False, True, True

    def __init__(self, env: HybridEnv | None = None, every: int = 100_000):
        super().__init__()
        self.eval_env, self.every = env, check_count("every", every)
        self.steps: list[int] = []

    @property
    def problem(self) -> HybridEnv:
        """
        :raises TypeError: if none was given, and that of the training is no HybridEnv
        """
        return simulated_problem(self) if self.eval_env is None else self.eval_env

    @abstractmethod
    def look(self) -> None:
        """Record what is to be logged of the present policy."""

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self.steps = []  # of a training before

    def _on_rollout_start(self) -> None:
        if not self.steps or self.num_timesteps - self.steps[-1] >= self.every:
            self._look()

    def _on_training_end(self) -> None:
        if self.steps and self.steps[-1] != self.num_timesteps:  # RL Zoo announces the end once more, even of a failed start
            self._look()

    def _on_step(self) -> bool:
        return True

    def _look(self) -> None:
        self.steps.append(self.num_timesteps)
        self.look()
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def scaled(self, observation: np.ndarray) -> Any:
        """The observation as the model knows it, which under VecNormalize is the scaled one."""
        normalizer = self.model.get_vec_normalize_env()
        return observation if normalizer is None else normalizer.normalize_obs(observation)


class HeldOutCallback(PeriodicCallback):
    """
    Looks at costs on held-out scenarios.

    :param env: whose scenarios and figure of merit are used; that of the training unless given
    :param every: environment steps between looks
    :param n_scenarios: how many
    :param seed: of the scenarios, the same in every look
    """

    def __init__(self, env: HybridEnv | None, every: int, n_scenarios: int, seed: int):
        super().__init__(env, every)
        self.n_scenarios, self.seed = check_count("n_scenarios", n_scenarios), seed

    def cost(self, policy: Policy) -> float:
        """
        :return: its mean figure of merit
        """
        return float(evaluate(self.problem, policy, self.n_scenarios, self.seed).mean())


class CostCallback(HeldOutCallback):
    """
    Evaluates the deterministic policy on held-out scenarios before, during and after training, and logs ``eval/cost`` (its
    mean figure of merit) and, where the environment offers a reference policy, ``eval/optimality_gap``: the excess over the
    cost of the reference on the same scenarios, relative to it.

    The curve is kept in ``steps`` and ``costs``.

    :param env: whose scenarios, figure of merit and reference are used; that of the training unless given
    :param every: environment steps between evaluations
    :param n_scenarios: held-out scenarios
    :param seed: of the scenarios; the same in every evaluation
    :param gap: whether to measure the gap
    :param reference: against which policy; ``reference_policy(env)`` unless given, which takes some seconds to find
    """

    def __init__(
        self,
        env: HybridEnv | None = None,
        every: int = 100_000,
        n_scenarios: int = 256,
        seed: int = 10_000,
        gap: bool = True,
        reference: Policy | None = None,
    ):
        super().__init__(env, every, n_scenarios, seed)
        self.reference, self.gap = reference, gap
        self.reference_cost: float | None = None
        self.costs: list[float] = []

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.costs = self.costs[: len(self.steps)]
        reference = self.reference if self.reference is not None or not self.gap else reference_policy(self.problem)
        self.reference_cost = self.cost(reference) if self.gap and reference is not None else None

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The model's action, which under VecNormalize is a function of the scaled observation."""
        return self.model.predict(self.scaled(observation), *args, **kwargs)

    def look(self) -> None:
        self.costs.append(self.cost(self))
        self.logger.record("eval/cost", self.costs[-1])
        if self.reference_cost is not None:
            self.logger.record("eval/optimality_gap", (self.costs[-1] - self.reference_cost) / abs(self.reference_cost))


class PolicyFigureCallback(PeriodicCallback):
    """
    Logs the problem's own picture of the policy, :func:`~hybrid_envs.evaluation.policy_figure`, as the image ``eval/policy``
    in TensorBoard.

    :param env: the problem that draws; that of the training unless given
    :param every: environment steps between figures
    """

    def look(self) -> None:
        figure = policy_figure(self.problem, self.choices)
        if figure is None:
            warnings.warn(f"{self.problem.name} has no policy_figure to log", stacklevel=2)
        else:
            self.logger.record("eval/policy", Figure(figure, close=True), exclude=TENSORBOARD_ONLY)

    def choices(self, observation: np.ndarray) -> Choices:
        """
        The model's :data:`~hybrid_envs.evaluation.PolicyFunction`, without masks and what ties factors to each other.

        :param observation: as the environment gives it, shape ``(batch, d)``
        """
        policy = cast(HybridPPO, self.model).policy
        policy.set_training_mode(False)
        obs, _ = policy.obs_to_tensor(self.scaled(observation))
        with torch.no_grad():
            regimes = policy.regimes(obs)
            probabilities, points = regimes.given(regimes.mode()).probs, policy.candidates(obs)
        return Choices(probabilities.cpu().numpy(), points.cpu().numpy())


class GapCallback(HeldOutCallback):
    """
    Which half of a policy of HPO's holds it back: logs the share of its cost that would be saved by better points for its own
    regimes (``eval/gap_points``), by better regimes with its own points (``eval/gap_regimes``), and by both
    (``eval/gap_both``), as far as :class:`~sb3_hpo.lookahead.Lookahead` finds them. What is saved within ``depth`` periods and
    by one change of regime at a time is seen; a gap may be larger. Where costs are rare and large, what pays in a few futures
    may not pay at all: if a half saves less than nothing, more futures are needed.

    :param env: the problem; that of the training unless given
    :param every: environment steps between looks
    :param n_scenarios: held-out scenarios
    :param seed: of the scenarios, the same in every look
    :param lookahead: arguments of :class:`~sb3_hpo.lookahead.Lookahead`; unless given, ``{"depth": 10, "n_scenarios": 8}``
    :raises TypeError: when training begins, if the model is not HPO's
    """

    def __init__(
        self,
        env: HybridEnv | None = None,
        every: int = 1_000_000,
        n_scenarios: int = 32,
        seed: int = 10_000,
        lookahead: dict[str, Any] | None = None,
    ):
        super().__init__(env, every, n_scenarios, seed)
        self.lookahead = {"depth": 10, "n_scenarios": 8} if lookahead is None else dict(lookahead)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._better()  # an error of the arguments comes before any work

    def _better(self) -> dict[str, Policy]:
        """
        :return: policies, each of which knows better in one half, or in both
        """
        better = partial(Lookahead, cast(HPO, self.model), self.problem, **self.lookahead)
        return {"points": better(regimes=False), "regimes": better(refinements=0), "both": better()}

    def look(self) -> None:
        own = self.cost(self.model)
        for half, policy in self._better().items():
            self.logger.record(f"eval/gap_{half}", (own - self.cost(policy)) / abs(own))


class HParamCallback(BaseCallback):
    """
    Logs the hyperparameters of the algorithm and the arguments of the environment to TensorBoard's tab HPARAMS, which compares
    runs by them.

    :param metrics: tags of scalars whose last values the tab shows beside them, as far as the run logs them
    """

    reads_arrays, idle_at_steps, on_rank_0 = False, True, True

    def __init__(self, metrics: Sequence[str] = METRICS):
        super().__init__()
        self.metrics = tuple(metrics)

    def _on_training_start(self) -> None:
        # The values are placeholders: the tab reads the scalars of these names.
        hparams = HParam(hyperparameters(cast(HybridPPO, self.model)), dict.fromkeys(self.metrics, 0.0))
        self.logger.record("hparams", hparams, exclude=TENSORBOARD_ONLY)

    def _on_step(self) -> bool:
        return True


def hyperparameters(model: HybridPPO) -> dict[str, float | str]:
    """
    :return: the hyperparameters of the algorithm and the arguments of the environment. Every run has the same names with
        values of the same types, since TensorBoard lets one of the runs state the columns of all: what an algorithm has not
        is stated as what it amounts to, and what may be a number or not is text
    """
    assert model.env is not None
    spec, unwrapped = model.env.get_attr("spec")[0], model.env.get_attr("unwrapped")[0]
    numbers = ("n_envs", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "vf_coef")
    rates = model.component_learning_rates
    texts = {
        "algo": type(model).__name__,
        "env": type(unwrapped).__name__ if spec is None else spec.id,
        "env_kwargs": "" if spec is None else ", ".join(f"{name}={value}" for name, value in spec.kwargs.items()),
        "seed": model.seed,
        "learning_rate": model.learning_rate,
        "continuous_learning_rate": rates.get("continuous", model.learning_rate),
        "value_learning_rate": rates.get("value", model.learning_rate),
        "ent_coef": model.ent_coef_schedule,
        "temperature": model.temperature_schedule,
        "clip_range": model.clip_range,
        "target_kl": model.target_kl,
        "max_grad_norm": model.norm_limit,
        "value_beyond_horizon": model.value_beyond_horizon,
        "cross_term": getattr(model, "cross_term", False),
        "point_noise": getattr(model, "point_noise_schedule", 0.0),
        "point_std": model.point_std_schedule,
        "normalize_reward": model.normalize_reward,
        "net_arch": model.policy.net_arch,
        "linear_path": ", ".join(model.policy.linear_path),
        "quadratic_path": ", ".join(model.policy.quadratic_path),
        "linear_laws": model.policy.linear_laws,
        "linear_gain": model.policy.linear_gain,
        "softplus_beta": model.policy.softplus_beta,
        "project_points": model.policy.project_points,
        "muon": ", ".join(model.policy.muon),
    }
    values: dict[str, float | str] = {name: float(getattr(model, name)) for name in numbers}
    for name in ("pathwise_weight", "pathwise_lambda"):
        values[name] = float(getattr(model, name, 0.0))
    return values | {name: in_words(value) for name, value in texts.items()}


def in_words(value: Any) -> str:
    """
    :return: a schedule in RL Zoo's notation where it has one, and anything else as Python writes it
    """
    schedule = value.value_schedule if isinstance(value, FloatSchedule) else value
    if isinstance(schedule, ConstantSchedule):
        return f"{schedule.val:g}"
    if written := notation(schedule):
        prefix, number = written
        return f"{prefix}_{number:g}"
    return str(schedule)


class GradientQualityCallback(BaseCallback):
    """
    Logs how good the gradient estimators are at the present policy, as ``gradient/{estimator}/{network}/{metric}`` with the
    metrics of :class:`~sb3_hpo.gradients.Quality`. Training goes on as without it: scenarios are drawn from a generator of
    its own, and parameters and their gradients are left alone.

    Each measurement costs about ``n_batches * n_scenarios / model.n_envs`` iterations per estimator, without the PPO
    epochs; its time is logged as ``time/gradient_quality``.

    :param estimators: names out of :data:`~sb3_hpo.gradients.ESTIMATORS`
    :param every: iterations between measurements
    :param n_batches: independent batches per measurement, at least 2
    :param n_scenarios: scenarios per batch; as many as training has unless given
    :param options: of the estimators
    :param reference: the estimator with which ``cross_alignment`` compares
    :param seed: of the scenarios and samples; the same in every measurement
    :raises ValueError: for an unknown estimator or a count that is too small
    """

    reads_arrays, idle_at_steps, on_rank_0 = False, True, True

    def __init__(
        self,
        estimators: Sequence[str] = ("mixed", "no_cross", "cross_term"),
        *,
        every: int = 20,
        n_batches: int = 8,
        n_scenarios: int | None = None,
        options: EstimatorOptions | None = None,
        reference: str = "mixed",
        seed: int = 0,
    ):
        super().__init__()
        for name in (*estimators, reference):
            if name not in ESTIMATORS:
                raise ValueError(f"there is no estimator {name!r}; there are {', '.join(ESTIMATORS)}")
        self.estimators, self.reference, self.options, self.seed = tuple(estimators), reference, options, seed
        self.every, self.n_batches = check_count("every", every), check_count("n_batches", n_batches, minimum=2)
        self.n_scenarios = None if n_scenarios is None else check_count("n_scenarios", n_scenarios, minimum=2)
        self.iteration = 0

    def _init_callback(self) -> None:
        """
        :raises TypeError: if the environment is no HybridEnv
        :raises ValueError: under VecNormalize, whose observations the simulated policy would not see
        """
        self.env = simulated_problem(self)
        normalizer = unwrap_vec_normalize(self.training_env)
        if normalizer is not None and normalizer.norm_obs:
            raise ValueError("gradient quality cannot be measured under VecNormalize(norm_obs=True)")

    def _on_rollout_start(self) -> None:
        # At the start of a rollout no graph of the training is alive, so that memory is not needed twice.
        self.iteration += 1
        if (self.iteration - 1) % self.every:
            return
        start = time.perf_counter()
        with torch.random.fork_rng():  # for environments that draw from torch's own generator
            measured = measure_quality(
                self.env,
                self.model.policy,  # type: ignore[arg-type]
                self.estimators,
                n_batches=self.n_batches,
                n_scenarios=self.n_scenarios or max(self.training_env.num_envs, 2),
                options=self.options,
                reference=self.reference,
                generator=torch.Generator(self.env.device).manual_seed(self.seed),
            )
        for estimator, networks in measured.items():
            for network, result in networks.items():
                for metric, value in result._asdict().items():
                    self.logger.record(f"gradient/{estimator}/{network}/{metric}", value)
        self.logger.record("time/gradient_quality", time.perf_counter() - start)

    def _on_step(self) -> bool:
        return True
