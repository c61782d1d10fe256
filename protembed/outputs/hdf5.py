"""HDF5 outputs: flat files that other tools read, written so that no error of the disk is lost.

HDF5 keeps what is written in buffers of its own, and drops the errors that come when it empties them late; after one it
may end the process. So it writes through `Disk`, an object that remembers the first error, hides it from HDF5, and
has it raised here. Every dataset carries the CRC-32 of its bytes; the finished file is opened again and compared.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

from protembed import __version__
from protembed.errors import InputError, OutputError
from protembed.interrupts import check
from protembed.models.config import ModelCard
from protembed.outputs.content import (
    FORMAT_VERSION,
    ContentDigest,
    checksum,
    digest_attributes,
    plain_value,
    stored_bytes,
)
from protembed.outputs.disk import Disk
from protembed.outputs.files import sync, write_errors
from protembed.outputs.journal import Entry, Facts
from protembed.outputs.safe_hdf5 import SafeFile, bound_cache
from protembed.outputs.writer import UnstorableError
from protembed.sequences.records import Record
from protembed.sequences.windows import Array

Attributes = dict[str, Any]


class Arrays(Protocol):
    """What was computed from one record: arrays by the kind of file they belong to."""

    @property
    def record(self) -> Record: ...

    @property
    def arrays(self) -> Mapping[str, Array | None]: ...


@dataclass(frozen=True)
class Dataset:
    """One record of a file: its key, its attributes (original_id, description, length), its stored bytes."""

    key: str
    attributes: Mapping[str, Any]
    data: bytes
    dtype: str
    shape: tuple[int, ...]
    crc: int


def describe_origin(card: ModelCard, computed_with: str) -> Attributes:
    """Return what every output says of the model and the program that made it."""
    return {
        "model_name": card.name,
        "model_license": card.license,
        "weights_sha256": card.sha256,
        "tool": "protembed",
        "tool_version": __version__,
        "computed_with": computed_with,
    }


def write_file(
    path: Path,
    datasets: Iterable[Dataset],
    attributes: Attributes | Callable[[], Attributes],
    *,
    name: Path | None = None,
) -> int:
    """Write datasets in their order into `path`, an empty file; return their number.

    To the root attributes come the counts and checksums that `check` compares. A callable is asked for them after the
    last dataset. The file is synced, opened again and compared. Raises OutputError, about `name` if that is what the
    file will be called.
    """
    digest, sums = ContentDigest(), array("L")
    with write_errors(name or path), Disk(path) as disk, _created(disk) as file:
        put = _Pen(file)
        for item in datasets:
            put.write(item)
            disk.check()
            check()
            digest.add(item.key, item.attributes, item.dtype, item.shape, item.crc)
            sums.append(item.crc)
        given = attributes() if callable(attributes) else attributes
        named = {key: _writable(value) for key, value in given.items()}
        named |= {"records": len(sums), "content_sha256": digest.hexdigest(), "complete": True}
        named.setdefault("format_version", FORMAT_VERSION)
        file.attrs.update({**named, "attributes_sha256": digest_attributes(named)})
    with write_errors(name or path):
        sync(path)
        _compare(path, sums)
    return len(sums)


@contextmanager
def _created(disk: Disk) -> Iterator[h5py.File]:
    """Open a new HDF5 file on a disk; what the disk said comes before what HDF5 made of it."""
    try:
        with h5py.File(disk, "w", track_order=True) as file:
            bound_cache(file.id)
            yield file
    except Exception:
        disk.check()
        raise
    disk.check()


class _Pen:
    """Writes datasets as `create_dataset` and `attrs` do, in a third of their time: types and spaces are made once."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file.id
        self._scalar = h5s.create(h5s.SCALAR)
        self._text = h5py.string_dtype()
        self._texts = h5t.py_create(self._text, logical=True)
        self._types: dict[str, Any] = {}
        self._layout = h5p.create(h5p.DATASET_CREATE)
        self._layout.set_obj_track_times(False)  # the same input gives the same bytes at any time
        self._links = {}
        for name, coding in (("ascii", h5t.CSET_ASCII), ("utf-8", h5t.CSET_UTF8)):
            self._links[name] = h5p.create(h5p.LINK_CREATE)
            self._links[name].set_char_encoding(coding)

    def write(self, item: Dataset) -> None:
        """Write one dataset. Raises OutputError for a key that is there."""
        name = _encode(item.key)
        links = self._links["ascii" if name.isascii() else "utf-8"]
        values = np.frombuffer(item.data, dtype=item.dtype).reshape(item.shape)
        space = h5s.create_simple(item.shape) if item.shape else self._scalar
        try:
            dataset = h5d.create(self._file, name, self._type(item.dtype), space, self._layout, links)
        except ValueError as error:
            if name in self._file:
                raise OutputError(f"the key '{item.key}' comes twice") from error
            raise
        dataset.write(h5s.ALL, h5s.ALL, values)
        for attribute in ("original_id", "description"):
            text = np.array(_encode(item.attributes[attribute]), dtype=self._text)
            h5a.create(dataset, attribute.encode(), self._texts, self._scalar).write(text)
        for attribute, number in (("length", np.int64(item.attributes["length"])), ("crc32", np.uint32(item.crc))):
            form = self._type(number.dtype.str)
            h5a.create(dataset, attribute.encode(), form, self._scalar).write(np.array(number))

    def _type(self, dtype: str) -> Any:
        if dtype not in self._types:
            self._types[dtype] = h5t.py_create(np.dtype(dtype))
        return self._types[dtype]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _writable(value: Any) -> Any:
    """Return an attribute without what HDF5 cannot write; cards of models and heads may hold anything."""
    return _encode(value.replace("\0", "\\0")).decode() if isinstance(value, str) else plain_value(value)


def _compare(path: Path, sums: "array[int]") -> None:
    """Open a finished file and compare every dataset with the checksum of what was to be written."""
    found = 0
    with SafeFile(path) as file:
        for expected, dataset in zip(sums, file.datasets(), strict=False):
            check()
            if checksum(dataset.read()) != expected:
                raise OutputError(f"{path}: {dataset.name} is not what was written", hint="Is the disk in order?")
            found += 1
        if found != len(sums) or len(file) != len(sums):
            raise OutputError(f"{path}: holds {len(file)} of {len(sums)} records", hint="Is the disk in order?")


@dataclass(frozen=True, kw_only=True)
class HDF5Form:
    """An HDF5 file of one kind of result, stored as `dtype`; see file_writer.Form."""

    kind: str
    dtype: str
    attributes: Attributes

    def encode(self, item: Arrays) -> tuple[Facts, bytes]:
        """Return the array of this kind as it is stored. Raises UnstorableError where the dtype cannot hold it."""
        values = item.arrays[self.kind]
        assert values is not None
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            largest = np.finfo(self.dtype).max
            raise UnstorableError(f"values over {largest:,.0f} do not fit into {self.dtype}; store it as float32")
        record, data = item.record, stored_bytes(stored)
        known = {"key": record.key or record.id, "id": record.id, "description": record.description}
        form = {"length": len(record.sequence), "dtype": stored.dtype.newbyteorder("<").str, "shape": stored.shape}
        return known | form, data

    def build(self, path: Path, entries: Iterable[Entry], attributes: Callable[[], Facts]) -> Facts:
        """Write the datasets."""
        write_file(path, map(_dataset, entries), lambda: {**self.attributes, **attributes()})
        return {}

    def name(self, path: Path, attributes: Facts, folder: Path) -> None:
        """HDF5 says itself what run it is of."""

    def named(self, path: Path, *, keep: bool) -> None:
        """Nothing stands beside it."""

    def describe(self, path: Path) -> Facts:
        """Return what the file says of its run."""
        wanted = ("run_sha256", "failed_records", "left_out_records")
        try:
            with SafeFile(path) as file:
                return {name: value for name in wanted if (value := file.attribute(name)) is not None}
        except InputError:
            return {}


def _dataset(entry: Entry) -> Dataset:
    facts = entry.facts
    named = {"original_id": facts["id"], "description": facts["description"], "length": facts["length"]}
    return Dataset(facts["key"], named, entry.data, facts["dtype"], tuple(facts["shape"]), entry.crc)
