"""What Python users hand over as proteins, turned into a stream of records: paths, sequences, pairs, dictionaries."""

import numbers
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from protembed.errors import InputError
from protembed.sequences.composition import other_than_protein
from protembed.sequences.files import AnyPath
from protembed.sequences.records import Record, clean, read_fasta

Source = AnyPath | Record | Mapping[Any, Any] | Iterable[Any]
"""A FASTA path (`-` for standard input); or sequences, records, pairs of id and sequence, a dictionary of id to
sequence, a pandas Series whose index are the ids. Biopython's Seq and SeqRecord stand for sequences and records."""

_FORMS = "Give a path, a list of sequences or of (id, sequence), a dictionary of id to sequence, or Records."


def read_source(source: Source) -> Iterator[Record]:
    """Return the clean records of a source, as a stream; sequences without an id are numbered from 1.

    A string is a path. Warns of the first record that is DNA or the like. Raises InputError, at once for what is no
    source at all, and in the stream for a bad record.
    """
    if isinstance(source, str):
        _check_path(source)
    if isinstance(source, str | os.PathLike):
        return _checked(read_fasta([source]))
    return _checked(_records(_pairs(source)))


def _check_path(text: str) -> None:
    """Raise InputError for a string that is a sequence, or FASTA itself: a path was expected."""
    if text.lstrip()[:1] == ">" and "\n" in text:
        raise InputError("a string is read as a path, and this one holds FASTA", hint="Save it to a file first.")
    alike = text.isalpha() or ("\n" not in text and text.rstrip("*").replace("-", "").isalpha())
    if alike and text != "-" and not os.path.exists(text):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise InputError(f"{shown!r} is no file", hint="Give sequences as a list: [sequence].")


def _checked(records: Iterable[Record]) -> Iterator[Record]:
    warned = False
    for record in records:
        if not warned and (what := other_than_protein(record.sequence)):
            warned = True
            warnings.warn(f"{record} looks like {what}, not like a protein", stacklevel=3)
        yield record


def _pairs(source: Any) -> Iterable[tuple[object, object]]:
    """Return pairs of an id (None: its number) and a sequence in any form; raise InputError for what holds neither."""
    if isinstance(source, Record) or _is_biopython(source):
        return [(None, source)]
    if isinstance(source, Mapping):
        return source.items()
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.Series):
        pairs: Iterable[tuple[object, object]] = source.items()
        return pairs
    kind = type(source).__name__
    if kind in ("DataFrame", "LazyFrame") or (pandas is not None and isinstance(source, pandas.DataFrame)):
        raise InputError(
            "a DataFrame has several columns", hint="Give one with its ids: frame.set_index('id')['sequence']."
        )
    if isinstance(source, bytes | bytearray | memoryview):
        raise InputError("bytes are neither a path nor a list of sequences", hint=_FORMS)
    if isinstance(source, set | frozenset):
        raise InputError("a set has no order, so its results could not be told apart", hint="Give a list.")
    if hasattr(source, "read"):
        raise InputError("an open file is not read here", hint="Give its path.")
    try:
        return ((None, item) for item in iter(source))
    except TypeError as error:
        raise InputError(f"{kind} is no source of proteins", hint=_FORMS) from error


def _records(pairs: Iterable[tuple[object, object]]) -> Iterator[Record]:
    for number, (key, item) in enumerate(pairs, start=1):
        if key is None and isinstance(item, tuple | list) and len(item) == 2:
            key, item = item
        yield clean(_record(number, key, item))


def _record(number: int, key: object, item: object) -> Record:
    """Turn an item of any form into a record; its key goes before an id that it may have itself."""
    name = str(number) if key is None else _text(key)
    if name is None:
        raise InputError(f"item {number} has the id {key!r}", hint="Ids are strings or numbers.")
    place = f"item {number}" if key is None else f"item {number} ({name!r})"
    if isinstance(item, Record):
        if not (isinstance(item.id, str) and isinstance(item.sequence, str)):
            raise InputError(f"{place} is a Record whose id or sequence is no string", hint=_FORMS)
        return item if key is None else replace(item, id=name)
    if _is_biopython(item) and hasattr(item, "seq"):
        found: Any = item  # what Biopython does not know it calls <unknown ...>
        if key is None and found.id and not found.id.startswith("<unknown"):
            name = str(found.id)
        description = "" if found.description.startswith("<unknown") else str(found.description)
        return Record(name, _letters(found.seq, place), description)
    return Record(name, _letters(item, place))


def _letters(item: Any, place: str) -> str:
    """Return the letters of a str, bytes or Biopython Seq. Raises InputError for anything else."""
    try:
        if isinstance(item, str):
            return str(item)
        if isinstance(item, bytes):
            return item.decode("ascii")
        if _is_biopython(item):
            return str(item)
    except ValueError as error:  # bytes that are no letters, a Seq of undefined content
        raise InputError(f"{place}: {error}", hint="Give its residues as a string.") from error
    raise InputError(f"{place} is of the type {type(item).__name__}, not a sequence", hint=_FORMS)


def _text(key: object) -> str | None:
    """Return an id as text: strings and numbers; None for what is no id."""
    return str(key) if isinstance(key, str | numbers.Real) and key == key else None  # NaN equals nothing


def _is_biopython(item: object) -> bool:
    """Tell whether something is a Seq or SeqRecord, without loading Biopython: where it is not loaded, nothing is."""
    sequences: Any = sys.modules.get("Bio.Seq")
    records: Any = sys.modules.get("Bio.SeqRecord")
    return (sequences is not None and isinstance(item, sequences.Seq | sequences.MutableSeq)) or (
        records is not None and isinstance(item, records.SeqRecord)
    )
