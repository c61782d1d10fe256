"""The Python API: a loaded model, and what one can ask of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend, Output
from protembed.backends.load import ModelOptions, open_backend
from protembed.errors import InputError, ProtembedError, UsageError
from protembed.inference.embed import Embedding, EmbedOptions, Pool, embed
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.models.config import DEFAULT_MODEL
from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.sequences.batching import TokenBatch, pack
from protembed.sequences.records import Record
from protembed.sequences.sources import Source, read_source
from protembed.sequences.windows import Failure
from protembed.tasks.prediction import Prediction

Array = npt.NDArray[np.floating[Any]]
Item = TypeVar("Item")

_MASK = "It is a list of positions for every protein, as in mask=[[3, 7], []]."


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    variant: Literal["trained", "tape-port"] | None = None,
    checkpoint_version: float | None = None,
    n_heads: int | None = None,
) -> "Model":
    """Load a model: the bundled one, another by name, or a checkpoint of any supported form by path.

    `backend` is `torch`, or `onnx` for a file that `protembed export` wrote; `auto` takes the file, when one is at
    hand, on a CPU. With `offline` a model that is not there is not downloaded. `variant`, `checkpoint_version` and
    `n_heads` tell what a ProteinLM file does not say itself.
    Raises ModelError when it is missing, damaged or of an unknown kind, UsageError for a device that is not there,
    DependencyError without onnxruntime.

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
                offline=offline,
                variant=variant,
                checkpoint_version=checkpoint_version,
                n_heads=n_heads,
            )
        )
    )


class Model:
    """A model that is ready to run; made by `load`."""

    residues = STANDARD_RESIDUES
    """The columns of `logits` and `profile`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.card = backend.card

    def __repr__(self) -> str:
        return f"<protembed model {self.card.name}: {self._backend.description}>"

    def embed(
        self, source: Source, *, pool: Pool = "mean", layer: int = -1, max_tokens: int | None = None
    ) -> Iterator[tuple[Record, Array]]:
        """Stream one vector (D,) a protein, float32, in input order; `mean+max` gives (2D,).

        `source` is a FASTA path, or a list of sequences, of Records or of (id, sequence), or a dictionary of id to
        sequence, or a pandas Series; Biopython's Seq and SeqRecord are sequences and records, too.
        Raises InputError for a bad record, ProtembedError for one that cannot be computed.

        >>> [(record.id, vector.shape) for record, vector in load().embed(["MKTAYIAKQR"])]
        [('1', (192,))]
        """
        if pool is None:
            raise UsageError("pool is None", hint="Residues alone come from embed_residues.")
        options = EmbedOptions(pool=pool, layer=layer, max_tokens=max_tokens)
        return ((item.record, _present(item.vector)) for item in self._embeddings(source, options))

    def embed_residues(self, source: Source, *, layer: int = -1, max_tokens: int | None = None) -> list[Array]:
        """Return the hidden states of every protein, each (L, D), special tokens left out; see `stream_residues`."""
        return [rows for _, rows in self.stream_residues(source, layer=layer, max_tokens=max_tokens)]

    def stream_residues(
        self, source: Source, *, layer: int = -1, max_tokens: int | None = None
    ) -> Iterator[tuple[Record, Array]]:
        """Stream the hidden states (L, D) of every protein in input order, special tokens left out."""
        options = EmbedOptions(pool=None, residues=True, layer=layer, max_tokens=max_tokens)
        return ((item.record, _present(item.residues)) for item in self._embeddings(source, options))

    def logits(self, source: Source, *, mask: Sequence[Sequence[int]] | None = None) -> list[Array]:
        """Return scores (L, 20) over the standard residues, columns as in `Model.residues`.

        `mask` names for every protein the positions (from 0) that the mask token replaces.

        >>> load().logits(["MKTAYIAKQR"], mask=[[3, 7]])[0].shape
        (10, 20)
        """
        records = list(read_source(source))
        places = mask if mask is not None else [()] * len(records)
        if len(places) != len(records):
            raise UsageError(f"mask has {len(places)} entries for {len(records)} proteins", hint=_MASK)
        encoded = [self._mask(*pair) for pair in zip(records, places, strict=True)]
        wanted = [("logits", self.card.encoder.n_layers)]
        return [scores for (scores,) in self._run(encoded, wanted, self._backend.budget())]

    def profile(self, source: Source) -> list[Array]:
        """Return for every residue how likely each standard residue is among the homologs there; (L, 20), float32.

        A position-specific scoring matrix from one sequence, as probabilities: rows add up to 1, columns are in the
        order of `Model.residues`. Raises ModelError for a model that was not trained to predict profiles, InputError
        for a protein over the model's limit.
        """
        self.card.require_profile()
        encoded = [self._encode(record) for record in read_source(source)]
        wanted = [("profile", self.card.encoder.n_layers)]
        return [rows for (rows,) in self._run(encoded, wanted, self._backend.budget())]

    def hidden_states(self, source: Source) -> list[Array]:
        """Return the hidden states of all layers, computed in one pass; (n_layers + 1, L, D) a protein.

        Entry 0 is the embedding layer, entry i the output of block i, the last is after the final norm: entry i is
        what `embed_residues(..., layer=i)` returns. Special tokens are left out. Raises InputError for a protein over
        the model's limit.

        >>> load().hidden_states(["MKTAYIAKQR"])[0].shape
        (9, 10, 192)
        """
        wanted = [("residues", layer) for layer in range(self.card.encoder.n_layers + 1)]
        budget = max(1, self._backend.budget() // len(wanted))  # all layers of a batch are in memory together
        encoded = [self._encode(record) for record in read_source(source)]
        return [np.stack(layers) for layers in self._run(encoded, wanted, budget)]

    def attentions(self, source: Source) -> list[npt.NDArray[np.float32]]:
        """Return the attention maps of every protein, (n_layers, H, L, L), without the special tokens' part.

        Row i says where residue i looks: a full row would add up to 1, and what the special tokens take is missing.
        A protein of 1,000 residues takes 2.6 GB with ESM-2 650M. Raises InputError for one over the model's limit.

        >>> load().attentions(["MKTAYIAKQR"])[0].shape
        (8, 4, 10, 10)
        """
        alphabet = self.card.alphabet
        results = []
        for record in read_source(source):
            inside = slice(alphabet.prefix, alphabet.prefix + len(record.sequence))
            results.append(self._backend.attentions(self._encode(record))[:, :, inside, inside])
        return results

    def contacts(self, source: Source) -> list[npt.NDArray[np.float32]]:
        """Return the probability (L, L) that two residues are in contact (CB closer than 8 A), for every protein.

        A logistic regression over the attention maps of all layers, each made symmetric and with its average product
        taken off (Rao et al. 2020, bioRxiv 2020.12.15.422761): no structure is needed, and `contacts[i, j]` means
        something from |i - j| >= 6 on. ESM-2 and ESM-1b have the regression, `load("esm2_650m").contacts([...])`; for
        a model without one, such as the bundled model, it raises ModelError. Raises InputError for a protein over the
        model's limit.
        """
        return [self._backend.contacts(self._encode(record)) for record in read_source(source)]

    def predict(self, source: Source, task: str) -> list[Prediction]:
        """Predict one task for every protein; `task` is a name that `protembed predict --task list` shows, or a path.

        `.labels` and `.probabilities`, columns as in `.card.labels`, or `.values`; see predict.Prediction. Raises
        UsageError for an unknown task, ModelError for a head of another encoder, ProtembedError for a protein that
        cannot be computed.
        """
        return [next(iter(found.values())) for _, found in self.stream_predictions(source, [task])]

    def stream_predictions(
        self, source: Source, tasks: str | Sequence[str], *, max_tokens: int | None = None
    ) -> Iterator[tuple[Record, Mapping[str, Prediction]]]:
        """Stream what several tasks say of every protein, computed in one pass, by the names of the heads' tasks."""
        options = PredictOptions(max_tokens=max_tokens)
        predictor, heads = attach_heads(self._backend, [tasks] if isinstance(tasks, str) else tasks)
        items = predict(read_source(source), predictor, heads, options)
        return ((item.record, item.tasks) for item in _computed(items))

    def _embeddings(self, source: Source, options: EmbedOptions) -> Iterator[Embedding]:
        """Check options and source now; embed when the stream is read."""
        self.card.encoder.layer(options.layer)
        return _computed(embed(read_source(source), self._backend, options))

    def _encode(self, record: Record) -> npt.NDArray[np.int64]:
        """Turn a protein that goes through the model in one piece into tokens."""
        limit = self.card.max_residues
        if limit is not None and len(record.sequence) > limit:
            raise InputError(
                f"{record} has {len(record.sequence)} residues, and the model takes {limit} in one piece",
                hint="embed and embed_residues split such proteins; elsewhere, give the part that matters.",
            )
        return self.card.alphabet.encode(record.sequence)

    def _mask(self, record: Record, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Turn a protein into tokens, those at some positions replaced by the mask token."""
        tokens = self._encode(record)
        if isinstance(positions, str) or not isinstance(positions, Iterable):
            raise UsageError(f"mask has {positions!r} for {record}", hint=_MASK)
        for position in positions:
            if not (isinstance(position, SupportsIndex) and 0 <= position.__index__() < len(record.sequence)):
                raise UsageError(f"{record} has no position {position}", hint="Positions count from 0.")
            tokens[self.card.alphabet.prefix + position] = self.card.alphabet.mask_id
        return tokens

    def _run(
        self, encoded: Sequence[npt.NDArray[np.int64]], wanted: Sequence[Output], budget: int
    ) -> Iterator[list[Array]]:
        """Compute outputs (T, ...) in batches; yield them protein by protein without the special tokens' rows."""
        alphabet = self.card.alphabet
        for group in pack(encoded, size=len, budget=budget):
            outputs = self._backend.run(TokenBatch.of(group), wanted)
            stop = 0
            for tokens in group:
                start, stop = stop, stop + len(tokens)
                yield [outputs[name][start + alphabet.prefix : stop - alphabet.suffix] for name in wanted]


def _computed(items: Iterable[Item | Failure]) -> Iterator[Item]:
    """Pass results on. Raises ProtembedError for a protein that could not be computed."""
    for item in items:
        if isinstance(item, Failure):
            raise ProtembedError(f"{item.record}: {item.reason}")
        yield item


def _present(values: Array | None) -> Array:
    assert values is not None
    return values
