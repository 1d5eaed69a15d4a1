"""The distribution of a hybrid action: a categorical regime, and a point that follows from it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F
from typing_extensions import Self

from hybrid_envs.factors import RegimeFactors
from hybrid_envs.spaces import pack, unpack
from sb3_hpo.ranks import drawn

MASKED_LOGIT = -1e30
"""The logit of a regime that may not be taken: its probability is exactly 0. Minus infinity would turn 0·log 0 into NaN."""


def mask_logits(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    :param logits: of the regimes, flat, shape ``(batch, ΣJ_f)``
    :param mask: which of them may be taken, bool, same shape; all of them if ``None``
    :return: the same where allowed, else :data:`MASKED_LOGIT`, which passes no gradient
    """
    return logits if mask is None else torch.where(mask, logits, MASKED_LOGIT)


def mask_tensor(masks: Any, batch_size: int, factors: RegimeFactors, device: torch.device) -> torch.Tensor:
    """
    :param masks: which regimes may be taken, as an environment's ``action_masks()`` or a caller of ``predict`` says, flat; for
        a batch of one it may lack the first dimension
    :param batch_size: number of environments
    :param factors: of the regime
    :return: bool, shape ``(batch, ΣJ_f)``
    :raises ValueError: if the shape is another, or a row allows no regime of some factor
    """
    array, shape = np.asarray(masks, dtype=bool), (batch_size, factors.total)
    if array.shape == shape[1:]:
        array = array[None]
    if array.shape != shape:
        raise ValueError(f"action_masks must have shape {shape}, one entry per environment and regime, got {array.shape}")
    mask = torch.as_tensor(array, device=device)
    choice = factors.leaves_a_choice(mask)
    if not choice.all():
        row, *factor = (~choice).nonzero()[0].tolist()
        which = f" of factor {factor[0]}" if factor else ""
        if factor and not choice[row].any():
            which = " of any factor, or none with which all of them keep to active_limits,"
        raise ValueError(f"action_masks allows no regime{which} in environment {row}; at least one must be left")
    return mask


class Coupling(nn.Module):
    """
    What makes the factors of a regime depend on each other: the logits of factor f are raised by Σ_{g<f} W_{f,g} e(x_g), with
    e(x_g) the one-hot choice of factor g. W is 0 at first.

    :param factors: of the regime
    """

    def __init__(self, factors: RegimeFactors):
        super().__init__()
        size = factors.n_factors * factors.largest
        self.weight = nn.Parameter(torch.zeros(size, size))
        of_factor = torch.arange(size) // factors.largest
        self.before: torch.Tensor
        self.register_buffer("before", of_factor.unsqueeze(1) < of_factor)

    def forward(self, choices: torch.Tensor) -> torch.Tensor:
        """
        :param choices: one-hot, by factor, shape ``(batch, m, J)``
        :return: what is added to the logits, same shape
        """
        return (choices.flatten(1) @ (self.weight * self.before)).view_as(choices)


class Categorical:
    """
    A choice out of J, or several: what is needed of :class:`torch.distributions.Categorical`, in fewer and fused steps.

    :param logits: shape ``(..., J)``; none of them infinite
    """

    def __init__(self, logits: torch.Tensor):
        # Of several factors, many short rows: torch takes them side by side if J is not the last dimension, in a third of the
        # time.
        several = logits.dim() > 2
        self.logits = logits.mT.log_softmax(dim=-2).mT if several else logits.log_softmax(dim=-1)

    @property
    def probs(self) -> torch.Tensor:
        return self.logits.exp()

    def log_prob(self, chosen: torch.Tensor) -> torch.Tensor:
        """
        :param chosen: shape ``(...)``
        """
        return self.logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        return -(self.probs * self.logits).sum(dim=-1)


class RegimeDistribution:
    """
    π_φ(x | s). Factors are drawn independently, π(x | s) = Π_f π_f(x_f | s), unless ``active_limits`` or a
    :class:`Coupling` ties them together: then one after the other, π(x | s) = Π_f π_f(x_f | s, x_1..x_{f-1}).

    :param logits: of the regimes, flat, shape ``(batch, ΣJ_f)``
    :param factors: of the regime
    :param mask: which regimes may be taken, flat, bool, same shape; all of them unless given
    :param coupling: of the factors; none unless given
    """

    def __init__(
        self,
        logits: torch.Tensor,
        factors: RegimeFactors,
        mask: torch.Tensor | None = None,
        coupling: Coupling | None = None,
    ):
        self.factors, self.coupling = factors, coupling
        self.logits = factors.by_factor(mask_logits(logits, mask), MASKED_LOGIT)
        self.sequential = coupling is not None or factors.active_limits is not None
        self.independent = None if self.sequential else Categorical(self.logits)

    def given(self, regime: torch.Tensor) -> Categorical:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: the distribution of each factor, given those of x before it; batch shape ``(batch,)`` or ``(batch, m)``
        """
        if self.independent is not None:
            return self.independent
        logits = self.logits
        if self.coupling is not None:
            coupled = logits + self.coupling(F.one_hot(regime, self.factors.largest).to(logits.dtype))
            logits = torch.where(logits > MASKED_LOGIT, coupled, logits)
        if self.factors.active_limits is not None:
            logits = self._within_limits(logits, regime)
        return Categorical(logits)

    def _within_limits(self, logits: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
        """Forbid what would leave the factors behind no way to keep to ``active_limits``."""
        assert self.factors.active_limits is not None
        least, greatest = self.factors.active_limits
        possible = self.logits > MASKED_LOGIT
        active, can, must = regime != 0, possible[..., 1:].any(-1), ~possible[..., 0]
        before = active.cumsum(1) - active.long()
        can_later, must_later = (later.flip(1).cumsum(1).flip(1) - later.long() for later in (can, must))
        rest_allowed = before + can_later >= least
        active_allowed = before + 1 + must_later <= greatest
        allowed = active_allowed.unsqueeze(-1).repeat(1, 1, logits.shape[-1])
        allowed[..., 0] = rest_allowed
        return torch.where(allowed, logits, MASKED_LOGIT)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """
        :param generator: source of randomness; torch's global one unless given
        :return: x, shape ``(batch,)`` or ``(batch, m)``
        """
        if self.factors.many and not self.sequential:  # many short rows at once, for which the race below would be slow
            uniform = partial(torch.rand, generator=generator, device=self.logits.device)
            return self.draw_by(drawn(self.logits.shape[:-1], uniform))

        def draw(of_factor: Categorical) -> torch.Tensor:
            # A race: the first of clocks with these rates to ring. So does torch.multinomial, which then looks at the result:
            # not where a GPU should not be waited for, and not before the rollout says which period went wrong.
            probabilities = of_factor.probs
            clocks = drawn(probabilities.shape, lambda shape: probabilities.new_empty(shape).exponential_(generator=generator))
            return (probabilities / clocks).argmax(dim=-1)

        return self._pick(draw)

    def draw_by(self, uniform: torch.Tensor) -> torch.Tensor:
        """
        :param uniform: numbers in [0, 1), one for each factor, shape ``(batch,)`` or ``(batch, m)``
        :return: x, by the inverse of each factor's distribution function, shape ``(batch,)`` or ``(batch, m)``
        """
        columns = iter(uniform.unbind(1) if self.sequential else (uniform,))
        return self._pick(lambda of_factor: inverse_cdf(of_factor.probs, next(columns)))

    def mode(self) -> torch.Tensor:
        """
        :return: the likeliest regime, of each factor in turn, shape ``(batch,)`` or ``(batch, m)``
        """
        return self._pick(lambda of_factor: of_factor.logits.argmax(dim=-1))

    @torch.no_grad()
    def _pick(self, pick: Callable[[Categorical], torch.Tensor]) -> torch.Tensor:
        if self.independent is not None:
            return pick(self.independent)
        x = torch.zeros(self.logits.shape[:-1], dtype=torch.int64, device=self.logits.device)
        for f in range(self.factors.n_factors):
            x[:, f] = pick(Categorical(self.given(x).logits[:, f]))
        return x

    def log_prob(self, regime: torch.Tensor) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: log π_f(x_f | s), or given the factors before it, same shape; log π(x | s) is the sum over factors
        """
        return self.given(regime).log_prob(regime)


def inverse_cdf(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """
    :param probabilities: rows that sum to 1 but for rounding, shape ``(..., J)``
    :param uniform: numbers in [0, 1), shape ``(...)``
    :return: of each row the first index up to which the sum exceeds u; never one of probability 0
    """
    # In float64 a float32 u < 1 keeps u times the sum below the sum.
    sums = probabilities.double().cumsum(dim=-1)
    return (sums <= uniform.double().unsqueeze(-1) * sums[..., -1:]).sum(dim=-1)


class HybridDistribution(Distribution):
    """
    π(x, b | s) = π_φ(x | s) · π_κ(b | s, x): a softmax over the regimes of each factor, and around the chosen regime's
    candidate b^x either a diagonal Gaussian or, without a standard deviation, nothing: b is then the candidate itself and has
    no density.

    Actions are packed, shape ``(batch, m + n)``. Log-probabilities and entropies are those of the whole action, shape
    ``(batch,)``, or apart for each of its *components*, shape ``(batch, K)``: the factors of the regime, and behind them, for
    each factor that bounds coordinates of b, the density of these, and that of those without a factor.

    :param factors: of the regime; a Discrete's unless given
    :param by_component: whether components are told apart
    """

    regimes: RegimeDistribution
    points: Callable[[torch.Tensor], torch.Tensor]
    """From regimes x, shape ``(batch,)`` or ``(batch, m)``, to the b around which the point is drawn, shape ``(batch, n)``."""
    std: torch.Tensor | None

    def __init__(self, factors: RegimeFactors | None = None, by_component: bool = False):
        super().__init__()
        self.factors, self.by_component = factors, by_component

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise NotImplementedError("the policy builds its networks")

    def proba_distribution(
        self,
        logits: torch.Tensor,
        candidates: torch.Tensor | Callable[[torch.Tensor], torch.Tensor],
        std: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        coupling: Coupling | None = None,
    ) -> Self:
        """
        :param logits: of the regimes, flat, shape ``(batch, ΣJ_f)``
        :param candidates: b^1..b^J, shape ``(batch, J, n)``, or a function from regimes to their points
        :param std: standard deviation of b, shape ``(n,)``; ``None`` for a deterministic point
        :param mask: which regimes may be taken, flat, bool; all of them unless given
        :param coupling: of the factors; none unless given
        """
        if self.factors is None:
            assert isinstance(candidates, torch.Tensor)
            self.factors = RegimeFactors(logits.shape[1], np.zeros(candidates.shape[2], np.int64))
        self.regimes = RegimeDistribution(logits, self.factors, mask, coupling)
        self.points = partial(self.factors.choose, candidates) if isinstance(candidates, torch.Tensor) else candidates
        self.std = std
        return self

    def _put_together(self, of_factors: torch.Tensor, of_points: torch.Tensor | None) -> torch.Tensor:
        """
        :param of_factors: shape ``(batch,)`` or ``(batch, m)``
        :param of_points: of each coordinate, shape ``(batch, n)``; ``None`` without a density
        """
        assert self.factors is not None
        if self.by_component:
            columns = self.factors.columns(of_factors)
            if of_points is None:
                return columns if self.factors.many else of_factors
            owners = [torch.as_tensor(self.factors.factor_of == f) for f in np.unique(self.factors.factor_of)]
            blocks = [of_points[:, owned.to(of_points.device)].sum(dim=1, keepdim=True) for owned in owners]
            return torch.cat([columns, *blocks], dim=1)
        total = of_factors.sum(dim=1) if self.factors.many else of_factors
        return total if of_points is None else total + of_points.sum(dim=1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        regime, point = unpack(actions, self.factors)
        density = None
        if self.std is not None:
            density = Normal(self.points(regime), self.std, validate_args=False).log_prob(point)
        return self._put_together(self.regimes.log_prob(regime), density)

    def entropy(self, actions: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param actions: packed, drawn from this distribution: where factors are drawn one after the other, their entropies are
            those given the choices before; new ones are drawn unless given
        """
        if self.regimes.independent is None:
            regime = self.regimes.sample() if actions is None else unpack(actions, self.factors).regime
            of_factors = self.regimes.given(regime).entropy()
        else:
            of_factors = self.regimes.independent.entropy()
        density = None
        if self.std is not None:
            density = Normal(torch.zeros_like(self.std), self.std).entropy().expand(len(of_factors), -1)
        return self._put_together(of_factors, density)

    def sample(self) -> torch.Tensor:
        regime = self.regimes.sample()
        point = self.points(regime)
        return pack(regime, point if self.std is None else Normal(point, self.std, validate_args=False).rsample())

    def mode(self) -> torch.Tensor:
        regime = self.regimes.mode()
        return pack(regime, self.points(regime))

    def actions_from_params(
        self, logits: torch.Tensor, candidates: torch.Tensor, std: torch.Tensor | None = None, deterministic: bool = False
    ) -> torch.Tensor:
        return self.proba_distribution(logits, candidates, std).get_actions(deterministic)

    def log_prob_from_params(
        self, logits: torch.Tensor, candidates: torch.Tensor, std: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        actions = self.actions_from_params(logits, candidates, std)
        return actions, self.log_prob(actions)
