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

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from protembed.errors import UsageError
from protembed.models.head_config import HeadCard
from protembed.outputs.content import FORMAT_VERSION, digest_attributes
from protembed.outputs.files import atomic, sync, write_errors
from protembed.outputs.journal import Entry, Facts
from protembed.outputs.target import cell, format_of, is_stream, require_ending, run_file_of
from protembed.sequences.records import Record
from protembed.sequences.survey import id_key
from protembed.tasks.metrics import RANGES
from protembed.tasks.prediction import Predicted, Prediction

Format: TypeAlias = Literal["tsv", "jsonl", "fasta", "h5"]
COLUMNS = ("id", "task", "position", "residue", "partner", "label", "value")


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """One form of text: what stands first, and the lines of a protein."""

    header: str
    write: Callable[[Predicted], Iterator[str]]


def choose_format(told: Format | None, out: Path, heads: Sequence[HeadCard]) -> Format:
    """Return the format: the one told, else by the ending of the output, else TSV.

    Raises UsageError for a name that says another format, and where the heads cannot be written in it.
    """
    chosen = told or cast("Format", format_of(out) or "tsv")
    if is_stream(out):
        if chosen == "h5":
            raise UsageError("HDF5 cannot go to standard output", hint="-o OUT.h5")
    else:
        require_ending(out, chosen)
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
        start = f"{cell(name_of(predicted.record))}\t{cell(prediction.card.task)}\t"
        yield from (f"{start}{row}\n" for row in _rows(prediction))


def _rows(prediction: Prediction) -> Iterator[str]:
    sequence = prediction.record.sequence
    match prediction.card.kind:
        case "residue_classes" | "residue_flags":
            best = prediction.output.max(axis=1)
            for position, (residue, label) in enumerate(zip(sequence, prediction.labels, strict=True), start=1):
                yield f"{position}\t{residue}\t\t{cell(label)}\t{best[position - 1]:.4f}"
        case "residue_values":
            for position, (residue, value) in enumerate(zip(sequence, prediction.values, strict=True), start=1):
                yield f"{position}\t{residue}\t\t\t{value:.4f}"
        case "contacts":
            for i, j, probability in likeliest_contacts(prediction):
                yield f"{i}\t{sequence[i - 1]}\t{j}\t\t{probability:.4f}"
        case "sequence_class":
            yield f"\t\t\t{cell(prediction.labels)}\t{prediction.output.max():.4f}"
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
    yield json.dumps({"id": name_of(record), "length": len(record.sequence), "tasks": tasks}) + "\n"


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
    yield f">{cell(name_of(predicted.record))}\n{predicted.record.sequence}\n{cell(prediction.labels)}\n"


def name_of(record: Record) -> str:
    """Return what tells a record from all others: its id, with a number where it is repeated, or its key.

    >>> name_of(Record("a/b", "MK", key="a_b")), name_of(Record("a/b", "MK", key="a_b_2"))
    ('a/b', 'a/b_2')
    """
    same = record.key.startswith(id_key(record.id))
    return record.id + record.key[len(id_key(record.id)) :] if same else record.key or record.id


TEXT_FORMATS: Mapping[str, TextFormat] = {
    "tsv": TextFormat(header="\t".join(COLUMNS) + "\n", write=table_lines),
    "jsonl": TextFormat(header="", write=json_lines),
    "fasta": TextFormat(header="", write=fasta_lines),
}


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """A text file of predictions; see file_writer.Form. `attributes` stand in a file beside it, while it is needed."""

    text: TextFormat
    attributes: Facts

    def encode(self, item: Predicted) -> tuple[Facts, bytes]:
        """Return the lines of a protein."""
        return {"key": item.record.key}, "".join(self.text.write(item)).encode("utf-8", "backslashreplace")

    def build(self, path: Path, entries: Iterable[Entry], attributes: Callable[[], Facts]) -> Facts:
        """Put the lines of all proteins together."""
        state, records = hashlib.sha256(), 0
        with path.open("r+b") as file:
            size = file.write(self.text.header.encode())
            state.update(self.text.header.encode())
            for entry in entries:
                state.update(entry.data)
                size += file.write(entry.data)
                records += 1
        sync(path)
        named = {**self.attributes, **attributes(), "records": records, "bytes": size, "complete": True}
        named |= {"content_sha256": state.hexdigest(), "format_version": FORMAT_VERSION}
        return {**named, "attributes_sha256": digest_attributes(named)}

    def name(self, path: Path, attributes: Facts, folder: Path) -> None:
        """Write beside the text what run it is of: text itself does not say it."""
        place = run_file_of(path)
        with atomic(place, folder=folder) as new, write_errors(place):
            new.write_text(json.dumps(attributes, indent=1), encoding="utf-8")

    def named(self, path: Path, *, keep: bool) -> None:
        """Remove it again, unless a later run will ask for it: one that resumes, or merges shards."""
        if not keep:
            run_file_of(path).unlink(missing_ok=True)

    def describe(self, path: Path) -> Facts:
        """Return the attributes of a text that is as it was written."""
        try:
            facts = json.loads(run_file_of(path).read_bytes()[:1_000_000])
            with path.open("rb") as file:
                same = facts["content_sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
            return dict(facts) if same else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
