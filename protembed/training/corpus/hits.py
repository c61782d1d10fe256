"""Hits of a search by MMseqs2, read from its tabular output and checked against the proteins that they name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.sequences.files import open_text
from protembed.training.corpus.directory import Directory
from protembed.training.corpus.parts import digest

COLUMNS = ("query", "target", "fident", "qstart", "qend", "tstart", "tend", "evalue", "cigar")
"""What `mmseqs convertalis --format-output` is to be given; a file with a header line may have more, in any order."""

HIT = np.dtype([("line", "i8"), ("query", "i8"), ("target", "i8"), ("fident", "f4"), ("span", "i4"), ("runs", "i4")])
"""One line: its number, both proteins, the share of identical residues, columns of the alignment, aligned runs."""

RUN = np.dtype([("query", "i4"), ("target", "i4"), ("length", "i4")])
"""Residues aligned one to one: where they begin in both proteins (from 0), and how many there are."""

_CIGAR = re.compile("(?:[0-9]+[MIDX=])+")
_RUN = re.compile("([0-9]+)([MIDX=])")
_LINES = 100_000
_FORMAT_HINT = f"mmseqs search ... -a, then mmseqs convertalis ... --format-output {','.join(COLUMNS)}"


@dataclass
class _Chunk:
    """Lines as they were read, not looked up yet."""

    queries: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    hits: list[tuple[int, int, int, float, int, int]] = field(default_factory=list)
    runs: list[tuple[int, int, int]] = field(default_factory=list)


class HitReader:
    """Reads the lines of one file; `read` yields them as arrays of HIT and RUN, some ten thousands at a time.

    Raises InputError naming file and line for one that is damaged or does not fit the proteins.
    """

    def __init__(self, path: Path, directory: Directory) -> None:
        self._path, self._directory = path, directory
        self._names: dict[str, int] = {}

    def read(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        with open_text(self._path, str(self._path)) as file:
            chunk = _Chunk()
            for number, words in self._lines(file):
                self._add(chunk, number, words)
                if len(chunk.hits) == _LINES:
                    yield self._looked_up(chunk)
                    chunk, self._names = _Chunk(), {}
            yield self._looked_up(chunk)

    def _lines(self, file: IO[str]) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the number of every line and its words in the order of COLUMNS."""
        order: Sequence[int] | None = None
        for number, line in enumerate(file, start=1):
            words = line.rstrip("\r\n").split("\t")
            if number == 1 and words[0].lower() == "query":
                if missing := [name for name in COLUMNS if name not in words]:
                    self.refuse(1, f"the header has no column {missing[0]}")
                order, width = [words.index(name) for name in COLUMNS], len(words)
                continue
            if len(words) != (width if order else len(COLUMNS)):
                self.refuse(number, f"{len(words)} columns, not {width if order else len(COLUMNS)}")
            yield number, [words[place] for place in order] if order else words

    def _add(self, chunk: _Chunk, number: int, words: Sequence[str]) -> None:
        query, target, fident, *bounds, _, cigar = words
        try:
            identity = float(fident)
            qstart, qend, tstart, tend = (int(word) for word in bounds)
            sizes = [(int(count), kind) for count, kind in _RUN.findall(cigar)] if _CIGAR.fullmatch(cigar) else []
        except ValueError:
            self.refuse(number, "a column that should hold a number does not")
        if not sizes:
            self.refuse(number, f"{cigar[:40]!r} is no CIGAR")
        if not 0 <= identity <= 1:
            self.refuse(number, f"fident is {fident[:20]}, not between 0 and 1")
        if not (0 < qstart <= qend < 2**31 and 0 < tstart <= tend < 2**31):
            self.refuse(number, "the positions make no sense: they count from 1, and a start is not past its end")
        q, t, first = qstart - 1, tstart - 1, len(chunk.runs)
        for count, kind in sizes:
            if kind not in "ID":
                chunk.runs.append((q, t, count))
            q += count if kind != "D" else 0
            t += count if kind != "I" else 0
            if q > qend or t > tend:
                break
        if (q, t) != (qend, tend):
            self.refuse(number, "the CIGAR and the positions contradict each other")
        span = sum(count for count, _ in sizes)
        chunk.hits.append((number, 0, 0, identity, span, len(chunk.runs) - first))
        chunk.ends.append((qend, tend))
        chunk.queries.append(self._name(query))
        chunk.targets.append(self._name(target))

    def _name(self, name: str) -> int:
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = digest(name.encode())
        return known

    def _looked_up(self, chunk: _Chunk) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Put the numbers of proteins into hits, and check that the hits fit them."""
        hits, runs = np.array(chunk.hits, dtype=HIT), np.array(chunk.runs, dtype=RUN)
        ends = np.array(chunk.ends, dtype=np.int64).reshape(-1, 2)
        for name, names, column in (("query", chunk.queries, 0), ("target", chunk.targets, 1)):
            hits[name] = found = self._directory.by_name(np.array(names, dtype=np.uint64))
            if len(wrong := np.flatnonzero(found < 0)):
                what = "several proteins have that id" if found[wrong[0]] == -2 else "no protein has that id"
                self.refuse(int(hits["line"][wrong[0]]), f"{name}: {what} in the files of the corpus")
            lengths = self._directory.lengths[found]
            if len(wrong := np.flatnonzero(ends[:, column] > lengths)):
                place, end = wrong[0], ends[wrong[0], column]
                reason = f"{name} ends at residue {end}, and the protein has {lengths[place]}"
                self.refuse(int(hits["line"][place]), reason)
        return hits, runs

    def refuse(self, line: int, reason: str) -> NoReturn:
        """Raise InputError for a line."""
        hint = _FORMAT_HINT
        if "has that id" in reason or "the protein has" in reason or "identical" in reason:
            hint = "Queries and targets must be proteins of the files that are prepared, searched as they are there."
        raise InputError(f"{self._path}, line {line}: {reason}", hint=hint)
