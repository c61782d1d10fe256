"""The proteins that a head is trained, chosen and measured on: read, and divided where the data is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from protembed.errors import InputError, UsageError
from protembed.tasks import Task
from protembed.tasks.labels.dataset import DataSet, read_rows, same_split
from protembed.tasks.labels.encoding import Labelled
from protembed.tasks.labels.rows import Files
from protembed.training.finetune.config import DataSection, NegativesSection, TaskConfig, attributes


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Proteins by their use, the labels they are numbered by, and what is to be said of them.

    No sequence is in two of the uses; `shared` proteins were left out of training or validation for that.
    """

    train: list[Labelled]
    valid: list[Labelled]
    test: Mapping[str, list[Labelled]]
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    shared: int = 0


def read_splits(config: TaskConfig, task: Task) -> Splits:
    """Read the proteins of a task.

    Raises InputError naming file, line and record, also for a class without a training example.
    """
    section, seed = config.data, config.train.seed
    path = Path(section.path)
    trained = _read(task, path, section.train, section, labels=(), unnamed=True)
    labels = trained.labels
    names = section.valid or _valid_splits(task, path)
    notes = [f"{count:,} proteins left out: {reason}" for reason, count in trained.left_out.items()]
    if names:
        train, valid = trained.proteins, _read(task, path, names, section, labels=labels).proteins
    else:
        train, valid = _divide(trained.proteins, section.valid_share, seed)
        notes.append(f"no validation split: {len(valid):,} training proteins, drawn by seed {seed}, are taken for it")
    train = _draw(train, section.proteins, seed)
    if config.negatives.path:
        wanted = max(1, round(len(valid) / len(train) * config.negatives.proteins))
        more = read_negatives(config.negatives, labels, valid=wanted, seed=seed)
        train, valid = train + more[0], valid + more[1]
        notes.append(f"{len(more[0]):,} proteins of {Path(config.negatives.path).name} for '{config.negatives.label}'")
    test = {name: _read(task, path, (name,), section, labels=labels).proteins for name in section.test}
    train, valid, shared = _separate(train, valid, [protein for proteins in test.values() for protein in proteins])
    if shared:
        notes.append(f"{shared:,} proteins left out: their sequences are in the validation or test set, too")
    _require_something_to_learn(path, task, replace(trained, proteins=train))
    return Splits(train=train, valid=valid, test=test, labels=labels, notes=tuple(notes), shared=shared)


def _require_something_to_learn(path: Path, task: Task, train: DataSet) -> None:
    if task.kind in ("residue_classes", "sequence_class") and len(train.labels) == 1:
        raise InputError(f"{path}: all training examples are of class {train.labels[0]!r}: there is nothing to learn")
    if train.labels and task.kind != "contacts":
        train.require_every_class()


def _separate(
    train: list[Labelled], valid: list[Labelled], tested: Sequence[Labelled]
) -> tuple[list[Labelled], list[Labelled], int]:
    """Leave proteins out of training and validation that are tested, and out of training that validate; count them.

    Raises InputError when that leaves nothing.
    """
    valid_left = unseen(valid, tested)
    train_left = unseen(train, [*valid_left, *tested])
    for name, before, left in (("training", train, train_left), ("validation", valid, valid_left)):
        if before and not left:
            raise InputError(
                f"no {name} protein is left: the sequences of all {len(before):,} are measured on in another set, too",
                hint="[data] train, valid and test name different proteins.",
            )
    return train_left, valid_left, len(train) + len(valid) - len(train_left) - len(valid_left)


def unseen(proteins: Sequence[Labelled], others: Sequence[Labelled]) -> list[Labelled]:
    """Return the proteins whose sequences are not among those of others, in order."""
    known = {protein.record.sequence for protein in others}
    return [protein for protein in proteins if protein.record.sequence not in known]


def _read(
    task: Task,
    path: Path,
    names: Sequence[str],
    section: DataSection,
    *,
    labels: tuple[str, ...],
    unnamed: bool = False,
) -> DataSet:
    """Read several splits as one. Where the data says what labels there are, they are those of all."""
    where = dict(attributes(section.where, "data"))
    found = [
        task.read(path, split=name, unnamed=unnamed and name == "train", labels=labels, where=where) for name in names
    ]
    if not found:
        raise UsageError("[data] train names no split")
    if len({data.labels for data in found}) > 1:
        every = tuple(sorted({label for data in found for label in data.labels}))
        return _read(task, path, names, section, labels=every, unnamed=unnamed)
    left_out: dict[str, int] = {}
    for data in found:
        for reason, count in data.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return replace(found[0], proteins=[protein for data in found for protein in data.proteins], left_out=left_out)


def _valid_splits(task: Task, path: Path) -> tuple[str, ...]:
    """Return the name of the data's own validation split, if it has one."""
    seen: set[str] = set()
    for _ in read_rows(path, task.files, seen=seen):
        pass
    return tuple(name for name in sorted(seen) if same_split(name, "val"))


def _divide(proteins: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Take a share of proteins for validation, whole clusters of them, or else all of one sequence.

    Raises InputError when there is only one.
    """
    clusters: dict[str, list[int]] = {}
    for number, protein in enumerate(proteins):
        # The first word: text behind it would make a cluster of every protein.
        name = protein.cluster.partition(" ")[0] or f"sequence {protein.record.sequence}"
        clusters.setdefault(name, []).append(number)
    if len(clusters) < 2:
        raise InputError("one protein, or one cluster, cannot be divided", hint="Name a validation split: SET=val.")
    names = list(clusters)
    held: set[int] = set()
    for place in np.random.default_rng((seed, 1)).permutation(len(names))[:-1]:
        if len(held) >= max(1, share * len(proteins)):
            break
        held |= set(clusters[names[place]])
    train = [protein for number, protein in enumerate(proteins) if number not in held]
    return train, [proteins[number] for number in sorted(held)]


def _draw(proteins: list[Labelled], limit: int, seed: int) -> list[Labelled]:
    if not 0 < limit < len(proteins):
        return proteins
    chosen = np.random.default_rng((seed, 2)).choice(len(proteins), limit, replace=False)
    return [proteins[number] for number in sorted(chosen)]


def read_negatives(
    section: NegativesSection, labels: tuple[str, ...], *, valid: int, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """Read proteins all of whose residues have one label, for training and validation. Raises ProtembedError."""
    if section.label not in labels:
        raise UsageError(f"[negatives] label is {section.label!r}", hint=f"Known: {' '.join(labels)}")
    number, wanted = labels.index(section.label), attributes(section.where, "negatives")
    found = []
    for split, count in ((section.train, section.proteins), (section.valid, valid)):
        proteins = [
            Labelled(
                record=row.record,
                target=np.full(len(row.record.sequence), number),
                counts=np.ones(len(row.record.sequence), dtype=bool),
            )
            for row in read_rows(Path(section.path), Files(), split=split)
            if not wanted or any(row.attributes.get(key) == value for key, value in wanted)
        ]
        if not proteins:
            raise InputError(f"{section.path}: no proteins of SET={split} for [negatives]", hint="See its where.")
        found.append(_draw(proteins, count, seed))
    return found[0], found[1]
