"""Predictions: a stream of records in, a stream of predictions out, in the same order; all tasks in one pass."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from protembed.backends.base import Backend, Predictor
from protembed.checkpoints.find import bundled_head, find_head
from protembed.errors import OutOfMemoryError, UsageError, require_whole
from protembed.inference.assembly import Cutting, Outputs, Windows, compute_batches
from protembed.inference.memory import available_memory
from protembed.models.head_config import HeadCard, require_distinct
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record
from protembed.sequences.windows import Array, Failure, Piece, average_windows
from protembed.tasks import TASKS
from protembed.tasks.prediction import Predicted, Prediction


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How records become batches; proteins over the model's limit, or `max_length`, go through in windows (`split`).

    Where windows overlap their outputs are averaged. Contacts need the protein in one piece: a longer one is a Failure.
    """

    max_tokens: int | None = None
    long: Literal["split", "error", "skip"] = "split"
    max_length: int | None = None

    def __post_init__(self) -> None:
        require_whole("max_tokens", self.max_tokens, least=1)
        require_whole("max_length", self.max_length, least=2)

    @property
    def cutting(self) -> Cutting:
        return Cutting(long=self.long, max_length=self.max_length)


def list_tasks(model: str) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of all tasks, with whether a head for the model is bundled."""
    columns = ["task", "predicts", "labels", "metric", "head"]
    rows = []
    for task in TASKS.values():
        labels = task.coding.labels
        letters = " ".join(labels) if max(map(len, labels), default=0) == 1 else f"{len(labels)} classes"
        bundled = bundled_head(task.name, model).is_file()
        rows.append([task.name, task.summary, letters if labels else "", task.metric, "bundled" if bundled else "-"])
    return columns, rows


def attach_heads(backend: Backend, tasks: Sequence[str]) -> tuple[Predictor, list[HeadCard]]:
    """Find the heads of tasks, named or by path, and put them beside the model. Raises UsageError, ModelError."""
    if not isinstance(backend, Predictor):
        raise UsageError(f"{backend.description} does not run task heads", hint="--backend torch")
    if not tasks:
        raise UsageError("no task is named", hint="--task ss3, or several: --task ss3,disorder; --task list")
    heads = [backend.included.get(task) or backend.attach(find_head(task, backend.card)) for task in tasks]
    require_distinct(heads)
    return backend, heads


def predict_batches(
    records: Iterable[Record],
    predictor: Predictor,
    heads: Sequence[HeadCard],
    options: PredictOptions,
    budget: int | None = None,
) -> Iterator[list[Predicted | Failure]]:
    """Run attached heads on records; yield the records that are complete after a batch; see `compute_batches`.

    `budget` comes before that of the options, and the backend's own last. Outputs that are not finite are a Failure.
    """
    if budget is None:
        budget = predictor.budget() if options.max_tokens is None else options.max_tokens
    compute = partial(_compute, predictor=predictor, heads=heads)
    together = partial(_put_together, heads=heads)
    return compute_batches(records, predictor, options.cutting, budget, compute, together, doing="predicted")


def predict(
    records: Iterable[Record], predictor: Predictor, heads: Sequence[HeadCard], options: PredictOptions | None = None
) -> Iterator[Predicted | Failure]:
    """Run attached heads on records; yield one result a record, in input order; see `predict_batches`."""
    for batch in predict_batches(records, predictor, heads, options or PredictOptions()):
        yield from batch


def _compute(pieces: Sequence[Piece], predictor: Predictor, heads: Sequence[HeadCard]) -> list[Outputs]:
    """Return the outputs of each piece by task. Raises OutOfMemoryError before the system would end the process."""
    longest = max(len(piece.tokens) for piece in pieces)
    needed, free = sum(head.config.map_bytes(longest) for head in heads), available_memory()
    if free is not None and needed > free:
        raise OutOfMemoryError(f"maps of {longest} tokens take about {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free")
    outputs = predictor.predict(TokenBatch.of([piece.tokens for piece in pieces]), [head.task for head in heads])
    return [{task: proteins[number] for task, proteins in outputs.items()} for number in range(len(pieces))]


def _put_together(windows: Windows, heads: Sequence[HeadCard]) -> Predicted | Failure:
    """Put the windows of a protein together, if it has several, and turn outputs into probabilities and values."""
    record = windows[0][0].record
    found = {}
    for head in heads:
        if len(windows) > 1 and head.kind == "contacts":
            reason = f"{len(record.sequence)} residues are too many for the model at once, as {head.task} needs them"
            return Failure(record=record, reason=reason)
        output = windows[0][1][head.task] if len(windows) == 1 else _join(windows, head)
        if not np.isfinite(output).all():
            return Failure(record=record, reason=f"the prediction of {head.task} is not finite; try --dtype float32")
        found[head.task] = Prediction(record=record, card=head, output=_decode(output, head))
    return Predicted(record=record, tasks=found)


def _join(windows: Windows, head: HeadCard) -> Array:
    """Average windows: residue by residue, or over the protein."""
    outputs = [(piece, found[head.task]) for piece, found in windows]
    if not head.config.per_residue:
        mean: Array = np.mean([output for _, output in outputs], axis=0, dtype=np.float32)
        return mean
    return average_windows(outputs)


def _decode(output: Array, head: HeadCard) -> Array:
    """Turn logits into calibrated probabilities, and outputs into values; float32."""
    if head.kind in ("residue_values", "sequence_value"):
        return np.asarray(output[..., 0] * head.scale + head.offset, dtype=np.float32)
    logits = output.astype(np.float64) / head.temperature
    if head.kind in ("residue_flags", "contacts"):
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)), dtype=np.float32)  # the logistic function: no overflow
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)
