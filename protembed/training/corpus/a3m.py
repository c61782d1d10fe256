"""Alignments in a3m, as ColabFold and HHblits write them: rows of a query's homologs, insertions in lower case."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.sequences.files import open_text
from protembed.training.corpus.counts import WIDTH
from protembed.training.corpus.directory import Directory
from protembed.training.corpus.parts import digest

A3M_SUFFIXES = (".a3m", ".a3m.gz", ".a3m.xz", ".a3m.bz2")
_NO_LOWER = str.maketrans("", "", ascii_lowercase + ".")
_NO_GAPS = str.maketrans("", "", "-.")
_GAP = 21  # a column of its own, behind the 20 residues and the unknown ones


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """One query (a protein of the corpus, by number) and the columns of its homologs, (N, L): 20 is no residue.

    `lines` are all rows but the query; `own` those with its residues, `held_out` those of validation proteins.
    """

    protein: int
    query: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    lines: int
    own: int
    held_out: int

    @property
    def used(self) -> int:
        return len(self.rows)

    def counts(self, least: float) -> npt.NDArray[np.float64]:
        """Add up the rows, each weighted by 1 - identity over its aligned residues, at least `least`; (L, 20)."""
        aligned = self.rows != _GAP
        same = (self.rows == self.query) & (self.query < WIDTH)
        identity = same.sum(axis=1) / np.maximum(aligned.sum(axis=1), 1)
        weights = np.maximum(least, 1 - identity)
        counts = np.zeros((len(self.query), WIDTH))
        for column in range(WIDTH):
            counts[:, column] = weights @ (self.rows == column)
        return counts


def find_alignments(source: Path) -> list[Path]:
    """Return the a3m files of a folder in order of name, or the one file itself. Raises InputError for none."""
    if not source.is_dir():
        return [source]
    found = sorted(path for path in source.iterdir() if path.name.endswith(A3M_SUFFIXES))
    if not found:
        raise InputError(f"{source}: there is no a3m file in this folder", hint="Give a folder of *.a3m files.")
    return found


def read_alignment(path: Path, directory: Directory) -> Iterator[Alignment]:
    """Read the alignments of a file: as a rule one; ColabFold puts a NUL between several.

    The first row is the query; the protein with its residues is found in the corpus, whatever it is called. Rows of
    validation clusters are known by their id or by all of their residues. Raises InputError naming file and line.
    """
    group: list[tuple[int, str, str]] = []
    for line, name, sequence in _records(path):
        if name is None:
            if group:
                yield _make(path, group, directory)
            group = []
        else:
            group.append((line, name, sequence))
    if group:
        yield _make(path, group, directory)


def _records(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """Yield line, id and row of every record; an id of None between two alignments of one file."""
    begin, name, rows = 0, None, list[str]()
    with open_text(path, str(path)) as file:
        for number, text in enumerate(file, start=1):
            for piece, line in enumerate(text.split("\0")):
                if piece:
                    if name is not None:
                        yield begin, name, "".join(rows)
                    yield number, None, ""
                    name = None
                if line.startswith("#"):
                    continue
                if line.startswith(">"):
                    if name is not None:
                        yield begin, name, "".join(rows)
                    begin, name, rows = number, (line[1:].split() or [""])[0], []
                elif line.strip():
                    if name is None:
                        _refuse(path, number, "not a3m, a record must start with '>'")
                    rows.append(line.strip())
    if name is not None:
        yield begin, name, "".join(rows)


def _make(path: Path, group: list[tuple[int, str, str]], directory: Directory) -> Alignment:
    line, name, query = group[0]
    if not query.isascii() or not query.isalpha() or not query.isupper():
        _refuse(path, line, f"the query, {name!r}, is not of upper-case residues alone")
    protein = int(directory.by_digest(_digests([query], directory))[0])
    if protein < 0:
        _refuse(path, line, f"no protein of the corpus has the residues of the query, {name!r}")
    rows, own, held_out = [], 0, 0
    names = np.array([digest(word.encode()) for _, word, _ in group[1:]], dtype=np.uint64)
    named = directory.by_name(names).tolist()
    found = directory.by_digest(_digests([text for _, _, text in group[1:]], directory)).tolist()
    for (begin, word, text), *numbers in zip(group[1:], found, named, strict=True):
        row = text.translate(_NO_LOWER)
        if len(row) != len(query) or not row.isascii():
            _refuse(path, begin, f"{word!r} has {len(row)} columns, and its query has {len(query)} residues")
        if numbers[0] == protein:
            own += 1
        elif any(protein >= 0 and directory.held_out[protein] for protein in numbers):
            held_out += 1
        else:
            rows.append(row)
    letters = np.frombuffer("".join(rows).encode(), dtype=np.uint8).reshape(len(rows), len(query))
    return Alignment(
        protein=protein,
        query=_columns(directory)[np.frombuffer(query.encode(), dtype=np.uint8)],
        rows=_columns(directory)[letters],
        lines=len(group) - 1,
        own=own,
        held_out=held_out,
    )


def _columns(directory: Directory) -> npt.NDArray[np.int64]:
    """Return the column of every letter: 0 to 19, 20 for letters that are no standard residue, 21 for gaps; (256,)."""
    columns = np.full(256, WIDTH, dtype=np.int64)
    for column, row in enumerate(directory.alphabet.standard_ids):
        columns[ord(directory.alphabet.tokens[row])] = column
    columns[ord("-")] = _GAP
    return columns


def _digests(rows: Sequence[str], directory: Directory) -> npt.NDArray[np.uint64]:
    """Return the digests of the residues of rows, as those of the parts: aligned or not, gaps left out."""
    alphabet, found = directory.alphabet, []
    for row in rows:
        tokens = alphabet.encode(row.translate(_NO_GAPS).upper() if row.isascii() else "")
        found.append(digest(tokens[alphabet.prefix : len(tokens) - alphabet.suffix].astype(np.uint8).tobytes()))
    return np.array(found, dtype=np.uint64)


def _refuse(path: Path, line: int, reason: str) -> NoReturn:
    raise InputError(f"{path}, line {line}: {reason}", hint="An a3m has its query in the first row, without gaps.")
