"""Disorder, as measured by NMR chemical shifts."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.metrics import Array, auc
from protembed.tasks.task import VALUE_METRICS, Task

DISORDERED = 8.0
"""CheZOD Z-scores below this are disordered (Nielsen and Mulder 2016)."""


def auc_disordered(target: Array, predicted: Array) -> float:
    """Return how well the predicted Z-score tells disordered residues from others (area under the ROC curve)."""
    return auc(target < DISORDERED, -predicted)


TASK = Task(
    name="disorder",
    summary="CheZOD Z-score: below 8 disordered, above ordered",
    coding=Coding(kind="residue_values", missing=999),
    metrics={**VALUE_METRICS, "auc": auc_disordered},
)
