"""Subcellular localisation."""

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.task import CLASS_METRICS, Task

TASK = Task(
    name="localisation",
    summary="place in a eukaryotic cell, 10 classes (DeepLoc 1.0); accuracy is Q10",
    coding=Coding(
        kind="sequence_class",
        labels=(
            "Cell.membrane",
            "Cytoplasm",
            "Endoplasmic.reticulum",
            "Extracellular",
            "Golgi.apparatus",
            "Lysosome/Vacuole",
            "Mitochondrion",
            "Nucleus",
            "Peroxisome",
            "Plastid",
        ),
    ),
    metrics=CLASS_METRICS,
)
