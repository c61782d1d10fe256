"""Predictions as text: a table, JSON lines, or FASTA with a third line of labels.

The columns of the table (TSV), a line a residue, a protein or a contact:
  id        of the protein
  task      whose prediction the line is
  position  of the residue, from 1; empty where the line is about the whole protein
  residue   its letter; empty likewise
  partner   contacts alone: the position of the other residue
  label     the likeliest class; `-` where no flag is likelier than 1/2; empty for values and contacts
  value     the probability of that class, of the likeliest flag, or of the contact; or the value itself
Of contacts the table and JSON have the L likeliest pairs with |i - j| >= 6; HDF5 has the whole map.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from protembed.errors import OutputError, UsageError
from protembed.models.head_config import HeadCard
from protembed.outputs.target import Target
from protembed.sequences.windows import Failure
from protembed.tasks.metrics import RANGES
from protembed.tasks.prediction import Predicted, Prediction

Format: TypeAlias = Literal["tsv", "jsonl", "fasta", "h5"]
COLUMNS = ("id", "task", "position", "residue", "partner", "label", "value")
_ENDINGS: Mapping[str, Format] = {".jsonl": "jsonl", ".fasta": "fasta", ".fa": "fasta", ".h5": "h5", ".hdf5": "h5"}


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """One form of text: what stands first, and the lines of a protein."""

    header: str
    write: Callable[[Predicted], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class TaskTarget(Target):
    """Where predictions go as HDF5: a file a task, because other tools expect one kind a file."""

    out: Path
    tasks: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """OUT.h5 itself for one task, OUT.TASK.h5 for several."""
        if len(self.tasks) == 1:
            return {self.tasks[0]: self.out}
        return {task: self.out.with_name(f"{self.out.stem}.{task}{self.out.suffix}") for task in self.tasks}

    @property
    def failures(self) -> Path:
        return failures_of(self.out)


def choose_format(told: Format | None, out: Path | None, heads: Sequence[HeadCard]) -> Format:
    """Return the format: the one told, else by the ending of the output, else TSV. Raises UsageError."""
    chosen = told or (_ENDINGS.get(out.suffix, "tsv") if out else "tsv")
    if chosen == "h5" and out is None:
        raise UsageError("HDF5 cannot go to standard output", hint="-o OUT.h5")
    if chosen == "fasta":
        lettered = [head for head in heads if head.kind in ("residue_classes", "residue_flags")]
        if len(heads) != 1 or not lettered:
            raise UsageError(
                "--format fasta takes one task of residue labels", hint="Such as --task ss3; or --format tsv or jsonl."
            )
    return chosen


def table_lines(predicted: Predicted) -> Iterator[str]:
    """Yield the lines of the table."""
    for prediction in predicted.tasks.values():
        start = f"{predicted.record.id}\t{prediction.card.task}\t"
        yield from (f"{start}{row}\n" for row in _rows(prediction))


def _rows(prediction: Prediction) -> Iterator[str]:
    sequence = prediction.record.sequence
    match prediction.card.kind:
        case "residue_classes" | "residue_flags":
            best = prediction.output.max(axis=1)
            for position, (residue, label) in enumerate(zip(sequence, prediction.labels, strict=True), start=1):
                yield f"{position}\t{residue}\t\t{label}\t{best[position - 1]:.4f}"
        case "residue_values":
            for position, (residue, value) in enumerate(zip(sequence, prediction.values, strict=True), start=1):
                yield f"{position}\t{residue}\t\t\t{value:.4f}"
        case "contacts":
            for i, j, probability in likeliest_contacts(prediction):
                yield f"{i}\t{sequence[i - 1]}\t{j}\t\t{probability:.4f}"
        case "sequence_class":
            yield f"\t\t\t{prediction.labels}\t{prediction.output.max():.4f}"
        case "sequence_value":
            yield f"\t\t\t\t{prediction.values:.4f}"


def likeliest_contacts(prediction: Prediction) -> list[tuple[int, int, float]]:
    """Return the L likeliest pairs at least 6 apart, the likeliest first: positions from 1, probability."""
    i, j = np.triu_indices(len(prediction.output), k=RANGES["short"].low)
    probability = prediction.output[i, j]
    best = np.argsort(-probability, kind="stable")[: len(prediction.output)]
    return [(int(i[k]) + 1, int(j[k]) + 1, round(float(probability[k]), 4)) for k in best]


def json_lines(predicted: Predicted) -> Iterator[str]:
    """Yield one line of JSON: id, length, and by task the labels and probabilities, values or contacts."""
    record = predicted.record
    tasks = {task: _values(prediction) for task, prediction in predicted.tasks.items()}
    yield json.dumps({"id": record.id, "length": len(record.sequence), "tasks": tasks}) + "\n"


def _values(prediction: Prediction) -> dict[str, Any]:
    rounded = np.round(prediction.output.astype(np.float64), 4).tolist() if prediction.card.kind != "contacts" else []
    match prediction.card.kind:
        case "residue_classes" | "residue_flags":
            columns = list(prediction.card.labels)
            return {"labels": prediction.labels, "columns": columns, "probabilities": rounded}
        case "sequence_class":
            named = dict(zip(prediction.card.labels, rounded, strict=True))
            return {"label": prediction.labels, "probabilities": named}
        case "contacts":
            return {"contacts": likeliest_contacts(prediction)}
        case "residue_values":
            return {"values": rounded}
        case _:
            return {"value": rounded}


def fasta_lines(predicted: Predicted) -> Iterator[str]:
    """Yield three lines: id, sequence, labels."""
    (prediction,) = predicted.tasks.values()
    yield f">{predicted.record.id}\n{predicted.record.sequence}\n{prediction.labels}\n"


TEXT_FORMATS: Mapping[str, TextFormat] = {
    "tsv": TextFormat(header="\t".join(COLUMNS) + "\n", write=table_lines),
    "jsonl": TextFormat(header="", write=json_lines),
    "fasta": TextFormat(header="", write=fasta_lines),
}


class TextSink:
    """A text output: standard output, or a file that gets its name when it is complete."""

    def __init__(self, out: Path | None, *, overwrite: bool) -> None:
        if out is not None and out.exists() and not overwrite:
            raise OutputError(f"{out} exists", hint="--overwrite replaces it; or choose another name.")
        self._out = out
        self._temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp") if out else None
        self._failed: list[str] = []

    def __enter__(self) -> "TextSink":
        try:
            self._file: IO[str] = self._temporary.open("w", encoding="utf-8") if self._temporary else _stdout()
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def write(self, text: str) -> None:
        """Write some text. Raises OutputError."""
        try:
            self._file.write(text)
        except OSError as error:
            raise self._unwritable(error) from error

    def fail(self, failure: Failure) -> None:
        """Note a record without a result: for OUT.failed.tsv, or on standard error when the output is not a file."""
        self._failed.append(f"{failure.record.id}\t{failure.reason}\n")
        if self._out is None:
            warnings.warn(f"{failure.record} has no result: {failure.reason}", stacklevel=2)

    def finish(self) -> None:
        """Give a file its name, and write the list of failures beside it."""
        try:
            self._file.flush()
            if self._out is None or self._temporary is None:
                return
            failures = failures_of(self._out)
            failures.unlink(missing_ok=True)
            if self._failed:
                failures.write_text(f"id\treason\n{''.join(self._failed)}", encoding="utf-8")
            self._file.close()
            os.replace(self._temporary, self._out)
        except OSError as error:
            raise self._unwritable(error) from error

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            with suppress(OSError):  # what is left cannot be written either; that was told
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> OutputError:
        if self._out is None:
            # Python flushes standard output once more at the end: there it must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OutputError(f"standard output was closed before the end ({error.strerror})")
        return OutputError(f"{self._out}: cannot be written ({error.strerror})", hint="Check the folder and its space.")


def _stdout() -> IO[str]:
    """Return standard output. Raises OutputError where the shell closed it (>&-)."""
    stdout: IO[str] | None = sys.stdout
    if stdout is None:
        raise OutputError("standard output is closed", hint="-o OUT names a file.")
    return stdout


def failures_of(out: Path) -> Path:
    """Name the list of the records without a result."""
    return out.with_suffix(".failed.tsv")
