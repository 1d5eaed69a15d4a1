"""The parts of a policy's networks: layers, what is added beside them, and the tower of candidate points."""

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import nn
from torch.nn import functional as F

__all__ = ["Component", "LawMixture", "QuadraticPath", "Tower"]

LARGE_BATCH = 2**14
"""Numbers in a batch from which on a detour of the arithmetic pays."""


class Tower(nn.Module):
    """
    The head of β_κ: makes one candidate point per regime out of a raw output z, feasible by construction. Coordinate by
    coordinate: z·scale if unbounded, low + scale·softplus(z) or high - scale·softplus(z) if bounded on one side, and
    low + (high - low)·sigmoid(z) on an interval.

    Projected onto its bounds a point is low + scale·max(z + ln 2, 0), or low + (high - low)·(1/2 + z/4) clipped to the
    interval, the same for z = 0. On a bound the gradient of clipping is 0, whatever would be better, and so a point that was
    once driven there would stay for ever. There z follows the gradient with respect to the point wherever that leads back
    inside, as in projected gradient descent ("zeroing gradients": Hausknecht, Stone 2016, arXiv 1511.04143).

    :param bounds: shape ``(J, n, 2)``, infinite where unbounded
    :param scale: typical magnitude of b, shape ``(n,)``
    :param softplus_beta: β of log(1 + exp(β z')) / β, torch's softplus: the larger, the sharper is the corner where points
        leave their bound, as in (S - stock)⁺. z' = z + c, so that z = 0 is the same point for every β
    :param projected: whether points are projected onto their bounds
    """

    def __init__(self, bounds: np.ndarray, scale: np.ndarray, softplus_beta: float = 1.0, projected: bool = False):
        super().__init__()
        self.projected = projected
        self.beta = softplus_beta
        self.shift = math.log(2) + math.log1p(-(2.0**-softplus_beta)) / softplus_beta
        low, high = torch.as_tensor(bounds).unbind(-1)
        has_low, has_high = low.isfinite(), high.isfinite()
        self.n_regimes, self.action_size = low.shape
        interval, one_sided = has_low & has_high, has_low ^ has_high
        spread = torch.as_tensor(scale).expand_as(low)
        # base + slope · squash(z), where squash depends on the kind of bounds
        self.base: torch.Tensor
        self.slope: torch.Tensor
        self.interval: torch.Tensor
        self.one_sided: torch.Tensor
        self.register_buffer("base", torch.where(has_low, low, torch.where(has_high, high, 0.0)))
        slope = torch.where(interval, high - low, torch.where(has_high & ~has_low, -spread, spread))
        over = interval & (low + slope > high)  # low + (high - low) may round to the next number above high
        slope = torch.where(over, slope.nextafter(torch.zeros_like(slope)), slope)
        self.register_buffer("slope", slope.contiguous())
        self.register_buffer("interval", interval)
        self.register_buffer("one_sided", one_sided)
        # Mostly all are of one kind, but for those with one possible value, where it does not matter how z is squashed.
        fixed, bounded = bounds[..., 0] == bounds[..., 1], np.isfinite(bounds).sum(axis=-1)
        self.has_interval, self.all_interval = bool(((bounded == 2) & ~fixed).any()), bool((fixed | (bounded == 2)).all())
        self.has_one_sided, self.all_one_sided = bool((bounded == 1).any()), bool((fixed | (bounded == 1)).all())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """
        :param z: raw outputs, shape ``(batch, J * n)``
        :return: candidates, shape ``(batch, J, n)``
        """
        z = z.unflatten(1, (self.n_regimes, self.action_size))
        squashed = z
        if self.has_interval:
            share = self._share(z)
            squashed = share if self.all_interval else torch.where(self.interval, share, z)
        if self.has_one_sided:
            excess = self._excess(z)
            squashed = excess if self.all_one_sided else torch.where(self.one_sided, excess, squashed)
        return self.base + self.slope * squashed

    def _share(self, z: torch.Tensor) -> torch.Tensor:
        """Of an interval, in [0, 1]."""
        return project(0.5 + z / 4, 0.0, 1.0) if self.projected else torch.sigmoid(z)

    def _excess(self, z: torch.Tensor) -> torch.Tensor:
        """Over a bound, in units of the scale."""
        if self.projected:
            return project(z + math.log(2), 0.0, math.inf)
        return F.softplus(z + self.shift if self.shift else z, self.beta)


class _Projection(torch.autograd.Function):
    """Clipping, with a gradient wherever a step against it leads back inside."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(z)
        ctx.low, ctx.high = low, high
        return z.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (z,) = ctx.saved_tensors
        outwards = ((z < ctx.low) & (gradient > 0)) | ((z > ctx.high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def project(z: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """
    :return: z clipped to [low, high]. What is minimised by its gradient comes back from beyond the ends
    """
    # A graph that is exported needs no way back.
    return z.clamp(low, high) if torch.compiler.is_compiling() else _Projection.apply(z, low, high)


class _TanhBySigmoid(torch.autograd.Function):
    """tanh x = 2 σ(2x) - 1, to rounding errors of 2e-7, in the place of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        y = x.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


class Tanh(nn.Tanh):
    """
    The activation, which on a CPU takes the way by the sigmoid: there torch's tanh costs as much as a layer of 128 units, on
    processors that its library was not written for. Small batches would not gain by it. It overwrites what it is given, which
    no linear layer needs on the way back.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A graph is exported for batches of any size, so that it cannot depend on theirs.
        exporting = torch.compiler.is_compiling()
        by_sigmoid = not exporting and x.device.type == "cpu" and x.numel() >= LARGE_BATCH
        return _TanhBySigmoid.apply(x) if by_sigmoid else super().forward(x)


QUADRATIC_FLOOR = 0.1
"""Root mean square of the features below which a quadratic path is quadratic, and above which it grows as they do."""

LAW_SPREAD = 0.02
"""Standard deviation of the weights of several linear laws when training begins."""


class QuadraticPath(nn.Module):
    """
    W₂ (W₁ f)² / √(mean f² + floor²): any quadratic form of the features, which layers of units find hard to learn in many
    dimensions. Far from the origin it grows in proportion to f, so that one state far off does not outweigh all others.

    :param features_dim: d, the length of f; there are 2·d squares
    :param output_size: length of the output
    """

    def __init__(self, features_dim: int, output_size: int):
        super().__init__()
        self.directions = nn.Linear(features_dim, 2 * features_dim, bias=False)
        self.output = nn.Linear(2 * features_dim, output_size, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        size = (features.square().mean(dim=1, keepdim=True) + QUADRATIC_FLOOR**2).sqrt()
        return self.output(self.directions(features).square() / size)


class LawMixture(nn.Module):
    """
    Σ_k g_k W_k f with gates g = softmax(G h + q(f)), q a :class:`QuadraticPath`: a few linear laws, and where each of them
    holds. Of this kind are optimal controls of switched linear systems: a linear law for each sequence of modes to come, and
    quadratic forms that choose among sequences.

    :param features_dim: d, the length of f
    :param hidden_size: length of h, which the hidden layers have made of f
    :param output_size: length of the output
    :param n_laws: K
    """

    def __init__(self, features_dim: int, hidden_size: int, output_size: int, n_laws: int):
        super().__init__()
        self.gate = nn.Linear(hidden_size, n_laws)
        self.quadratic = QuadraticPath(features_dim, n_laws)
        self.laws = nn.Linear(features_dim, n_laws * output_size, bias=False)
        self.n_laws = n_laws

    def forward(self, features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        gates = torch.softmax(self.gate(hidden) + self.quadratic(features), dim=1)
        return torch.einsum("bk,bko->bo", gates, self.laws(features).unflatten(1, (self.n_laws, -1)))


class Component(nn.Module):
    """
    One of the three networks: features extractor, hidden layers, output; if asked for, with a linear and a quadratic path
    beside the hidden layers. The output is standardised: ``mean + std · raw``, with mean 0 and standard deviation 1 until
    they are set.

    :param extractor: from the observation to features
    :param output_size: length of the output
    :param hidden: sizes of the hidden layers
    :param activation_fn: between them
    :param linear_path: whether to add a linear function of the features to the output
    :param quadratic_path: whether to add a :class:`QuadraticPath` to it
    :param further_inputs: how many numbers are appended to the features
    :param n_laws: if there is a linear path, and they are several, to add a :class:`LawMixture` of so many to it
    :param linear_gain: by how much the linear path's output is multiplied
    """

    def __init__(
        self,
        extractor: BaseFeaturesExtractor,
        output_size: int,
        hidden: list[int],
        activation_fn: type[nn.Module],
        linear_path: bool,
        quadratic_path: bool = False,
        further_inputs: int = 0,
        n_laws: int = 1,
        linear_gain: float = 1.0,
    ):
        super().__init__()
        self.extractor = extractor
        n_inputs = extractor.features_dim + further_inputs
        activation_fn = Tanh if activation_fn is nn.Tanh else activation_fn
        self.hidden = nn.Sequential(*create_mlp(n_inputs, -1, hidden, activation_fn))
        hidden_size = hidden[-1] if hidden else n_inputs
        self.output = nn.Linear(hidden_size, output_size)
        self.linear = nn.Linear(n_inputs, output_size, bias=False) if linear_path else None
        self.linear_gain = linear_gain
        self.mixture = LawMixture(n_inputs, hidden_size, output_size, n_laws) if linear_path and n_laws > 1 else None
        self.quadratic = QuadraticPath(n_inputs, output_size) if quadratic_path else None
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(features)
        raw = self.output(hidden)
        if self.linear is not None:
            raw = torch.addmm(raw, features, self.linear.weight.T, alpha=self.linear_gain)
        if self.mixture is not None:
            raw = raw + self.mixture(features, hidden)
        if self.quadratic is not None:
            raw = raw + self.quadratic(features)
        return torch.addcmul(self.mean, self.std, raw)

    def output_layers(self) -> list[nn.Linear]:
        """
        :return: the layers whose outputs add up to the raw output, but for the gain; the first has the bias
        """
        laws = None if self.mixture is None else self.mixture.laws
        quadratic = None if self.quadratic is None else self.quadratic.output
        return [layer for layer in (self.output, self.linear, laws, quadratic) if layer is not None]
