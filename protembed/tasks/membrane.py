"""Membrane topology and signal peptides."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.task import CLASS_METRICS, Task

TASK = Task(
    name="membrane",
    summary="transmembrane helices and strands, signal peptide, side of the membrane",
    # TMbed's upper and lower case are not told apart; U is unresolved in the structure.
    coding=Coding(
        kind="residue_classes",
        labels=tuple("HBSio"),
        merge={"h": "H", "b": "B", "1": "i", "2": "o"},
        uncounted="U",
    ),
    metrics=CLASS_METRICS,
    # Taken by TMbed from the data set of SignalP 6.0, which its owners publish under CC BY-NC-ND.
    without={"SOURCE": "signalp6"},
    test_split="cv4",
    meanings={
        "H": "transmembrane helix",
        "B": "transmembrane strand",
        "S": "signal peptide",
        "i": "inside, or in a protein without a membrane part",
        "o": "outside",
    },
)
