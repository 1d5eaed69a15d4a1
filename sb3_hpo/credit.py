"""Which factor of a regime earned what: counterfactual baselines from the simulator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction

__all__ = ["Decision", "counterfactual_baseline"]

ROWS_AT_ONCE = 16_384
"""Of simulated alternatives; more at once would leave the processor's cache."""
RARE = 0.1
"""Alternatives of less probability are simulated more rarely, and count for more when they are."""


class Decision(NamedTuple):
    """What was decided in a batch of states, and what it met with; nothing carries gradients."""

    state: Any
    """s, of the environment's NamedTuple type."""
    noise: torch.Tensor
    """ξ of the period, shape ``(batch, ...)``."""
    regime: torch.Tensor
    """x, shape ``(batch, m)``."""
    context: torch.Tensor
    """What b depends on beside x, shape ``(batch, ...)``: the candidates, or the observation."""
    probabilities: torch.Tensor
    """π_f(j | s), shape ``(batch, m, J)``; 0 where factor f may not take j."""


def joined(decisions: list[Decision]) -> Decision:
    """
    :return: all of them as one batch
    """

    def together(parts: tuple[Any, ...]) -> Any:
        first = parts[0]
        return torch.cat(parts) if isinstance(first, torch.Tensor) else type(first)(*map(torch.cat, zip(*parts, strict=True)))

    return Decision(*map(together, zip(*decisions, strict=True)))


@torch.no_grad()
def counterfactual_baseline(
    env: HybridEnv,
    decision: Decision,
    point_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    outcome_value: Callable[[StepResult], torch.Tensor],
    rare: float = RARE,
) -> torch.Tensor:
    """
    For each factor of a regime, what the others' choices were worth on average over its own (counterfactual baseline:
    Foerster et al. 2018), with one period simulated for every alternative in the scenario that was met:

    B_f(s, x_{-f}) = Σ_j π_f(j | s) q(s, x_{-f}, j) = q(s, x) + Σ_{j ≠ x_f} π_f(j | s) (q(s, x_{-f}, j) - q(s, x))

    with q = r(s, x, b^x, ξ) + γ v(s'). It does not depend on x_f, so that G - B_f instead of G - v(s) leaves the score
    function of independent factors unbiased, whatever v is. What the other factors did to the period's cost, and through v to
    later ones, is gone from it.

    An alternative of probability p below ``rare`` is simulated with probability p / ``rare``, and its term is divided by that:
    on average the same, and most of the work is saved once the policy has made up its mind.

    :param env: the problem
    :param decision: a batch of them
    :param point_of: from the context and regimes to b, shape ``(rows, n)``
    :param outcome_value: q, from the result of a step, shape ``(rows,)``
    :param rare: 0 to simulate every alternative
    :return: B, in the units of q, shape ``(batch, m)``
    """

    def value(rows: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
        values = []
        for part, x in zip(rows.split(ROWS_AT_ONCE), regime.split(ROWS_AT_ONCE), strict=True):
            state = type(decision.state)(*(field[part] for field in decision.state))
            action = HybridAction(x, point_of(decision.context[part], x))
            values.append(outcome_value(env.step_torch(state, action, decision.noise[part])))
        return torch.cat(values)

    of_others = decision.probabilities.scatter(2, decision.regime.unsqueeze(2), 0.0)
    share = (of_others / rare).clamp(max=1.0) if rare else (of_others > 0).to(of_others.dtype)
    row, factor, j = (torch.rand_like(share) < share).nonzero().unbind(1)
    taken = value(torch.arange(len(decision.regime), device=row.device), decision.regime)
    baseline = taken.unsqueeze(1).expand_as(decision.regime).clone()
    if len(row):
        alternative = decision.regime[row]
        alternative[torch.arange(len(row), device=row.device), factor] = j
        weight = of_others[row, factor, j] / share[row, factor, j]
        baseline.index_put_((row, factor), weight * (value(row, alternative) - taken[row]), accumulate=True)
    return baseline
