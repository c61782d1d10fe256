"""The figures that single tasks add: where classes are conserved, below which score a residue is disordered."""

import numpy as np
import pytest

from protembed.tasks import TASKS
from protembed.tasks.metrics import auc, mcc


def test_conserved_are_the_classes_6_to_9() -> None:
    labels = np.array(TASKS["conservation"].coding.labels)
    target = np.arange(9)
    predicted = np.array([0, 1, 2, 3, 5, 4, 6, 7, 8])  # 5 taken for 6, and 6 for 5
    conserved = np.isin(labels, ["6", "7", "8", "9"])
    figure = TASKS["conservation"].metrics["mcc_2_states"]
    assert figure(target, predicted) == pytest.approx(mcc(conserved[target], conserved[predicted]))
    assert figure(target, predicted) < 1
    assert figure(target, np.array([0, 0, 0, 0, 0, 5, 5, 5, 5])) == 1


def test_disordered_are_residues_below_8() -> None:
    figure = TASKS["disorder"].metrics["auc"]
    target = np.array([-3.0, 7.99, 8.0, 15.0])
    assert figure(target, target) == 1
    assert figure(target, -target) == 0
    assert figure(target, np.array([1.0, 9.0, 5.0, 9.0])) == auc(np.array([1, 1, 0, 0]), -np.array([1, 9, 5, 9]))


def test_figures_of_ligands_are_of_their_column() -> None:
    target = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]]) == 1
    predicted = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]) == 1
    found = {name: metric(target, predicted) for name, metric in TASKS["binding"].metrics.items()}
    assert (found["mcc_M"], found["f1_M"], found["f1_N"], found["f1_S"]) == (1, 1, pytest.approx(2 / 3), 0)
    assert found["mean_mcc"] == pytest.approx(np.mean([found[f"mcc_{name}"] for name in "MNS"]))
