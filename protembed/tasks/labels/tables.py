"""Labelled proteins in tables: separated by commas, tabs or semicolons, as programs and spreadsheets write them."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO

from protembed.errors import InputError
from protembed.sequences.files import open_text
from protembed.sequences.records import Record, clean
from protembed.tasks.labels.rows import Row, ending

LONGEST_FIELD = 2**24
"""Characters; csv stops at 131,072 by itself, and a value for each of titin's 35,213 residues takes more."""

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "name", "accession", "protein"),
    "sequence": ("sequence", "seq", "primary"),
    "label": ("target", "label", "labels", "value", "score"),
    "split": ("set", "split"),
    "mask": ("mask",),
}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def read_table(path: Path) -> Iterator[Row]:
    """Read a table with columns for sequence and label, and for id, split and mask if there are.

    Fields are taken whole. In a table with semicolons a comma is a decimal one.
    """
    for number, row, separator in read_fields(path, [_COLUMNS["sequence"], _COLUMNS["label"]]):
        columns = {what: _find(names, list(row)) for what, names in _COLUMNS.items()}
        fields = {what: row[name].strip() for what, name in columns.items() if name}
        if not fields["label"]:
            raise InputError(f"{path}, line {number}: the label is empty", hint="Complete or remove the line.")
        name = fields.get("id") or str(number - 1)
        yield Row(
            record=clean(Record(name, fields["sequence"], name, f"{path}, line {number}")),
            label=fields["label"],
            split=fields.get("split", ""),
            mask=fields.get("mask"),
            attributes={key.upper(): value for key, value in row.items()},
            decimal_comma=separator == ";",
        )


def read_scores(path: Path) -> dict[str, tuple[str, str]]:
    """Read a table of id, set and scores, one a residue: id -> attributes and scores."""
    found: dict[str, tuple[str, str]] = {}
    for number, row, _ in read_fields(path, [("id",), ("scores",)]):
        if row["id"] in found:
            raise InputError(f"{path}, line {number}: the id '{row['id']}' stands here twice")
        found[row["id"]] = (f"SET={row.get('set', '')}", row["scores"])
    return found


def read_fields(path: Path, needed: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, str], str]]:
    """Read a table with a header; yield line numbers, fields by lower-case column names, and the separator.

    Of each of `needed` one name must be a column. Raises InputError naming file and line.
    """
    with open_text(path, str(path)) as handle, _long_fields():
        separator, skipped, header, lines = _begin(handle, "\t" if ending(path) == ".tsv" else ",", needed)
        # Strict: text behind a closing quotation mark would be glued to the field, an open one would eat lines.
        reader = csv.reader(lines, delimiter=separator, strict=True)
        first = skipped + 1
        try:
            names = [name.strip().lower() for name in next(reader, [])]
            _require_columns(path, names, needed, header)
            first = skipped + reader.line_num + 1
            for row in reader:
                if row:
                    yield first, _fields(path, first, names, row), separator
                first = skipped + reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}, line {first}: cannot be read as a table ({error})",
                hint=f"Fields are separated by {_SEPARATORS.get(separator, separator)}; "
                "a quotation mark that stands open, or inside a quoted field, must be doubled or removed.",
            ) from error


def _begin(handle: IO[str], usual: str, needed: Sequence[Sequence[str]]) -> tuple[str, int, str, Iterable[str]]:
    """Find the separator that makes the needed columns of a header; return it, the lines before, header and lines."""
    lines = list(islice(handle, 1))
    skipped = 0
    told = lines[0].strip() if lines else ""
    if told.lower().startswith("sep=") and len(told) == 5:  # Excel's own first line
        usual, skipped, lines = told[4], 1, list(islice(handle, 1))
    header = lines[0].rstrip("\r\n") if lines else ""
    for separator in (usual, *_SEPARATORS):
        names = [name.strip().strip('"').lower() for name in header.split(separator)]
        if all(_find(some, names) for some in needed):
            return separator, skipped, header, chain(lines, handle)
    return usual, skipped, header, chain(lines, handle)


def _find(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _require_columns(path: Path, names: Sequence[str], needed: Sequence[Sequence[str]], header: str) -> None:
    if absent := next((some for some in needed if not _find(some, names)), None):
        what = next((what for what, known in _COLUMNS.items() if known == absent), None)
        wanted = f"column for the {what} ({' or '.join(absent)})" if what else f"column '{absent[0]}'"
        shown = ", ".join(names) if len(names) > 1 else f"it begins with {header[:60]!r}"
        raise InputError(f"{path}: has no {wanted}", hint=f"Its columns: {shown}.")
    if repeated := [name for name in names if name and names.count(name) > 1]:
        raise InputError(f"{path}: two columns are called '{repeated[0]}'", hint="Rename or remove one of them.")


def _fields(path: Path, number: int, names: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(names):
        raise InputError(
            f"{path}, line {number}: has not as many fields as the header, {len(names)}, but {len(row)}",
            hint="A field that holds the separator must stand in quotation marks.",
        )
    if wrong := next((name for name, value in zip(names, row, strict=True) if "\0" in value), None):
        raise InputError(f"{path}, line {number}: the column '{wrong}' holds a NUL byte", hint="Is it a text file?")
    return dict(zip(names, row, strict=True))


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read fields of up to LONGEST_FIELD characters meanwhile."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
