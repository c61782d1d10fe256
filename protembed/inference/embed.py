"""Embeddings: a stream of records in, a stream of embeddings out, in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from protembed.backends.base import Backend
from protembed.errors import UsageError, require_whole
from protembed.sequences.batching import TokenBatch, pack
from protembed.sequences.records import Record
from protembed.sequences.windows import (
    Array,
    Failure,
    LongPolicy,
    Piece,
    average_windows,
    cut,
    residue_limit,
    run_pieces,
)

Pool = Literal["mean", "max", "cls", "mean+max"]


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
        require_whole("layer", self.layer)
        require_whole("max_tokens", self.max_tokens, least=1)
        require_whole("max_length", self.max_length, least=2)
        if self.pool is not None and self.pool not in get_args(Pool):
            raise UsageError(f"pool {self.pool!r} is unknown", hint=f"Known: {', '.join(get_args(Pool))}.")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One protein: `vector` (D,), or (2D,) for mean+max, float32; `residues` (L, D); each None when not asked for."""

    record: Record
    vector: Array | None
    residues: Array | None

    @property
    def arrays(self) -> dict[str, Array | None]:
        return {"proteins": self.vector, "residues": self.residues}


def embed_batches(
    records: Iterable[Record], backend: Backend, options: EmbedOptions
) -> Iterator[list[Embedding | Failure]]:
    """Embed records under a token budget; yield the records that are complete after a batch, in input order.

    Beginning anew at the first record that is not yet out makes the same batches as going on.
    A batch that does not fit into memory is halved until it does; a single protein that does not fit is a Failure,
    and so is one that `long="skip"` leaves out or whose embedding is not finite: no record is ever lost.
    """
    budget = backend.budget() if options.max_tokens is None else options.max_tokens
    pieces = cut(
        records, backend.card.alphabet, residue_limit(backend.card.max_residues, options.max_length), long=options.long
    )
    compute = partial(_compute, backend=backend, options=options)
    pending = _Assembly(options)
    done: list[Embedding | Failure] = []
    nothing: dict[str, Array] = {}
    for group in pack(pieces, size=lambda p: len(p.tokens) if isinstance(p, Piece) else 0, budget=budget):
        for piece, result in run_pieces(group, compute, nothing):
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


def _compute(pieces: Sequence[Piece], backend: Backend, options: EmbedOptions) -> list[dict[str, Array]]:
    """Return the outputs of each piece by kind (residues without special tokens)."""
    layer = backend.card.encoder.layer(options.layer)
    kinds = set(options.pool.split("+")) if options.pool else set()
    if options.residues or not all(piece.whole for piece in pieces):
        kinds.add("residues")
    outputs = backend.run(TokenBatch.of([piece.tokens for piece in pieces]), {(kind, layer) for kind in kinds})
    alphabet = backend.card.alphabet
    results = []
    stop = 0
    for row, piece in enumerate(pieces):
        start, stop = stop, stop + len(piece.tokens)
        results.append(
            {
                kind: values[start + alphabet.prefix : stop - alphabet.suffix] if kind == "residues" else values[row]
                for (kind, _), values in outputs.items()
            }
        )
    return results


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
        residues = average_windows([(piece, result["residues"]) for piece, result in windows])
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
