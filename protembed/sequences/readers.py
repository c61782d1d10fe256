"""Readers of proteins that are not FASTA: TAPE's LMDB and Parquet; and one stream over all of them."""

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy._core import multiarray

from protembed.errors import DependencyError, InputError
from protembed.sequences.records import Record, clean, read_fasta

_COLUMNS = ("id", "sequence", "cluster")
_CLUSTERS = ("family", "clan")
"""What TAPE's Pfam says about a protein's relatives, the closer ones first."""


def _from_buffer(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> object:
    """Rebuild an array as numpy's private function does by which protocol 5 names it."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    **{(f"numpy.{core}.multiarray", function.__name__): function
       for function in (multiarray._reconstruct, multiarray.scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}  # fmt: skip
"""What a record may name: arrays and numbers of numpy (numpy < 2 said `core`), and how protocol 2 writes bytes."""


def read_proteins(paths: Iterable[str | Path]) -> Iterator[Record]:
    """Stream the clean records of FASTA, LMDB (`*.lmdb`, a folder or a file) and Parquet (`*.parquet`) files, in order.

    A record whose source knows its cluster has `cluster=ID` in its description, as it stands in a FASTA header.
    Raises InputError, and DependencyError when the package for a format is not installed.
    """
    for path in map(Path, paths):
        reader = {".lmdb": _lmdb_records, ".parquet": _parquet_records}.get(path.suffix)
        yield from reader(path) if reader else read_fasta([path])


def read_lmdb(path: Path) -> Iterator[dict[str, object]]:
    """Stream the records of a data set in TAPE's form: `num_examples`, and pickled dictionaries under "0", "1", ...

    `primary` is the sequence; the other fields are the task's. Nothing but numpy arrays and plain values is unpickled.
    Raises InputError naming file and record. Source: Rao et al. 2019, github.com/songlab-cal/tape.
    """
    try:
        import lmdb
    except ImportError as error:
        raise _missing("lmdb", path) from error
    if not path.exists():
        raise InputError(f"{path}: no such file", hint="Check the path.")
    place = str(path)
    try:
        with lmdb.open(place, readonly=True, lock=False, readahead=False, subdir=path.is_dir()) as database:
            # The file is mapped: to read a page that is missing would kill this process.
            pages, file = database.info()["last_pgno"] + 1, path / "data.mdb" if path.is_dir() else path
            if file.stat().st_size < pages * database.stat()["psize"]:
                raise pickle.UnpicklingError("the file is cut short")
            with database.begin(buffers=False) as transaction:
                count = _unpickle(transaction.get(b"num_examples"))
            for number in range(int(count)):
                place = f"{path}, record {number}"
                # A transaction a record: a reader that stops in the middle leaves none open.
                with database.begin(buffers=False) as transaction:
                    yield dict(_unpickle(transaction.get(str(number).encode())))
    except (lmdb.Error, pickle.UnpicklingError, *_PICKLE_ERRORS) as error:
        raise InputError(
            f"{place}: not a data set in TAPE's LMDB form, or damaged ({error})",
            hint="It should hold num_examples and pickled dictionaries of numpy arrays and plain values.",
        ) from error


_PICKLE_ERRORS = (EOFError, LookupError, ValueError, OverflowError, MemoryError, TypeError, AttributeError)
"""What the unpickler lets through when bytes are missing or wrong."""


class _Unpickler(pickle.Unpickler):
    """Unpickle plain values and numpy's, and refuse to name anything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}; nothing was run") from None


def _unpickle(value: bytes | None) -> Any:
    if value is None:
        raise pickle.UnpicklingError("the entry is missing")
    return _Unpickler(io.BytesIO(value)).load()


def _lmdb_records(path: Path) -> Iterator[Record]:
    for number, fields in enumerate(read_lmdb(path)):
        if "primary" not in fields:
            raise InputError(f"{path}, record {number}: has no field 'primary'", hint="It should hold the sequence.")
        cluster = next((fields[name] for name in _CLUSTERS if name in fields), None)
        yield _record(fields.get("id", number), fields["primary"], cluster, f"{path}, record {number}")


def _parquet_records(path: Path) -> Iterator[Record]:
    """Stream a Parquet file with a column `sequence`, and `id` and `cluster` if there are, a row group at a time."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing("parquet", path) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            if "sequence" not in columns:
                known = ", ".join(file.schema_arrow.names)
                raise InputError(f"{path}: has no column 'sequence'", hint=f"Its columns: {known}.")
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    yield _record(row.get("id", number), row["sequence"], row.get("cluster"), f"{path}, row {number}")
                    number += 1
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as Parquet ({reason})", hint="Is the file complete?") from error


def _record(identifier: object, sequence: object, cluster: object, place: str) -> Record:
    """Turn the fields of a row into a record; texts may be bytes, a missing sequence is an empty one."""
    name, residues, group = (_text(value) for value in (identifier, sequence, cluster))
    description = f"{name} cluster={'_'.join(group.split())}" if group else name
    return clean(Record(name, residues, description, place))


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _missing(extra: str, path: Path) -> DependencyError:
    package = {"lmdb": "lmdb", "parquet": "pyarrow"}[extra]
    return DependencyError(f"{path}: reading it takes {package}", hint=f"pip install 'protembed[{extra}]'")
