"""Reading HDF5 that may come from anyone: flat files of numbers, or an error that names what else is in them.

HDF5 lets a file send its reader elsewhere (external links, external storage, virtual datasets), claim sizes that take
no space (unwritten or sparse datasets), and run code (filters). None of it is followed, allocated or run: everything is
looked at before it is opened further, and refused by name. Memory is bounded by the file's own size on the disk.
"""

import contextlib
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s, h5t

from protembed.errors import InputError
from protembed.outputs.guarded_bytes import GuardedBytes
from protembed.outputs.printing import printable

Values = npt.NDArray[np.floating[Any]]
Scalar = str | int | float | bool

BLOCK_BYTES: Final = 4 * 2**20
_PAGE = 100_000
_LARGEST_ATTRIBUTE = 4 * 2**20
_MOST_ATTRIBUTES = 1_000
_FOREIGN = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError, SystemError)
"""What h5py raises, by experience with damaged files, beside MemoryError."""

_FLOATS = {(2, "float16"): h5t.IEEE_F16LE, (4, "float32"): h5t.IEEE_F32LE, (8, "float64"): h5t.IEEE_F64LE}
_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
_OBJECTS = {h5o.TYPE_GROUP: "a group", h5o.TYPE_NAMED_DATATYPE: "a data type"}
_LAYOUTS = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn whatever h5py raises on damaged bytes into InputError."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{what}: does not fit into memory") from error
    except _FOREIGN as error:
        reason = printable(str(error)) or type(error).__name__
        raise InputError(
            f"{what}: cannot be read as HDF5 ({reason})", hint="Is the file complete, and written by protembed?"
        ) from error


class SafeDataset:
    """One dataset that has been looked at: numbers, all of them written and in this file, which can hold so many."""

    def __init__(self, dataset: h5d.DatasetID, name: str, place: str, file_bytes: int) -> None:
        self.name, self.place, self._dataset = name, place, dataset
        with _reading(place):
            creation = dataset.get_create_plist()
            self._check_storage(creation)
            self.dtype: np.dtype[Any] = self._float_type()
            self.shape = self._extent()
            self._check_size(creation, file_bytes)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def attribute(self, name: str) -> Scalar | None:
        """Return one attribute; None where it is not there. Raises InputError for one that is no text or number."""
        return _attribute(self._dataset, name, self.place)

    def read(self) -> Values:
        """Return all values; memory is that of the dataset, which the file holds in full."""
        with _reading(self.place):
            values: Values = np.empty(self.shape, self.dtype)
            self._dataset.read(h5s.ALL, h5s.ALL, values)
            return values

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Values]:
        """Yield the values in their order in pieces of at most `size` bytes (at least one value)."""
        if self.nbytes <= size:
            yield self.read()
            return
        for place in _places(self.shape, max(1, size // self.dtype.itemsize)):
            with _reading(self.place):
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
        if creation.get_nfilters():
            number, _, _, name = creation.get_filter(0)
            raise InputError(
                f"{self.place} is packed with the filter {printable(_text(name)) or number}, which is not run",
                hint="protembed packs nothing. If you trust the file: h5repack -f NONE FILE NEW",
            )

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

    def _check_size(self, creation: h5p.PropDCID, file_bytes: int) -> None:
        if self.nbytes > file_bytes:
            raise InputError(
                f"{self.place} claims {self.nbytes:,} bytes in a file that takes {file_bytes:,}",
                hint="Most of it was never written.",
            )
        if creation.get_layout() == h5d.CHUNKED:
            chunk = creation.get_chunk()
            needed = math.prod(-(-length // part) for length, part in zip(self.shape, chunk, strict=True))
            written = self._dataset.get_num_chunks() == needed and math.prod(chunk) * self.dtype.itemsize <= file_bytes
        else:
            written = self._dataset.get_storage_size() == self.nbytes
        if not written:
            raise InputError(f"{self.place} was not written in full")


class SafeFile:
    """A flat HDF5 file, opened for reading: datasets by name, in the order in which they were written.

    Raises InputError for whatever is not there, damaged, or no plain dataset. `check_total` then bounds the sum of
    all datasets, whose bytes may overlap in a forged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._place = printable(str(path))
        content = GuardedBytes(self.path, self._place)
        self._bytes = content.capacity
        with _reading(self._place):
            access = h5p.create(h5p.FILE_ACCESS)
            access.set_fclose_degree(h5f.CLOSE_STRONG)
            access.set_fileobj_driver(h5fd.fileobj_driver, content)
            self._file = h5f.open(self._place.encode(), h5f.ACC_RDONLY, fapl=access)
        # An open file whose bytes come from Python must be closed before Python ends: libhdf5 would crash.
        self._close = weakref.finalize(self, _close, self._file)
        with _reading(self._place):
            if self._file.get_create_plist().get_sizes() != (8, 8):
                raise InputError(f"{self._place} has addresses of an unusual size")
            self._root = h5g.open(self._file, b"/")
            tracked = self._root.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
            self._order = h5py.h5.INDEX_CRT_ORDER if tracked else h5py.h5.INDEX_NAME

    @property
    def attributes(self) -> dict[str, Scalar]:
        """What the file says of itself. Raises InputError for what is no text or number, or too large."""
        with _reading(self._place):
            count = h5a.get_num_attrs(self._root)
            if count > _MOST_ATTRIBUTES:
                raise InputError(f"{self._place} has {count:,} attributes", hint="A file of protembed has about 30.")
            opened = [h5a.open(self._root, index=number) for number in range(count)]
            return {_text(attribute.name): _scalar(attribute, self._place) for attribute in opened}

    def attribute(self, name: str) -> Scalar | None:
        """Return one of them; None where it is not there."""
        return _attribute(self._root, name, self._place)

    def __len__(self) -> int:
        with _reading(self._place):
            return int(self._root.get_num_objs())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._exists(name)

    def __getitem__(self, name: str) -> SafeDataset:
        """Open a dataset. Raises KeyError where there is none of this name, InputError for what is no plain one."""
        if not self._exists(name):
            raise KeyError(name)
        with _reading(self._place):
            self._refuse_link(name, self._root.links.get_info(_bytes(name)).type)
        return self._open(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the names; memory does not grow with their number."""
        start = 0
        while True:
            page: list[tuple[bytes, int]] = []

            def take(name: bytes, link: h5l.LinkInfo, page: list[tuple[bytes, int]] = page) -> bool:
                page.append((name, link.type))
                return len(page) >= _PAGE

            with _reading(self._place):
                self._root.links.iterate(take, info=True, idx_type=self._order, idx=start)
            for raw, kind in page:
                name = _text(raw)
                self._refuse_link(name, kind)
                yield name
            start += len(page)
            if len(page) < _PAGE:
                return

    def datasets(self) -> Iterator[SafeDataset]:
        """Yield all datasets in order; their sum is bounded, too: in a forged file their bytes may overlap."""
        total = 0
        for name in self:
            dataset = self._open(name)
            total += dataset.nbytes
            if total > self._bytes:
                raise InputError(f"{self._place}: the datasets claim more bytes than the file takes")
            yield dataset

    def close(self) -> None:
        self._close()

    def __enter__(self) -> "SafeFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exists(self, name: str) -> bool:
        # A name with a slash is a path into groups or onward through links: no dataset has one.
        if "/" in name or "\0" in name or name in ("", "."):
            return False
        with _reading(self._place):
            return bool(self._root.links.exists(_bytes(name)))

    def _open(self, name: str) -> SafeDataset:
        place = f"{self._place}: {printable(name)}"
        with _reading(place):
            found = h5o.get_info(self._root, _bytes(name))
            if found.type != h5o.TYPE_DATASET:
                raise InputError(f"{place} is {_OBJECTS.get(found.type, 'an unknown object')}, not a dataset")
            if found.rc != 1:
                raise InputError(f"{place} is a dataset of several names")
            dataset = h5d.open(self._root, _bytes(name))
        return SafeDataset(dataset, name, place, self._bytes)

    def _refuse_link(self, name: str, kind: int) -> None:
        if kind != h5l.TYPE_HARD:
            raise InputError(
                f"{self._place}: {printable(name)} is {_LINKS.get(kind, 'a link of an unknown kind')}, not a dataset",
                hint="Links are not followed.",
            )


def _close(file: h5f.FileID) -> None:
    with contextlib.suppress(*_FOREIGN):
        file.close()


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


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _attribute(place: h5g.GroupID | h5d.DatasetID, name: str, shown: str) -> Scalar | None:
    """Read one attribute; None where it is not there. Raises InputError for one that is no text or number."""
    with _reading(shown):
        return _scalar(h5a.open(place, name.encode()), shown) if h5a.exists(place, name.encode()) else None


def _scalar(attribute: h5a.AttrID, place: str) -> Scalar:
    """Read one attribute that is a text or a number, nothing else and nothing huge."""
    name = printable(_text(attribute.name))
    kind = attribute.get_type().get_class()
    single = attribute.get_space().get_simple_extent_type() == h5s.SCALAR
    if kind not in (h5t.STRING, h5t.INTEGER, h5t.FLOAT, h5t.ENUM) or not single:
        raise InputError(f"{place}: the attribute {name} is neither a text nor a number")
    if attribute.get_storage_size() > _LARGEST_ATTRIBUTE:
        raise InputError(f"{place}: the attribute {name} takes {attribute.get_storage_size():,} bytes")
    value = np.empty((), dtype=attribute.dtype)
    attribute.read(value)
    plain = value.item()
    if isinstance(plain, bytes):
        plain = _text(plain)
    if not isinstance(plain, str | int | float | bool):
        raise InputError(f"{place}: the attribute {name} is neither a text nor a number")
    return plain
