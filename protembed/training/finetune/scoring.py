"""What a head in training is worth: its answers on a whole split, the metrics of them, and their calibration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from protembed.errors import UsageError
from protembed.models.head_config import Kind
from protembed.sequences.alphabet import Alphabet
from protembed.tasks import Task
from protembed.tasks.binding import mean_mcc
from protembed.tasks.metrics import Metric, Separation, calibration_error, top_contacts
from protembed.tasks.task import CONTACT_METRIC
from protembed.training.finetune.calibration import fit_temperature
from protembed.training.finetune.examples import Batch

Array = npt.NDArray[Any]
VALUES: tuple[Kind, ...] = ("residue_values", "sequence_value")
CLASSES: tuple[Kind, ...] = ("residue_classes", "sequence_class")
Answered: TypeAlias = tuple[Batch, Tensor | list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Outputs and targets of what counts, M rows: logits (M, C) or values (M,); contacts: pairs (M,).

    `right` of `chosen` pairs among the L / 5 likeliest of every protein are contacts.
    """

    outputs: Array
    targets: Array
    right: int = 0
    chosen: int = 0


def metrics_of(task: Task) -> Mapping[str, Metric]:
    """Return the metrics of a task by name; those of contacts are not functions of rows, and not here."""
    if task.kind == "residue_flags" and not task.metrics:
        return {"mean_mcc": mean_mcc}
    return task.metrics


def chosen_metric(task: Task, name: str) -> str:
    """Return the name of the metric that training goes by: the task's first, or the one told. Raises UsageError."""
    known = [CONTACT_METRIC] if task.kind == "contacts" else [n for n in metrics_of(task) if n != "rmse"]
    if name and name not in known:
        raise UsageError(f"[train] metric is {name!r}", hint=f"Known for {task.name}: {', '.join(known)}.")
    return name or known[0]


def residues_of(outputs: list[Tensor], alphabet: Alphabet, kind: str) -> list[Tensor]:
    """Leave the special tokens out of contact maps that a head made of all tokens."""
    if kind == "attention":
        return outputs  # these maps are of residues already
    return [x[alphabet.prefix : len(x) - alphabet.suffix, alphabet.prefix : len(x) - alphabet.suffix] for x in outputs]


def collect(kind: Kind, answered: Iterable[Answered]) -> Answers:
    """Put the outputs of batches together."""
    if kind == "contacts":
        return _collect_pairs(answered)
    outputs, targets = [], []
    for batch, found in answered:
        assert isinstance(found, Tensor)
        assert isinstance(batch.counts, Tensor)
        assert isinstance(batch.targets, Tensor)
        rows = found[batch.counts].float().cpu().numpy()
        outputs.append(rows[:, 0] if kind in VALUES else rows)
        targets.append(batch.targets[batch.counts].cpu().numpy())
    return Answers(outputs=np.concatenate(outputs), targets=np.concatenate(targets))


def _collect_pairs(answered: Iterable[Answered]) -> Answers:
    outputs, targets, right, chosen = [], [], 0, 0
    for batch, found in answered:
        for logits, touching, counted in zip(found, batch.targets, batch.counts, strict=True):
            score, contact, counts = (x.detach().float().cpu().numpy() for x in (logits, touching, counted))
            keep = counts > 0
            hits = top_contacts(score, contact > 0, keep, top=len(score) // 5, apart=Separation())
            right, chosen = right + hits[0], chosen + hits[1]
            outputs.append(score[keep])
            targets.append(contact[keep] > 0)
    return Answers(outputs=np.concatenate(outputs), targets=np.concatenate(targets), right=right, chosen=chosen)


def score(task: Task, answers: Answers, *, scale: float = 1.0, offset: float = 0.0) -> dict[str, float]:
    """Return all metrics of a task by name; values are scaled back to their unit first."""
    if task.kind == "contacts":
        return {CONTACT_METRIC: answers.right / answers.chosen if answers.chosen else np.nan}
    targets, predicted = answers.targets, answers.outputs
    if task.kind in VALUES:
        targets, predicted = (x.astype(np.float64) * scale + offset for x in (targets, predicted))
    else:
        predicted = predicted.argmax(axis=1) if task.kind in CLASSES else predicted > 0
    return {name: float(metric(targets, predicted)) for name, metric in metrics_of(task).items()}


def calibrate(kind: Kind, answers: Answers) -> tuple[float, dict[str, float]]:
    """Return the temperature of a head, and the calibration error before and after by name; (1, none) for values."""
    if kind in VALUES:
        return 1.0, {}
    temperature = fit_temperature(answers.outputs, answers.targets)
    errors = {"before": 1.0, "after": temperature}
    return temperature, {
        f"valid_calibration_error_{when}": expected_calibration_error(kind, answers, value)
        for when, value in errors.items()
    }


def expected_calibration_error(kind: Kind, answers: Answers, temperature: float) -> float:
    """Return how far confidence and accuracy are apart (metrics.calibration_error); yes and no are two classes."""
    logits = answers.outputs.astype(np.float64) / temperature
    if kind in CLASSES:
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return calibration_error(answers.targets, weights / weights.sum(axis=1, keepdims=True))
    yes = 0.5 * (1 + np.tanh(logits.ravel() / 2))
    return calibration_error(answers.targets.ravel().astype(np.int64), np.stack((1 - yes, yes), axis=1))
