"""Task: what is predicted, how its data is read, and what a prediction is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from protembed.models.head_config import HeadCard, Kind
from protembed.tasks.labels.dataset import Choice, DataSet, read_labelled
from protembed.tasks.labels.encoding import Coding
from protembed.tasks.labels.rows import Files
from protembed.tasks.metrics import Metric, accuracy, macro_accuracy, macro_f1, mcc, rmse, spearman

CONTACT_METRIC = "precision_at_l5"

CLASS_METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "macro_accuracy": macro_accuracy,
    "macro_f1": macro_f1,
    "mcc": mcc,
}
VALUE_METRICS: Mapping[str, Metric] = {"spearman": spearman, "rmse": rmse}

_METRICS: Mapping[Kind, Mapping[str, Metric]] = {
    "residue_classes": CLASS_METRICS,
    "residue_values": VALUE_METRICS,
    "sequence_class": CLASS_METRICS,
    "sequence_value": VALUE_METRICS,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to predict.

    `metrics` by name: training goes by the first, and all are reported (contacts have their own, see evaluate.py).
    `without` are proteins that are left out unless they are asked for; `test_split` is the set that is evaluated.
    """

    name: str
    summary: str
    coding: Coding
    metrics: Mapping[str, Metric]
    files: Files = field(default_factory=Files)
    without: Mapping[str, str] = field(default_factory=dict)
    test_split: str = "test"
    meanings: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return self.coding.kind

    @property
    def metric(self) -> str:
        """The name of the metric that training goes by: the higher the better."""
        return next(iter(self.metrics), CONTACT_METRIC)

    def read(
        self,
        path: Path,
        *,
        split: str | None = None,
        unnamed: bool = False,
        labels: tuple[str, ...] = (),
        where: Mapping[str, str] | None = None,
        longest: int | None = None,
    ) -> DataSet:
        """Read labelled proteins: of one split or all, those with the attributes `where`, up to `longest` residues.

        `unnamed`: proteins of no split, too. `labels` are those of a head; else the task's own; else those that the
        data holds. Raises InputError.
        """
        choice = Choice(split=split, unnamed=unnamed, where=where or {}, without=self.without, longest=longest)
        return read_labelled(path, self.files, replace(self.coding, labels=labels or self.coding.labels), choice)


def own_task(name: str, kind: Kind, labels: tuple[str, ...] = ()) -> Task:
    """Describe a task of the user's own, its data in any of the forms that labels reads."""
    coding = Coding(kind=kind, labels=labels, flags={label: label for label in labels} | {"-": ""})
    return Task(name=name, summary="your own", coding=coding, metrics=_METRICS.get(kind, {}))


def task_of(card: HeadCard, known: Mapping[str, Task]) -> Task:
    """Return the task of a head: a known one where its kind is the same, else the user's own."""
    task = known.get(card.task)
    return task if task is not None and task.kind == card.kind else own_task(card.task, card.kind, card.labels)
