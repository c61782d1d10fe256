"""Conservation of residues among relatives."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.metrics import Array, mcc
from protembed.tasks.task import CLASS_METRICS, Task

_CONSERVED = 5  # index of class 6: classes 6 to 9 are conserved in the 2-state figure of Marquet et al. 2021


def mcc_conserved(target: Array, predicted: Array) -> float:
    """Return the correlation of two states: conserved (classes 6 to 9) or not."""
    return mcc(target >= _CONSERVED, predicted >= _CONSERVED)


TASK = Task(
    name="conservation",
    summary="ConSurf-DB classes, 1 variable to 9 conserved; accuracy is Q9",
    coding=Coding(kind="residue_classes", labels=tuple("123456789")),
    metrics={**CLASS_METRICS, "mcc_2_states": mcc_conserved},
)
