"""What labels mean: the text or arrays of a file become numbers, or one clear error.

Targets by kind: classes (L,) or () as numbers of labels; flags (L, C); values (L,) or (); contacts: coordinates (L, 3).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.models.head_config import Kind
from protembed.sequences.records import Record
from protembed.tasks.labels.rows import Row

Array = npt.NDArray[Any]

CONTACT_DISTANCE = 8.0
"""Angstrom; two residues closer than this touch (TAPE, CASP)."""

_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")


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
    """A protein, its target by kind (see above), and what of it counts: residues (L,), or the protein ().

    `cluster` is what the data says of its relatives (CLUSTER= or a column), empty where it says nothing.
    """

    record: Record
    target: Array
    counts: npt.NDArray[np.bool_]
    cluster: str = ""

    def contacts(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which pairs of residues touch, and which pairs count; (L, L) each, from coordinates."""
        distance = np.linalg.norm(self.target[:, None] - self.target[None], axis=-1)
        with np.errstate(invalid="ignore"):
            return distance < CONTACT_DISTANCE, np.logical_and.outer(self.counts, self.counts)


def encode(row: Row, coding: Coding, labels: tuple[str, ...]) -> Labelled:
    """Turn the label of one protein into numbers. Raises InputError for a label that cannot be one."""
    cluster = row.attributes.get("CLUSTER") or row.attributes.get("cluster") or ""
    return replace(_encode(row, coding, labels), cluster=cluster)


def _encode(row: Row, coding: Coding, labels: tuple[str, ...]) -> Labelled:
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
    letters = letters_of(row)
    _require_length(row, len(letters), "labels")
    counts &= ~np.isin(list(letters), list(coding.uncounted))
    if coding.kind == "residue_flags":
        return Labelled(record=record, target=_flags(row, letters, coding, labels, counts), counts=counts)
    numbers = {label: number for number, label in enumerate(labels)}
    numbers |= {letter: numbers[label] for letter, label in coding.merge.items() if label in numbers}
    target = np.array([numbers.get(letter, -1) for letter in letters], dtype=np.int64)
    _require_known(row, letters, (target < 0) & counts, labels)
    return Labelled(record=record, target=np.where(target < 0, 0, target), counts=counts)


def class_of(row: Row) -> str:
    """Return the whole label of a protein. Raises InputError for several, and for one that would break a table."""
    if not isinstance(row.label, str):
        raise InputError(f"{row.record} has {row.label.size} labels, and one class is expected")
    name = row.label.strip()
    if not name or not name.isprintable():
        raise InputError(
            f"{row.record}: the label {name!r} is empty, or holds a tab, a line break or another control character",
            hint="A label is one line of printable characters.",
        )
    return name


def letters_of(row: Row) -> str:
    """Return the labels of residues, a letter each. Raises InputError for numbers, spaces and control characters."""
    if not isinstance(row.label, str):
        raise InputError(
            f"{row.record}: the labels of its residues are numbers, and letters are expected",
            hint="[task] lmdb_labels says which letter each number stands for.",
        )
    wrong = next(
        (place for place, letter in enumerate(row.label) if letter.isspace() or not letter.isprintable()), None
    )
    if wrong is not None:
        raise InputError(
            f"{row.record}: the label {row.label[wrong]!r} of residue {wrong + 1} is a space or a control character",
            hint="One letter a residue, with nothing between.",
        )
    return row.label


def _number_of(row: Row, coding: Coding, labels: tuple[str, ...]) -> Array:
    name = coding.merge.get(class_of(row), class_of(row))
    if name not in labels:
        known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
        raise InputError(f"{row.record}: the label {name!r} is not in the set", hint=f"Known: {known}.")
    return np.array(labels.index(name))


def _value(row: Row) -> Array:
    values = _numbers(row, one=True)
    if values.size != 1:
        comma = isinstance(row.label, str) and _DECIMAL_COMMA.fullmatch(row.label)
        raise InputError(
            f"{row.record} has {values.size} values, and one is expected",
            hint=f"If {row.label} is one number, write {str(row.label).replace(',', '.')}." if comma else "",
        )
    return values.reshape(())


def _numbers(row: Row, *, one: bool = False) -> Array:
    """Read numbers. Raises InputError for what is none, NaN and infinity included."""
    try:
        texts = _split(row, one=one) if isinstance(row.label, str) else row.label
        with np.errstate(over="ignore"):
            values = np.asarray(texts, dtype=np.float32)
    except ValueError as error:
        raise InputError(
            f"{row.record}: the target is not a number ({error})",
            hint="In a header a value goes on to the next KEY=; free text stands before the first one.",
        ) from error
    if not np.isfinite(values).all():
        raise InputError(f"{row.record}: the target is NaN or infinite", hint="Remove the record, or the value.")
    return values


def _split(row: Row, *, one: bool) -> list[str]:
    """Part numbers at spaces, commas and semicolons; a comma is a decimal one where the table says so."""
    text, words = str(row.label), str(row.label).split()
    decimal = row.decimal_comma and all(_DECIMAL_COMMA.fullmatch(word) or "," not in word for word in words)
    # In a table with semicolons "1,5" is one number where one is expected; of two residues it may be two.
    if decimal and (one or len(words) > 1):
        return text.replace(",", ".").split()
    return text.replace(",", " ").replace(";", " ").split()


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
    _require_length(row, len(row.mask), "mask entries")
    if isinstance(row.mask, str):
        values = np.array(list(row.mask))
        _require_known(row, row.mask, ~np.isin(values, ["0", "1"]), ("0", "1"), what="mask")
        return np.asarray(values == "1")
    return row.mask.astype(bool)


def _require_length(row: Row, found: int, what: str) -> None:
    if found != len(row.record.sequence):
        raise InputError(
            f"{row.record} has {found} {what} for {len(row.record.sequence)} residues",
            hint="One a residue; gaps and a final * were taken off the sequence.",
        )


def _require_known(
    row: Row, letters: str, wrong: npt.NDArray[np.bool_], labels: tuple[str, ...], *, what: str = "label"
) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        raise InputError(
            f"{row.record}: the {what} {letters[place]!r} of residue {place + 1} is not in the set",
            hint=f"Known: {' '.join(labels)}",
        )
