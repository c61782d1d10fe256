"""Fluorescence of variants of one protein."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import VALUE_METRICS, Task

TASK = Task(
    name="fluorescence",
    summary="log10 brightness of variants of avGFP (Sarkisyan et al. 2016)",
    coding=Coding(kind="sequence_value"),
    metrics=VALUE_METRICS,
    files=Files(lmdb="fluorescence", lmdb_field="log_fluorescence"),
)
