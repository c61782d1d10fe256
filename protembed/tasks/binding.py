"""Residues that bind a ligand."""

from functools import partial

import numpy as np

from protembed.tasks.labels.encoding import Coding
from protembed.tasks.metrics import Array, Metric, f1, mcc
from protembed.tasks.task import Task

LIGANDS = {"M": "metal ion", "N": "nucleic acid", "S": "small molecule"}

# A residue may bind several: the data's digit is 4 small + 2 nucleic + 1 metal. Three yes-or-no answers rather than
# 8 classes, of which two have fewer than four training examples (bindEmbed21, Littmann et al. 2021, does the same).
DIGITS = {str(digit): "".join(name for bit, name in enumerate(LIGANDS) if digit >> bit & 1) for digit in range(8)}


def of_ligand(metric: Metric, column: int, target: Array, predicted: Array) -> float:
    """Return a metric of yes and no for one ligand."""
    return metric(target[:, column], predicted[:, column])


def mean_mcc(target: Array, predicted: Array) -> float:
    """Return the mean correlation over the ligands."""
    return float(np.mean([of_ligand(mcc, column, target, predicted) for column in range(target.shape[1])]))


TASK = Task(
    name="binding",
    summary="residues that bind a metal ion, nucleic acid or small molecule",
    coding=Coding(kind="residue_flags", labels=tuple(LIGANDS), flags=DIGITS),
    metrics={
        "mean_mcc": mean_mcc,
        **{f"mcc_{name}": partial(of_ligand, mcc, column) for column, name in enumerate(LIGANDS)},
        **{f"f1_{name}": partial(of_ligand, f1, column) for column, name in enumerate(LIGANDS)},
    },
    meanings=LIGANDS,
)
