"""Where net load comes from: a typical day with disturbances, or an hourly record of demand and renewables."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybrid_envs.demand import part_of_split
from hybrid_envs.sales import read_sales_file

HOURS = 24
COLUMNS = ["hour", "demand", "renewables"]
PERSISTENCE = 0.9
DEMAND_ERROR, RENEWABLE_ERROR = 0.05, 0.25  # standard deviations of the generated series, relative to their means


@dataclass(frozen=True)
class NetLoad:
    """
    Demand less renewables: in hour h of the day it is mean_h + std_h·z. The deviation z is 0 before an episode and follows
    z' = ρz + ξ, where the surprise ξ has mean 0 and variance 1 - ρ².
    """

    mean: np.ndarray
    """kW, shape ``(24,)``."""
    std: np.ndarray
    """kW, shape ``(24,)``."""
    persistence: float
    """ρ, from 0 to below 1."""
    recorded: np.ndarray | None = None
    """Surprises ξ of recorded days, shape ``(scenarios, horizon)``; ``None`` where they are Gaussian and independent."""

    @property
    def surprise(self) -> float:
        """The standard deviation of ξ, √(1 - ρ²)."""
        return math.sqrt(1 - self.persistence**2)

    @property
    def peak(self) -> float:
        """The unit in which net load is observed and reference instances are sized: its highest mean, kW."""
        return float(self.mean.max())


def generated_net_load(peak_demand: float, renewable_share: float) -> NetLoad:
    """
    A day with a morning and an evening peak of demand and the sun between 6 and 18 h. Errors of demand and renewables are
    independent, 5 % and 25 % of their means.

    :param peak_demand: the evening's, kW
    :param renewable_share: the sun's output at noon, as a share of ``peak_demand``
    """
    hour = np.arange(HOURS)
    demand = peak_demand * (0.5 + 0.25 * np.exp(-(((hour - 8) / 2.5) ** 2)) + 0.5 * np.exp(-(((hour - 19) / 3) ** 2)))
    renewables = peak_demand * renewable_share * np.maximum(np.sin(np.pi * (hour - 6) / 12), 0)
    return NetLoad(demand - renewables, np.hypot(DEMAND_ERROR * demand, RENEWABLE_ERROR * renewables), persistence=PERSISTENCE)


def recorded_net_load(
    series: str | Path | np.ndarray,
    horizon: int,
    split: str | None = None,
    split_shares: Sequence[float] = (0.6, 0.2, 0.2),
) -> NetLoad:
    """
    :param series: a CSV file with the columns hour, demand and renewables and one row per hour, none left out; or an array of
        shape ``(hours, 2)``, demand and renewables from midnight on
    :param horizon: length of a scenario; each begins at midnight of another day
    :param split: ``"train"``, ``"validation"`` or ``"test"``: scenarios from the first, second or third part of the record;
        ``None`` for all of it
    :param split_shares: of the three parts
    :return: means, standard deviations and persistence are those of the record, where there is a split those of its first part
    :raises ValueError: naming the row and column of a missing, non-numeric, non-finite or negative cell, a gap in the hours,
        wrong columns, and records without a whole scenario
    """
    if isinstance(series, str | Path):
        record = _read_hours(series)
        source = str(series)
    else:
        try:
            source, values = "series", np.asarray(series, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"series must be numeric, of shape (hours, 2), or the path of a CSV file: {error}") from error
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"series must have shape (hours, 2), demand and renewables, got {values.shape}")
        invalid = np.argwhere(~(np.isfinite(values) & (values >= 0)))
        if len(invalid):
            t, column = (int(k) for k in invalid[0])
            raise ValueError(f"series[{t}, {column}] = {values[t, column]}: {COLUMNS[1 + column]} must be finite and >= 0")
        record = np.column_stack([np.arange(len(values)) % HOURS, values])
    hour, net = record[:, 0].astype(int), record[:, 1] - record[:, 2]
    first, last, known = part_of_split(len(net), split, split_shares)
    begin = np.arange(len(net))
    starts = np.flatnonzero((hour == 0) & (begin >= first) & (begin + horizon <= last))
    if not len(starts) or known < HOURS:
        of = "rows" if split is None else f"rows of {split!r}"
        raise ValueError(
            f"{source}: {last - first} {of} hold no {max(horizon, HOURS)} hours from midnight on, horizon = {horizon}"
        )
    past, past_hour = net[:known], hour[:known]
    mean, std = (np.array([statistic(past[past_hour == h]) for h in range(HOURS)]) for statistic in (np.mean, np.std))
    std = np.where(std > 0, std, 1.0)  # an hour that never varied in training may do so later
    deviation = (net - mean[hour]) / std[hour]
    if mean.max() <= 0:
        raise ValueError(f"{source}: the highest mean net load is {mean.max():g} in hour {mean.argmax()}; it must be > 0")
    then = deviation[:known]
    power = float((then**2).mean())
    persistence = float(np.clip((then[1:] * then[:-1]).mean() / power, 0.0, 0.999)) if power > 0 else 0.0
    days = deviation[starts[:, None] + np.arange(horizon)]
    surprises = np.column_stack([days[:, 0], days[:, 1:] - persistence * days[:, :-1]])
    return NetLoad(mean, std, persistence, recorded=surprises)


def _read_hours(path: str | Path) -> np.ndarray:
    """Rows of hour, demand and renewables, shape ``(rows, 3)``, the hours without a gap."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    if header != COLUMNS:
        raise ValueError(f"{path}: the columns must be {', '.join(COLUMNS)}, got {', '.join(header) or 'an empty line'}")
    record = read_sales_file(path).sales
    expected = (record[0, 0] + np.arange(len(record))) % HOURS
    wrong = np.flatnonzero(record[:, 0] != (expected if record[0, 0] == int(record[0, 0]) < HOURS else np.nan))
    if len(wrong):
        r = int(wrong[0])
        allowed = f"{expected[r]:g} was to follow: a gap or a repetition" if r else "it must be one of 0..23"
        raise ValueError(f"{path}: row {r + 2}, column 'hour': {record[r, 0]:g}; {allowed}")
    return record
