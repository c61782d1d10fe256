"""The Python API: a loaded model, and what one can ask of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from protembed.alphabet import STANDARD_RESIDUES
from protembed.backend import Backend
from protembed.batching import TokenBatch, pack
from protembed.card import DEFAULT_MODEL
from protembed.embed import EmbedOptions, Failure, Pool, embed
from protembed.errors import InputError, ProtembedError, UsageError
from protembed.loading import ModelOptions, open_backend
from protembed.records import Record, clean, read_fasta

Array = npt.NDArray[np.floating[Any]]
Source = str | Path | Iterable[str | Record]
"""A FASTA path, or sequences, or records."""


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    variant: Literal["trained", "tape-port"] | None = None,
    checkpoint_version: float | None = None,
    n_heads: int | None = None,
) -> "Model":
    """Load a model: the bundled one, another by name, or a checkpoint of any supported form by path.

    `variant`, `checkpoint_version` and `n_heads` tell what a ProteinLM file does not say itself.
    Raises ModelError when it is missing, damaged or of an unknown kind, UsageError for a device that is not there.

    >>> load().embed_residues(["MKTAYIAKQR"])[0].shape
    (10, 192)
    """
    return Model(
        open_backend(
            ModelOptions(
                model=str(model),
                device=device,
                dtype=dtype,
                backend=backend,
                threads=threads,
                variant=variant,
                checkpoint_version=checkpoint_version,
                n_heads=n_heads,
            )
        )
    )


class Model:
    """A model that is ready to run; made by `load`."""

    residues = STANDARD_RESIDUES
    """The columns of `logits`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.card = backend.card

    def __repr__(self) -> str:
        return f"<protembed model {self.card.name}: {self._backend.description}>"

    def embed(
        self, source: Source, *, pool: Pool = "mean", layer: int = -1, max_tokens: int | None = None
    ) -> Iterator[tuple[Record, Array]]:
        """Stream one vector (D,) a protein, float32, in input order; `mean+max` gives (2D,).

        Raises InputError for a bad record, ProtembedError for one that cannot be computed.

        >>> [(record.id, vector.shape) for record, vector in load().embed(["MKTAYIAKQR"])]
        [('1', (192,))]
        """
        options = EmbedOptions(pool=pool, layer=layer, max_tokens=max_tokens)
        for item in embed(_records(source), self._backend, options):
            if isinstance(item, Failure):
                raise ProtembedError(f"{item.record}: {item.reason}")
            assert item.vector is not None
            yield item.record, item.vector

    def embed_residues(self, source: Source, *, layer: int = -1, max_tokens: int | None = None) -> list[Array]:
        """Return the hidden states of every protein, each (L, D), special tokens left out; see `stream_residues`."""
        return [rows for _, rows in self.stream_residues(source, layer=layer, max_tokens=max_tokens)]

    def stream_residues(
        self, source: Source, *, layer: int = -1, max_tokens: int | None = None
    ) -> Iterator[tuple[Record, Array]]:
        """Stream the hidden states (L, D) of every protein in input order, special tokens left out."""
        options = EmbedOptions(pool=None, residues=True, layer=layer, max_tokens=max_tokens)
        for item in embed(_records(source), self._backend, options):
            if isinstance(item, Failure):
                raise ProtembedError(f"{item.record}: {item.reason}")
            assert item.residues is not None
            yield item.record, item.residues

    def logits(self, source: Source, *, mask: Sequence[Sequence[int]] | None = None) -> list[Array]:
        """Return scores (L, 20) over the standard residues, columns as in `Model.residues`.

        `mask` names for every protein the positions (from 0) that the mask token replaces.

        >>> load().logits(["MKTAYIAKQR"], mask=[[3, 7]])[0].shape
        (10, 20)
        """
        alphabet = self.card.alphabet
        records = list(_records(source))
        places = mask if mask is not None else [()] * len(records)
        if len(places) != len(records):
            raise UsageError(f"mask has {len(places)} entries for {len(records)} proteins")
        encoded = []
        for record, positions in zip(records, places, strict=True):
            tokens = alphabet.encode(record.sequence)
            for position in positions:
                if not 0 <= position < len(record.sequence):
                    raise UsageError(f"{record} has no position {position}", hint="Positions count from 0.")
                tokens[alphabet.prefix + position] = alphabet.mask_id
            encoded.append(tokens)
        name = ("logits", self.card.encoder.n_layers)
        results: list[Array] = []
        for group in pack(encoded, size=len, budget=self._backend.budget()):
            scores = self._backend.run(TokenBatch.of(group), {name})[name]
            parts = np.split(scores, np.cumsum([len(tokens) for tokens in group])[:-1])
            results += [part[alphabet.prefix : len(part) - alphabet.suffix] for part in parts]
        return results


def _records(source: Source) -> Iterator[Record]:
    """Turn a FASTA path, sequences or records into clean records; sequences are numbered from 1."""
    if isinstance(source, str | Path):
        if not Path(source).exists() and str(source).isalpha():
            raise InputError(f"{source!r} is no file", hint="Give sequences as a list: [sequence].")
        yield from read_fasta([source])
        return
    for number, item in enumerate(source, start=1):
        record = Record(str(number), item) if isinstance(item, str) else item
        yield replace(clean(record), id=record.id)
