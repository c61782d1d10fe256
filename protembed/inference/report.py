"""What an evaluation says: figures with intervals, a table by class, a confusion matrix; for people and as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.tasks.metrics import ClassTable

_SHOWN = 12  # classes of a confusion matrix that is still read


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure, and the 95 % interval over proteins; NaN where there is none."""

    name: str
    value: float
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of an evaluation; `table` and `confusion` (C, C; rows the true classes) where there are classes."""

    task: str
    model: str
    split: str
    proteins: int
    counted: int
    not_counted: int
    left_out: Mapping[str, int]
    scores: Sequence[Score]
    labels: tuple[str, ...] = ()
    table: ClassTable | None = None
    confusion: npt.NDArray[np.int64] | None = None

    def notes(self) -> list[str]:
        """Say how much was evaluated, and what was not."""
        lines = [f"{self.task} on {self.split}: {self.proteins:,} proteins, {self.counted:,} counted"]
        if self.not_counted:
            lines.append(f"{self.not_counted:,} not counted (masked)")
        return lines + [f"{count:,} proteins left out: {reason}" for reason, count in self.left_out.items()]

    def figures(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the table of figures."""
        rows = [[score.name, *map(_number, (score.value, score.low, score.high))] for score in self.scores]
        return ["metric", "value", "95 % from", "to"], rows

    def classes(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the table by class; no rows where there are no classes."""
        columns = ["class", "precision", "recall", "F1", "support"]
        if self.table is None:
            return columns, []
        values = zip(self.table.precision, self.table.recall, self.table.f1, strict=True)
        return columns, [
            [label, *map(_number, numbers), f"{support}"]
            for label, numbers, support in zip(self.labels, values, self.table.support, strict=True)
            if support or not len(self.labels) > _SHOWN
        ]

    def confusions(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the confusion matrix, rows the true classes; no rows when it is too large."""
        columns = ["true \\ predicted", *self.labels]
        if self.confusion is None or len(self.labels) > _SHOWN:
            return columns, []
        return columns, [[label, *map(str, row)] for label, row in zip(self.labels, self.confusion, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; what is not a number is null."""
        fields = ("task", "model", "split", "proteins", "counted", "not_counted")
        content: dict[str, Any] = {name: getattr(self, name) for name in fields}
        content["left_out"] = dict(self.left_out)
        content["metrics"] = {
            score.name: {"value": _finite(score.value), "low": _finite(score.low), "high": _finite(score.high)}
            for score in self.scores
        }
        if self.table is not None and self.confusion is not None:
            names = ("precision", "recall", "f1", "support")
            columns = [[_finite(value) for value in getattr(self.table, name).tolist()] for name in names]
            rows = zip(self.labels, zip(*columns, strict=True), strict=True)
            content["classes"] = {label: dict(zip(names, row, strict=True)) for label, row in rows}
            content["confusion"] = self.confusion.tolist()
        return content


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
