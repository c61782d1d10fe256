"""Labelled proteins: found at a path, chosen by split and attributes, their labels turned into numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.tasks.labels.arrays import read_coordinates, read_tape
from protembed.tasks.labels.encoding import Coding, Labelled, class_of, encode, letters_of
from protembed.tasks.labels.fasta import read_beside, read_headers
from protembed.tasks.labels.rows import Files, Row, ending, find_file
from protembed.tasks.labels.tables import read_table

_FASTA, _TABLE = (".fasta", ".fa", ".faa"), (".csv", ".tsv")
_VALIDATION = ("valid", "validation", "dev")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Labelled proteins in the order of the data, the labels they are numbered by, and what was left out, and why."""

    proteins: list[Labelled]
    labels: tuple[str, ...]
    left_out: Mapping[str, int]

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Count the residues or proteins of every class, or flag; (C,)."""
        kept = [np.atleast_1d(protein.target[protein.counts]) for protein in self.proteins]
        if kept and kept[0].ndim > 1:
            on: npt.NDArray[np.int64] = np.concatenate(kept).sum(axis=0, dtype=np.int64)
            return on
        return np.bincount(np.concatenate(kept).astype(np.int64), minlength=len(self.labels))

    def require_every_class(self) -> None:
        """Raise InputError when a class has no example: nothing can be learnt of it."""
        if absent := [label for label, count in zip(self.labels, self.class_counts(), strict=True) if not count]:
            raise InputError(
                f"{len(absent)} of {len(self.labels)} classes have no training example, the first is {absent[0]!r}",
                hint="Leave the class out of the labels, or add examples.",
            )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which proteins are wanted: of one split; with these attributes; without those; not longer than `longest`.

    `unnamed`: those of no split, too.
    """

    split: str | None = None
    unnamed: bool = False
    where: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    longest: int | None = None

    def objection(self, row: Row) -> str | None:
        """Say why a protein is left out; None: it is not."""
        for name, value in self.where.items():
            if row.attributes.get(name) != value:
                return f"not {name}={value}"
        for name, value in self.without.items():
            if row.attributes.get(name) == value and name not in self.where:
                return f"{name}={value}"
        if self.longest is not None and len(row.record.sequence) > self.longest:
            return f"longer than {self.longest} residues"
        return None


def read_labelled(path: Path, files: Files, coding: Coding, choice: Choice = Choice()) -> DataSet:
    """Read the labelled proteins at a path. Raises InputError naming file, line and record."""
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    rows = []
    for row in read_rows(path, files, split=choice.split, unnamed=choice.unnamed, seen=seen):
        if reason := choice.objection(row):
            left_out[reason] += 1
        else:
            rows.append(row)
    if not rows:
        chosen = f" of SET={choice.split}" if choice.split else ""
        raise InputError(f"{path}: no proteins{chosen} ({sum(left_out.values())} left out)", hint=_sets_there(seen))
    labels = coding.labels
    if not labels and coding.kind in ("residue_classes", "sequence_class"):
        labels = tuple(sorted(_labels_in(rows, coding)))
    return DataSet(proteins=[encode(row, coding, labels) for row in rows], labels=labels, left_out=left_out)


def _sets_there(seen: set[str]) -> str:
    """Say which sets the data has; or what to do where it names none."""
    if named := sorted(seen - {""}):
        return f"It has {', '.join(named)}{', and proteins of no set' if '' in seen else ''}."
    if not seen:
        return "Is it empty?"
    return (
        "Its proteins name no set. Add a column 'set' to a table, SET= to headers (train, val, test); or ask for no "
        "set: all are evaluated then, and in training a share of them validates."
    )


def _labels_in(rows: list[Row], coding: Coding) -> set[str]:
    if coding.kind == "sequence_class":
        return {class_of(row) for row in rows}
    letters = {letter for row in rows for letter in letters_of(row)} - set(coding.uncounted)
    return {coding.merge.get(letter, letter) for letter in letters}


def same_split(one: str, other: str) -> bool:
    """Tell whether two names of a split mean the same.

    >>> same_split("valid", "val"), same_split("test_CB513", "cb513"), same_split("train", "test")
    (True, True, False)
    """
    return _plain(one) == _plain(other)


def read_rows(
    path: Path, files: Files, *, split: str | None = None, unnamed: bool = False, seen: set[str] | None = None
) -> Iterator[Row]:
    """Stream the labelled proteins at a path: a file of any of the forms, or a folder; all, or those of one split.

    `unnamed`: those of no split, too. The names of all splits that were met go into `seen`. Raises InputError naming
    file, line and record.
    """
    met = set() if seen is None else seen
    for place, of_file in _parts(path, files):
        # Where a file is a split, the others need not be read.
        if of_file is not None:
            met.add(of_file)
            if split is not None and not same_split(of_file, split):
                continue
        for row in _read(place, files, of_file or ""):
            met.add(row.split)
            if split is None or same_split(row.split, split) or (unnamed and not row.split):
                yield row


def _parts(path: Path, files: Files) -> Iterator[tuple[Path, str | None]]:
    """Find the files to read, each with the split that its name tells."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", hint="Check the path.")
    if not path.is_dir() or path.suffix == ".lmdb" or find_file(path, files.sequences):
        yield path, _split_of(path, files)
        return
    found = sorted(path.glob("*.npz"))
    if files.lmdb:
        name = f"{files.lmdb}_*.lmdb"
        found = sorted(path.glob(name)) or sorted(path.glob(f"{files.lmdb}/{name}")) or found
    if not found:
        found = [file for file in sorted(path.iterdir()) if ending(file) in _FASTA + _TABLE]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise InputError(
                f"{path}: expected {files.sequences}, or one FASTA file or table, and found {names}",
                hint="Name the file itself.",
            )
    for file in found:
        yield file, _split_of(file, files)


def _split_of(path: Path, files: Files) -> str | None:
    if path.suffix == ".npz":
        return path.stem
    return path.stem.removeprefix(f"{files.lmdb}_") if path.suffix == ".lmdb" else None


def _read(path: Path, files: Files, split: str) -> Iterator[Row]:
    if path.suffix == ".lmdb":
        return read_tape(path, files, split)
    if path.suffix == ".npz":
        return read_coordinates(path, split)
    if path.is_dir():
        return read_beside(path, files)
    if path.suffix == ".parquet":
        raise InputError(
            f"{path}: labels are not read from Parquet",
            hint="Write it as a table: pandas.read_parquet(...).to_csv(..., index=False).",
        )
    return read_table(path) if ending(path) in _TABLE else read_headers(path)


def _plain(split: str) -> str:
    name = split.lower().removeprefix("test_")
    return "val" if name in _VALIDATION else name
