"""Where demand comes from: a distribution, an array of scenarios, or a CSV file of sales history."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count
from hybrid_envs.resampling import resample
from hybrid_envs.sales import read_sales_file

SPLITS = ("train", "validation", "test")


class Windows(NamedTuple):
    """Recorded demand as scenarios."""

    demand: np.ndarray
    """Shape ``(windows, horizon, items)``."""
    past: np.ndarray
    """The periods before, the latest first, shape ``(windows, history, items)``."""
    calendar: np.ndarray
    """What is known ahead of each period, as it is observed, shape ``(windows, horizon, c)``."""
    mean: np.ndarray
    """Mean demand per period, where there is a split that of the training periods; shape ``(items,)``."""
    items: list[str]
    """What a file calls them; empty of an array."""


def sales_windows(
    path: str | Path,
    horizon: int,
    history: int = 0,
    calendar: Mapping[str, float | None] | None = None,
    split: str | None = None,
    split_shares: Sequence[float] = (0.6, 0.2, 0.2),
    dates: str | None = None,
    resampled: int = 0,
) -> Windows:
    """
    Every window of ``horizon`` consecutive periods of a file of sales is one scenario. The periods of a window lie in one part
    of the split; those before it, which the policy may have seen by then, may reach back into an earlier part.

    :param path: as :func:`read_sales_file`
    :param horizon: periods of a window
    :param history: periods before it
    :param calendar: columns that are known ahead: ``None`` for one that is observed as it is, or the length of its cycle, 52
        for the week of the year, for one that is observed as sine and cosine
    :param split: ``"train"``, ``"validation"`` or ``"test"``: the first, second or third part of the periods; ``None`` for all
    :param split_shares: of the three parts
    :param dates: a column that says when a row was, as :func:`~hybrid_envs.sales.read_sales_file`
    :param resampled: if it is not 0, so many windows of resampled sales take the place of the recorded ones
    :raises ValueError: naming the argument, its value and what is allowed
    """
    calendar = check_calendar(calendar)
    file = read_sales_file(path, tuple(calendar), dates)
    sales = file.sales
    features = [np.empty((len(sales), 0))]
    for column, cycle in zip(file.calendar.T, calendar.values(), strict=True):
        angle = column if cycle is None else 2 * np.pi * column / cycle
        features.append(column[:, None] if cycle is None else np.column_stack([np.sin(angle), np.cos(angle)]))
    known = np.concatenate(features, axis=1)
    first, last, known_until = part_of_split(len(sales), split, split_shares)
    starts = np.arange(max(first, history), last - horizon + 1)
    if not len(starts):
        of = "rows" if split is None else f"rows of {split!r}"
        need = f"horizon = {horizon}" + (f" and history = {history}" if history else "")
        raise ValueError(f"{path}: {last - first} {of}, fewer than {need}")
    rows = starts[:, None] + np.arange(-history, horizon)
    if check_count("resampled", resampled, minimum=0):
        if first > 0:
            raise ValueError(f"resampled = {resampled} is for training, got split = {split!r}")
        rows = rows[np.random.default_rng(0).integers(len(rows), size=resampled)]
        demand = resample(sales[:last], known[:last], rows)
    else:
        demand = sales[rows]
    return Windows(
        demand[:, history:],
        demand[:, :history][:, ::-1],
        known[rows[:, history:]],
        mean_sales(sales[rows[:, history:]] if split is None else sales[None, :known_until]),
        file.items,
    )


def check_calendar(calendar: Mapping[str, float | None] | None) -> dict[str, float | None]:
    """
    :return: the argument as a dictionary
    :raises ValueError: if it is no mapping of columns to ``None`` or the length of a cycle
    """
    if calendar is None:
        return {}
    if not isinstance(calendar, Mapping):
        raise ValueError(f"calendar must map columns to None or the length of a cycle, got {calendar!r}")
    for name, cycle in calendar.items():
        if isinstance(cycle, str):
            raise ValueError(f"calendar[{name!r}] = {cycle!r}: must be a number or None")
        if cycle is not None:
            check_array(f"calendar[{name!r}]", cycle, (), above=0.0)
    return dict(calendar)


def check_split(split: str | None) -> None:
    """
    :raises ValueError: unless it is ``None`` or one of :data:`SPLITS`
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be None or one of {', '.join(map(repr, SPLITS))}, got {split!r}")


def part_of_split(n_periods: int, split: str | None, shares: Sequence[float]) -> tuple[int, int, int]:
    """
    :param split: one of :data:`SPLITS`, or ``None`` for all periods
    :return: the first period of the part, the one after its last, and where ends what may be known beforehand: the training
        part, or without a split all of it
    :raises ValueError: for another split, and unless the shares are three positive numbers that add up to 1
    """
    parts = check_array("split_shares", shares, (len(SPLITS),), above=0.0)
    if np.ndim(shares) != 1 or abs(parts.sum() - 1) > 1e-9:
        raise ValueError(f"split_shares must be three numbers that add up to 1, got {shares!r}")
    check_split(split)
    if split is None:
        return 0, n_periods, n_periods
    ends = [0, *np.rint(np.cumsum(parts) * n_periods).astype(int).tolist()]
    part = SPLITS.index(split)
    return ends[part], ends[part + 1], ends[1]


def demand_scenarios(source: np.ndarray | str | Path, n_items: int | None, horizon: int) -> np.ndarray:
    """
    :param source: demand scenarios, shape ``(scenarios, periods, items)``, or the path of a CSV file of sales history,
        whose every window of ``horizon`` consecutive periods is one scenario
    :param n_items: the number of items expected, ``None`` for whatever the source holds
    :param horizon: the number of periods needed; of longer scenarios the first are used
    :return: shape ``(scenarios, horizon, items)``
    :raises ValueError: if the shape does not fit or a value is negative or not finite
    """
    if isinstance(source, str | Path):
        demand = sales_windows(source, horizon).demand
    else:
        try:
            demand = np.asarray(source, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"demand must be numeric, of shape (scenarios, periods, items): {error}") from error
        if demand.ndim != 3 or 0 in demand.shape:
            raise ValueError(f"demand must have shape (scenarios, periods, items), got {demand.shape}")
        if demand.shape[1] < horizon:
            raise ValueError(f"demand has {demand.shape[1]} periods, fewer than horizon = {horizon}")
        demand = demand[:, :horizon]
        invalid = np.argwhere(~(np.isfinite(demand) & (demand >= 0)))
        if len(invalid):
            s, t, i = (int(k) for k in invalid[0])
            raise ValueError(f"demand[{s}, {t}, {i}] = {demand[s, t, i]}: must be finite and >= 0")
    require_items(demand, n_items)
    return demand


def require_items(demand: np.ndarray, n_items: int | None) -> None:
    """
    :raises ValueError: if the data, shape ``(..., items)``, holds another number of items than expected
    """
    if n_items is not None and demand.shape[-1] != n_items:
        raise ValueError(f"demand holds {demand.shape[-1]} items, but n_items = {n_items}")


class Demand(NamedTuple):
    """Where demand comes from; arrays have shape ``(n_items,)``."""

    source: str
    """The name of a distribution, or ``"data"``."""
    windows: Windows | None
    """Of data."""
    mean: np.ndarray
    std: np.ndarray
    poisson_like: bool
    """Whether the standard deviation is the root of the mean, whatever the mean."""


def read_demand(
    demand: str | Path | np.ndarray,
    distributions: tuple[str, ...],
    horizon: int,
    n_items: int | None,
    mean_demand: float | np.ndarray | None,
    demand_std: float | np.ndarray | None,
    *,
    default_items: int,
    default_mean: Callable[[int], np.ndarray],
    history: int = 0,
    calendar: Mapping[str, float | None] | None = None,
    split: str | None = None,
    split_shares: Sequence[float] = (0.6, 0.2, 0.2),
    dates: str | None = None,
    resampled: int = 0,
) -> Demand:
    """
    Check an environment's arguments about demand, and fill in what they leave open.

    :param demand: the name of a distribution, or a source as :func:`demand_scenarios` takes it
    :param distributions: the names allowed
    :param horizon: the number of periods needed
    :param n_items: the data's number, or ``default_items``, unless given
    :param mean_demand: of each item; that of the data, or ``default_mean(n_items)``, unless given
    :param demand_std: of normal demand; the root of the mean unless given
    :param history: periods of demand before the first; of scenarios given as an array, the first ones
    :param calendar: columns of a file, as :func:`sales_windows`
    :param split: of a file, likewise
    :param split_shares: likewise
    :param dates: likewise
    :param resampled: likewise
    :raises ValueError: naming the argument, its value and what is allowed
    """
    check_count("horizon", horizon)
    check_count("history", history, minimum=0)
    check_split(split)
    if n_items is not None:
        check_count("n_items", n_items)
    windows: Windows | None = None
    if isinstance(demand, str) and demand in distributions:
        source = demand
    elif isinstance(demand, str) and not Path(demand).suffix:
        names = ", ".join(map(repr, distributions))
        raise ValueError(f"demand must be {names}, an array or the path of a CSV file, got {demand!r}")
    else:
        source = "data"
        if isinstance(demand, str | Path):
            windows = sales_windows(demand, horizon, history, calendar, split, split_shares, dates, resampled)
            require_items(windows.demand, n_items)
        else:
            scenarios = demand_scenarios(demand, n_items, history + horizon)
            past, scenarios = scenarios[:, :history][:, ::-1], scenarios[:, history:]
            windows = Windows(scenarios, past, np.empty((*scenarios.shape[:2], 0)), mean_sales(scenarios), [])
        n_items = windows.demand.shape[2]
    for name, value in (("split", split), ("calendar", calendar), ("dates", dates), ("resampled", resampled or None)):
        if value is not None and not (source == "data" and isinstance(demand, str | Path)):
            raise ValueError(f"{name} = {value!r} is of a file of sales, got demand that is none")
    n_items = n_items or default_items
    if mean_demand is None:
        mean_demand = default_mean(n_items) if windows is None else windows.mean
    mean = check_array("mean_demand", mean_demand, (n_items,), above=0.0)
    if demand_std is not None and source != "normal":
        raise ValueError(f"demand_std = {demand_std} is only for demand = 'normal', got demand = {source!r}")
    std = check_array("demand_std", np.sqrt(mean) if demand_std is None else demand_std, (n_items,), at_least=0.0)
    return Demand(source, windows, mean, std, demand_std is None)


def mean_sales(scenarios: np.ndarray) -> np.ndarray:
    """
    :param scenarios: recorded demand, shape ``(n, horizon, n_items)``
    :return: its mean per period, shape ``(n_items,)``; 1 for an item that never sold, which is so measured in units
    """
    sold = scenarios.mean(axis=(0, 1))
    return np.where(sold > 0, sold, 1.0)


def sample_demand(
    distribution: str, mean: torch.Tensor, std: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    """
    :param distribution: ``"poisson"``, ``"normal"`` (truncated at 0) or ``"uniform"`` (on the integers 0 to twice the mean)
    :param mean: shape ``(n_items,)``, or what spreads to ``shape``
    :param std: of normal demand, likewise
    :param shape: ``(..., n_items)``
    :param generator: the only source of randomness
    :return: independent demands of the given shape
    """
    if distribution == "poisson":
        return torch.poisson(mean.expand(shape), generator=generator)
    if distribution == "normal":
        standard = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return (mean + std * standard).clamp(min=0)
    share = torch.rand(shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return (share * (2 * mean + 1)).floor().minimum(2 * mean)  # in float32 the product may round up to the next integer


def some_rows(scenarios: torch.Tensor, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """
    :param scenarios: recorded demand, shape ``(n, horizon, n_items)``
    :param generator: the only source of randomness
    :return: which scenarios are drawn, with replacement, int64, shape ``(batch,)``
    """
    return torch.randint(len(scenarios), (batch_size,), generator=generator, device=scenarios.device)


def interrupted(demand: torch.Tensor, zero_share: float, generator: torch.Generator) -> torch.Tensor:
    """
    :param demand: any shape
    :param zero_share: the probability that nothing is demanded in a period
    :return: the same demand, but 0 in that share of it; the generator is not touched if the share is 0
    """
    if zero_share == 0:
        return demand
    return demand * (torch.rand(demand.shape, generator=generator, device=demand.device) >= zero_share)


def synthetic_sales(
    n_periods: int,
    n_items: int,
    *,
    mean: float | np.ndarray = 10.0,
    trend: float = 0.0,
    season: float = 0.0,
    season_length: int = 52,
    autocorrelation: float = 0.0,
    disturbance: float = 0.0,
    zero_share: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """
    Sales with the features of real ones: counts, Poisson about the level μ (1 + trend t / T) (1 + season sin(2π t / length +
    phase)) exp(e - σ²/2), where e is a stationary autoregression and the phase differs from item to item, and interrupted at
    random.

    :param n_periods: T
    :param n_items: p
    :param mean: μ of a period, the interrupted ones counted, scalar or ``(n_items,)``
    :param trend: growth over all periods, relative, more than -1
    :param season: amplitude, relative, between 0 and 1
    :param season_length: in periods
    :param autocorrelation: of e, from one period to the next, between -1 and 1
    :param disturbance: σ, the standard deviation of e
    :param zero_share: the probability that nothing is sold in a period
    :param seed: of all of it
    :return: sales, shape ``(n_periods, n_items)``
    :raises ValueError: naming the argument, its value and what is allowed
    """
    shape = check_count("n_periods", n_periods), check_count("n_items", n_items)
    level = check_array("mean", mean, (n_items,), above=0.0) / (1 - check_share("zero_share", zero_share))
    check_array("trend", trend, (), above=-1.0)
    check_share("season", season)
    check_array("disturbance", disturbance, (), at_least=0.0)
    if not -1 < autocorrelation < 1:
        raise ValueError(f"autocorrelation = {autocorrelation}: must be between -1 and 1")
    rng = np.random.default_rng(seed)
    t = np.arange(n_periods)[:, None]
    phase = rng.uniform(0, 2 * np.pi, n_items)
    wave = 1 + season * np.sin(2 * np.pi * t / check_count("season_length", season_length) + phase)
    e = rng.standard_normal(shape)
    for k in range(1, n_periods):
        e[k] = autocorrelation * e[k - 1] + math.sqrt(1 - autocorrelation**2) * e[k]
    rate = level * (1 + trend * t / n_periods) * wave * np.exp(disturbance * e - disturbance**2 / 2)
    return rng.poisson(rate) * (rng.uniform(size=shape) >= zero_share).astype(np.float64)


def check_share(name: str, value: float) -> float:
    """
    :return: the value
    :raises ValueError: naming the argument, if it is not at least 0 and below 1
    """
    if not 0 <= float(check_array(name, value, ())) < 1:
        raise ValueError(f"{name} = {value}: must be at least 0 and below 1")
    return float(value)
