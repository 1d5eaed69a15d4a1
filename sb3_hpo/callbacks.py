"""Callbacks that watch training."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from hybrid_envs.core import HybridEnv, check_count
from hybrid_envs.evaluation import Policy, evaluate
from sb3_hpo.gradients import ESTIMATORS, EstimatorOptions, measure_quality


class CostCallback(BaseCallback):
    """
    Evaluates the deterministic policy on held-out scenarios before, during and after training, and logs ``eval/cost`` (its
    mean figure of merit) and, where the environment offers a reference policy, ``eval/optimality_gap``: the excess over the
    cost of the reference on the same scenarios, relative to it.

    The curve is kept in ``steps`` and ``costs``.

    :param env: whose scenarios, figure of merit and reference are used
    :param every: environment steps between evaluations
    :param n_scenarios: held-out scenarios
    :param seed: of the scenarios; the same in every evaluation
    :param gap: whether to measure the gap
    :param reference: against which policy; ``env.reference_policy()`` unless given, which takes some seconds to find
    """

    def __init__(
        self,
        env: HybridEnv,
        every: int,
        n_scenarios: int = 256,
        seed: int = 10_000,
        gap: bool = True,
        reference: Policy | None = None,
    ):
        super().__init__()
        self.reference = reference
        self.eval_env, self.every = env, check_count("every", every)
        self.n_scenarios, self.seed, self.gap = check_count("n_scenarios", n_scenarios), seed, gap
        self.reference_cost: float | None = None
        self.steps: list[int] = []
        self.costs: list[float] = []

    def _on_training_start(self) -> None:
        if self.gap and self.reference is None:
            self.reference = self.eval_env.reference_policy()
        if self.gap and self.reference is not None:
            self.reference_cost = self._cost(self.reference)

    def _on_rollout_start(self) -> None:
        if not self.steps or self.num_timesteps - self.steps[-1] >= self.every:
            self._measure()

    def _on_training_end(self) -> None:
        self._measure()

    def _on_step(self) -> bool:
        return True

    def _cost(self, policy: Policy) -> float:
        return float(evaluate(self.eval_env, policy, self.n_scenarios, self.seed).mean())

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The model's action, which under VecNormalize is a function of the scaled observation."""
        normalizer = self.model.get_vec_normalize_env()
        return self.model.predict(
            observation if normalizer is None else normalizer.normalize_obs(observation), *args, **kwargs
        )

    def _measure(self) -> None:
        self.steps.append(self.num_timesteps)
        self.costs.append(self._cost(self))
        self.logger.record("eval/cost", self.costs[-1])
        if self.reference_cost is not None:
            self.logger.record("eval/optimality_gap", (self.costs[-1] - self.reference_cost) / abs(self.reference_cost))


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
        env = self.training_env.get_attr("unwrapped")[0]
        if not isinstance(env, HybridEnv):
            raise TypeError(f"gradients are measured by simulation; {env} is not a hybrid_envs.HybridEnv")
        normalizer = unwrap_vec_normalize(self.training_env)
        if normalizer is not None and normalizer.norm_obs:
            raise ValueError("gradient quality cannot be measured under VecNormalize(norm_obs=True)")
        self.env = env

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
