"""A labelled protein as it was read, and how the files of a task lie in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from protembed.sequences.records import Record

Array = npt.NDArray[Any]

PACKED = ("", ".xz", ".gz", ".bz2")
"""Endings of packed files; the first is that of a plain one."""


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
    """A protein with its label as it was read: letters, a class, a number, scores (L,), or coordinates (L, 3).

    `decimal_comma`: the table separates its fields by semicolons, so a comma stands within its numbers.
    """

    record: Record
    label: str | Array
    split: str = ""
    mask: str | Array | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    decimal_comma: bool = False


def find_file(folder: Path, name: str) -> Path | None:
    """Find a file, packed or not."""
    return next((folder / f"{name}{end}" for end in PACKED if (folder / f"{name}{end}").is_file()), None)


def ending(path: Path) -> str:
    """Return the ending of a file without that of its packing."""
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix
