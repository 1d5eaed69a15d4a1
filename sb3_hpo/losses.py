"""The paper's equations: pure functions from tensors to scalars (Alvo, Russo, Kanoria 2026, arXiv 2605.14297)."""

import torch

__all__ = ["pathwise_loss", "score_loss"]


def pathwise_loss(rewards: torch.Tensor, values: torch.Tensor | None = None, lambda_: float = 1.0) -> torch.Tensor:
    """
    First term of the mixed gradient (Theorem 1): ∇_κ Σ_t c_t with the regimes held fixed.

    L = -mean_i [Σ_t r_{t,i} + v(s_{T,i}) + (1/λ - 1) Σ_t v(s_{t+1,i})] / T

    With λ = 1 the last sum is nothing. Else every gradient that flows back from period t + 1 to period t has to be multiplied
    by λ; then b_t maximises its λ-return, Σ_k λ^k [r_{t+k} + (1 - λ) v(s_{t+k+1})], with v(s_T) alone in the last period.

    :param rewards: rewards that carry gradients to b, shape ``(T, n_scenarios)``
    :param values: of the states that the periods led to, which carry gradients too, shape ``(T, n_scenarios)``; if λ = 1 those
        of the last do, ``(1, n_scenarios)``; nothing follows unless given
    :param lambda_: λ, in (0, 1]
    :return: scalar, to be minimised
    """
    loss = -rewards.mean()
    if values is None:
        return loss
    loss = loss - values[-1].mean() / len(rewards)
    return loss if lambda_ == 1 else loss - (1 / lambda_ - 1) * values.mean()


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
