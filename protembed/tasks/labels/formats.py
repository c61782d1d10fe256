"""The forms that labelled proteins come in, each as a stream of rows: FASTA, tables, TAPE's LMDB, coordinates.

biotrainer's form: `>ID SET=train TARGET=class` (VALIDATION=True marks the validation set), or labels of residues in a
second FASTA of the same ids, and a third one with 0 for residues that do not count.
"""

import csv
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.sequences.readers import read_lmdb
from protembed.sequences.records import Record, clean, open_text, read_fasta

Array = npt.NDArray[Any]

PACKED = ("", ".xz", ".gz", ".bz2")
"""Endings of packed files; the first is that of a plain one."""

_ATTRIBUTE = re.compile(r"(\w+)=(\S+)")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "name", "accession", "protein"),
    "sequence": ("sequence", "seq", "primary"),
    "label": ("target", "label", "labels", "value", "score"),
    "split": ("set", "split"),
    "mask": ("mask",),
}
_MOST_EXPANSION = 100  # of coordinates, which pack to a third
_MISSING_COORDINATE = -32768  # in units of 0.1 Angstrom


@dataclass(frozen=True, kw_only=True)
class Files:
    """How the data of a task lies in a folder, file names without the ending of a packed file.

    `labels`, `mask` and `scores` stand beside `sequences`; else the one FASTA file or table of the folder has it all.
    `lmdb` begins the names of TAPE's files, `lmdb_field` is the label's, `lmdb_labels` the letters of its numbers.
    """

    sequences: str = "sequences.fasta"
    labels: str = "labels.fasta"
    mask: str = "mask.fasta"
    scores: str = "scores.tsv"
    lmdb: str = ""
    lmdb_field: str = ""
    lmdb_labels: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A protein with its label as it was read: letters, a class, a number, scores (L,), or coordinates (L, 3)."""

    record: Record
    label: str | Array
    split: str = ""
    mask: str | Array | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def find_file(folder: Path, name: str) -> Path | None:
    """Find a file, packed or not."""
    return next((folder / f"{name}{end}" for end in PACKED if (folder / f"{name}{end}").is_file()), None)


def ending(path: Path) -> str:
    """Return the ending of a file without that of its packing."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def attributes_of(text: str) -> dict[str, str]:
    """Read the attributes of a header.

    >>> attributes_of("P1 SET=train TARGET=Cell.membrane")
    {'SET': 'train', 'TARGET': 'Cell.membrane'}
    """
    return dict(_ATTRIBUTE.findall(text))


def _set_of(attributes: Mapping[str, str]) -> str:
    name = attributes.get("SET", "")
    return "val" if attributes.get("VALIDATION", "").lower() == "true" and name in ("", "train") else name


def read_headers(path: Path) -> Iterator[Row]:
    """Read a FASTA file whose headers say TARGET=."""
    for record in read_fasta([path]):
        attributes = attributes_of(record.description)
        if "TARGET" not in attributes:
            raise InputError(f"{record} has no TARGET= in its header", hint="Example: >P12345 TARGET=1.5 SET=train")
        yield Row(
            record=record,
            label=attributes["TARGET"],
            split=_set_of(attributes),
            mask=attributes.get("MASK"),
            attributes=attributes,
        )


def read_beside(folder: Path, files: Files) -> Iterator[Row]:
    """Read sequences, and labels and masks from files of their own by the same ids."""
    sequences, labels, mask = (find_file(folder, name) for name in (files.sequences, files.labels, files.mask))
    scores = find_file(folder, files.scores)
    assert sequences is not None
    if labels is None and scores is None:
        yield from read_headers(sequences)
        return
    of_residues = _strings(labels) if labels else _scores(scores)  # type: ignore[arg-type]
    masks = _strings(mask) if mask else None
    for record in read_fasta([sequences]):
        if record.id not in of_residues:
            raise InputError(f"{record} has no labels in {labels or scores}")
        if masks is not None and record.id not in masks:
            raise InputError(f"{record} has no mask in {mask}")
        title, label = of_residues.pop(record.id)
        attributes = {**attributes_of(record.description), **attributes_of(title)}
        yield Row(
            record=record,
            label=label,
            split=_set_of(attributes),
            mask=masks[record.id][1] if masks else None,
            attributes=attributes,
        )
    if of_residues:
        raise InputError(f"{labels or scores}: '{next(iter(of_residues))}' has no sequence in {sequences}")


def _strings(path: Path) -> dict[str, tuple[str, str]]:
    """Read a FASTA file of label letters: id -> header and letters. Not `read_fasta`: these are no residues."""
    found: dict[str, tuple[str, list[str]]] = {}
    lines: list[str] = []
    with open_text(path, str(path)) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.startswith(">"):
                lines.append(line.strip())
                continue
            name = (line[1:].split(maxsplit=1) or [""])[0]
            if not name or name in found:
                raise InputError(f"{path}, line {number}: the id '{name}' is empty or stands here twice")
            lines = []
            found[name] = (line[1:].strip(), lines)
    return {name: (title, "".join(parts)) for name, (title, parts) in found.items()}


def _scores(path: Path) -> dict[str, tuple[str, str]]:
    """Read a table of id, set and scores, one a residue: id -> attributes and scores."""
    return {row["id"]: (f"SET={row.get('set', '')}", row["scores"]) for _, row in _rows(path, ("id", "scores"))}


def _rows(path: Path, needed: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a table with a header, tab- or comma-separated by its ending; yield line numbers and fields."""
    with open_text(path, str(path)) as handle:
        reader = csv.DictReader(handle, delimiter="\t" if ending(path) == ".tsv" else ",")
        names = [name.strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = names
        if absent := [name for name in needed if name not in names]:
            raise InputError(f"{path}: has no column '{absent[0]}'", hint=f"Its columns: {', '.join(names)}.")
        if repeated := [name for name in names if name and names.count(name) > 1]:
            raise InputError(f"{path}: two columns are called '{repeated[0]}'", hint="Rename or remove one of them.")
        number = 1
        try:
            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise InputError(f"{path}, line {number}: has not as many fields as the header, {len(names)}")
                yield number, row
        except csv.Error as error:
            raise InputError(
                f"{path}, line {number + 1}: cannot be read as a table ({error})",
                hint="Does a quotation mark stand open?",
            ) from error


def read_table(path: Path) -> Iterator[Row]:
    """Read a table with columns for sequence and label, and for id, split and mask if there are."""
    for number, row in _rows(path, ()):
        columns = {what: next((n for n in names if n in row), None) for what, names in _COLUMNS.items()}
        for what in ("sequence", "label"):
            if columns[what] is None:
                known = " or ".join(_COLUMNS[what])
                raise InputError(f"{path}: has no column for the {what} ({known})", hint=f"It has {', '.join(row)}.")
        fields = {what: row[name].strip() for what, name in columns.items() if name}
        if not fields["label"]:
            raise InputError(f"{path}, line {number}: the label is empty", hint="Complete or remove the line.")
        name = fields.get("id") or str(number - 1)
        yield Row(
            record=clean(Record(name, fields["sequence"], name, f"{path}, line {number}")),
            label=fields["label"],
            split=fields.get("split", ""),
            mask=fields.get("mask"),
            attributes={key.upper(): value for key, value in row.items()},
        )


def read_coordinates(path: Path, split: str) -> Iterator[Row]:
    """Read proteins with the coordinates of one atom a residue; missing ones become NaN, lengths are in Angstrom."""
    try:
        _check_size(path)
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("ids", "offsets", "residues", "coords")}
        _require_shapes(**arrays)
    except Exception as error:  # of many kinds: zipfile, zlib and numpy read the bytes
        raise InputError(
            f"{path}: cannot be read as proteins with coordinates ({error})",
            hint="Arrays: ids (S), offsets, residues (S1), coords (int16, 0.1 Angstrom).",
        ) from error
    for number, name in enumerate(arrays["ids"]):
        start, stop = arrays["offsets"][number : number + 2]
        sequence = arrays["residues"][start:stop].tobytes().decode("ascii", "replace")
        raw = arrays["coords"][start:stop]
        where = np.where(raw == _MISSING_COORDINATE, np.nan, raw / np.float32(10)).astype(np.float32)
        found = Record(name.decode("utf-8", "replace"), sequence, "", f"{path}, protein {number}")
        yield Row(record=clean(found), label=where, split=split)


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
    if coords.shape != (len(residues), 3):
        raise ValueError(f"coords are {coords.shape} for {len(residues)} residues")
    if not (offsets[0] == 0 and offsets[-1] == len(residues) and (np.diff(offsets.astype(np.int64)) >= 0).all()):
        raise ValueError(f"offsets do not rise from 0 to {len(residues)}, the number of residues")


def read_tape(path: Path, files: Files, split: str) -> Iterator[Row]:
    """Read TAPE's form; numbers of classes become the letters or digits that stand for them."""
    for number, fields in enumerate(read_lmdb(path)):
        place = f"{path}, record {number}"
        if absent := [name for name in ("primary", files.lmdb_field) if name not in fields]:
            known = ", ".join(fields)
            raise InputError(f"{place}: has no field '{absent[0]}'", hint=f"It has {known}. Is it another task's?")
        name, sequence = (
            value.decode() if isinstance(value, bytes) else str(value)
            for value in (fields.get("id", number), fields["primary"])
        )
        label: Any = np.asarray(fields[files.lmdb_field])
        if files.lmdb_labels:
            if label.min(initial=0) < 0 or label.max(initial=0) >= len(files.lmdb_labels):
                raise InputError(f"{place}: a label is not one of 0 to {len(files.lmdb_labels) - 1}")
            label = "".join(files.lmdb_labels[number] for number in label)
        elif label.size == 1:
            label = str(label.item())
        mask: Any = fields.get("valid_mask")
        yield Row(record=clean(Record(name, sequence, "", place)), label=label, split=split, mask=mask)
