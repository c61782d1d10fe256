"""One dataset or attribute of an HDF5 file that may come from anyone: plain numbers or text, or an error about it.

What a dataset is made of is looked at before its values are: nothing in other files is opened, no filter that others
wrote is run, and memory is bounded by what the file takes on the disk.
"""

import contextlib
import math
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5g, h5p, h5s, h5t, h5z

from protembed.errors import InputError
from protembed.outputs.printing import printable
from protembed.outputs.unpacking import filters_of, read_packed, require_credible_size

Values = npt.NDArray[np.floating[Any]]
Scalar = str | int | float | bool

BLOCK_BYTES: Final = 4 * 2**20

FOREIGN_ERRORS: Final = (
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, SystemError, zlib.error),
)
"""What h5py raises, by experience with damaged files, beside MemoryError."""

_LARGEST_ATTRIBUTE: Final = 4 * 2**20
_FLOATS: Final = {(2, "float16"): h5t.IEEE_F16LE, (4, "float32"): h5t.IEEE_F32LE, (8, "float64"): h5t.IEEE_F64LE}
_LAYOUTS: Final = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever h5py raises on damaged bytes into InputError."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{what}: does not fit into memory") from error
    except FOREIGN_ERRORS as error:
        reason = printable(str(error)) or type(error).__name__
        raise InputError(
            f"{what}: cannot be read as HDF5 ({reason})", hint="Is the file complete, and written by protembed?"
        ) from error


class SafeDataset:
    """One dataset that has been looked at: numbers, all of them written and in this file, which can hold so many."""

    def __init__(self, dataset: h5d.DatasetID, name: str, place: str, file_bytes: int) -> None:
        self.name, self.place, self._dataset = name, place, dataset
        with reading(place):
            creation = dataset.get_create_plist()
            self._check_storage(creation)
            self._filters = filters_of(creation, place) if creation.get_nfilters() else ()
            self.dtype: np.dtype[Any] = self._float_type()
            self.shape = self._extent()
            self._file_bytes = file_bytes
            self._check_size(creation)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored(self) -> int:
        """How many bytes of the file it takes."""
        return self._dataset.get_storage_size() if self._packed else self.nbytes

    def attribute(self, name: str) -> Scalar | None:
        """Return one attribute; None where it is not there. Raises InputError for one that is no text or number."""
        return read_attribute(self._dataset, name, self.place)

    def read(self) -> Values:
        """Return all values; memory is that of the dataset, which the file holds in full."""
        with reading(self.place):
            if self._packed:
                return read_packed(self._dataset, self.shape, self.dtype, self._filters, self._file_bytes)
            values: Values = np.empty(self.shape, self.dtype)
            self._dataset.read(h5s.ALL, h5s.ALL, values)
            return values

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Values]:
        """Yield the values in their order in pieces of at most `size` bytes, packed ones at once."""
        if self.nbytes <= size or self._packed:
            yield self.read()
            return
        for place in _places(self.shape, max(1, size // self.dtype.itemsize)):
            with reading(self.place):
                counts = tuple(part.stop - part.start for part in place)
                values: Values = np.empty(counts, self.dtype)
                chosen = self._dataset.get_space()
                chosen.select_hyperslab(tuple(part.start for part in place), counts)
                self._dataset.read(h5s.create_simple(counts), chosen, values)
            yield values

    def _check_storage(self, creation: h5p.PropDCID) -> None:
        """Refuse what lies in other files or needs a filter. Nothing of it has been opened so far."""
        layout = creation.get_layout()
        if layout == h5d.VIRTUAL:
            raise InputError(f"{self.place} is virtual: its values would come from other files")
        if layout not in _LAYOUTS:
            raise InputError(f"{self.place} has a layout that is not known ({layout})")
        if creation.get_external_count():
            raise InputError(f"{self.place} has its values in another file, which is not opened")

    def _float_type(self) -> np.dtype[Any]:
        stored = self._dataset.get_type()
        for (size, name), known in _FLOATS.items():
            if stored.get_size() == size and stored.equal(known) and not stored.committed():
                return np.dtype(name).newbyteorder("<")
        raise InputError(f"{self.place} does not hold numbers of float16, float32 or float64")

    def _extent(self) -> tuple[int, ...]:
        space = self._dataset.get_space()
        kind = space.get_simple_extent_type()
        shape = tuple(space.get_simple_extent_dims()) if kind == h5s.SIMPLE else ()
        if kind not in (h5s.SIMPLE, h5s.SCALAR) or len(shape) > 2 or 0 in shape:
            raise InputError(f"{self.place} is neither a vector nor a matrix, its shape is {shape}")
        return shape

    @property
    def _packed(self) -> bool:
        return h5z.FILTER_DEFLATE in self._filters

    def _check_size(self, creation: h5p.PropDCID) -> None:
        if self.nbytes > self._file_bytes and not self._packed:
            raise InputError(
                f"{self.place} claims {self.nbytes:,} bytes in a file that takes {self._file_bytes:,}",
                hint="Most of it was never written.",
            )
        if creation.get_layout() == h5d.CHUNKED:
            chunk = creation.get_chunk()
            if self._packed:
                require_credible_size(self._dataset, chunk, self.nbytes, self.dtype.itemsize, self.place)
            needed = math.prod(-(-length // part) for length, part in zip(self.shape, chunk, strict=True))
            fits = self._packed or math.prod(chunk) * self.dtype.itemsize <= self._file_bytes
            written = fits and self._dataset.get_num_chunks() == needed
        else:
            written = self._dataset.get_storage_size() == self.nbytes
        if not written:
            raise InputError(f"{self.place} was not written in full")


def decode(raw: bytes | str) -> str:
    """Return a name of HDF5 as text; what is no UTF-8 is kept, as Python does for file names."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def encode(name: str) -> bytes:
    """Return a text as HDF5 has it; see `decode`."""
    return name.encode("utf-8", "surrogateescape")


def read_attribute(place: h5g.GroupID | h5d.DatasetID, name: str, shown: str) -> Scalar | None:
    """Read one attribute; None where it is not there. Raises InputError for one that is no text or number."""
    with reading(f"{shown}: the attribute {name}"):
        return read_scalar(h5a.open(place, name.encode()), shown) if h5a.exists(place, name.encode()) else None


def read_scalar(attribute: h5a.AttrID, place: str) -> Scalar:
    """Read one attribute that is a text or a number, nothing else and nothing huge."""
    name = printable(decode(attribute.name))
    with reading(f"{place}: the attribute {name}"):
        stored = attribute.get_type()
        kind = stored.get_class()
        single = attribute.get_space().get_simple_extent_type() == h5s.SCALAR
        if kind not in (h5t.STRING, h5t.INTEGER, h5t.FLOAT, h5t.ENUM) or not single:
            raise InputError(f"{place}: the attribute {name} is neither a text nor a number")
        if attribute.get_storage_size() > _LARGEST_ATTRIBUTE:
            raise InputError(f"{place}: the attribute {name} takes {attribute.get_storage_size():,} bytes")
        value = np.empty((), dtype=stored.dtype)
        attribute.read(value)
        plain = value.item()
        if isinstance(plain, bytes):
            plain = decode(plain)
    if not isinstance(plain, str | int | float | bool):
        raise InputError(f"{place}: the attribute {name} is neither a text nor a number")
    return plain


def _places(shape: tuple[int, ...], values: int) -> Iterator[tuple[slice, ...]]:
    """Cut a shape into blocks of at most so many values: whole rows, or parts of one row.

    >>> list(_places((3, 2), 4))
    [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 3, None), slice(0, 2, None))]
    """
    width = math.prod(shape[1:])
    rows = max(1, values // width)
    for start in range(0, shape[0], rows):
        row = slice(start, min(start + rows, shape[0]))
        if len(shape) == 1:
            yield (row,)
        else:
            yield from ((row, slice(at, min(at + values, width))) for at in range(0, width, values))
