"""Arrays on disk that notice a flipped bit: a flat file, and the CRC-32 of every MiB of it beside it."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from protembed.errors import TrainingError

Totals = TypeVar("Totals")

BLOCK = 1 << 20
"""Bytes that one checksum is of: computing it takes less than reading them from a disk."""


def write_totals(path: Path, totals: Any) -> None:
    """Write a dataclass of counts as JSON, and its checksum within."""
    values = asdict(totals)
    path.write_text(json.dumps({**values, "sum": sum_of(values)}), encoding="utf-8")


def sum_of(values: Any) -> int:
    """Return the CRC-32 of what JSON can hold, whatever its order."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def read_totals(path: Path, kind: type[Totals]) -> Totals:
    """Read what `write_totals` wrote. Raises TrainingError for what is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("sum", None) not in (None, sum_of(values)):
            raise ValueError("its checksum is another")
        for name in (field.name for field in fields(kind)):  # type: ignore[arg-type]
            count = values[name]
            for number in count.values() if isinstance(count, dict) else [count]:
                if type(number) is not int or not 0 <= number < 2**63:
                    raise ValueError(f"{name} is no count")
        return kind(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TrainingError(
            f"{path}: is damaged ({str(error)[:80] or type(error).__name__})",
            hint=f"Delete {path.parent} and run protembed prepare again.",
        ) from error


class SumWriter:
    """Write a file from its beginning to its end, and the checksums of its blocks to `NAME.crc`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.bin")
    >>> with SumWriter(path) as writer:
    ...     writer.write(b"abc")
    3
    >>> map_array(path, np.uint8, 3)[:2].tolist()
    [97, 98]
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._path = path
        self._sums: list[int] = []
        self._sum, self._room = 0, BLOCK

    def write(self, data: Any) -> int:
        """Append bytes, or an array's; return how many."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._file.write(view)
        for start in self._cuts(len(view)):
            part = view[start : start + self._room]
            self._sum, self._room = zlib.crc32(part, self._sum), self._room - len(part)
            if not self._room:
                self._next()
        return len(view)

    def _cuts(self, length: int) -> Iterable[int]:
        """Yield where each block's share of the next bytes begins; `_room` changes between two of them."""
        start = 0
        while start < length:
            room = self._room
            yield start
            start += room

    def _next(self) -> None:
        self._sums.append(self._sum)
        self._sum, self._room = 0, BLOCK

    def __enter__(self) -> "SumWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            if self._room < BLOCK:
                self._next()
            np.array(self._sums, dtype="<u4").tofile(_sums_path(self._path))


def write_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write all values of an array."""
    with SumWriter(path) as writer:
        writer.write(np.ascontiguousarray(values))


class MappedArray:
    """A flat file as an array, mapped into memory; `array[start:stop]` checks the blocks that it is the first to read.

    Raises TrainingError when a block is not what was written.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, width: int, values: npt.NDArray[Any], sums: bytes) -> None:
        self._path, self._values = path, values
        self._row = np.dtype(dtype).itemsize * width
        self._sums = np.frombuffer(sums, dtype="<u4")
        self._seen = np.zeros(len(self._sums), dtype=bool)
        self._bytes: npt.NDArray[np.uint8] = values.reshape(-1).view(np.uint8)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        first, last = start * self._row // BLOCK, -(-stop * self._row // BLOCK)
        if not self._seen[first:last].all():
            self._check(first, last)
        return self._values[rows]

    def whole(self) -> npt.NDArray[Any]:
        """Return all of it, checked."""
        return self[:]

    def _check(self, first: int, last: int) -> None:
        for block in np.flatnonzero(~self._seen[first:last]) + first:
            data = self._bytes[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(data.tobytes()) != self._sums[block]:
                raise TrainingError(
                    f"{self._path}: is not what was written (checksum of the bytes from {block * BLOCK:,} on)",
                    hint=f"The disk or a copy damaged it. Delete {self._path.parent} and run protembed prepare again.",
                )
            self._seen[block] = True


def map_array(path: Path, dtype: npt.DTypeLike, rows: int, width: int = 0) -> MappedArray:
    """Map a file of `rows` values, or of `rows` times `width` of them. Raises TrainingError for another length."""
    kind = np.dtype(dtype)
    size = rows * max(1, width) * kind.itemsize
    try:
        sums = _sums_path(path).read_bytes()
        right = path.stat().st_size == size and len(sums) == 4 * -(-size // BLOCK)
    except OSError:
        right = False
    if not right:
        raise TrainingError(
            f"{path}: is missing or was cut short", hint=f"Delete {path.parent} and run protembed prepare again."
        )
    shape = (rows, width) if width else (rows,)
    # An empty file cannot be mapped.
    values = np.memmap(path, kind, mode="r", shape=shape) if size else np.empty(shape, kind)
    return MappedArray(path, kind, max(1, width), np.asarray(values), sums)


def _sums_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.crc")
