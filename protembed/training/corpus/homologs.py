"""From files of homologs to counts beside the tokens: MMseqs2's tabular output, or alignments in a3m.

A homolog counts max(0.05, 1 - identity) at the residues that it is aligned to: near copies say little that is new.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import TrainingError
from protembed.training.corpus.a3m import A3M_SUFFIXES, find_alignments, read_alignment
from protembed.training.corpus.counts import WIDTH, CountsWriter, HomologCounts
from protembed.training.corpus.directory import Directory, ranges
from protembed.training.corpus.hits import HIT, RUN, HitReader
from protembed.training.corpus.parts import FORMAT, digest

LEAST = 0.05
"""What a homolog counts at least, however near."""

SUFFIX = ".homologs"
_PAIRS = 4_000_000  # aligned residues that are added up at once
_RESIDUES = 200_000  # of queries whose counts are in memory at once
_TOLERANCE = 0.002  # of identities: MMseqs2 writes three digits

Hits = npt.NDArray[Any]
Fold = Generator[int, None, dict[str, int]]
"""Yields lines read so far, and returns the totals of HomologCounts."""


@dataclass(frozen=True, kw_only=True)
class HomologPlan:
    """A file or folder of homologs, and the folder that it becomes."""

    source: Path
    size: int
    folder: Path

    @property
    def stamp(self) -> list[str | int]:
        """What tells one source from another: its name and size, wherever it lies."""
        return [self.source.name, self.size]


def plan_homologs(sources: Sequence[Path], folder: Path, corpus: object) -> list[HomologPlan]:
    """Name the folder of each source after what it is made of, `corpus` (as JSON) included.

    Raises TrainingError when a source is not there.
    """
    plans, seen = [], set()
    for source in sources:
        size = _size(source)
        key = json.dumps([FORMAT, source.name, size, corpus])
        name = f"{source.name}-{digest(key.encode()):016x}{SUFFIX}"
        if name in seen:
            raise TrainingError(f"{source}: given twice, or two of one name and size", hint="Rename one of them.")
        seen.add(name)
        plans.append(HomologPlan(source=source, size=size, folder=folder / name))
    return plans


def _size(source: Path) -> int:
    if source.is_dir():
        return sum(path.stat().st_size for path in find_alignments(source))
    if not source.is_file():
        raise TrainingError(f"{source}: no such file", hint="A relative path counts from where you run.")
    return source.stat().st_size


def write_homologs(plan: HomologPlan, directory: Directory) -> Iterator[int]:
    """Make the counts of a source under a temporary name and rename them when complete; yield lines read so far.

    Memory holds 70 bytes per protein and some hundred megabytes; the disk, meanwhile, 40 bytes a line and 12 an aligned
    run. Raises InputError naming file and line for what does not fit the proteins.
    """
    temporary = plan.folder.with_name(f".{plan.folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    writer = CountsWriter(temporary)
    is_alignment = plan.source.is_dir() or plan.source.name.endswith(A3M_SUFFIXES)
    fold = _fold_alignments if is_alignment else _fold_hits
    totals = yield from fold(plan.source, temporary, directory, writer)
    # Proteins with the residues of one that has homologs have them, too.
    proteins = np.flatnonzero(np.isin(directory.same, np.array(writer.proteins, dtype=np.int64)))
    counts = HomologCounts(proteins=len(proteins), rows=writer.end, **totals)
    writer.finish(directory.starts[proteins], directory.same[proteins], counts)
    os.replace(temporary, plan.folder)


def _fold_alignments(source: Path, _: Path, directory: Directory, writer: CountsWriter) -> Fold:
    totals = {"lines": 0, "used": 0, "own": 0, "held_out": 0, "repeated": 0}
    done: set[int] = set()
    for path in find_alignments(source):
        for alignment in read_alignment(path, directory):
            totals["lines"] += alignment.lines
            if alignment.protein in done:
                totals["repeated"] += alignment.lines
                continue
            done.add(alignment.protein)
            for name in ("used", "own", "held_out"):
                totals[name] += getattr(alignment, name)
            if alignment.used:
                writer.write(alignment.protein, alignment.counts(LEAST))
        yield totals["lines"]
    return totals


def _fold_hits(source: Path, temporary: Path, directory: Directory, writer: CountsWriter) -> Fold:
    """Put the lines into order by their queries, on disk, and add up those of some queries at a time."""
    reader, lines = HitReader(source, directory), 0
    paths = (temporary / "hits.tmp", temporary / "runs.tmp")
    with paths[0].open("wb") as hits_file, paths[1].open("wb") as runs_file:
        for hits, runs in reader.read():
            hits.tofile(hits_file)
            runs.tofile(runs_file)
            lines += len(hits)
            yield lines
    hits, runs = (_mapped(path, kind) for path, kind in zip(paths, (HIT, RUN), strict=True))
    fold = _Fold(reader, directory, hits, runs)
    for protein, counts in fold.run():
        if counts.any():
            writer.write(protein, counts)
    del hits, runs
    for path in paths:
        path.unlink()
    yield lines
    return {"lines": lines, "used": fold.used, "own": fold.own, "held_out": fold.held_out, "repeated": 0}


def _mapped(path: Path, kind: np.dtype[Any]) -> Hits:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


class _Fold:
    """Adds up hits, queries in the order of their numbers."""

    def __init__(self, reader: HitReader, directory: Directory, hits: Hits, runs: Hits) -> None:
        self._reader, self._directory, self._hits, self._runs = reader, directory, hits, runs
        self._first_run = np.cumsum(hits["runs"], dtype=np.int64) - hits["runs"]
        self.used = self.own = self.held_out = 0

    def run(self) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
        """Yield every query that is in the lines, as the first protein of its residues, and its counts (L, 20)."""
        query = self._directory.same[self._hits["query"]]
        order = np.argsort(query, kind="stable")
        proteins, first = np.unique(query[order], return_index=True)
        lengths = self._directory.lengths[proteins]
        for block in _blocks(lengths, _RESIDUES):
            stop = first[block.stop] if block.stop < len(first) else len(order)
            chosen = order[first[block.start] : stop]
            counts = self._counts(proteins[block], lengths[block], chosen, query[chosen])
            borders = np.cumsum([0, *lengths[block]])
            for protein, (start, end) in zip(proteins[block].tolist(), pairwise(borders.tolist()), strict=True):
                yield protein, counts[start:end]

    def _counts(
        self, proteins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], chosen: Hits, queries: Hits
    ) -> npt.NDArray[np.float64]:
        """Add up the hits of some proteins; (residues of all, 20)."""
        rows = np.cumsum(lengths) - lengths
        counts = np.zeros(int(lengths.sum()) * WIDTH)
        for block in _blocks(self._hits["span"][chosen].astype(np.int64), _PAIRS):
            numbers, owner = chosen[block], np.searchsorted(proteins, queries[block])
            places, columns, weights = self._pairs(self._hits[numbers], self._first_run[numbers], rows[owner])
            inside = columns < WIDTH
            cells = places[inside] * WIDTH + columns[inside]
            counts += np.bincount(cells, weights=weights[inside], minlength=len(counts))
        return counts.reshape(-1, WIDTH)

    def _pairs(
        self, hits: Hits, first_run: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return of every aligned pair the row of its query, the column of its homolog's residue, and its weight."""
        directory = self._directory
        runs = self._runs[ranges(first_run, hits["runs"].astype(np.int64))]
        hit = np.repeat(np.arange(len(hits)), hits["runs"])
        lengths = runs["length"].astype(np.int64)
        targets = directory.tokens(directory.starts[hits["target"]][hit] + runs["target"], lengths)
        queries = directory.tokens(directory.starts[hits["query"]][hit] + runs["query"], lengths)
        hit_of_pair = np.repeat(hit, lengths)
        same = targets == queries
        # Programs differ in whether B is a D, and X an X.
        vague = np.maximum(directory.columns[targets], directory.columns[queries]) == WIDTH
        numbers = (np.bincount(hit_of_pair[chosen], minlength=len(hits)) for chosen in (same & ~vague, same | vague))
        self._check(hits, *numbers)
        own = directory.same[hits["target"]] == directory.same[hits["query"]]
        held_out = directory.held_out[hits["target"]] & ~own
        self.own, self.held_out = self.own + int(own.sum()), self.held_out + int(held_out.sum())
        self.used += int((~own & ~held_out).sum())
        weights = np.where(own | held_out, 0.0, np.maximum(LEAST, 1 - hits["fident"].astype(np.float64)))
        return ranges(rows[hit] + runs["query"], lengths), directory.columns[targets], weights[hit_of_pair]

    def _check(self, hits: Hits, least: npt.NDArray[np.int64], most: npt.NDArray[np.int64]) -> None:
        """Refuse a line whose identity is not that of the residues that it aligns."""
        told, low, high = hits["fident"], least / hits["span"], most / hits["span"]
        wrong = np.flatnonzero((told < low - _TOLERANCE) | (told > high + _TOLERANCE))
        if len(wrong):
            first = wrong[np.argmin(hits["line"][wrong])]
            reason = f"fident is {told[first]:.3f}, and of the aligned residues {low[first]:.3f} are identical"
            self._reader.refuse(int(hits["line"][first]), reason)


def _blocks(sizes: npt.NDArray[np.int64], limit: int) -> Iterator[slice]:
    """Yield slices of items whose sizes add up to `limit` at most, or of one item."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(start, stop)
        start = stop
