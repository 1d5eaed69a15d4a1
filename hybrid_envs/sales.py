"""A file of sales: one row per period, one column per item, others that say when, or what is known ahead."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybrid_envs.tables import read_number, read_rows

FORMATS: dict[str, tuple[re.Pattern[str], Callable[[str], float]]] = {
    "days": (re.compile(r"\d{4}-\d\d-\d\d"), lambda cell: date.fromisoformat(cell).toordinal()),
    "weeks": (re.compile(r"\d{4}-W\d\d"), lambda cell: date.fromisocalendar(int(cell[:4]), int(cell[6:]), 1).toordinal()),
    "months": (re.compile(r"\d{4}-\d\d"), lambda cell: 12 * int(cell[:4]) + date(int(cell[:4]), int(cell[5:]), 1).month),
    "numbers": (re.compile(r"-?\d+"), float),
}
"""How a cell may say when, and what it is as a number: days, of a week its Monday, or months, or the number itself."""
UNITS: dict[tuple[str | None, float], str] = {
    ("days", 1): "day",
    ("days", 7): "week",
    ("weeks", 7): "week",
    ("months", 1): "month",
}
EXPECTED = "a date (2026-01-31), a week (2026-W05), a month (2026-01) or a whole number"


class SalesFile(NamedTuple):
    """What a file of sales holds."""

    items: list[str]
    sales: np.ndarray
    """Shape ``(periods, items)``."""
    calendar: np.ndarray
    """The columns that were asked for, as numbers, shape ``(periods, columns)``."""
    periods: list[str]
    """What each is called: its cell in the column of dates, or its row in the file."""
    unit: str
    """What a period is: a day, week or month, where the dates say so, else a period."""


def read_sales_file(path: str | Path, calendar: Sequence[str] = (), dates: str | None = None) -> SalesFile:
    """
    Read a CSV file with one header line (item names) and one row per period.

    :param path: the file
    :param calendar: names of the columns that are no items
    :param dates: the column that says when a row was; rows must follow each other at equal distances. It is no item either
    :raises ValueError: naming the row and column of a missing, non-numeric, non-finite or negative cell, of a date that is
        none, is there twice, goes back or leaves a gap; and a column that there is not; of the calendar, numbers may be
        negative
    :raises FileNotFoundError: if there is no such file
    """
    header, rows = read_rows(path, "a header of item names and at least one row of sales")
    others = dict.fromkeys((*calendar, *([dates] if dates is not None else [])))
    for name in others:
        if name not in header:
            kind = "calendar" if name in calendar else "dates"
            raise ValueError(f"{path}: {kind} column {name!r} is there 0 times; columns are {header}")
    items = [name for name in header if name not in others]
    if not items:
        raise ValueError(f"{path}: every column is of the calendar or of dates, none is an item")
    numbered = list(rows)
    columns = dict(zip(header, zip(*(row for _, row in numbered), strict=True), strict=True))
    lines = [number for number, _ in numbered]

    def numbers(name: str, least: float) -> list[float]:
        return [
            read_number(f"{path}: row {line}, column {name!r}", cell, at_least=least)
            for line, cell in zip(lines, columns[name], strict=True)
        ]

    unit, values = "period", dict[str, list[float]]()
    if dates is not None:
        values[dates], unit = _read_dates(path, dates, lines, columns[dates])
    values |= {name: numbers(name, -math.inf) for name in others if name not in values}
    return SalesFile(
        items,
        np.array([numbers(name, 0.0) for name in items]).T,
        np.column_stack([np.empty((len(lines), 0)), *(values[name] for name in calendar)]),
        [f"row {line}" for line in lines] if dates is None else [cell.strip() for cell in columns[dates]],
        unit,
    )


def _ends_month(cell: str) -> bool:
    return (date.fromisoformat(cell.strip()) + timedelta(days=1)).day == 1


def _read_dates(path: str | Path, name: str, lines: list[int], cells: Sequence[str]) -> tuple[list[float], str]:
    """When the rows were, as numbers, and how far they are apart."""

    def where(k: int) -> str:
        return f"{path}: row {lines[k]}, column {name!r}: {cells[k]!r}"

    kinds = [next((kind for kind, (form, _) in FORMATS.items() if form.fullmatch(cell.strip())), None) for cell in cells]
    values = []
    for k, (kind, cell) in enumerate(zip(kinds, cells, strict=True)):
        if kind is None:
            raise ValueError(f"{where(k)} is not {EXPECTED}")
        if kind != kinds[0]:
            raise ValueError(f"{where(k)} is written otherwise than {cells[0]!r} in row {lines[0]}")
        try:
            values.append(FORMATS[kind][1](cell.strip()))
        except ValueError as error:
            raise ValueError(f"{where(k)} is not in the calendar: {error}") from error
    counted, kind = values, kinds[0]
    if kind == "days" and len(cells) > 2 and (len({cell.strip()[8:] for cell in cells}) == 1 or all(map(_ends_month, cells))):
        counted, kind = [FORMATS["months"][1](cell.strip()[:7]) for cell in cells], "months"  # the same day of every month
    steps = [after - before for before, after in pairwise(counted)]
    forward = [step for step in steps if step > 0]
    usual = Counter(forward).most_common(1)[0][0] if forward else 1.0
    first: dict[float, int] = {}
    for k, value in enumerate(counted):
        if value in first:
            raise ValueError(f"{where(k)} is there before, in row {lines[first[value]]}")
        first[value] = k
        if k and steps[k - 1] < 0:
            raise ValueError(f"{where(k)} follows {cells[k - 1]!r}; rows must go forward in time")
        if k and steps[k - 1] != usual:
            missing = steps[k - 1] / usual - 1
            whole = missing > 0 and missing == int(missing)
            gap = f"{missing:g} missing between" if whole else "another distance than elsewhere"
            raise ValueError(f"{where(k)} follows {cells[k - 1]!r}: {gap}; rows must be equally far apart in time")
    return values, UNITS.get((kind, usual), "period")
