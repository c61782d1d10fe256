"""Reading HDF5 that may come from anyone: flat files of numbers, or an error that names what else is in them.

HDF5 lets a file send its reader elsewhere (links, external storage, virtual datasets), claim sizes that take no space,
run filters, and never return. Here nothing is followed or run, and nothing is opened before it has been looked at.
"""

import contextlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import h5py
from h5py import h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p

from protembed.errors import InputError
from protembed.outputs.guarded_bytes import GuardedBytes
from protembed.outputs.printing import printable
from protembed.outputs.safe_dataset import (
    FOREIGN_ERRORS,
    SafeDataset,
    Scalar,
    decode,
    encode,
    read_attribute,
    read_scalar,
    reading,
)

_PAGE: Final = 100_000
_CACHE: Final = 2**20
_MOST_ATTRIBUTES: Final = 1_000
_LINKS: Final = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
_OBJECTS: Final = {h5o.TYPE_GROUP: "a group", h5o.TYPE_NAMED_DATATYPE: "a data type"}


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
        with reading(self._place):
            access = h5p.create(h5p.FILE_ACCESS)
            access.set_fclose_degree(h5f.CLOSE_STRONG)
            access.set_fileobj_driver(h5fd.fileobj_driver, content)
            bound_cache(access)
            self._file = h5f.open(self._place.encode(), h5f.ACC_RDONLY, fapl=access)
        # An open file whose bytes come from Python must be closed before Python ends: libhdf5 would crash.
        self._close = weakref.finalize(self, _close, self._file)
        with reading(self._place):
            if self._file.get_create_plist().get_sizes() != (8, 8):
                raise InputError(f"{self._place} has addresses of an unusual size")
            self._root = h5g.open(self._file, b"/")
            tracked = self._root.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
            self._order = h5py.h5.INDEX_CRT_ORDER if tracked else h5py.h5.INDEX_NAME

    @property
    def attributes(self) -> dict[str, Scalar]:
        """What the file says of itself, in the order in which it was written.

        Raises InputError for what is no text or number, or too large.
        """
        with reading(self._place):
            count = h5a.get_num_attrs(self._root)
            if count > _MOST_ATTRIBUTES:
                raise InputError(f"{self._place} has {count:,} attributes", hint="A file of protembed has about 30.")
            order = self._root.get_create_plist().get_attr_creation_order() & h5p.CRT_ORDER_TRACKED
            kind = h5py.h5.INDEX_CRT_ORDER if order else h5py.h5.INDEX_NAME
            opened = [h5a.open(self._root, index=number, index_type=kind) for number in range(count)]
            return {decode(attribute.name): read_scalar(attribute, self._place) for attribute in opened}

    def attribute(self, name: str) -> Scalar | None:
        """Return one of them; None where it is not there."""
        return read_attribute(self._root, name, self._place)

    def __len__(self) -> int:
        with reading(self._place):
            return int(self._root.get_num_objs())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._exists(name)

    def __getitem__(self, name: str) -> SafeDataset:
        """Open a dataset. Raises KeyError where there is none of this name, InputError for what is no plain one."""
        if not self._exists(name):
            raise KeyError(name)
        with reading(self._place):
            self._refuse_link(name, self._root.links.get_info(encode(name)).type)
        return self.open(name)

    def open(self, name: str) -> SafeDataset:
        """Open a dataset whose name came from here. Raises InputError for what is no plain one, or not there."""
        place = f"{self._place}: {printable(name)}"
        with reading(place):
            found = h5o.get_info(self._root, encode(name))
            if found.type != h5o.TYPE_DATASET:
                raise InputError(f"{place} is {_OBJECTS.get(found.type, 'an unknown object')}, not a dataset")
            if found.rc != 1:
                raise InputError(f"{place} is a dataset of several names")
            dataset = h5d.open(self._root, encode(name))
        return SafeDataset(dataset, name, place, self._bytes)

    def __iter__(self) -> Iterator[str]:
        """Yield the names; memory does not grow with their number."""
        start = 0
        while True:
            page: list[tuple[bytes, int]] = []

            def take(name: bytes, link: h5l.LinkInfo, page: list[tuple[bytes, int]] = page) -> bool:
                page.append((name, link.type))
                return len(page) >= _PAGE

            with reading(self._place):
                self._root.links.iterate(take, info=True, idx_type=self._order, idx=start)
            for raw, kind in page:
                name = decode(raw)
                self._refuse_link(name, kind)
                yield name
            start += len(page)
            if len(page) < _PAGE:
                return

    def datasets(self) -> Iterator[SafeDataset]:
        """Yield all datasets in order; their sum is bounded, too: in a forged file their bytes may overlap."""
        total = 0
        for name in self:
            dataset = self.open(name)
            total += dataset.stored
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
        if not _is_name(name):
            return False
        with reading(self._place):
            return bool(self._root.links.exists(encode(name)))

    def _refuse_link(self, name: str, kind: int) -> None:
        if not _is_name(name):
            raise InputError(f"{self._place}: {printable(name)!r} is not the name of a dataset")
        if kind != h5l.TYPE_HARD:
            raise InputError(
                f"{self._place}: {printable(name)} is {_LINKS.get(kind, 'a link of an unknown kind')}, not a dataset",
                hint="Links are not followed.",
            )


def bound_cache(file: h5p.PropFAID | h5f.FileID) -> None:
    """Keep small what libhdf5 remembers of a file: by default it grows to a hundred megabytes, and is hardly used."""
    config = file.get_mdc_config()
    config.set_initial_size, config.initial_size = True, _CACHE
    config.min_size = config.max_size = _CACHE
    file.set_mdc_config(config)


def _close(file: h5f.FileID) -> None:
    with contextlib.suppress(*FOREIGN_ERRORS):
        file.close()


def _is_name(name: str) -> bool:
    """Tell whether a dataset can have this name: one with a slash is a path into groups, or onward through links."""
    return name not in ("", ".") and "/" not in name and "\0" not in name
