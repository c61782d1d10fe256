"""Proteins as pieces that a model takes: cut where they are too long, run in batches that fit, put together again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError, OutOfMemoryError
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.records import Record

Array = npt.NDArray[np.floating[Any]]
LongPolicy = Literal["split", "truncate", "error", "skip"]
Result = TypeVar("Result")

OVERLAP = 4
"""Neighbouring windows of a long protein share this fraction (1/4) of a window."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A record without an embedding, and why."""

    record: Record
    reason: str


@dataclass(frozen=True)
class Piece:
    """A protein or a window of one: its tokens, where it starts, whether it is the last of its record."""

    record: Record
    start: int
    tokens: npt.NDArray[np.int64]
    last: bool

    @property
    def whole(self) -> bool:
        return self.start == 0 and self.last


def residue_limit(max_residues: int | None, max_length: int | None) -> int | None:
    """Return how many residues go through the model in one piece; None means any number."""
    limits = [limit for limit in (max_residues, max_length) if limit is not None]
    return min(limits, default=None)


def cut(
    records: Iterable[Record], alphabet: Alphabet, limit: int | None, *, long: LongPolicy
) -> Iterator[Piece | Failure]:
    """Turn records into pieces that the model takes; `long` says what becomes of those over the limit."""
    for record in records:
        length = len(record.sequence)
        if not length:
            yield Failure(record=record, reason="it has no residues")
        elif limit is None or length <= limit:
            yield Piece(record, 0, alphabet.encode(record.sequence), True)
        elif long == "truncate":
            yield Piece(record, 0, alphabet.encode(record.sequence[:limit]), True)
        elif long == "skip":
            yield Failure(record=record, reason=f"{length} residues are more than {limit} (--long skip)")
        elif long == "error":
            raise InputError(
                f"{record} has {length} residues, more than {limit}",
                hint="--long split (windows, averaged), truncate or skip.",
            )
        else:
            yield from _windows(record, limit, alphabet)


def _windows(record: Record, limit: int, alphabet: Alphabet) -> Iterator[Piece]:
    """Cut a long protein into overlapping windows of `limit` residues, the last one flush with its end."""
    end = len(record.sequence) - limit
    starts = [*range(0, end, max(1, limit - limit // OVERLAP)), end]
    for start in starts:
        yield Piece(record, start, alphabet.encode(record.sequence[start : start + limit]), start == end)


def run_pieces(
    group: Sequence[Piece | Failure], compute: Callable[[Sequence[Piece]], Iterable[Result]], nothing: Result
) -> Iterator[tuple[Piece | Failure, Result]]:
    """Run a group of pieces; yield each with its result, failures with `nothing`, in their order.

    `compute` returns a result a piece. When a batch does not fit into memory, it is halved until it does; a single
    piece that does not fit becomes a Failure.
    """
    results = _halve([item for item in group if isinstance(item, Piece)], compute, nothing)
    for item in group:
        yield (item, nothing) if isinstance(item, Failure) else next(results)


def _halve(
    pieces: Sequence[Piece], compute: Callable[[Sequence[Piece]], Iterable[Result]], nothing: Result
) -> Iterator[tuple[Piece | Failure, Result]]:
    if not pieces:
        return
    try:
        results = compute(pieces)
    except (OutOfMemoryError, MemoryError):
        results = None
    # The halves run here, not in the block above: there the error's traceback holds all that the batch has computed.
    if results is not None:
        yield from zip(pieces, results, strict=True)
    elif len(pieces) == 1:
        reason = f"{len(pieces[0].tokens)} tokens do not fit into memory"
        yield Failure(record=pieces[0].record, reason=reason), nothing
    else:
        middle = len(pieces) // 2
        yield from _halve(pieces[:middle], compute, nothing)
        yield from _halve(pieces[middle:], compute, nothing)


def average_windows(windows: Sequence[tuple[Piece, Array]]) -> Array:
    """Put the rows of a long protein's windows together, averaged where they overlap; float32 (L, C)."""
    total = np.zeros((len(windows[0][0].record.sequence), windows[0][1].shape[1]), dtype=np.float32)
    count = np.zeros((len(total), 1), dtype=np.float32)
    for piece, rows in windows:
        place = slice(piece.start, piece.start + len(rows))
        total[place] += rows
        count[place] += 1
    averaged: Array = total / count
    return averaged
