"""Embeddings: a stream of records in, a stream of embeddings out, in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from protembed.backends.base import Backend
from protembed.errors import UsageError, require_whole
from protembed.inference.assembly import Cutting, Windows, compute_batches
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record
from protembed.sequences.windows import Array, Failure, LongPolicy, Piece, average_windows

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

    @property
    def cutting(self) -> Cutting:
        return Cutting(long=self.long, max_length=self.max_length)


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
    records: Iterable[Record], backend: Backend, options: EmbedOptions, budget: int | None = None
) -> Iterator[list[Embedding | Failure]]:
    """Embed records under a token budget; yield the records that are complete after a batch; see `compute_batches`.

    `budget` comes before that of the options, and the backend's own last. An embedding that is not finite is a Failure.
    """
    if budget is None:
        budget = backend.budget() if options.max_tokens is None else options.max_tokens
    compute = partial(_compute, backend=backend, options=options)
    return compute_batches(records, backend, options.cutting, budget, compute, partial(_put_together, options=options))


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


def _put_together(windows: Windows, options: EmbedOptions) -> Embedding | Failure:
    """Make one embedding of the outputs of a protein, or of its windows."""
    record = windows[0][0].record
    outputs = windows[0][1] if len(windows) == 1 else _join(windows, options)
    vector = np.concatenate([outputs[kind] for kind in options.pool.split("+")]) if options.pool else None
    residues = outputs["residues"] if options.residues else None
    if not all(np.isfinite(values).all() for values in (vector, residues) if values is not None):
        return Failure(record=record, reason="the embedding is not finite; --dtype float32 may help")
    return Embedding(record=record, vector=vector, residues=residues)


def _join(windows: Windows, options: EmbedOptions) -> dict[str, Array]:
    """Average overlapping windows residue by residue, then pool; `cls` is the mean of the windows' own."""
    residues = average_windows([(piece, outputs["residues"]) for piece, outputs in windows])
    joined: dict[str, Array] = {"residues": residues}
    for kind in options.pool.split("+") if options.pool else []:
        if kind == "cls":
            joined[kind] = np.mean([outputs[kind] for _, outputs in windows], axis=0, dtype=np.float32)
        elif kind == "mean":
            joined[kind] = residues.mean(axis=0, dtype=np.float64).astype(np.float32)
        else:
            joined[kind] = residues.max(axis=0)
    return joined
