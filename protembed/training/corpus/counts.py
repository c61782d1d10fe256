"""What homologs have at the residues of proteins: counts (L, 20) per protein, one byte each, mapped from files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.training.corpus.arrays import MappedArray, SumWriter, map_array, read_totals, write_array, write_totals

Counts = npt.NDArray[np.float32]

WIDTH = len(STANDARD_RESIDUES)

_STEPS, _FACTOR = 24.0, 20.0
_DECODED: Counts = ((2 ** (np.arange(256) / _STEPS) - 1) / _FACTOR).astype(np.float32)
"""A byte b is the count (2^(b / 24) - 1) / 20: from 0 over 0.0015 to 78.9, within 1.5 % from a count of 0.1 on."""

MOST = float(_DECODED[-1])
"""The largest count of one residue that a byte can be."""


def encode_counts(counts: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Round counts (L, 20) to bytes; rows that are deeper than bytes can say keep their proportions.

    >>> encode_counts(np.array([[0.0, 0.05, 1.0, 60.0]])).tolist()
    [[0, 24, 105, 246]]
    """
    deepest = counts.max(axis=-1, keepdims=True, initial=MOST)
    scaled = counts * (MOST / deepest)
    codes: npt.NDArray[np.uint8] = np.rint(_STEPS * np.log2(1 + _FACTOR * scaled)).astype(np.uint8)
    return codes


def decode_counts(codes: npt.NDArray[np.uint8]) -> Counts:
    """Return the counts that bytes stand for; the same shape."""
    decoded: Counts = _DECODED[codes]
    return decoded


@dataclass(frozen=True, kw_only=True)
class HomologCounts:
    """What a file of homologs held.

    `lines` = `used` + `own` (a protein with itself) + `held_out` (homologs of a validation cluster, left out) +
    `repeated` (further alignments of a protein that has one). `proteins` of the sources have homologs now.
    """

    lines: int
    used: int
    own: int
    held_out: int
    repeated: int
    proteins: int
    rows: int


@dataclass(frozen=True)
class HomologPart:
    """One file of homologs, made into counts: a folder, complete or not there at all.

    Protein `begins[i]` (its first token, in the parts of the corpus laid end to end) has its counts in `counts` from
    row `rows[i]` on. Proteins of the same residues share them.
    """

    folder: Path

    @cached_property
    def totals(self) -> HomologCounts:
        return read_totals(self.folder / "part.json", HomologCounts)

    @cached_property
    def counts(self) -> MappedArray:
        return map_array(self.folder / "counts.bin", np.uint8, self.totals.rows, WIDTH)

    @cached_property
    def begins(self) -> npt.NDArray[np.int64]:
        return map_array(self.folder / "begins.bin", np.int64, self.totals.proteins).whole()

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        return map_array(self.folder / "rows.bin", np.int64, self.totals.proteins).whole()

    def open(self) -> "HomologPart":
        """Map all files now, so that a damaged or deleted one is noticed at the start."""
        self.counts, self.begins, self.rows  # noqa: B018
        return self

    def read(self, begin: int, length: int) -> npt.NDArray[np.uint8] | None:
        """Return the coded counts (L, 20) of the protein that begins at a token; None where it has no homologs here."""
        place = int(np.searchsorted(self.begins, begin))
        if place == len(self.begins) or self.begins[place] != begin:
            return None
        row = int(self.rows[place])
        return self.counts[row : row + length]


def read_counts(parts: Sequence[HomologPart], begin: int, length: int) -> Counts:
    """Add up what several files say of the homologs of a protein; zeros where it has none; (L, 20)."""
    found = [decode_counts(codes) for part in parts if (codes := part.read(begin, length)) is not None]
    total: Counts = sum(found[1:], start=found[0]) if found else np.zeros((length, WIDTH), dtype=np.float32)
    return total


class CountsWriter:
    """Writes the files of a HomologPart, protein by protein in any order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = SumWriter(folder / "counts.bin")
        self.proteins: list[int] = []
        self._rows: list[int] = []
        self.end = 0

    def write(self, protein: int, counts: npt.NDArray[np.floating]) -> None:
        """Append the counts (L, 20) of a protein, named by its number."""
        self.proteins.append(protein)
        self._rows.append(self.end)
        self._file.write(encode_counts(counts))
        self.end += len(counts)

    def finish(self, begins: npt.NDArray[np.int64], source: npt.NDArray[np.int64], totals: HomologCounts) -> None:
        """Write the index: proteins begin at `begins` (n,), and have the counts of the proteins `source` (n,)."""
        self._file.__exit__(None)
        order = np.argsort(self.proteins)
        known, rows = np.array(self.proteins, np.int64)[order], np.array(self._rows, np.int64)[order]
        places = np.searchsorted(known, source)
        sort = np.argsort(begins)
        write_array(self._folder / "begins.bin", begins[sort])
        write_array(self._folder / "rows.bin", rows[places][sort])
        write_totals(self._folder / "part.json", totals)
