"""What a prediction is worth: accuracy, correlation, contact precision, and how sure a figure is. numpy alone.

Legend: M counted residues or proteins, C classes, L residues of a protein. A metric takes targets and predictions,
row by row, and gives one number; it is NaN where it says nothing (no rows, a constant column).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Metric = Callable[[Array, Array], float]
"""Targets and predictions (M,), or (M, C) of yes and no, to one number: the higher the better, but for `rmse`."""

DRAWS = 1000


def accuracy(target: Array, predicted: Array) -> float:
    """Return the share of rows that are right.

    >>> accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    0.75
    """
    return float(np.mean(target == predicted)) if len(target) else np.nan


def confusion_matrix(target: Array, predicted: Array, n_classes: int) -> npt.NDArray[np.int64]:
    """Count how often class i (row) is predicted as class j (column); (C, C)."""
    counts = np.bincount(target.astype(np.int64) * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Precision, recall and F1 of every class (C,), and how many rows are of it."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    support: npt.NDArray[np.int64]


def class_table(target: Array, predicted: Array, n_classes: int) -> ClassTable:
    """Return what each class is worth; NaN: precision of one never predicted, recall of one without rows."""
    right, wanted, given = _counts(target, predicted, n_classes)
    with np.errstate(invalid="ignore"):
        return ClassTable(
            precision=right / given, recall=right / wanted, f1=2 * right / (wanted + given), support=wanted
        )


def macro_accuracy(target: Array, predicted: Array) -> float:
    """Return the mean recall over the classes that occur among the targets."""
    right, wanted, _ = _counts(target, predicted)
    return float(np.mean(right[wanted > 0] / wanted[wanted > 0])) if len(target) else np.nan


def macro_f1(target: Array, predicted: Array) -> float:
    """Return the mean F1 over the classes that occur among targets or predictions."""
    right, wanted, given = _counts(target, predicted)
    there = wanted + given > 0
    return float(np.mean(2 * right[there] / (wanted + given)[there])) if len(target) else np.nan


def mcc(target: Array, predicted: Array) -> float:
    """Return Matthews' correlation coefficient for any number of classes (Gorodkin 2004); 0 when it is undefined.

    >>> round(mcc(np.array([1, 1, 1, 0]), np.array([1, 0, 1, 0])), 4)
    0.5774
    """
    if not len(target):
        return np.nan
    right, wanted, given = (counts.astype(np.float64) for counts in _counts(target, predicted))
    rows = float(len(target))
    spread = (rows**2 - given @ given) * (rows**2 - wanted @ wanted)
    return float((right.sum() * rows - wanted @ given) / np.sqrt(spread)) if spread > 0 else 0.0


def f1(target: Array, predicted: Array) -> float:
    """Return the F1 of yes among yes and no."""
    total = np.count_nonzero(target) + np.count_nonzero(predicted)
    return float(2 * np.count_nonzero(target & predicted) / total) if total else np.nan


def spearman(target: Array, predicted: Array) -> float:
    """Return Spearman's rank correlation; rows of the same value share their mean rank.

    >>> round(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 3.0, 2.0])), 4)
    0.3162
    """
    if len(target) < 2:
        return np.nan
    x, y = (rank - rank.mean() for rank in (ranks(target), ranks(predicted)))
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else np.nan


def ranks(values: Array) -> npt.NDArray[np.float64]:
    """Return the rank of every value, from 1; equal ones get the mean of theirs.

    >>> ranks(np.array([10, 30, 20, 30])).tolist()
    [1.0, 3.5, 2.0, 3.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return last[place]


def rmse(target: Array, predicted: Array) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((target - predicted) ** 2))) if len(target) else np.nan


def auc(positive: Array, score: Array) -> float:
    """Return the area under the ROC curve: how often a positive row scores above a negative one, ties half."""
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if not (n_positive and n_negative):
        return np.nan
    above = ranks(score)[positive.astype(bool)].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def calibration_error(target: Array, probabilities: Array, bins: int = 15) -> float:
    """Return the expected calibration error: |accuracy - confidence| of the class chosen, by bins of confidence.

    `probabilities` (M, C). Guo et al. 2017, arXiv 1706.04599: bins of equal width, weighted by their rows.
    """
    if not len(target):
        return np.nan
    chosen = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=(chosen == target) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(target))


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How far apart two residues are along the chain: |i - j| from `low` to `high`."""

    low: int = 6
    high: int | None = None


RANGES = {
    "short": Separation(low=6, high=11),
    "medium": Separation(low=12, high=23),
    "long": Separation(low=24),
    "medium_long": Separation(low=12),
}
"""The ranges of CASP, ESM and others."""


def top_contacts(
    probability: Array, contact: Array, counted: Array, *, top: int, apart: Separation = Separation()
) -> tuple[int, int]:
    """Return how many of the `top` most probable pairs are contacts, and how many pairs that were.

    All arguments (L, L); pairs i < j are looked at where `counted`, `apart` far from each other. There may be fewer
    pairs than `top`.
    """
    i, j = np.triu_indices(len(probability), k=apart.low)
    keep = counted[i, j]
    if apart.high is not None:
        keep = keep & (j - i <= apart.high)
    i, j = i[keep], j[keep]
    best = np.argsort(-probability[i, j], kind="stable")[:top]
    return int(contact[i[best], j[best]].sum()), len(best)


def tape_precision(probability: list[Array], label: list[Array]) -> float:
    """Return TAPE's own "precision at L/5" of one batch, to the letter: proteins pooled, masked pairs kept.

    `label` (L, L): 1 contact, 0 none, -1 masked. Masked pairs have probability 0 and may be chosen where nothing else
    is left; then they count as -1. Rao et al. 2019, arXiv 1906.08230. By `top_contacts` masked pairs are left out.
    """
    right = total = 0
    for scores, labels in zip(probability, label, strict=True):
        length = len(labels)
        away = np.subtract.outer(np.arange(length), np.arange(length)) <= -RANGES["short"].low
        masked = np.where(away & (labels != -1), scores, 0).ravel()
        best = np.argsort(-masked, kind="stable")[: length // 5]
        right, total = right + int(labels.ravel()[best].sum()), total + len(best)
    return right / total if total else np.nan


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    owners: npt.NDArray[np.integer],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of a figure when proteins are drawn again and again, with replacement.

    `owners` (M,) is the number of each row's protein; `statistic` takes the numbers of the rows drawn. Residues of one
    protein are alike: drawing residues would claim too much. Quantiles of the draws, less the bias of the draws (Efron
    and Tibshirani 1993, chapter 10): a rare class is missing from many draws, so a mean over classes is drawn too high.
    The figure itself is always inside. NaN for fewer than two proteins, which show no spread.
    """
    value, values = statistic(np.arange(len(owners))), _draw(statistic, owners, draws, seed)
    if not (np.isfinite(value) and len(values)):
        return np.nan, np.nan
    low, high = np.quantile(values, (0.025, 0.975)) - (values.mean() - value)
    # A share (0 to 1) or a correlation (-1 to 1) stays in its range.
    lowest, highest = min(value, values.min()), max(value, values.max())
    low = max(low, next((floor for floor in (0.0, -1.0) if lowest >= floor), low))
    high = min(high, 1.0) if highest <= 1 else high
    return float(min(low, value)), float(max(high, value))


def _draw(
    statistic: Callable[[npt.NDArray[np.int64]], float], owners: npt.NDArray[np.integer], draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return the finite values of a figure over draws of whole proteins; none for fewer than two proteins."""
    order = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.diff(owners[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(owners)))
    if len(starts) < 2:
        return np.empty(0)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(starts), size=len(starts))
        ends = np.cumsum(sizes[chosen])
        rows = np.arange(ends[-1]) + np.repeat(starts[chosen] - ends + sizes[chosen], sizes[chosen])
        values.append(statistic(order[rows]))
    found = np.array(values, dtype=np.float64)
    return found[np.isfinite(found)]


def same_proteins(sequences: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number proteins so that equal sequences have one number: they are no independent evidence.

    >>> same_proteins(["MKT", "MKW", "MKT"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(sequence, len(numbers)) for sequence in sequences], dtype=np.int64)


def _counts(
    target: Array, predicted: Array, n_classes: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count by class: rows that are right, rows of it, rows predicted as it; (C,) each."""
    target, predicted = target.astype(np.int64), predicted.astype(np.int64)
    size = n_classes or int(max(target.max(initial=0), predicted.max(initial=0))) + 1
    right = np.bincount(target[target == predicted], minlength=size)
    return right, np.bincount(target, minlength=size), np.bincount(predicted, minlength=size)
