"""Labelled proteins in binary files: coordinates (.npz), and TAPE's LMDB."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from protembed.errors import InputError
from protembed.sequences.readers import read_lmdb
from protembed.sequences.records import Record, clean
from protembed.tasks.labels.rows import Array, Files, Row

_MOST_EXPANSION = 100  # of coordinates, which pack to a third
_MISSING_COORDINATE = -32768  # in units of 0.1 Angstrom
_DAMAGE = (
    *(OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, ArithmeticError, MemoryError),
    *(RuntimeError, SyntaxError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
"""What numpy and zipfile let through when bytes are missing or wrong; RuntimeError also where a file is encrypted."""


def read_coordinates(path: Path, split: str) -> Iterator[Row]:
    """Read proteins with the coordinates of one atom a residue; missing ones become NaN, lengths are in Angstrom."""
    try:
        _check_size(path)
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("ids", "offsets", "residues", "coords")}
        _require_shapes(**arrays)
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as proteins with coordinates ({reason})",
            hint="Arrays: ids (S), offsets, residues (S1), coords (int16, 0.1 Angstrom).",
        ) from error
    for number, name in enumerate(arrays["ids"]):
        start, stop = arrays["offsets"][number : number + 2]
        sequence = arrays["residues"][start:stop].tobytes().decode("ascii", "replace")
        raw = arrays["coords"][start:stop]
        where = np.where(raw == _MISSING_COORDINATE, np.nan, raw / np.float32(10)).astype(np.float32)
        record = Record(name.decode("utf-8", "replace"), sequence, "", f"{path}, protein {number}")
        yield Row(record=clean(record), label=where, split=split)


def _check_size(path: Path) -> None:
    """Raise ValueError for an archive that a small file blows up to fill the memory."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > _MOST_EXPANSION * path.stat().st_size:
        raise ValueError(f"its parts are said to have {size:,} bytes, more than {_MOST_EXPANSION} times the file's")


def _require_shapes(*, ids: Array, offsets: Array, residues: Array, coords: Array) -> None:
    """Raise ValueError unless these arrays can be proteins and their coordinates."""
    if ids.dtype.kind != "S" or ids.ndim != 1:
        raise ValueError(f"ids are {ids.dtype}, {ids.shape}")
    if offsets.dtype.kind not in "iu" or offsets.shape != (len(ids) + 1,):
        raise ValueError(f"offsets are {offsets.dtype}, {offsets.shape}, for {len(ids)} ids")
    if residues.dtype.itemsize != 1 or residues.ndim != 1:
        raise ValueError(f"residues are {residues.dtype}, {residues.shape}")
    if coords.dtype.kind not in "iuf" or coords.shape != (len(residues), 3):
        raise ValueError(f"coords are {coords.dtype}, {coords.shape}, for {len(residues)} residues")
    if not (offsets[0] == 0 and offsets[-1] == len(residues) and (np.diff(offsets.astype(np.int64)) >= 0).all()):
        raise ValueError(f"offsets do not rise from 0 to {len(residues)}, the number of residues")


def read_tape(path: Path, files: Files, split: str) -> Iterator[Row]:
    """Read TAPE's form; numbers of classes become the letters or digits that stand for them."""
    for number, fields in enumerate(read_lmdb(path)):
        place = f"{path}, record {number}"
        if absent := [name for name in ("primary", files.lmdb_field) if name not in fields]:
            known = ", ".join(map(str, fields))
            raise InputError(f"{place}: has no field '{absent[0]}'", hint=f"It has {known}. Is it another task's?")
        name, sequence = (_text(value) for value in (fields.get("id", number), fields["primary"]))
        yield Row(
            record=clean(Record(name, sequence, "", place)),
            label=_label(fields[files.lmdb_field], files, place),
            split=split,
            mask=_mask(fields.get("valid_mask"), place),
        )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _label(value: object, files: Files, place: str) -> str | Array:
    """Return a label as text (one class, one number, letters) or numbers. Raises InputError for anything else."""
    label: Any = np.asarray(value)
    if label.dtype.kind not in "biufSU" or not label.size:
        raise InputError(f"{place}: '{files.lmdb_field}' is {_shown(value)}, and no label can be read from that")
    if files.lmdb_labels:
        known = len(files.lmdb_labels)
        if label.dtype.kind not in "iu" or label.ndim != 1 or label.min() < 0 or label.max() >= known:
            raise InputError(f"{place}: a label is not one of 0 to {known - 1}")
        return "".join(files.lmdb_labels[number] for number in label)
    if label.size > 1:
        if label.dtype.kind in "SU":
            raise InputError(f"{place}: '{files.lmdb_field}' is {_shown(value)}: several texts, and one is expected")
        return label  # type: ignore[no-any-return]
    item = label.item()
    if isinstance(item, float) and not np.isfinite(item):
        raise InputError(f"{place}: the target is NaN or infinite", hint="Remove the record, or the value.")
    return _text(item)


def _mask(value: object, place: str) -> Array | None:
    """Return which residues count, as numbers."""
    if value is None:
        return None
    mask: Array = np.asarray(value)
    if mask.dtype.kind not in "biuf" or mask.ndim != 1:
        raise InputError(f"{place}: 'valid_mask' is {_shown(value)}, not a number for each residue")
    return mask


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
