"""Secondary structure, the 8 states of DSSP."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.task import CLASS_METRICS, Task

TASK = Task(
    name="ss8",
    summary="secondary structure, 8 states (DSSP)",
    coding=Coding(kind="residue_classes", labels=tuple("GHIBESTC")),
    metrics=CLASS_METRICS,
    files=Files(labels="labels8.fasta", lmdb="secondary_structure", lmdb_field="ss8", lmdb_labels="GHIBESTC"),
    test_split="test_CB513",
    meanings={
        "G": "3-10 helix",
        "H": "alpha helix",
        "I": "pi helix",
        "B": "bridge",
        "E": "strand",
        "S": "bend",
        "T": "turn",
        "C": "other",
    },
)
