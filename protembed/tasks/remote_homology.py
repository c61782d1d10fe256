"""Remote homology: the fold of a protein whose superfamily was not seen in training."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import CLASS_METRICS, Task

TASK = Task(
    name="remote_homology",
    summary="fold of a domain (CATH topology; SCOP fold in TAPE's data)",
    coding=Coding(kind="sequence_class"),
    metrics=CLASS_METRICS,
    files=Files(lmdb="remote_homology", lmdb_field="fold_label"),
    test_split="test_superfamily",
)
