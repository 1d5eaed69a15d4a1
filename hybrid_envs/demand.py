"""Where demand comes from: a distribution, an array of scenarios, or a CSV file of sales history."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hybrid_envs.checks import check_array, check_count


def read_sales_history(path: str | Path) -> np.ndarray:
    """
    Read a CSV file with one header line (item names) and one row per period.

    :param path: the file
    :return: sales, shape ``(periods, items)``
    :raises ValueError: naming the row and column of a missing, non-numeric, non-finite or negative cell
    :raises FileNotFoundError: if there is no such file
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    while rows and not rows[-1]:
        rows.pop()
    if len(rows) < 2:
        raise ValueError(f"{path}: expected a header of item names and at least one row of sales, got {len(rows)} line(s)")
    header, body = rows[0], rows[1:]
    history = np.empty((len(body), len(header)))
    for r, row in enumerate(body):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {r + 2} has {len(row)} cells, the header has {len(header)}")
        for c, cell in enumerate(row):
            try:
                history[r, c] = float(cell)
            except ValueError:
                history[r, c] = math.nan
            if not (math.isfinite(history[r, c]) and history[r, c] >= 0):
                raise ValueError(f"{path}: row {r + 2}, column {header[c]!r}: {cell!r} is not a finite number >= 0")
    return history


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
        history = read_sales_history(source)
        if len(history) < horizon:
            raise ValueError(f"{source}: {len(history)} rows, fewer than horizon = {horizon}")
        demand = np.lib.stride_tricks.sliding_window_view(history, horizon, axis=0).transpose(0, 2, 1)
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
    if n_items is not None and demand.shape[2] != n_items:
        raise ValueError(f"demand holds {demand.shape[2]} items, but n_items = {n_items}")
    return demand


class Demand(NamedTuple):
    """Where demand comes from; arrays have shape ``(n_items,)``."""

    source: str
    """The name of a distribution, or ``"data"``."""
    scenarios: np.ndarray | None
    """Of data, shape ``(scenarios, horizon, n_items)``."""
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
) -> Demand:
    """
    Check an environment's arguments about demand, and fill in what they leave open.

    :param demand: the name of a distribution, or a source as :func:`demand_scenarios` takes it
    :param distributions: the names allowed
    :param horizon: the number of periods needed
    :param n_items: the data's number, or ``default_items``, unless given
    :param mean_demand: of each item; that of the data, or ``default_mean(n_items)``, unless given
    :param demand_std: of normal demand; the root of the mean unless given
    :raises ValueError: naming the argument, its value and what is allowed
    """
    check_count("horizon", horizon)
    if n_items is not None:
        check_count("n_items", n_items)
    if isinstance(demand, str) and demand in distributions:
        source, scenarios = demand, None
    elif isinstance(demand, str) and not Path(demand).suffix:
        names = ", ".join(map(repr, distributions))
        raise ValueError(f"demand must be {names}, an array or the path of a CSV file, got {demand!r}")
    else:
        source, scenarios = "data", demand_scenarios(demand, n_items, horizon)
        n_items = scenarios.shape[2]
    n_items = n_items or default_items
    if mean_demand is None:
        mean_demand = default_mean(n_items) if scenarios is None else mean_sales(scenarios)
    mean = check_array("mean_demand", mean_demand, (n_items,), above=0.0)
    if demand_std is not None and source != "normal":
        raise ValueError(f"demand_std = {demand_std} is only for demand = 'normal', got demand = {source!r}")
    std = check_array("demand_std", np.sqrt(mean) if demand_std is None else demand_std, (n_items,), at_least=0.0)
    return Demand(source, scenarios, mean, std, demand_std is None)


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


def replay_demand(scenarios: torch.Tensor, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """
    :param scenarios: recorded demand, shape ``(n, horizon, n_items)``
    :param generator: the only source of randomness
    :return: scenarios drawn with replacement, shape ``(horizon, batch, n_items)``
    """
    rows = torch.randint(len(scenarios), (batch_size,), generator=generator, device=scenarios.device)
    return scenarios[rows].transpose(0, 1)
