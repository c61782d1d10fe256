"""The onnxruntime runtime: a file that `protembed export` wrote, on a CPU or a CUDA device, without torch."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Output, Predictor
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.heads import can_draw, draw_head, output_name
from protembed.backends.onnx.session import Session
from protembed.checkpoints.head_arrays import is_own, read_head
from protembed.errors import ModelError, UsageError
from protembed.models.cost import estimate
from protembed.models.head_config import HeadCard
from protembed.sequences.batching import TokenBatch

Array = npt.NDArray[Any]

CPU_TOKENS = 1024
"""On a CPU larger batches are no faster and take more memory."""

CUDA_TOKENS = 65_536
"""On a GPU larger batches are no faster."""


class OnnxBackend:
    """Runs an exported model; see backend.Backend.

    `file` is a path, or a file that was opened and verified. `other` makes the backend that computes what no graph
    holds: ESM's contacts, attention maps, and the heads of TAPE's and ProteinLM's files.
    Raises ModelError, UsageError for a device that is not there, DependencyError without onnxruntime.
    """

    def __init__(
        self,
        file: Path | OnnxFile,
        *,
        device: str = "auto",
        threads: int | None = None,
        other: Callable[[], Predictor] | None = None,
    ) -> None:
        if isinstance(file, Path):
            self._file = OnnxFile(file)
            self._file.verify()
        else:
            self._file = file
        self.card = self._file.header.card
        self._session = Session(self._file, device=device, threads=threads)
        self._make_other = other
        self.included: Mapping[str, HeadCard] = {head.task: head for head in self._file.header.heads}
        self._heads: dict[Path, HeadCard] = {}
        self._elsewhere: set[str] = set()

    @property
    def arithmetic(self) -> str:
        """What is computed in: float32, float16 or int8."""
        header = self._file.header
        stored_only = header.weights == "float16" and header.attention != "packed"
        return "float32" if stored_only else header.weights

    @property
    def description(self) -> str:
        stored = self._file.header.weights
        rounded = f" on {stored} weights" if stored != self.arithmetic else ""
        return f"onnx, {self._session.device}, {self.arithmetic}{rounded}"

    @property
    def computed_with(self) -> str:
        return self.description.replace(self._session.device, self._session.device.partition(":")[0])

    @property
    def alone(self) -> bool:
        """Whether a protein has no others beside it that could be padded: in 8 bits, and end to end."""
        header = self._file.header
        return header.weights == "int8" or header.attention == "packed"

    def budget(self) -> int:
        return CPU_TOKENS if self._session.device == "cpu" else CUDA_TOKENS

    def operations_per_second(self) -> float:
        config = self.card.encoder
        length = min(512, config.max_length or 512)
        batch = TokenBatch(tokens=np.full(length, self.card.alphabet.standard_ids[0]), lengths=(length,))
        self.run(batch, [("residues", 1)])  # opens the first block
        began = time.perf_counter()
        self.run(batch, [("residues", 1)])
        seconds = time.perf_counter() - began
        sizes = np.array([length], dtype=np.int32)
        needs = estimate(replace(config, n_layers=1), sizes, value_bytes=0, datasets=0, budget=length)
        return needs.operations / seconds

    def run(self, batch: TokenBatch, wanted: Collection[Output]) -> dict[Output, Array]:
        sources = {output: self._source(*output) for output in wanted}
        names = sorted(set(sources.values()))
        packed = self._file.header.attention == "packed"
        computed = self._run_packed(batch, names) if packed else self._run_rows(batch, names)
        values = dict(zip(names, computed, strict=True))
        return {output: self._finish(output[0], values[name], batch) for output, name in sources.items()}

    def contacts(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.card.require_contacts()
        return self._other.contacts(tokens)

    def attentions(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._other.attentions(tokens)

    def attach(self, path: Path) -> HeadCard:
        if path not in self._heads:
            self._heads[path] = self._attach(path)
        return self._heads[path]

    def _attach(self, path: Path) -> HeadCard:
        """Draw a head behind the graph of the file; what has no ONNX form goes to the other backend."""
        if is_own(path):
            card, arrays = read_head(path)
            card.require_encoder(self.card)
            self._require_other_task(path, card)
            if can_draw(card, self._file.header.attention):
                graph = draw_head(self.card, card, arrays, self._file.header.attention)
                if not self._file.lacks(graph):
                    self._file.add(graph)
                    return card
        card = self._other.attach(path)
        self._require_other_task(path, card)
        self._elsewhere.add(card.task)
        return card

    def _require_other_task(self, path: Path, card: HeadCard) -> None:
        if any(card.task == head.task for head in (*self._heads.values(), *self.included.values())):
            raise UsageError(f"{path}: there is another head for {card.task}", hint="One head a task in one run.")

    def predict(self, batch: TokenBatch, tasks: Collection[str]) -> dict[str, list[npt.NDArray[np.float32]]]:
        here = {task: output_name(task) for task in tasks if task not in self._elsewhere}
        found = self._predict(batch, here) if here else {}
        if there := [task for task in tasks if task in self._elsewhere]:
            found |= self._other.predict(batch, there)
        return found

    def _predict(self, batch: TokenBatch, outputs: Mapping[str, str]) -> dict[str, list[npt.NDArray[np.float32]]]:
        """Run the outputs of heads, by task, in one pass; an array a protein."""
        found: dict[str, list[Any]] = {task: [None] * len(batch.lengths) for task in outputs}
        for rows, computed in self._rows(batch, list(outputs.values())):
            for proteins, values in zip(found.values(), computed, strict=True):
                for row, value in zip(rows, values, strict=True):
                    proteins[row] = value
        return found

    @cached_property
    def _other(self) -> Predictor:
        if self._make_other is None:
            raise ModelError(
                f"{self._file.path}: an ONNX file computes no contacts or attention maps, and no head of this kind",
                hint="--backend torch with the checkpoint that it was exported from.",
            )
        other = self._make_other()
        if other.card.sha256 != self.card.sha256:
            raise ModelError(f"{self.card.name}: the checkpoint was changed while it was in use", hint="Start again.")
        return other

    def run_padded(self, proteins: Sequence[npt.NDArray[np.int64]], names: Sequence[str]) -> list[Array]:
        """Compute outputs of the graph for one padded batch, as other programs do; protembed itself never pads."""
        tokens = np.full((len(proteins), max(map(len, proteins))), self.card.alphabet.pad_id)  # (N, L)
        for row, protein in zip(tokens, proteins, strict=True):
            row[: len(protein)] = protein
        return self._session.run(names, {"tokens": tokens}, padded=True)

    def _source(self, kind: str, layer: int) -> str:
        """Return the output of the graph that a result is made of."""
        if kind in ("residues", "mean", "max", "cls"):
            return f"hidden.{layer}"
        if kind not in ("logits", "profile", "pooled"):
            known = "residues, mean, max, cls, pooled, logits, profile"
            raise ModelError(f"unknown output {kind!r}", hint=f"Known: {known}.")
        if kind == "profile":
            self.card.require_profile()
        if kind not in self._file.outputs:
            head = "masked-language-model head" if kind == "logits" else "pooler"
            raise ModelError(f"{self.card.name} has no {head}", hint="Known: mean, max, cls.")
        return kind

    def _run_rows(self, batch: TokenBatch, names: Sequence[str]) -> list[Array]:
        """Put what was computed row by row end to end; (T, ...) or (N, ...)."""
        starts = _starts(batch.lengths)
        results: dict[str, Array] = {}
        for rows, computed in self._rows(batch, names):
            for name, values in zip(names, computed, strict=True):
                per_protein = name == "pooled"
                if name not in results:
                    count = len(batch.lengths) if per_protein else len(batch.tokens)
                    results[name] = np.empty((count, values.shape[-1]), dtype=np.float32)
                for row, value in zip(rows, values, strict=True):
                    results[name][row if per_protein else slice(starts[row], starts[row + 1])] = value
        return [results[name] for name in names]

    def _rows(self, batch: TokenBatch, names: Sequence[str]) -> Iterator[tuple[list[int], list[Array]]]:
        """Run proteins one by one, those of one length together: nothing is padded.

        Yields the numbers of some proteins, and outputs that have a row for each of them.
        """
        starts = _starts(batch.lengths)
        for rows in self._groups(batch.lengths):
            tokens = np.stack([batch.tokens[starts[row] : starts[row + 1]] for row in rows])  # (rows, L)
            yield rows, self._session.run(names, {"tokens": tokens})

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of proteins of one length, as many as a call should take.

        In 8 bits every protein goes alone: the step of its activations must not depend on its neighbours.
        """
        same: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            same.setdefault(length, []).append(row)
        for length, rows in same.items():
            size = 1 if self._file.header.weights == "int8" else max(1, self.budget() // length)
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _run_packed(self, batch: TokenBatch, names: Sequence[str]) -> list[Array]:
        """Run all proteins end to end in one call; see attention.PackedRow."""
        feeds = pack_inputs(batch)
        return self._session.run(names, {name: feeds[name] for name in self._file.inputs})

    def _finish(self, kind: str, values: Array, batch: TokenBatch) -> Array:
        """Make a result of what the graph computed; sums run in float64, as in Packed.pool."""
        alphabet, starts = self.card.alphabet, _starts(batch.lengths)
        if kind in ("residues", "profile", "pooled"):
            return values
        if kind == "logits":
            return values[:, alphabet.standard_ids]
        if kind == "cls":
            return values[starts[:-1]]
        ends = zip(starts[:-1] + alphabet.prefix, starts[1:] - alphabet.suffix, strict=True)
        inside = (values[start:stop] for start, stop in ends)
        if kind == "max":
            return np.stack([rows.max(axis=0) for rows in inside])
        return np.stack([rows.mean(axis=0, dtype=np.float64) for rows in inside]).astype(np.float32)


def pack_inputs(batch: TokenBatch) -> dict[str, Array]:
    """Return the inputs of a packed graph; see attention.PackedRow.

    >>> pack_inputs(TokenBatch(tokens=np.arange(3), lengths=(1, 2)))["places"].tolist()
    [[0, 2], [3, 1]]
    """
    lengths, starts = np.array(batch.lengths), _starts(batch.lengths)
    proteins = np.repeat(np.arange(len(lengths)), lengths)  # (T,)
    real = (np.arange(lengths.max()) < lengths[:, None]).ravel()  # (N L,)
    places = np.concatenate((np.flatnonzero(real), np.flatnonzero(~real))).reshape(len(lengths), -1)
    return {
        "tokens": batch.tokens,
        "positions": np.arange(len(proteins)) - starts[proteins],
        "proteins": proteins,
        "offsets": starts.astype(np.int32),
        "places": places.astype(np.int32),
    }


def _starts(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return where proteins begin, and where the last one ends; (N + 1,)."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
