"""Stability of small designed proteins."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import VALUE_METRICS, Task

TASK = Task(
    name="stability",
    summary="resistance of small domains to proteases, log10 units (Rocklin et al. 2017)",
    coding=Coding(kind="sequence_value"),
    metrics=VALUE_METRICS,
    files=Files(lmdb="stability", lmdb_field="stability_score"),
)
