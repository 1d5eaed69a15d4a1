"""
The safetensors format, read strictly: eight bytes with the header's length, the header in JSON, the tensors one behind the
other. There is no archive and no compression, so that nothing can be unpacked into more than it is, or to another place. The
reader is ours, because it has to refuse what that of the package safetensors tolerates, and before any memory is taken.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 2**20
"""Bytes. Ours take some thousands."""
FORMAT = "sb3_hpo 1"


class Entry(NamedTuple):
    """What the header says of one tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""


class Reader:
    """
    A file's header, checked against the size of the file, and its tensors on demand.

    :param file: open for reading in binary
    :raises ValueError: for whatever is not as this module writes it
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"it has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(
                f"header: its length is said to be {length} bytes; the file has {size}, and {MAX_HEADER} are allowed"
            )
        header = parse("header", file.read(length))
        if not isinstance(header, dict):
            raise ValueError("header: must be a JSON object")
        metadata = require_keys("__metadata__", header.pop("__metadata__", None), ("format", "model"))
        if metadata["format"] != FORMAT:
            raise ValueError(f"__metadata__.format: must be {FORMAT!r}, got {shown(metadata['format'])}")
        if not isinstance(metadata["model"], str):
            raise ValueError(f"__metadata__.model: must be text, got {shown(metadata['model'])}")
        self.description: Any = parse("__metadata__.model", metadata["model"].encode())
        self.entries = _entries(header, 8 + length, size)
        self.claimed: set[str] = set()

    def claim(self, name: str, dtypes: Iterable[np.dtype], shapes: Iterable[tuple[int, ...]]) -> Entry:
        """
        :return: what the header says of a tensor that has to be there
        :raises ValueError: if it is missing, or has none of these dtypes or shapes
        """
        if name not in self.entries:
            raise ValueError(f"tensor {shown(name)}: missing")
        entry, dtypes, shapes = self.entries[name], list(dtypes), list(shapes)
        if entry.dtype not in dtypes:
            raise ValueError(f"tensor {shown(name)}: must be {' or '.join(map(str, dtypes))}, is {entry.dtype}")
        if entry.shape not in shapes:
            raise ValueError(f"tensor {shown(name)}: must have shape {' or '.join(map(str, shapes))}, has {entry.shape}")
        self.claimed.add(name)
        return entry

    def refuse_unclaimed(self) -> None:
        """
        :raises ValueError: if there is a tensor that nobody has claimed
        """
        for name in self.entries:
            if name not in self.claimed:
                raise ValueError(f"tensor {shown(name)}: nobody knows it")

    def tensor(self, name: str, *, infinite: bool = False) -> np.ndarray:
        """
        :param name: of a tensor that has been claimed
        :param infinite: whether its numbers may be infinite
        :raises ValueError: if a number is NaN or, where it must not be, infinite
        """
        dtype, shape, start = self.entries[name]
        self.file.seek(start)
        size = math.prod(shape) * dtype.itemsize
        content = self.file.read(size)
        if len(content) < size:
            raise ValueError(f"tensor {shown(name)}: the file ends within it")
        array = np.frombuffer(content, dtype).reshape(shape).copy()
        if dtype.kind == "f":
            wrong = np.isnan(array) if infinite else ~np.isfinite(array)
            if wrong.any():
                raise ValueError(f"tensor {shown(name)}: holds {array[wrong][0]}, where numbers must be finite")
        return array


def _entries(header: dict[str, Any], start: int, size: int) -> dict[str, Entry]:
    """The tensors, which fill the file behind the header without gap or overlap."""
    entries, ends = {}, {}
    for name, entry in header.items():
        where = f"tensor {shown(name)}"
        entry = require_keys(where, entry, ("dtype", "shape", "data_offsets"))
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise ValueError(f"{where}: dtype must be one of {', '.join(DTYPES)}, got {shown(entry['dtype'])}")
        for key in ("shape", "data_offsets"):
            if not isinstance(entry[key], list) or not all(is_count(number) for number in entry[key]):
                raise ValueError(f"{where}: {key} must be a list of counts, got {shown(entry[key])}")
        if len(entry["shape"]) > 8 or len(entry["data_offsets"]) != 2:
            raise ValueError(f"{where}: must have up to 8 dimensions and 2 offsets")
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{where}: its {end - begin} bytes do not hold shape {shown(shape)} of {dtype}")
        entries[name], ends[name] = Entry(dtype, shape, start + begin), start + end
    position = start
    for name in sorted(entries, key=lambda name: (entries[name].start, ends[name])):
        if entries[name].start != position:
            raise ValueError(f"tensor {shown(name)}: leaves a gap or overlaps another")
        position = ends[name]
    if position != size:
        raise ValueError(f"the tensors end at byte {position}, the file at {size}")
    return entries


def compose(description: Any, tensors: Mapping[str, np.ndarray]) -> bytes:
    """
    :param description: plain data
    :param tensors: by name
    :return: the content of a file
    """
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "model": json.dumps(description, allow_nan=False)}}
    parts, position = [], 0
    for name, array in sorted(tensors.items()):
        code = CODES[array.dtype.newbyteorder("<")]
        parts.append(np.ascontiguousarray(array, DTYPES[code]).tobytes())
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [position, position + len(parts[-1])]}
        position += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors does, so that numbers begin at multiples of their size
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def parse(where: str, text: bytes) -> Any:
    """
    :return: what JSON says, if it says it once: no key twice, no NaN
    :raises ValueError: if it is anything else
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is there twice")
        return mapping

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"the number {text[:20]} is not finite")
        return float(text)

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except RecursionError:
        raise ValueError(f"{where}: too deeply nested") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def require_keys(where: str, value: Any, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """
    :return: the value, a dict with these keys and none but the optional ones
    :raises ValueError: naming a key that is missing or unknown
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object, got {shown(value)}")
    keys = list(keys)
    for key in keys:
        if key not in value:
            raise ValueError(f"{where}: has no {key!r}")
    for key in value:
        if key not in keys and key not in optional:
            raise ValueError(f"{where}: nobody knows the key {shown(key)}")
    return value


def is_count(value: Any, limit: int = 2**53) -> bool:
    """
    :return: whether the value is an integer in [0, limit]
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def shown(value: Any) -> str:
    """
    :return: the value as a message can hold it
    """
    text = repr(value) if isinstance(value, str | int | float | None) else f"{type(value).__name__} {str(value)[:200]}"
    return text if len(text) <= 80 else f"{text[:77]}..."
