"""Instances that differ from scenario to scenario: arguments that are distributions, or columns of a table of products."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid_envs.checks import check_array
from hybrid_envs.tables import read_number, read_rows

POSITIVE = ("mean_demand",)
"""Arguments that must exceed 0; all others may be 0."""
LABEL = "item"
"""The column of a table that names its products; of a table of costs, whose rows belong to the items of a file of sales."""


@dataclass(frozen=True)
class Uniform:
    """
    An argument that is drawn in every scenario, uniformly between two bounds. As plain data, in YAML for instance, it is the
    mapping ``{uniform: [low, high]}``.

    :param low: scalar, or one for each item
    :param high: likewise, at least ``low``
    """

    low: float | np.ndarray
    high: float | np.ndarray


Drawable = float | np.ndarray | Uniform | Mapping[str, Any]
"""A number, or one for each item, or a distribution of such."""
Table = str | Path | Mapping[str, Any]
"""The path of a CSV file with one row for each product, or its columns by name."""


class Instances:
    """
    What of a problem differs from scenario to scenario, and how it is drawn: the arguments that are distributions for each
    item by itself; those that are columns of the table by drawing a row, a product, for each item, with replacement.

    :param owner: the environment's class, whose signature says what an argument is where nobody gave it
    :param arguments: those that may differ, by name
    :param table: of products, its columns named as the arguments; ``None`` for none
    :param costs: a file with one row for each item, likewise
    :param of_item: the arguments that may be columns of ``costs``
    :raises ValueError: naming the argument or the cell, its value and what is allowed
    :raises FileNotFoundError: if there is no such file
    """

    def __init__(
        self,
        owner: type,
        arguments: dict[str, Any],
        table: Table | None,
        costs: str | Path | None = None,
        of_item: tuple[str, ...] = (),
    ):
        self.columns = {} if table is None else read_products(table, tuple(arguments))
        self.costs, self.labels = costs, list[str]()
        own: dict[str, np.ndarray] = {}
        if costs is not None:
            self.labels, own = _read_file(costs, of_item)
        self.bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.typical = dict(arguments)
        """The arguments, with means in the place of what is drawn."""
        for name, value in arguments.items():
            if name in self.columns or name in own:
                default = inspect.signature(owner).parameters[name].default
                source = "instances" if name in self.columns else "costs"
                if value is not default and not (np.ndim(value) == 0 and value == default):
                    raise ValueError(f"{name} = {value!r} is given beside the column {name!r} of {source}; give one of them")
                if name in self.columns and name in own:
                    raise ValueError(f"{name} is a column of both instances and costs; give one of them")
                self.typical[name] = own[name] if name in own else float(self.columns[name].mean())
            elif isinstance(value, Uniform | Mapping):
                low, high = self.bounds[name] = _bounds(name, value)
                self.typical[name] = (low + high) / 2
        self.place: dict[str, slice] = {}
        """Where in a scenario's instance an argument is."""

    def require_items(self, items: Sequence[str]) -> None:
        """
        :param items: of the file of sales
        :raises ValueError: unless the table of costs, if there is one, has one row for each of them, in their order
        """
        if self.costs is None:
            return
        if not items:
            raise ValueError(f"costs = {self.costs!r} belongs to the items of a file of sales, but demand is none")

        def where(k: int) -> str:
            return f"{self.costs}: row {k + 2}, column {LABEL!r}: {self.labels[k]!r}"

        if not self.labels:
            raise ValueError(f"{self.costs}: there is no column {LABEL!r}, which says what item a row is about")
        for k, label in enumerate(self.labels):
            if label not in items:
                raise ValueError(f"{where(k)} is no item of the file of sales; items are {', '.join(items)}")
            if label in self.labels[:k]:
                raise ValueError(f"{where(k)} is there before, in row {self.labels.index(label) + 2}")
        for item in items:
            if item not in self.labels:
                raise ValueError(
                    f"{self.costs}: column {LABEL!r}: there is no row for {item!r}, "
                    "an item of the file of sales unless calendar names it"
                )
        for k, item in enumerate(items):
            if self.labels[k] != item:
                raise ValueError(f"{where(k)}, but item {k + 1} of the file of sales is {item!r}; put both in the same order")

    def lay_out(self, n_items: int, shared: tuple[str, ...] = ()) -> None:
        """
        :param n_items: p; an argument takes as many places
        :param shared: arguments of the problem as a whole, which take one
        :raises ValueError: if bounds do not have the shape, and for a column of a shared argument where there are many items
        """
        start = 0
        for name in (*self.bounds, *self.columns):
            width = 1 if name in shared else n_items
            if name in self.bounds:
                low, high = (np.broadcast_to(end, end.shape or (width,)).copy() for end in self.bounds[name])
                for end in (low, high):
                    check_array(name, end, (width,))
                self.bounds[name] = low, high
            elif name in shared and n_items > 1:
                raise ValueError(f"instances: {name} is not an item's; its column is for n_items = 1, got n_items = {n_items}")
            self.place[name] = slice(start, start + width)
            start += width
        self.size, self.n_items = start, n_items

    def draw(self, batch_size: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        """
        :return: the instances of as many scenarios, shape ``(batch, size)``
        """
        parts = [torch.empty((batch_size, 0), dtype=dtype, device=generator.device)]
        for low, high in self.bounds.values():
            share = torch.rand((batch_size, len(low)), generator=generator, dtype=dtype, device=generator.device)
            least, width = (torch.as_tensor(end, dtype=dtype, device=generator.device) for end in (low, high - low))
            parts.append(least + width * share)
        if self.columns:
            n_rows = len(next(iter(self.columns.values())))
            rows = torch.randint(n_rows, (batch_size, self.n_items), generator=generator, device=generator.device)
            columns = (torch.as_tensor(column, dtype=dtype, device=generator.device) for column in self.columns.values())
            parts += [column[rows] for column in columns]
        return torch.cat(parts, dim=1)

    def require_one(self, who: str) -> None:
        """
        :param who: a solver, which is for one instance
        :raises ValueError: naming the first argument that differs from scenario to scenario, if one does
        """
        for name in self.place:
            raise ValueError(f"{who}: {name} differs from scenario to scenario; it is for one instance")

    @property
    def typical_instance(self) -> np.ndarray:
        """The instance of means, shape ``(size,)``."""
        widths = [place.stop - place.start for place in self.place.values()]
        means = [np.broadcast_to(self.typical[name], (width,)) for name, width in zip(self.place, widths, strict=True)]
        return np.concatenate([np.empty(0), *means])

    def least(self, name: str) -> float:
        """
        :param name: of what is drawn
        :return: the least value that it can take
        """
        return float(self.bounds[name][0].min() if name in self.bounds else self.columns[name].min())

    def typical_of(self, names: tuple[str, ...]) -> np.ndarray:
        """
        :param names: of what is drawn
        :return: the mean of each, over the items too, in every place that it takes: the magnitude in which it is observed
        """
        widths = [self.place[name].stop - self.place[name].start for name in names]
        return np.repeat([max(float(np.mean(self.typical[name])), 1e-9) for name in names], widths)


def read_products(table: Table, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """
    Read a table of products. A column ``item`` may name them.

    :param table: the path of a CSV file with a header line, or columns by name
    :param names: of the columns allowed
    :return: columns of numbers by name, shape ``(products,)`` each
    :raises ValueError: naming the row and the column of what is wrong
    :raises FileNotFoundError: if there is no such file
    """
    if isinstance(table, str | Path):
        return _read_file(table, names)[1]
    if not hasattr(table, "keys"):
        raise ValueError(f"instances must be the path of a CSV file or columns by name, got {table!r}")
    _check_names("instances", [str(name) for name in table], names)
    columns = {}
    for name in table:
        if name != LABEL:
            column = np.asarray(table[name])
            if column.ndim != 1 or not len(column):
                raise ValueError(
                    f"instances[{name!r}] must be a column with a number for each product, got shape {column.shape}"
                )
            columns[name] = check_array(f"instances[{name!r}]", column, column.shape, **_limit(name))
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"instances: columns must be equally long, got {lengths}")
    return columns


def _read_file(path: str | Path, names: tuple[str, ...]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The labels, none where there is no column of them, and the columns of numbers."""
    header, rows = read_rows(path, "a header of argument names and at least one product")
    _check_names(str(path), header, names)
    columns: dict[str, list[float]] = {name: [] for name in header if name != LABEL}
    labels: list[str] = []
    for r, row in rows:
        for name, cell in zip(header, row, strict=True):
            if name == LABEL:
                labels.append(cell.strip())
            else:
                columns[name].append(read_number(f"{path}: row {r}, column {name!r}", cell, **_limit(name)))
    return labels, {name: np.array(column) for name, column in columns.items()}


def _check_names(where: str, header: list[str], names: tuple[str, ...]) -> None:
    for name in header:
        if name not in (*names, LABEL):
            raise ValueError(f"{where}: unknown column {name!r}; columns are {', '.join(names)}, and {LABEL} for a name")
        if header.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} is there {header.count(name)} times")
    if not set(header) - {LABEL}:
        raise ValueError(f"{where}: no column is an argument; columns are {', '.join(names)}")


def _bounds(name: str, value: Uniform | Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of a uniform distribution, also as plain data, each a scalar or of shape ``(n_items,)``."""
    if isinstance(value, Mapping):
        if (
            list(value) != ["uniform"]
            or not isinstance(value["uniform"], list | tuple | np.ndarray)
            or len(value["uniform"]) != 2
        ):
            raise ValueError(f"{name} must be numbers or {{'uniform': [low, high]}}, got {dict(value)!r}")
        value = Uniform(*value["uniform"])
    low, high = (check_array(f"{name}: {end}", given, np.shape(given), **_limit(name)) for end, given in vars(value).items())
    if low.shape and high.shape and low.shape != high.shape:
        raise ValueError(f"{name}: low has shape {low.shape}, high has {high.shape}")
    low, high = (end.copy() for end in np.broadcast_arrays(low, high))
    if (low > high).any():
        i = np.unravel_index(np.argmax(low > high), low.shape)
        raise ValueError(f"{name}: low = {low[i]} must not exceed high = {high[i]}")
    return low, high


def _limit(name: str) -> dict[str, float]:
    return {"above": 0.0} if name in POSITIVE else {"at_least": 0.0}
