"""Which factor of a regime earned what: counterfactual baselines from the simulator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from hybrid_envs.core import HybridEnv, StepResult
from hybrid_envs.spaces import HybridAction

__all__ = ["Decision", "counterfactual_baseline"]

ROWS_AT_ONCE = 4_096
"""Of simulated alternatives; more at once would leave the processor's cache."""


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
    redrawn: torch.Tensor
    """x', drawn from π(· | s) as x was, and independently of it, same shape."""


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
) -> torch.Tensor:
    """
    For each factor of a regime, what the others' choices would have been worth had it been drawn anew (counterfactual
    baseline: Foerster et al. 2018, with one draw for its sum), from one simulated period in the scenario that was met:

    B_f = q(s, x_{-f}, x'_f), with q = r(s, x, b^x, ξ) + γ v(s')

    It does not depend on x_f, so that G - B_f instead of G - v(s) leaves the score function of independent factors unbiased,
    whatever v is. What the other factors did to the period's cost, and through v to later ones, is gone from it. Factors that
    are drawn as before need no simulation: most of them, once the policy has made up its mind.

    :param env: the problem
    :param decision: a batch of them
    :param point_of: from the context and regimes to b, shape ``(rows, n)``
    :param outcome_value: q, from the result of a step, shape ``(rows,)``
    :return: B, in the units of q, shape ``(batch, m)``
    """

    def value(rows: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
        values = []
        for part, x in zip(rows.split(ROWS_AT_ONCE), regime.split(ROWS_AT_ONCE), strict=True):
            state = type(decision.state)(*(field[part] for field in decision.state))
            action = HybridAction(x, point_of(decision.context[part], x))
            values.append(outcome_value(env.step_torch(state, action, decision.noise[part])))
        return torch.cat(values)

    row, factor = (decision.redrawn != decision.regime).nonzero().unbind(1)
    taken = value(torch.arange(len(decision.regime), device=row.device), decision.regime)
    baseline = taken.unsqueeze(1).expand_as(decision.regime).clone()
    if len(row):
        alternative = decision.regime[row]
        alternative[torch.arange(len(row), device=row.device), factor] = decision.redrawn[row, factor]
        baseline[row, factor] = value(row, alternative)
    return baseline
