"""What heads say of a protein: probabilities and labels, or values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from protembed.errors import UsageError
from protembed.models.head_config import HeadCard
from protembed.sequences.records import Record
from protembed.sequences.windows import Array

NO_FLAG = "-"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one head says of one protein.

    `output`, float32: calibrated probabilities, columns as in `card.labels`: classes of residues (L, C) or of the
    protein (C,), flags (L, C), contacts (L, L); or values (L,), ().
    """

    record: Record
    card: HeadCard
    output: Array

    @cached_property
    def labels(self) -> str:
        """The likeliest class: a letter a residue, or the protein's. Flags: the likeliest above 1/2, or `-`.

        Raises UsageError where a task has no labels.
        """
        if self.card.kind == "sequence_class":
            return self.card.labels[int(self.output.argmax())]
        return "".join(self.residue_labels)

    @cached_property
    def residue_labels(self) -> list[str]:
        """The label of every residue, as in `labels`. Raises UsageError where a task has none."""
        if self.card.kind not in ("residue_classes", "residue_flags"):
            raise UsageError(f"{self.card.task} has no labels", hint="Its numbers are in .values or .probabilities.")
        best = self.output.argmax(axis=1)
        labels = [self.card.labels[number] for number in best]
        if self.card.kind == "residue_classes":
            return labels
        return [
            label if row[number] > 0.5 else NO_FLAG
            for label, number, row in zip(labels, best, self.output, strict=True)
        ]

    @property
    def probabilities(self) -> Array:
        """Probabilities of classes, flags or contacts. Raises UsageError where a task predicts values."""
        if self.card.kind in ("residue_values", "sequence_value"):
            raise UsageError(f"{self.card.task} has no probabilities", hint="Its numbers are in .values.")
        return self.output

    @property
    def values(self) -> Array:
        """The values (L,) of residues, or () of the protein. Raises UsageError where a task has classes."""
        if self.card.kind not in ("residue_values", "sequence_value"):
            raise UsageError(f"{self.card.task} has no values", hint="See .labels and .probabilities.")
        return self.output


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One protein and what was predicted of it, by task in the order asked for."""

    record: Record
    tasks: Mapping[str, Prediction]

    @property
    def arrays(self) -> dict[str, Array | None]:
        """What HDF5 holds, by task."""
        return {task: prediction.output for task, prediction in self.tasks.items()}
