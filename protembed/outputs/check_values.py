"""What the values of one record must be, by what a file holds: their shape, and what no model computes."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from protembed.errors import InputError
from protembed.outputs.origin import Origin
from protembed.outputs.safe_dataset import SafeDataset, Values


@dataclass(frozen=True)
class Form:
    """The shape of a record's values, a name an axis, and what holds for them.

    Axes: `rows` one a residue, `width` the same in all records, `labels` one a label of the head. `zeros`: what must
    not be zero throughout, `rows` or the `whole`; a hole in a file reads as zeros. `probabilities` lie in [0, 1], and
    those of `classes` add up to 1 in every row.
    """

    axes: tuple[Literal["rows", "width", "labels"], ...]
    zeros: Literal["rows", "whole", "allowed"] = "allowed"
    probabilities: Literal["", "any", "classes"] = ""


FORMS: Final[Mapping[str, Form]] = {
    "per-protein": Form(("width",), zeros="whole"),
    "per-residue": Form(("rows", "width"), zeros="rows"),
    "contacts": Form(("rows", "rows"), zeros="whole", probabilities="any"),
    "residue_classes": Form(("rows", "labels"), probabilities="classes"),
    "residue_flags": Form(("rows", "labels"), probabilities="any"),
    "residue_values": Form(("rows",)),
    "sequence_class": Form(("labels",), probabilities="classes"),
    "sequence_value": Form(()),
}
_SUM_ERROR: Final = 1e-3


def identity_of(dataset: SafeDataset) -> dict[str, Any]:
    """Return what a dataset says of its record: original_id, description, length. Raises InputError."""
    told = {name: dataset.attribute(name) for name in ("original_id", "description", "length")}
    found = {"original_id": dataset.name, "description": "", **{k: v for k, v in told.items() if v is not None}}
    texts = isinstance(found["original_id"], str) and isinstance(found["description"], str)
    if not texts or not isinstance(found.get("length"), int):
        raise InputError(f"{dataset.place} does not say of which protein it is")
    return found


class ValueChecker:
    """Looks over the values of all records of one file. Raises OutputError that names the record."""

    def __init__(self, origin: Origin) -> None:
        if origin.content not in FORMS:
            raise origin.error(f"holds {origin.content!r}, which this version does not know")
        self._origin, self._form = origin, FORMS[origin.content]
        self._labels = len(origin.text("labels").split("\t"))
        self._width: int | None = None
        self._dtype = origin.text("dtype")

    def look(self, dataset: SafeDataset, what: str, length: int, read: Values | None = None) -> int:
        """Check the values of `what`, a protein of `length` residues; return their CRC-32.

        They are read block by block, unless they are read already.
        """
        self._check_form(dataset, what, length)
        crc, problem, empty = 0, "", True
        for values in dataset.blocks() if read is None else [read]:
            crc = zlib.crc32(values.data, crc)
            problem = problem or self._problem(values)
            empty = empty and not values.any()
        stored = dataset.attribute("crc32")
        if stored is not None and stored != crc:
            raise self._origin.error(f"{what} is not what was written: its checksum is wrong", hint="Compute it again.")
        if stored is None and self._origin.sealed:
            raise self._origin.error(f"{what} has no checksum", hint="Was it put into the file by another program?")
        if problem or (empty and self._form.zeros != "allowed"):
            raise self._origin.error(f"{what} {problem or 'is zero throughout'}", hint="Compute it again.")
        return crc

    def _check_form(self, dataset: SafeDataset, what: str, length: int) -> None:
        """Compare shape and dtype before any value is read."""
        if len(dataset.shape) != len(self._form.axes):
            raise self._origin.error(
                f"{what} has the shape {dataset.shape}, which is not one of {self._origin.content}"
            )
        for axis, found in zip(self._form.axes, dataset.shape, strict=True):
            expected = self._expected(axis, found, length)
            if found != expected and axis == "rows":
                raise self._origin.error(f"{what} has {found} rows for {length} residues")
            if found != expected:
                raise self._origin.error(f"{what} has {found} values, the records before it {expected}")
        self._dtype = self._dtype or dataset.dtype.name
        if dataset.dtype.name != self._dtype:
            raise self._origin.error(f"{what} is stored as {dataset.dtype.name}, the file says {self._dtype}")

    def _expected(self, axis: str, found: int, length: int) -> int:
        if axis == "labels":
            return self._labels
        if axis == "rows":
            return self._rows(found, length)
        self._width = self._width or found
        return self._width

    def _rows(self, found: int, length: int) -> int:
        limit = self._origin.number("residue_limit")
        if self._origin.text("long_policy") == "truncate" and limit:
            return min(length, limit)
        if self._origin.text("long_proteins") == "truncate" and not self._origin.sealed:
            return min(found, length)  # older files do not say where they cut
        return length

    def _problem(self, values: Values) -> str:
        """Return what is wrong with a block of values; empty if nothing is."""
        if not np.isfinite(values).all():
            return "has values that are not finite"
        if self._form.zeros == "rows" and values.ndim == 2 and not values.any(axis=1).all():
            return "has rows of zeros"
        if self._form.probabilities and not ((values >= 0) & (values <= 1 + _SUM_ERROR)).all():
            return "has probabilities outside 0 to 1"
        if self._form.probabilities == "classes":
            sums = values.sum(axis=-1, dtype=np.float64)
            if not (np.abs(sums - 1) < _SUM_ERROR).all():
                return "has probabilities that do not add up to 1"
        return ""
