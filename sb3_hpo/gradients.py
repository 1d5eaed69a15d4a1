"""
Gradients of the expected cost J(φ, κ): the exact one by enumeration, its estimators side by side, and their quality.

For any :class:`~hybrid_envs.core.HybridEnv` and any policy with ``regime_logits`` and ``candidates``, such as HPO's. Costs are
undiscounted sums over the periods of ``noise``; gradients are those of the cost, one flat vector per network. Theorem 1
(Alvo, Russo, Kanoria 2026, arXiv 2605.14297) is put together here from the two terms in :mod:`sb3_hpo.losses`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from hybrid_envs.checks import check_count
from hybrid_envs.core import HybridEnv
from sb3_hpo.losses import pathwise_loss, score_loss
from sb3_hpo.simulation import (
    HybridPolicy,
    Rollout,
    branched_returns,
    repeat_rows,
    require_exogenous_noise,
    simulate,
    simulate_relaxed,
)

__all__ = [
    "Batch",
    "EstimatorOptions",
    "Quality",
    "estimate",
    "every_sequence",
    "exact_cost",
    "exact_gradient",
    "expectation",
    "leave_one_out",
    "measure_quality",
    "quality",
    "returns",
]

NETWORKS = ("discrete", "continuous")
"""Names of the networks a gradient is taken for: ``discrete`` is φ, ``continuous`` is κ."""

MAX_SEQUENCES = 4096
"""Enumeration refuses more regime sequences than this unless told otherwise."""


Baseline = Callable[[Rollout], torch.Tensor]
"""v: from a rollout to values in units of reward, shape ``(T, batch)``. Entry (t, i) must not depend on the regimes that
scenario i takes from period t on; any function of ``rollout.observations[t]`` complies. Or a baseline for each independent
factor of a regime, shape ``(T, batch, m)``: that of factor f may see what the others take in period t."""


@dataclass(frozen=True)
class EstimatorOptions:
    """
    :param cost_to_go: whether log π(x_t | s_t) is weighted by the cost from period t on, or by that of the whole episode
    :param baseline: v; none unless given
    :param point_std: standard deviation of the score function's b, in units of the environment's ``action_scale``
    :param temperature: τ of the relaxed estimators
    :param branch_depth: see :func:`~sb3_hpo.simulation.branched_returns`
    """

    cost_to_go: bool = True
    baseline: Baseline | None = None
    point_std: float = 0.1
    temperature: float = 0.5
    branch_depth: int | None = None


# ---- the exact gradient ----------------------------------------------------------------------------------------------


def every_sequence(
    env: HybridEnv, initial_state: Any, noise: torch.Tensor, max_sequences: int = MAX_SEQUENCES
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """
    Pair every scenario with every regime sequence.

    :param initial_state: s_0 of each scenario
    :param noise: scenarios, shape ``(T, n_scenarios, ...)``
    :param max_sequences: the most sequences to enumerate
    :return: states, noise and regimes of ``n_scenarios · J^T`` rows; the rows of one scenario are adjacent. Of several
        factors J is the product of their numbers of regimes
    :raises ValueError: with the count, if J^T exceeds ``max_sequences``
    """
    horizon, n_scenarios = noise.shape[:2]
    n_regimes = math.prod(env.factors.sizes)
    count = n_regimes**horizon
    if count > max_sequences:
        raise ValueError(
            f"{env.name}: {n_regimes} regimes over {horizon} periods make {count} regime sequences, more than "
            f"max_sequences = {max_sequences}; shorten the scenarios or raise the limit"
        )
    every = torch.arange(n_regimes, device=noise.device)
    sequences = torch.cartesian_prod(*[every] * horizon).view(count, horizon).T.repeat(1, n_scenarios)
    regimes = env.factors.every(noise.device)[sequences]
    return repeat_rows(initial_state, count), noise.repeat_interleave(count, dim=1), regimes


def exact_cost(
    env: HybridEnv, policy: HybridPolicy, initial_state: Any, noise: torch.Tensor, max_sequences: int = MAX_SEQUENCES
) -> torch.Tensor:
    """
    J(φ, κ) = mean over scenarios of Σ_x P(x; φ, κ) C(x; κ), where x runs over all J^T regime sequences,
    P(x) = Π_t π_φ(x_t | s_t(κ)) and C(x) = Σ_t c_t.

    :return: scalar with gradients to φ and κ
    :raises ValueError: with the count, if there are more than ``max_sequences`` sequences; if noise depends on actions
    """
    require_exogenous_noise(env)
    state, shocks, regimes = every_sequence(env, initial_state, noise, max_sequences)
    rollout = simulate(env, policy, state, shocks, regimes=regimes)
    return -(rollout.log_probs.sum(dim=0).exp() * rollout.rewards.sum(dim=0)).sum() / noise.shape[1]


def exact_gradient(
    env: HybridEnv, policy: HybridPolicy, initial_state: Any, noise: torch.Tensor, max_sequences: int = MAX_SEQUENCES
) -> dict[str, torch.Tensor]:
    """
    ∇J by differentiating :func:`exact_cost`: no Monte Carlo, no theorem.

    :return: the gradient of each network, flattened
    """
    return _gradient(exact_cost(env, policy, initial_state, noise, max_sequences), policy)


def _gradient(loss: torch.Tensor, policy: HybridPolicy) -> dict[str, torch.Tensor]:
    """The flat gradient of each network; the parameters' own ``grad`` is left alone."""
    parameters = {name: list(policy.components[name].parameters()) for name in NETWORKS}
    flat = [parameter for network in parameters.values() for parameter in network]
    gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
    return {name: torch.cat([next(gradients).flatten() for _ in network]) for name, network in parameters.items()}


# ---- the estimators --------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What a surrogate is computed on; see :func:`estimate`."""

    env: HybridEnv
    policy: HybridPolicy
    initial_state: Any
    noise: torch.Tensor
    regimes: torch.Tensor | None
    weights: torch.Tensor
    generator: torch.Generator | None

    def play(self, **how: Any) -> Rollout:
        return simulate(*self[:4], regimes=self.regimes, generator=self.generator, **how)


def returns(rewards: torch.Tensor, cost_to_go: bool = True) -> torch.Tensor:
    """
    :param rewards: shape ``(T, batch)``
    :param cost_to_go: whether to sum from period t on; else over the whole episode
    :return: -G_t, detached, shape ``(T, batch)``
    """
    rewards = rewards.detach()
    return rewards.flip(0).cumsum(0).flip(0) if cost_to_go else rewards.sum(0).expand_as(rewards)


def leave_one_out(rollout: Rollout) -> torch.Tensor:
    """A baseline: in each period, the mean cost-to-go of the *other* scenarios, which knows nothing of this one's regimes."""
    togo = returns(rollout.rewards)
    return (togo.sum(dim=1, keepdim=True) - togo) / (togo.shape[1] - 1)


def _pathwise(batch: Batch, rewards: torch.Tensor) -> torch.Tensor:
    """Σ_i w_i Σ_t c_t; :func:`~sb3_hpo.losses.pathwise_loss` takes the mean over rows and periods."""
    return pathwise_loss(rewards * batch.weights * rewards.numel())


def _score(batch: Batch, rollout: Rollout, options: EstimatorOptions) -> torch.Tensor:
    """Σ_i w_i Σ_t log π(x_t | s_t) (G_t - v); :func:`~sb3_hpo.losses.score_loss` takes the mean."""
    advantages = returns(rollout.rewards, options.cost_to_go)
    weights, log_probs = batch.weights * advantages.numel(), rollout.log_probs
    if options.baseline is not None:
        baseline = options.baseline(rollout)
        if baseline.dim() == 3:  # one for each factor
            advantages, weights, log_probs = advantages.unsqueeze(2), weights.unsqueeze(1), rollout.factor_log_probs
        advantages = advantages - baseline
    return score_loss(log_probs, advantages * weights)


def _mixed(batch: Batch, options: EstimatorOptions, live_score: bool = True) -> torch.Tensor:
    rollout = batch.play(live_score=live_score)
    return _pathwise(batch, rollout.rewards) + _score(batch, rollout, options)


def _branched(batch: Batch, options: EstimatorOptions) -> torch.Tensor:
    """
    The mixed surrogate with Σ_j ∇π_φ(j | s_t) Q(s_t, j) for ∇log π_φ(x_t | s_t) G_t: the same mean given s_t, without the
    noise of drawing x_t, and Q from branches that differ in one regime. Of several independent factors one is summed over at a
    time, the others being as drawn.
    """
    if getattr(batch.policy, "coupling", None) is not None or batch.env.factors.active_limits is not None:
        raise ValueError("branched gradients need independent factors; these are drawn one after the other")
    rollout = batch.play()
    values = branched_returns(
        *batch[:2],
        rollout.states,
        batch.noise,
        rollout.regimes,
        depth=options.branch_depth,
        generator=batch.generator,
    )
    pi = rollout.log_pi.detach().exp()
    advantages = values - (pi * values).sum(dim=-1, keepdim=True)
    weights = pi * batch.weights.view(-1, *[1] * (pi.dim() - 2)) * rollout.rewards.numel()  # ∇π = π ∇log π
    return _pathwise(batch, rollout.rewards) + score_loss(rollout.log_pi.flatten(2), (weights * advantages).flatten(2))


def _relaxed(batch: Batch, options: EstimatorOptions, straight_through: bool) -> torch.Tensor:
    if batch.regimes is not None:
        raise ValueError("the relaxed estimators draw their own regimes; they cannot be given any")
    rewards = simulate_relaxed(
        *batch[:4], temperature=options.temperature, straight_through=straight_through, generator=batch.generator
    )
    return _pathwise(batch, rewards)


ESTIMATORS: dict[str, Callable[[Batch, EstimatorOptions], torch.Tensor]] = {
    "mixed": _mixed,
    "no_cross": partial(_mixed, live_score=False),
    "pathwise_only": lambda batch, options: _pathwise(batch, batch.play().rewards),
    "cross_term": lambda batch, options: _score(batch, batch.play(), options),
    "branched": _branched,
    "score_function": lambda batch, options: _score(batch, batch.play(point_std=options.point_std), options),
    "relaxed": partial(_relaxed, straight_through=False),
    "relaxed_straight_through": partial(_relaxed, straight_through=True),
}
"""
Surrogates whose gradient is the estimate. What each gives for κ, and for φ:

- ``mixed``: pathwise and cross term; score function. Both unbiased (Theorem 1).
- ``no_cross``: pathwise term alone, biased; score function.
- ``pathwise_only``: the same for κ; nothing for φ, since with the regimes held fixed φ moves no cost.
- ``cross_term``: the cross term alone; score function.
- ``branched``: as ``mixed``, unbiased for both, with far less noise in the score part for more simulation.
- ``score_function``: of Gaussian points around the candidates; unbiased for both, but for the cost of that noisy policy.
- ``relaxed``, ``relaxed_straight_through``: see :func:`simulate_relaxed`; biased for both.
"""


def estimate(
    name: str,
    env: HybridEnv,
    policy: HybridPolicy,
    initial_state: Any,
    noise: torch.Tensor,
    *,
    regimes: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    options: EstimatorOptions | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """
    Estimate ∇J on a batch of scenarios.

    :param name: one of ``ESTIMATORS``
    :param initial_state: s_0, leading dimension ``batch``
    :param noise: scenarios, shape ``(T, batch, ...)``
    :param regimes: regime sequences, shape ``(T, batch)``; sampled from π_φ unless given
    :param weights: of the rows, shape ``(batch,)``; ``1 / batch`` unless given
    :param options: see :class:`EstimatorOptions`
    :param generator: source of what is sampled; torch's global one unless given
    :return: the gradient of each network, flattened
    :raises ValueError: for an unknown name; if regimes are given to a relaxed estimator; if noise depends on actions
    """
    if name not in ESTIMATORS:
        raise ValueError(f"there is no estimator {name!r}; there are {', '.join(ESTIMATORS)}")
    require_exogenous_noise(env)
    if weights is None:
        weights = noise.new_full((noise.shape[1],), 1 / noise.shape[1])
    batch = Batch(env, policy, initial_state, noise, regimes, weights.detach(), generator)
    return _gradient(ESTIMATORS[name](batch, options or EstimatorOptions()), policy)


def expectation(
    name: str,
    env: HybridEnv,
    policy: HybridPolicy,
    initial_state: Any,
    noise: torch.Tensor,
    *,
    options: EstimatorOptions | None = None,
    max_sequences: int = MAX_SEQUENCES,
) -> dict[str, torch.Tensor]:
    """
    What an estimator gives on average over the regimes, Σ_x P(x) ∇L(x), without sampling: its bias is the difference to
    :func:`exact_gradient`. A baseline that looks at other rows makes no sense here.

    :return: the gradient of each network, flattened
    :raises ValueError: as :func:`estimate` and :func:`every_sequence`
    """
    state, shocks, regimes = every_sequence(env, initial_state, noise, max_sequences)
    with torch.no_grad():
        probabilities = simulate(env, policy, state, shocks, regimes=regimes).log_probs.sum(dim=0).exp()
    weights = probabilities / noise.shape[1]
    return estimate(name, env, policy, state, shocks, regimes=regimes, weights=weights, options=options)


# ---- quality ---------------------------------------------------------------------------------------------------------


class Quality(NamedTuple):
    """How batch gradients g of one estimator behave; ḡ = E g. No batch is compared with a mean that contains it."""

    alignment: float
    """Mean cosine of g with the mean of the other batches."""
    rmse: float
    """√E‖g - ḡ‖²."""
    signal_ratio: float
    """‖ḡ‖² / E‖g‖², from 0 (noise) to 1 (no noise); its estimate may fall below 0."""
    cross_alignment: float
    """Mean cosine of g with the other batches' mean of the reference estimator."""


def quality(gradients: torch.Tensor, reference: torch.Tensor) -> Quality:
    """
    :param gradients: of the same estimator on independent batches, shape ``(n_batches, d)``
    :param reference: of the reference estimator on the same batches, same shape
    :raises ValueError: for fewer than two batches
    """
    n = len(gradients)
    if n < 2:
        raise ValueError(f"quality needs at least 2 batches, got {n}")
    power = gradients.square().sum(dim=1).mean()
    # ‖ḡ‖² is the mean inner product of different batches: a batch with itself would add its noise
    signal = (gradients.sum(dim=0).square().sum() - n * power) / (n * (n - 1))
    own, other = (
        F.cosine_similarity(gradients, everyone.sum(dim=0) - everyone, dim=1).mean() for everyone in (gradients, reference)
    )
    return Quality(
        float(own),
        float((power - signal).clamp(min=0).sqrt()),
        float(signal / power.clamp(min=torch.finfo(power.dtype).tiny)),
        float(other),
    )


def measure_quality(
    env: HybridEnv,
    policy: HybridPolicy,
    estimators: Iterable[str] = tuple(ESTIMATORS),
    *,
    n_batches: int = 16,
    n_scenarios: int = 64,
    options: EstimatorOptions | None = None,
    reference: str = "mixed",
    generator: torch.Generator | None = None,
) -> dict[str, dict[str, Quality]]:
    """
    Quality of batch gradients on fresh scenarios. Costs ``n_batches`` rollouts and backward passes per estimator, and one more
    set for the reference if it is not among them.

    :param estimators: names out of ``ESTIMATORS``
    :param n_batches: independent batches
    :param n_scenarios: scenarios per batch
    :param options: see :class:`EstimatorOptions`; cost-to-go with the baseline :func:`leave_one_out` unless given
    :param reference: the estimator of ``cross_alignment``
    :param generator: source of scenarios and samples; a fresh one seeded 0 unless given
    :return: for each estimator, for each network
    """
    generator = generator or torch.Generator(env.device).manual_seed(0)
    check_count("n_scenarios", n_scenarios, 2 if options is None else 1)  # one scenario leaves nobody else's costs
    options = options or EstimatorOptions(baseline=leave_one_out)
    names = list(dict.fromkeys([*estimators, reference]))
    batches: dict[tuple[str, str], list[torch.Tensor]] = {(name, network): [] for name in names for network in NETWORKS}
    for _ in range(n_batches):
        state, noise = env.sample_scenarios(n_scenarios, generator)
        for name in names:
            gradient = estimate(name, env, policy, state, noise, options=options, generator=generator)
            for network in NETWORKS:
                batches[name, network].append(gradient[network])
    stacked = {key: torch.stack(gradients) for key, gradients in batches.items()}
    return {
        name: {network: quality(stacked[name, network], stacked[reference, network]) for network in NETWORKS}
        for name in estimators
    }
