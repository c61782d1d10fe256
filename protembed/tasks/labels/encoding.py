"""What labels mean: the text or arrays of a file become numbers, or one clear error.

Targets by kind: classes (L,) or () as numbers of labels; flags (L, C); values (L,) or (); contacts: coordinates (L, 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.models.head_config import Kind
from protembed.sequences.records import Record
from protembed.tasks.labels.formats import Row

Array = npt.NDArray[Any]

CONTACT_DISTANCE = 8.0
"""Angstrom; two residues closer than this touch (TAPE, CASP)."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What the labels of a task mean.

    `labels` are the classes or flags in the order of a head's outputs; empty: those that the data holds, sorted.
    `merge` reads a letter as another, `flags` as several flags; letters of `uncounted`, and the value `missing`, do
    not count.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    merge: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    uncounted: str = ""
    missing: float | None = None


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A protein, its target by kind (see above), and what of it counts: residues (L,), or the protein ()."""

    record: Record
    target: Array
    counts: npt.NDArray[np.bool_]

    def contacts(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which pairs of residues touch, and which pairs count; (L, L) each, from coordinates."""
        distance = np.linalg.norm(self.target[:, None] - self.target[None], axis=-1)
        with np.errstate(invalid="ignore"):
            return distance < CONTACT_DISTANCE, np.logical_and.outer(self.counts, self.counts)


def encode(row: Row, coding: Coding, labels: tuple[str, ...]) -> Labelled:
    """Turn the label of one protein into numbers. Raises InputError for a label that cannot be one."""
    record = row.record
    if coding.kind == "sequence_class":
        return Labelled(record=record, target=_number_of(row, coding, labels), counts=np.array(True))
    if coding.kind == "sequence_value":
        return Labelled(record=record, target=_value(row), counts=np.array(True))
    counts = _mask(row)
    if coding.kind == "contacts":
        target = _coordinates(row)
        _require_length(row, len(target), "coordinates")
        return Labelled(record=record, target=target, counts=counts & np.isfinite(target).all(axis=1))
    if coding.kind == "residue_values":
        target = _numbers(row)
        _require_length(row, len(target), "values")
        return Labelled(record=record, target=target, counts=counts & (target != coding.missing))
    letters = str(row.label)
    _require_length(row, len(letters), "labels")
    counts &= ~np.isin(list(letters), list(coding.uncounted))
    if coding.kind == "residue_flags":
        return Labelled(record=record, target=_flags(row, letters, coding, labels, counts), counts=counts)
    numbers = {label: number for number, label in enumerate(labels)}
    numbers |= {letter: numbers[label] for letter, label in coding.merge.items() if label in numbers}
    target = np.array([numbers.get(letter, -1) for letter in letters], dtype=np.int64)
    _require_known(row, letters, (target < 0) & counts, labels)
    return Labelled(record=record, target=np.where(target < 0, 0, target), counts=counts)


def _number_of(row: Row, coding: Coding, labels: tuple[str, ...]) -> Array:
    name = coding.merge.get(str(row.label), str(row.label))
    if name not in labels:
        known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
        raise InputError(f"{row.record}: the label {name!r} is not in the set", hint=f"Known: {known}.")
    return np.array(labels.index(name))


def _value(row: Row) -> Array:
    values = _numbers(row)
    if values.size != 1:
        raise InputError(f"{row.record} has {values.size} values, and one is expected")
    return values.reshape(())


def _numbers(row: Row) -> Array:
    """Read numbers. Raises InputError for what is none, NaN and infinity included."""
    try:
        texts = row.label.replace(",", " ").replace(";", " ").split() if isinstance(row.label, str) else row.label
        with np.errstate(over="ignore"):
            values = np.asarray(texts, dtype=np.float32)
    except ValueError as error:
        raise InputError(f"{row.record}: the target is not a number ({error})") from error
    if not np.isfinite(values).all():
        raise InputError(f"{row.record}: the target is NaN or infinite", hint="Remove the record, or the value.")
    return values


def _coordinates(row: Row) -> Array:
    if isinstance(row.label, str) or row.label.ndim != 2 or row.label.shape[1] != 3:
        raise InputError(
            f"{row.record}: the label is not coordinates", hint="Contacts come from .npz files, or from TAPE's LMDB."
        )
    return row.label.astype(np.float32)


def _flags(row: Row, letters: str, coding: Coding, labels: tuple[str, ...], counts: Array) -> Array:
    unknown = np.array([letter not in coding.flags for letter in letters], dtype=bool)
    _require_known(row, letters, unknown & counts, tuple(coding.flags))
    on = [coding.flags.get(letter, "") for letter in letters]
    return np.array([[label in flags for label in labels] for flags in on], dtype=bool).reshape(len(on), len(labels))


def _mask(row: Row) -> npt.NDArray[np.bool_]:
    """Read which residues count: all, or those whose mask is 1."""
    if row.mask is None:
        return np.ones(len(row.record.sequence), dtype=bool)
    values = np.array(list(row.mask)) == "1" if isinstance(row.mask, str) else np.asarray(row.mask).astype(bool)
    _require_length(row, len(values), "mask entries")
    return values


def _require_length(row: Row, found: int, what: str) -> None:
    if found != len(row.record.sequence):
        raise InputError(
            f"{row.record} has {found} {what} for {len(row.record.sequence)} residues",
            hint="One a residue; gaps and a final * were taken off the sequence.",
        )


def _require_known(row: Row, letters: str, wrong: npt.NDArray[np.bool_], labels: tuple[str, ...]) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        raise InputError(
            f"{row.record}: the label {letters[place]!r} of residue {place + 1} is not in the set",
            hint=f"Known: {' '.join(labels)}",
        )
