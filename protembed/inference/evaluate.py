"""What a head is worth on labelled proteins: the task's metrics with intervals, by class, and what was left out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend
from protembed.errors import InputError, UsageError
from protembed.inference.predict import PredictOptions, attach_heads, predict
from protembed.inference.report import Report, Score
from protembed.inference.run import Progress
from protembed.interrupts import check
from protembed.sequences.windows import Failure
from protembed.tasks import TASKS, Task, find_task, task_of
from protembed.tasks.labels.encoding import Labelled
from protembed.tasks.metrics import (
    RANGES,
    Array,
    Metric,
    Separation,
    bootstrap_interval,
    calibration_error,
    class_table,
    confusion_matrix,
    same_proteins,
    tape_precision,
    top_contacts,
)
from protembed.tasks.prediction import Prediction
from protembed.tasks.task import CONTACT_METRIC

TOPS = {"l": 1, "l2": 2, "l5": 5}
"""The L / n likeliest contacts, by the name of the figure."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which head on which proteins.

    `head` is the path of a head that is not the bundled one; `split` None means the task's test set; `where` are
    attributes that proteins must have; `tape_batch` adds TAPE's own contact function over batches of so many.
    Proteins whose sequences are among `trained`, those that the head has seen, are left out.
    """

    task: str
    data: Path
    head: str | None = None
    split: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    longest: int | None = None
    tape_batch: int | None = None
    trained: frozenset[str] = frozenset()
    draws: int = 1000
    seed: int = 0


class Evaluation:
    """Evaluates one head: making it reads the data, `run` predicts, `report` computes the figures."""

    def __init__(self, backend: Backend, options: EvaluateOptions, running: PredictOptions | None = None) -> None:
        if options.task not in TASKS and not Path(options.task).exists():
            find_task(options.task)
        self._predictor, (self._head,) = attach_heads(backend, [options.head or options.task])
        self._options, self._running = options, running
        self.task: Task = TASKS.get(options.task) or task_of(self._head, TASKS)
        if self.task.kind != self._head.kind:
            raise UsageError(f"the head predicts {self._head.kind}, and the task {self.task.name} is {self.task.kind}")
        self.data = self.task.read(
            options.data,
            split=options.split or self.task.test_split,
            unnamed=options.split is None,
            labels=self._head.labels,
            where=options.where,
            longest=options.longest,
        )
        self._proteins = [p for p in self.data.proteins if p.record.sequence not in options.trained]
        self._found: list[tuple[Labelled, Prediction]] = []
        self._contacts = ContactFigures(options.tape_batch)
        self._left_out = dict(self.data.left_out)
        if seen := len(self.data.proteins) - len(self._proteins):
            self._left_out["in the training data, too"] = seen

    @property
    def residues(self) -> int:
        """Residues of the proteins."""
        return sum(len(protein.record.sequence) for protein in self._proteins)

    def run(self) -> Iterator[Progress]:
        """Predict for every protein; yield how far it is. Raises InputError when none can be predicted."""
        residues = 0
        records = (protein.record for protein in self._proteins)
        items = predict(records, self._predictor, [self._head], self._running)
        for number, (protein, item) in enumerate(zip(self._proteins, items, strict=True), start=1):
            if isinstance(item, Failure):
                self._left_out[item.reason] = self._left_out.get(item.reason, 0) + 1
            elif self.task.kind == "contacts":
                self._contacts.add(item.tasks[self._head.task].output, protein)
            else:
                self._found.append((protein, item.tasks[self._head.task]))
            residues += len(protein.record.sequence)
            check()
            yield Progress(records=number, residues=residues)
        if not (self._found or self._contacts.proteins):
            raise InputError(f"no protein of {self._options.data} could be predicted: {self._left_out}")

    def report(self) -> Report:
        """Return the figures of what `run` has predicted."""
        options = self._options
        basis: dict[str, Any] = {
            "task": self.task.name,
            "model": self._predictor.card.name,
            "split": options.split or self.task.test_split,
            "left_out": self._left_out,
        }
        if self.task.kind == "contacts":
            scores = self._contacts.scores(draws=options.draws, seed=options.seed)
            pairs, masked = self._contacts.pairs, self._contacts.masked
            return Report(**basis, proteins=self._contacts.proteins, counted=pairs, not_counted=masked, scores=scores)
        targets = [np.atleast_1d(protein.target[protein.counts]) for protein, _ in self._found]
        proteins = same_proteins([protein.record.sequence for protein, _ in self._found])
        owners = np.repeat(proteins, [len(rows) for rows in targets])
        target, output = np.concatenate(targets), np.concatenate([_counted(*pair) for pair in self._found])
        basis |= {
            "proteins": len(self._found),
            "counted": len(target),
            "not_counted": sum(int((~protein.counts).sum()) for protein, _ in self._found),
        }
        classes = self.task.kind in ("residue_classes", "sequence_class")
        predicted = output.argmax(axis=1) if classes else output > 0.5 if output.ndim > 1 else output
        scores = [self._score(name, metric, target, predicted, owners) for name, metric in self.task.metrics.items()]
        if not classes:
            return Report(**basis, scores=scores)
        labels = self._head.labels
        scores.append(Score(name="calibration_error", value=calibration_error(target, output)))
        return Report(
            **basis,
            scores=scores,
            labels=labels,
            table=class_table(target, predicted, len(labels)),
            confusion=confusion_matrix(target, predicted, len(labels)),
        )

    def _score(self, name: str, metric: Metric, target: Array, predicted: Array, owners: Array) -> Score:
        low, high = bootstrap_interval(
            lambda rows: metric(target[rows], predicted[rows]),
            owners,
            draws=self._options.draws,
            seed=self._options.seed,
        )
        return Score(name=name, value=metric(target, predicted), low=low, high=high)


def _counted(protein: Labelled, prediction: Prediction) -> Array:
    """Return the outputs of what counts, a row each."""
    return prediction.output[protein.counts] if protein.counts.ndim else prediction.output[None][protein.counts[None]]


class ContactFigures:
    """Contact precisions, protein by protein: no map is kept."""

    def __init__(self, tape_batch: int | None = None) -> None:
        self._sequences: list[str] = []
        self._right: dict[str, list[int]] = {}
        self._chosen: dict[str, list[int]] = {}
        self._batch_size = tape_batch
        self._batch: list[tuple[Array, Array]] = []
        self._batches: list[float] = []
        self.proteins = self.pairs = self.masked = 0

    def add(self, probability: Array, protein: Labelled) -> None:
        """Take the map of one protein into account."""
        contact, counted = protein.contacts()
        length = len(contact)
        self.proteins += 1
        self._sequences.append(protein.record.sequence)
        here = np.triu(counted, RANGES["short"].low)
        self.pairs += int(here.sum())
        self.masked += len(np.triu_indices(length, RANGES["short"].low)[0]) - int(here.sum())
        self._add(CONTACT_METRIC, top_contacts(probability, contact, counted, top=length // 5, apart=Separation()))
        for name, apart in RANGES.items():
            for top, parts in TOPS.items():
                found = top_contacts(probability, contact, counted, top=max(1, length // parts), apart=apart)
                self._add(f"{name}_{top}", found)
        if self._batch_size:
            self._batch.append((probability, np.where(counted, contact, -1)))
            if len(self._batch) == self._batch_size:
                self._close_batch()

    def scores(self, *, draws: int, seed: int) -> list[Score]:
        """Return P@L/5 over all proteins (TAPE), and the mean over proteins of P@L, L/2 and L/5 by range."""
        found = []
        everything, owners = np.arange(self.proteins), same_proteins(self._sequences)
        for name in self._right:
            right, chosen = np.array(self._right[name]), np.array(self._chosen[name])
            figure = partial(pooled if name == CONTACT_METRIC else mean_share, right, chosen)
            low, high = bootstrap_interval(figure, owners, draws=draws, seed=seed)
            label = name if name == CONTACT_METRIC else f"precision_{name}"
            found.append(Score(name=label, value=figure(everything), low=low, high=high))
        if self._batch_size:
            self._close_batch()
            found.append(Score(name=f"{CONTACT_METRIC}_tape_batches", value=float(np.mean(self._batches))))
        return found

    def _add(self, name: str, found: tuple[int, int]) -> None:
        self._right.setdefault(name, []).append(found[0])
        self._chosen.setdefault(name, []).append(found[1])

    def _close_batch(self) -> None:
        if self._batch:
            self._batches.append(tape_precision([p for p, _ in self._batch], [label for _, label in self._batch]))
        self._batch = []


def pooled(right: Array, chosen: Array, rows: npt.NDArray[np.int64]) -> float:
    """Return the share of right pairs among all that the proteins chose."""
    total = chosen[rows].sum()
    return float(right[rows].sum() / total) if total else np.nan


def mean_share(right: Array, chosen: Array, rows: npt.NDArray[np.int64]) -> float:
    """Return the mean over proteins of the share of right pairs; proteins without a pair do not count."""
    some = rows[chosen[rows] > 0]
    return float(np.mean(right[some] / chosen[some])) if len(some) else np.nan
