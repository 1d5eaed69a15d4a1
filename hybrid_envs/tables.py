"""CSV files with a header line: what reading sales and reading products share."""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

NUMBER = re.compile(r"[-+.\dA-Za-z]+", re.ASCII)
"""What may be a number: Python would also read 1_234, and digits of other scripts."""
SEPARATORS = (";", "\t")
"""What other programs put between columns."""


def read_rows(path: str | Path, expected: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """
    :param path: the file
    :param expected: what it should hold, for the error
    :return: the header, and the rows with their line numbers, as wide as the header
    :raises ValueError: if it is no such file, there is no row below a header, or a column has no name or that of another;
        while rows are read, naming the first that is not as wide as the header
    :raises FileNotFoundError: if there is no such file
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            rows = list(reader)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
        except csv.Error as error:
            raise ValueError(f"{path}: row {reader.line_num}: not CSV: {error}") from error
    while rows and not rows[-1]:
        rows.pop()
    if len(rows) < 2:
        raise ValueError(f"{path}: expected {expected}, got {len(rows)} line(s)")
    header, *body = rows
    header = [name.strip() for name in header]
    for other in SEPARATORS:
        if len(header) == 1 and other in header[0]:
            raise ValueError(f"{path}: row 1: columns must be separated by commas, here {other!r} stands between them")
    for number, name in enumerate(header, start=1):
        if not name:
            raise ValueError(f"{path}: row 1: column {number} has no name")
        if header.count(name) > 1:
            raise ValueError(f"{path}: row 1: column {name!r} is there {header.count(name)} times")

    def checked() -> Iterator[tuple[int, list[str]]]:
        for number, row in enumerate(body, start=2):
            if len(row) != len(header):
                raise ValueError(f"{path}: row {number} has {len(row)} cells, the header has {len(header)}")
            yield number, row

    return header, checked()


def read_number(where: str, cell: str, *, above: float = -math.inf, at_least: float = -math.inf) -> float:
    """
    :param where: the file, the row and the column, for the error
    :param cell: as it stands there
    :raises ValueError: unless it is a finite number within the limits
    """
    try:
        number = float(cell) if NUMBER.fullmatch(cell.strip()) else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > above and number >= at_least):
        limit = f" > {above:g}" if above > -math.inf else f" >= {at_least:g}" if at_least > -math.inf else ""
        raise ValueError(f"{where}: {cell!r} is not a finite number{limit}")
    return number
