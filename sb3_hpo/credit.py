"""Which factor of a regime earned what: counterfactual baselines from the simulator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction

__all__ = ["Decision", "counterfactual_baseline"]

ROWS_AT_ONCE = 16_384
"""Of simulated alternatives; more at once would leave the processor's cache."""


class Decision(NamedTuple):
    """What was decided in a batch of states, and what it met with; nothing carries gradients."""

    state: Any
    """s, of the environment's NamedTuple type."""
    noise: torch.Tensor
    """ξ of the period, shape ``(batch, ...)``."""
    regime: torch.Tensor
    """x, shape ``(batch, m)``."""
    candidates: torch.Tensor
    """b for each regime of each coordinate's factor, shape ``(batch, J, n)``."""
    probabilities: torch.Tensor
    """π_f(j | s), shape ``(batch, m, J)``; 0 where factor f may not take j."""
    mask: torch.Tensor | None
    """Which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; all of them if ``None``."""


def joined(decisions: list[Decision]) -> Decision:
    """
    :return: all of them as one batch
    """

    def together(parts: tuple[Any, ...]) -> Any:
        first = parts[0]
        if first is None:
            return None
        return torch.cat(parts) if isinstance(first, torch.Tensor) else type(first)(*map(torch.cat, zip(*parts, strict=True)))

    return Decision(*map(together, zip(*decisions, strict=True)))


@torch.no_grad()
def counterfactual_baseline(
    env: HybridEnv, decision: Decision, outcome_value: Callable[[StepResult], torch.Tensor]
) -> torch.Tensor:
    """
    For each factor of a regime, what the others' choices were worth on average over its own (counterfactual baseline:
    Foerster et al. 2018), with one period simulated for every alternative in the scenario that was met:

    B_f(s, x_{-f}) = Σ_j π_f(j | s) q(s, x_{-f}, j),    q = r(s, x, b^x, ξ) + γ v(s')

    It does not depend on x_f, so that G - B_f instead of G - v(s) leaves the score function of independent factors unbiased,
    whatever v is. What the other factors did to the period's cost, and through v to later ones, is gone from it.

    :param env: the problem
    :param decision: a batch of them
    :param outcome_value: q, from the result of a step, shape ``(rows,)``
    :return: B, in the units of q, shape ``(batch, m)``
    """
    factors = env.factors
    every = factors.deviations(decision.regime)  # (batch, D, m)
    batch, n_deviations = every.shape[:2]
    values = []
    for rows in torch.arange(batch, device=every.device).split(max(ROWS_AT_ONCE // n_deviations, 1)):

        def repeated(field: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            return field[rows].repeat_interleave(n_deviations, dim=0)

        regime = every[rows].flatten(0, 1)
        if decision.mask is not None:  # what may not be taken has probability 0, and is not executed
            regime = factors.allowed(regime, repeated(decision.mask))
        state = type(decision.state)(*(repeated(field) for field in decision.state))
        point = factors.choose(repeated(decision.candidates), regime)
        values.append(outcome_value(env.step_torch(state, HybridAction(regime, point), repeated(decision.noise))))
    q = factors.of_deviations(torch.cat(values).view(batch, n_deviations), decision.regime)
    return (decision.probabilities * q).sum(dim=-1)
