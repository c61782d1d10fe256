"""Secondary structure, 3 states."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import CLASS_METRICS, Task

TASK = Task(
    name="ss3",
    summary="secondary structure, 3 states",
    coding=Coding(kind="residue_classes", labels=tuple("HEC")),
    metrics=CLASS_METRICS,
    files=Files(labels="labels3.fasta", lmdb="secondary_structure", lmdb_field="ss3", lmdb_labels="HEC"),
    test_split="test_CB513",
    meanings={"H": "helix (DSSP G, H, I)", "E": "strand (B, E)", "C": "other (S, T, none)"},
)
