"""The distribution of a hybrid action: a categorical regime, and a point that follows from it."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.distributions import Categorical, Normal
from typing_extensions import Self

from hybrid_envs.spaces import pack, unpack

MASKED_LOGIT = -1e30
"""The logit of a regime that may not be taken: its probability is exactly 0. Minus infinity would turn 0·log 0 into NaN."""


def mask_logits(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """
    :param logits: of the regimes, shape ``(batch, J)``
    :param mask: which of them may be taken, bool, same shape; all of them if ``None``
    :return: the same where allowed, else :data:`MASKED_LOGIT`, which passes no gradient
    """
    return logits if mask is None else torch.where(mask, logits, MASKED_LOGIT)


def mask_tensor(masks: Any, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """
    :param masks: which regimes may be taken, as an environment's ``action_masks()`` or a caller of ``predict`` says
    :param shape: ``(batch, J)``; a mask for a batch of one may lack the first dimension
    :return: bool, of the given shape
    :raises ValueError: if the shape is another, or a row allows no regime
    """
    array = np.asarray(masks, dtype=bool)
    if array.shape == shape[1:]:
        array = array[None]
    if array.shape != shape:
        raise ValueError(f"action_masks must have shape {shape}, one entry per environment and regime, got {array.shape}")
    stuck = np.flatnonzero(~array.any(axis=1))
    if stuck.size:
        raise ValueError(f"action_masks allows no regime in environment {stuck[0]}; at least one must be left")
    return torch.as_tensor(array, device=device)


class HybridDistribution(Distribution):
    """
    π(x, b | s) = π_φ(x | s) · π_κ(b | s, x): a softmax over regimes, and around the chosen regime's candidate b^x either a
    diagonal Gaussian or, without a standard deviation, nothing: b is then the candidate itself and has no density.

    Actions are packed, shape ``(batch, 1 + n)``.
    """

    regimes: Categorical
    candidates: torch.Tensor
    std: torch.Tensor | None

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise NotImplementedError("the policy builds its networks")

    def proba_distribution(self, logits: torch.Tensor, candidates: torch.Tensor, std: torch.Tensor | None = None) -> Self:
        """
        :param logits: of the regimes, shape ``(batch, J)``
        :param candidates: b^1..b^J, shape ``(batch, J, n)``
        :param std: standard deviation of b, shape ``(n,)``; ``None`` for a deterministic point
        """
        self.regimes = Categorical(logits=logits, validate_args=False)
        self.candidates = candidates
        self.std = std
        return self

    def points(self, regime: torch.Tensor) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)``
        :return: the candidates b^x of the given regimes, shape ``(batch, n)``
        """
        return choose(self.candidates, regime)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        regime, point = unpack(actions)
        log_prob = self.regimes.log_prob(regime)
        if self.std is not None:
            log_prob = log_prob + Normal(self.points(regime), self.std, validate_args=False).log_prob(point).sum(dim=1)
        return log_prob

    def entropy(self) -> torch.Tensor:
        entropy = self.regimes.entropy()
        if self.std is not None:
            entropy = entropy + Normal(torch.zeros_like(self.std), self.std).entropy().sum()
        return entropy

    def sample(self) -> torch.Tensor:
        regime = self.regimes.sample()
        point = self.points(regime)
        return pack(regime, point if self.std is None else Normal(point, self.std, validate_args=False).rsample())

    def mode(self) -> torch.Tensor:
        regime = self.regimes.logits.argmax(dim=1)
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


def choose(candidates: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
    """
    :param candidates: one row per regime, shape ``(batch, J, n)``
    :param regime: shape ``(batch,)``
    :return: the rows of the given regimes, shape ``(batch, n)``
    """
    return candidates[torch.arange(regime.shape[0], device=regime.device), regime]
