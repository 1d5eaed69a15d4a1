"""The paper's equations: pure functions from tensors to scalars (Alvo, Russo, Kanoria 2026, arXiv 2605.14297)."""

import torch

__all__ = ["pathwise_loss", "score_loss"]


def pathwise_loss(rewards: torch.Tensor, future: torch.Tensor | None = None) -> torch.Tensor:
    """
    First term of the mixed gradient (Theorem 1): ∇_κ Σ_t c_t with the regimes held fixed.

    L = -mean_i [Σ_t r_{t,i} + v(s_{T,i})] / T

    :param rewards: rewards that carry gradients to b, shape ``(T, n_scenarios)``
    :param future: the value of what follows the last period, which carries gradients too, shape ``(n_scenarios,)``; nothing
        follows unless given
    :return: scalar, to be minimised
    """
    loss = -rewards.mean()
    return loss if future is None else loss - future.mean() / len(rewards)


def score_loss(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """
    Score function of the regimes (Theorem 1): its gradient is E Σ_t ∇ log π_φ(x_t | s_t) · (G_t - v). With respect to φ it
    is the policy gradient; with respect to κ, through live states s_t(κ), it is the cross term.

    L = -mean_{t,i} Σ_f log π_f(x_{t,i,f} | s_{t,i}) · A_{t,i,f}

    :param log_probs: of the sampled regimes, shape ``(T, n_scenarios)``, of several factors ``(T, n_scenarios, m)``
    :param advantages: in units of reward, detached here, same shape
    :return: scalar, to be minimised
    """
    weighted = log_probs * advantages.detach()
    return -(weighted if weighted.dim() == 2 else weighted.sum(dim=2)).mean()
