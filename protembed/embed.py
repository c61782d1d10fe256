"""Embeddings: a stream of records in, a stream of embeddings out, in the same order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protembed.alphabet import Alphabet
from protembed.backend import Backend, Output
from protembed.batching import TokenBatch, pack
from protembed.errors import InputError, OutOfMemoryError, UsageError
from protembed.records import Record

Array = npt.NDArray[np.floating[Any]]
Pool = Literal["mean", "max", "cls", "mean+max"]
LongPolicy = Literal["split", "truncate", "error", "skip"]

OVERLAP = 4
"""Neighbouring windows of a long protein share this fraction (1/4) of a window."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What is computed, and what happens to proteins that are longer than the model takes.

    `pool` None computes no per-protein vector; `max_tokens` None lets the backend choose; `max_length` (residues)
    lowers the model's own limit, or sets one where it has none.
    """

    pool: Pool | None = "mean"
    residues: bool = False
    layer: int = -1
    max_tokens: int | None = None
    long: LongPolicy = "split"
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise UsageError(f"--max-length {self.max_length} is too small", hint="Give at least 2 residues.")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One protein: `vector` (D,), or (2D,) for mean+max, float32; `residues` (L, D); each None when not asked for."""

    record: Record
    vector: Array | None
    residues: Array | None

    @property
    def arrays(self) -> dict[str, Array | None]:
        return {"proteins": self.vector, "residues": self.residues}


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


def residue_limit(backend: Backend, options: EmbedOptions) -> int | None:
    """Return how many residues go through the model in one piece; None means any number."""
    limits = [limit for limit in (backend.card.max_residues, options.max_length) if limit is not None]
    return min(limits, default=None)


def embed_batches(
    records: Iterable[Record], backend: Backend, options: EmbedOptions
) -> Iterator[list[Embedding | Failure]]:
    """Embed records under a token budget; yield the records that are complete after a batch, in input order.

    Beginning anew at the first record that is not yet out makes the same batches as going on.
    A batch that does not fit into memory is halved until it does; a single protein that does not fit is a Failure,
    and so is one that `long="skip"` leaves out or whose embedding is not finite: no record is ever lost.
    """
    budget = options.max_tokens or backend.budget()
    pieces = cut(records, backend, options)
    pending = _Assembly(options)
    done: list[Embedding | Failure] = []
    for group in pack(pieces, size=lambda p: len(p.tokens) if isinstance(p, Piece) else 0, budget=budget):
        for piece, result in _run(group, backend, options):
            done += pending.add(piece, result)
        if not pending.open:
            yield done
            done = []
    if done:
        yield done


def embed(
    records: Iterable[Record], backend: Backend, options: EmbedOptions | None = None
) -> Iterator[Embedding | Failure]:
    """Embed records one by one, in input order; see `embed_batches`."""
    for batch in embed_batches(records, backend, options or EmbedOptions()):
        yield from batch


def cut(records: Iterable[Record], backend: Backend, options: EmbedOptions) -> Iterator[Piece | Failure]:
    """Turn records into pieces that the model takes."""
    limit = residue_limit(backend, options)
    alphabet = backend.card.alphabet
    for record in records:
        length = len(record.sequence)
        if limit is None or length <= limit:
            yield Piece(record, 0, alphabet.encode(record.sequence), True)
        elif options.long == "truncate":
            yield Piece(record, 0, alphabet.encode(record.sequence[:limit]), True)
        elif options.long == "skip":
            yield Failure(record=record, reason=f"{length} residues are more than {limit} (--long skip)")
        elif options.long == "error":
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


def _run(
    group: list[Piece | Failure], backend: Backend, options: EmbedOptions
) -> Iterator[tuple[Piece | Failure, dict[str, Array]]]:
    """Run a group of pieces; yield each with its outputs by kind (residues without special tokens)."""
    pieces = [item for item in group if isinstance(item, Piece)]
    results = iter(_compute(pieces, backend, _wanted(pieces, backend, options)))
    for item in group:
        yield (item, {}) if isinstance(item, Failure) else next(results)


def _wanted(pieces: list[Piece], backend: Backend, options: EmbedOptions) -> set[Output]:
    layer = backend.card.encoder.layer(options.layer)
    kinds = set(options.pool.split("+")) if options.pool else set()
    if options.residues or not all(piece.whole for piece in pieces):
        kinds.add("residues")
    return {(kind, layer) for kind in kinds}


def _compute(
    pieces: list[Piece], backend: Backend, wanted: set[Output]
) -> Iterator[tuple[Piece | Failure, dict[str, Array]]]:
    if not pieces:
        return
    try:
        outputs = backend.run(TokenBatch.of([piece.tokens for piece in pieces]), wanted)
    except (OutOfMemoryError, MemoryError):
        if len(pieces) == 1:
            reason = f"{len(pieces[0].tokens)} tokens do not fit into memory"
            yield Failure(record=pieces[0].record, reason=reason), {}
            return
        middle = len(pieces) // 2
        yield from _compute(pieces[:middle], backend, wanted)
        yield from _compute(pieces[middle:], backend, wanted)
        return
    alphabet = backend.card.alphabet
    stop = 0
    for row, piece in enumerate(pieces):
        start, stop = stop, stop + len(piece.tokens)
        result = {
            kind: values[start + alphabet.prefix : stop - alphabet.suffix] if kind == "residues" else values[row]
            for (kind, _), values in outputs.items()
        }
        yield piece, result


class _Assembly:
    """Puts the windows of a long protein together again; whole proteins pass through."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._windows: list[tuple[Piece, dict[str, Array]]] = []
        self._failed: Failure | None = None

    @property
    def open(self) -> bool:
        """Whether a protein has windows in and others still to come."""
        return bool(self._windows)

    def add(self, piece: Piece | Failure, result: dict[str, Array]) -> list[Embedding | Failure]:
        """Take the next piece; return the records that are complete with it, none or one."""
        if isinstance(piece, Failure):
            return self._fail(piece)
        if piece.whole:
            return [self._finish(piece.record, result)]
        if self._failed is not None and self._failed.record is piece.record:
            return []
        self._windows.append((piece, result))
        if not piece.last:
            return []
        windows, self._windows = self._windows, []
        return [self._finish(piece.record, self._join(windows))]

    def _fail(self, failure: Failure) -> list[Embedding | Failure]:
        """A record fails once, whichever and however many of its windows do."""
        if self._failed is not None and self._failed.record is failure.record:
            return []
        self._windows, self._failed = [], failure
        return [failure]

    def _join(self, windows: list[tuple[Piece, dict[str, Array]]]) -> dict[str, Array]:
        """Average overlapping windows residue by residue, then pool; `cls` is the mean of the windows' own."""
        width = windows[0][1]["residues"].shape[1]
        total = np.zeros((len(windows[0][0].record.sequence), width), dtype=np.float32)
        count = np.zeros((len(total), 1), dtype=np.float32)
        for piece, result in windows:
            place = slice(piece.start, piece.start + len(result["residues"]))
            total[place] += result["residues"]
            count[place] += 1
        residues = total / count
        joined: dict[str, Array] = {"residues": residues}
        for kind in self._options.pool.split("+") if self._options.pool else []:
            if kind == "cls":
                joined[kind] = np.mean([result[kind] for _, result in windows], axis=0, dtype=np.float32)
            else:
                mean = residues.mean(axis=0, dtype=np.float64).astype(np.float32)
                joined[kind] = mean if kind == "mean" else residues.max(axis=0)
        return joined

    def _finish(self, record: Record, result: dict[str, Array]) -> Embedding | Failure:
        vector = None
        if self._options.pool:
            vector = np.concatenate([result[kind] for kind in self._options.pool.split("+")])
        residues = result["residues"] if self._options.residues else None
        if not all(np.isfinite(values).all() for values in (vector, residues) if values is not None):
            return Failure(record=record, reason="the embedding is not finite; --dtype float32 may help")
        return Embedding(record=record, vector=vector, residues=residues)
