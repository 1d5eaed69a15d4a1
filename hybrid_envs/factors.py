"""The factors of a regime: of which choices it consists, and which of them bounds which coordinate of the point."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["NO_FACTOR", "RegimeFactors"]

NO_FACTOR = -1
"""Of a coordinate of b whose bounds are the same in every regime."""


class RegimeFactors:
    """
    Of which factors a regime consists, and which of them bounds which coordinate of b.

    A ``Discrete(J)`` is one factor; regimes are tensors of shape ``(batch,)``. A ``MultiDiscrete([J_1..J_m])`` has m of them,
    each with its own choice, and regimes have shape ``(batch, m)``. What is said of each regime (logits, masks) is laid out
    *flat*, factor after factor, shape ``(batch, ΣJ_f)``, as sb3_contrib does it, or *by factor*, shape ``(batch, m, J)`` with
    J the largest J_f. With a ``Discrete(J)`` both are ``(batch, J)``.

    :param sizes: J_1..J_m; an int for a ``Discrete``
    :param factor_of: for each coordinate of b the factor that bounds it, counted from 0, or :data:`NO_FACTOR`; shape ``(n,)``
    :param active_limits: the least and the greatest number of factors that may be in another regime than 0 at once; any
        number unless given. Such a limit couples the factors: policies then draw one after the other
    :raises ValueError: naming the argument, its value and what is allowed
    """

    def __init__(
        self,
        sizes: int | Sequence[int],
        factor_of: Sequence[int] | np.ndarray,
        active_limits: tuple[int, int] | None = None,
    ):
        self.many = isinstance(sizes, Sequence)
        given = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
        least = 2 if self.many else 1
        for f, size in enumerate(given):
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
                raise ValueError(f"factor_sizes[{f}] = {size!r}: a factor has at least {least} regimes")
        if not given:
            raise ValueError("factor_sizes is empty: a regime has at least one factor")
        self.sizes = tuple(int(size) for size in given)
        self.n_factors, self.largest, self.total = len(given), max(self.sizes), sum(self.sizes)
        array = np.asarray(factor_of)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"factor_of must give one integer for each coordinate of b, got {factor_of!r}")
        unknown = np.flatnonzero((array < NO_FACTOR) | (array >= self.n_factors))
        if unknown.size:
            i, last = unknown[0], self.n_factors - 1
            raise ValueError(f"factor_of[{i}] = {array[i]} is not one of 0..{last}, nor NO_FACTOR = {NO_FACTOR}")
        self.factor_of = array.astype(np.int64)
        self.active_limits = None if active_limits is None else self._check_limits(active_limits)
        self._owner = torch.from_numpy(self.factor_of.clip(min=0))
        self._owned = torch.from_numpy(self.factor_of != NO_FACTOR).long()
        place = np.arange(self.largest) < np.array(self.sizes)[:, None]  # (m, J): where there is a regime
        self._place = torch.from_numpy(place)
        self._ragged = not place.all()

    def _check_limits(self, limits: tuple[int, int]) -> tuple[int, int]:
        valid = isinstance(limits, tuple | list) and len(limits) == 2 and all(isinstance(k, int | np.integer) for k in limits)
        if not self.many or not valid or not 0 <= limits[0] <= limits[1] or limits[0] > self.n_factors:
            raise ValueError(
                f"active_limits = {limits!r} must be two integers 0 <= least <= greatest, the least no more than the number "
                f"of factors of a MultiDiscrete, here {self.n_factors if self.many else 'a Discrete'}"
            )
        return int(limits[0]), int(limits[1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegimeFactors) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        kind = f"MultiDiscrete({list(self.sizes)})" if self.many else f"Discrete({self.sizes[0]})"
        limits = "" if self.active_limits is None else f", active_limits={self.active_limits}"
        return f"RegimeFactors({kind}, factor_of={self.factor_of.tolist()}{limits})"

    def _key(self) -> tuple[Any, ...]:
        return self.many, self.sizes, tuple(self.factor_of.tolist()), self.active_limits

    def shape(self, *batch: int) -> tuple[int, ...]:
        """
        :return: the shape of regimes with these leading dimensions
        """
        return (*batch, self.n_factors) if self.many else batch

    def columns(self, regime: torch.Tensor) -> torch.Tensor:
        """
        :param regime: x, of a Discrete shape ``(...)``, else ``(..., m)``
        :return: shape ``(..., m)``
        """
        return regime if self.many else regime.unsqueeze(-1)

    def by_factor(self, flat: torch.Tensor, fill: float | bool) -> torch.Tensor:
        """
        :param flat: one entry per regime, factor after factor, shape ``(..., ΣJ_f)``
        :param fill: what stands where a factor has fewer than J regimes
        :return: shape ``(..., m, J)``; of a Discrete as it is
        """
        if not self.many:
            return flat
        if not self._ragged:
            return flat.unflatten(-1, (self.n_factors, self.largest))
        padded = flat.new_full((*flat.shape[:-1], self.n_factors, self.largest), fill)
        return padded.masked_scatter(self._place.to(flat.device).expand_as(padded), flat)

    def one_hot(self, regime: torch.Tensor) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: 1 for the regime taken of each factor, else 0, flat, shape ``(batch, ΣJ_f)``
        """
        chosen = self.columns(regime).unsqueeze(-1) == torch.arange(self.largest, device=regime.device)
        if not self._ragged:
            return chosen.flatten(1).float()
        return chosen[:, self._place.to(regime.device)].float()

    def of_coordinates(self, regime: torch.Tensor) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: for each coordinate of b the regime of its factor, 0 where it has none, shape ``(batch, n)``
        """
        if not self.many:
            return regime.unsqueeze(-1).expand(*regime.shape, len(self.factor_of))
        return regime[..., self._owner.to(regime.device)] * self._owned.to(regime.device)

    def choose(self, candidates: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
        """
        :param candidates: for each regime j of its factor a value of each coordinate, shape ``(batch, J, n)``
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: the values in the regimes taken, shape ``(batch, n)``
        """
        return candidates.gather(1, self.of_coordinates(regime).unsqueeze(1)).squeeze(1)

    def bounds_of(self, regime: np.ndarray, action_bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :param action_bounds: shape ``(J, n, 2)``
        :return: the low and high bounds of b in these regimes, each of shape ``(batch, n)``
        """
        taken = self.of_coordinates(torch.as_tensor(regime)).numpy()
        low, high = np.moveaxis(action_bounds[taken, np.arange(taken.shape[-1])], -1, 0)
        return low, high

    def every(self, device: torch.device | None = None) -> torch.Tensor:
        """
        :return: all regimes there are, int64, shape ``(J,)``, or ``(ΠJ_f, m)`` with the last factor varying fastest
        """
        ranges = [torch.arange(size, device=device) for size in self.sizes]
        if not self.many:
            return ranges[0]
        return torch.cartesian_prod(*ranges).view(-1, self.n_factors)

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """
        :return: regimes, all equally likely, without regard to masks and limits, shape ``(batch,)`` or ``(batch, m)``
        """
        device = generator.device
        drawn = [torch.randint(size, (batch_size,), generator=generator, device=device) for size in self.sizes]
        return torch.stack(drawn, dim=1) if self.many else drawn[0]

    def spread(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        """
        :param rows: how many regimes; with the largest J_f or more of them, every regime of every factor occurs
        :param generator: shuffles factors against each other; a Discrete draws nothing from it
        :return: regimes in which each factor takes 0, 1, ... equally often, of a Discrete in this order, shape ``(rows,)`` or
            ``(rows, m)``; without regard to masks and limits
        """
        turn = torch.arange(rows, device=generator.device)
        if not self.many:
            return turn % self.sizes[0]
        shuffled = [turn[torch.randperm(rows, generator=generator, device=generator.device)] for _ in self.sizes]
        return torch.stack(shuffled, dim=1) % torch.tensor(self.sizes, device=generator.device)

    @property
    def n_deviations(self) -> int:
        """D = 1 + Σ(J_f - 1), as many as :meth:`deviations` returns."""
        return 1 + sum(size - 1 for size in self.sizes)

    def deviations(self, regime: torch.Tensor) -> torch.Tensor:
        """
        A regime and all that differ from it in one factor.

        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: shape ``(batch, D)`` or ``(batch, D, m)`` with D = 1 + Σ(J_f - 1): x itself, then for each factor
            x_f + 1, x_f + 2, ... modulo J_f
        """
        columns = self.columns(regime)
        changed = [columns]
        for f, size in enumerate(self.sizes):
            for step in range(1, size):
                other = columns.clone()
                other[..., f] = (columns[..., f] + step) % size
                changed.append(other)
        stacked = torch.stack(changed, dim=1)
        return stacked if self.many else stacked.squeeze(-1)

    def of_deviations(self, values: torch.Tensor, regime: torch.Tensor) -> torch.Tensor:
        """
        :param values: of each deviation from x, shape ``(batch, D)``
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :return: by factor: entry (f, j) is the value of x with x_f replaced by j, shape ``(batch, J)`` or ``(batch, m, J)``;
            where factor f has no regime j, that of x
        """
        sizes = torch.tensor(self.sizes, device=values.device).unsqueeze(1)  # (m, 1)
        start = (sizes - 1).cumsum(0) - (sizes - 1)
        every = torch.arange(self.largest, device=values.device)
        step = (every - self.columns(regime).unsqueeze(2)) % sizes  # (batch, m, J)
        place = torch.where((step == 0) | (every >= sizes), 0, start + step)
        found = values.gather(1, place.flatten(1)).view(place.shape)
        return found if self.many else found.squeeze(1)

    def allowed(self, regime: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``, or with ``batch * k`` rows, k of them in succession per row
        :param mask: which regimes may be taken, flat, shape ``(batch, ΣJ_f)``; all of them if ``None``
        :return: x where allowed, else the first allowed regime of the factor
        """
        if mask is None:
            return regime
        if not self.many:
            return allowed_regimes(regime, mask)
        of_factor = self.by_factor(mask, False)
        parts = [allowed_regimes(regime[:, f], of_factor[:, f]) for f in range(self.n_factors)]
        return torch.stack(parts, dim=1)

    def repaired(self, regime: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        :param regime: x, shape ``(batch,)`` or ``(batch, m)``
        :param mask: which regimes may be taken, flat, shape ``(batch, ΣJ_f)``, leaving a choice; all of them if ``None``
        :return: x where the mask and ``active_limits`` allow it, else one near it that they allow. Which factors have to give
            way to the limits, changes from row to row, so that no factor always does
        """
        x = self.allowed(regime, mask)
        if self.active_limits is None:
            return x
        if mask is None:
            mask = torch.ones((len(x), self.total), dtype=torch.bool, device=x.device)
        possible = self.by_factor(mask, False)
        (least, greatest), active = self.active_limits, x != 0
        turn = (torch.arange(self.n_factors, device=x.device) + torch.arange(len(x), device=x.device).unsqueeze(1)) % (
            self.n_factors
        )

        def first(able: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
            """So many of those that are able, in their turn."""
            place = torch.where(able, turn, self.n_factors).argsort(dim=1).argsort(dim=1)
            return able & (place < number.unsqueeze(1))

        rests = first(active & possible[..., 0], active.sum(1) - greatest)
        rises = first(~active & possible[..., 1:].any(-1), least - active.sum(1))
        risen = 1 + possible[..., 1:].int().argmax(dim=-1)
        return torch.where(rests, 0, torch.where(rises, risen, x))

    def permits(self, regime: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        :param regime: x, each factor's a regime that there is, shape ``(batch,)`` or ``(batch, m)``
        :param mask: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``; all of them if ``None``
        :return: whether the mask and ``active_limits`` allow it, bool, shape ``(batch,)``
        """
        allowed = torch.ones(len(regime), dtype=torch.bool, device=regime.device)
        if mask is not None:
            of_factor = self.by_factor(mask, False).view(len(regime), self.n_factors, self.largest)
            allowed = of_factor.gather(2, self.columns(regime).unsqueeze(2)).squeeze(2).all(dim=1)
        if self.active_limits is not None:
            least, greatest = self.active_limits
            active = (regime != 0).sum(dim=1)
            allowed = allowed & (active >= least) & (active <= greatest)
        return allowed

    def check(self, env_name: str, regime: Any, mask: np.ndarray | None = None) -> None:
        """
        :param env_name: what error messages call the environment
        :param regime: x of one action, numbers of any kind, a scalar or of shape ``(m,)``
        :param mask: which regimes may be taken, flat, bool, shape ``(ΣJ_f,)``; all of them unless given
        :raises ValueError: naming the environment, the factor, the value and what is allowed, if x is no regime, or one that
            the mask or ``active_limits`` forbid
        """
        given = np.asarray(regime)
        if given.shape != self.shape():
            if not self.many:
                raise ValueError(f"{env_name}: regime {regime} is not one of 0..{self.sizes[0] - 1}")
            raise ValueError(f"{env_name}: a regime has {self.n_factors} factors, shape {self.shape()}, got {regime!r}")
        index, start = given.astype(np.int64), 0
        for f, size in enumerate(self.sizes):
            name = f"regime[{f}] =" if self.many else "regime"
            value, x = (given[f], index[f]) if self.many else (regime, index[()])
            if x != value or not 0 <= x < size:
                raise ValueError(f"{env_name}: {name} {value} is not one of 0..{size - 1}")
            if mask is not None and not mask[start + x]:
                allowed = np.flatnonzero(mask[start : start + size]).tolist()
                raise ValueError(f"{env_name}: {name} {x} is masked in this state; allowed are {allowed}")
            start += size
        if self.active_limits is not None:
            (least, greatest), active = self.active_limits, int((index != 0).sum())
            if not least <= active <= greatest:
                raise ValueError(
                    f"{env_name}: {active} factors are in another regime than 0; allowed are {least} to {greatest}"
                )

    def leaves_a_choice(self, mask: torch.Tensor) -> torch.Tensor:
        """
        :param mask: which regimes may be taken, flat, bool, shape ``(batch, ΣJ_f)``
        :return: bool, of a Discrete shape ``(batch,)``: whether some regime is left; else shape ``(batch, m)``: whether some
            regime of the factor is left with which all factors together can keep to ``active_limits``
        """
        of_factor = self.by_factor(mask, False)
        left = of_factor.any(-1)
        if self.active_limits is not None:
            least, greatest = self.active_limits
            can, must = of_factor[..., 1:].any(-1).sum(-1), (~of_factor[..., 0]).sum(-1)
            left = left & ((can >= least) & (must <= greatest)).unsqueeze(-1)
        return left


def pad_bounds(action_bounds: np.ndarray, factors: RegimeFactors) -> np.ndarray:
    """
    Check bounds against factors. Where a coordinate's factor has no regime j, or the coordinate has no factor, row j must be
    NaN; it is filled with the coordinate's bounds in regime 0, which stand for nothing there.

    :param action_bounds: shape ``(J, n, 2)``; row j holds the bounds of each coordinate in regime j of its factor
    :param factors: of the regime
    :return: the same, float32, without NaN
    :raises ValueError: naming the coordinate and the regime
    """
    bounds = np.array(action_bounds, dtype=np.float32)
    expected = (factors.largest, len(factors.factor_of), 2)
    if bounds.ndim == 3 and bounds.shape[1] != expected[1]:
        raise ValueError(f"factor_of names {expected[1]} coordinates of b, but action_bounds has {bounds.shape[1]}")
    if bounds.shape != expected:
        raise ValueError(f"action_bounds must have shape (J, n, 2) = {expected} for {factors}, got {bounds.shape}")
    for i, f in enumerate(factors.factor_of):
        size = 1 if f == NO_FACTOR else factors.sizes[f]
        for j in range(factors.largest):
            given = not np.isnan(bounds[j, i]).all()
            if j >= size and given and not (f == NO_FACTOR and (bounds[j, i] == bounds[0, i]).all()):
                whose = "it has no factor" if f == NO_FACTOR else f"its factor {f} has {size} regimes"
                raise ValueError(
                    f"action_bounds[{j}, {i}] = {tuple(bounds[j, i].tolist())}: coordinate {i} has no regime {j}, "
                    f"since {whose}; write NaN there"
                )
        bounds[size:, i] = bounds[0, i]
    return bounds


def allowed_regimes(regime: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    :param regime: x of one factor, shape ``(batch,)``, or ``(batch * k,)`` for k of them in succession per row
    :param mask: which regimes may be taken, shape ``(batch, J)``
    :return: x where allowed, else the first allowed regime of the row
    """
    of_row = regime.view(len(mask), -1)
    first = mask.int().argmax(dim=1, keepdim=True)
    return torch.where(mask.gather(1, of_row), of_row, first).view_as(regime)
