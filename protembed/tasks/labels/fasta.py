"""Labelled proteins in FASTA: the labels in headers, or in files of their own beside the sequences.

biotrainer's form: `>ID SET=train TARGET=class` (VALIDATION=True marks the validation set), or labels of residues in a
second FASTA of the same ids, and a third one with 0 for residues that do not count.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from protembed.errors import InputError
from protembed.sequences.files import open_text
from protembed.sequences.records import read_fasta
from protembed.tasks.labels.rows import Files, Row, find_file
from protembed.tasks.labels.tables import read_scores

_KEY = re.compile(r"(?<!\w)(\w+)=")
_USED = ("TARGET", "SET", "VALIDATION", "MASK")


def attributes_of(text: str) -> dict[str, str]:
    """Read the attributes of a header: KEY=value, up to the next KEY= or the end, or KEY="value".

    >>> attributes_of("P1 SET=train TARGET=Cell membrane")
    {'SET': 'train', 'TARGET': 'Cell membrane'}
    """
    return dict(_pairs(text))


def _pairs(text: str) -> list[tuple[str, str]]:
    keys: list[re.Match[str]] = []
    quoted_to = 0
    for key in _KEY.finditer(text):
        # A = within a value begins no attribute, unless a space comes before its word.
        if key.start() < quoted_to or (keys and not text[key.start() - 1].isspace()):
            continue
        keys.append(key)
        mark = text[key.end() : key.end() + 1]
        quoted_to = text.find(mark, key.end() + 1) if mark in ('"', "'") else 0
    ends = [*(key.start() for key in keys[1:]), len(text)]
    return [(key[1], _unquoted(text[key.end() : end].strip())) for key, end in zip(keys, ends, strict=bool(keys))]


def _unquoted(value: str) -> str:
    mark = value[:1]
    quoted = len(value) > 1 and mark in "\"'" and value.endswith(mark) and mark not in value[1:-1]
    return value[1:-1].strip() if quoted else value


def _header(text: str, place: object) -> dict[str, str]:
    """Read the attributes of a header that labels may stand in. Raises InputError for what can be read in two ways."""
    pairs = _pairs(text)
    times = Counter(key for key, _ in pairs)
    if twice := next((key for key in _USED if times[key] > 1), None):
        raise InputError(f"{place}: its header has {twice}= twice", hint="Leave one of them.")
    found = dict(pairs)
    for key in _USED:
        if found.get(key, "").startswith(('"', "'")):
            raise InputError(
                f"{place}: a quotation mark of {key}= stands open", hint=f'Write {key}="...", or no marks.'
            )
    for key in ("SET", "VALIDATION"):
        if len(found.get(key, "").split()) > 1:
            raise InputError(
                f"{place}: {key}= is {found[key]!r}, and takes one word",
                hint="A value goes on to the next KEY=; free text stands before the first one.",
            )
    if found.get("VALIDATION", "").lower() not in ("", "true", "false"):
        raise InputError(f"{place}: VALIDATION= is {found['VALIDATION']!r}, not True or False", hint="Correct it.")
    return found


def _set_of(attributes: Mapping[str, str]) -> str:
    name = attributes.get("SET", "")
    return "val" if attributes.get("VALIDATION", "").lower() == "true" and name in ("", "train") else name


def read_headers(path: Path) -> Iterator[Row]:
    """Read a FASTA file whose headers say TARGET=."""
    for record in read_fasta([path]):
        attributes = _header(record.description, record)
        if not attributes.get("TARGET"):
            raise InputError(f"{record} has no TARGET= in its header", hint="Example: >P12345 TARGET=1.5 SET=train")
        yield Row(
            record=record,
            label=attributes["TARGET"],
            split=_set_of(attributes),
            mask=attributes.get("MASK"),
            attributes=attributes,
        )


def read_beside(folder: Path, files: Files) -> Iterator[Row]:
    """Read sequences, and labels and masks from files of their own by the same ids."""
    sequences, labels, mask = (find_file(folder, name) for name in (files.sequences, files.labels, files.mask))
    scores = find_file(folder, files.scores)
    assert sequences is not None
    if labels is None and scores is None:
        yield from read_headers(sequences)
        return
    of_residues = _strings(labels) if labels else read_scores(scores)  # type: ignore[arg-type]
    masks = _strings(mask) if mask else None
    for record in read_fasta([sequences]):
        if record.id not in of_residues:
            raise InputError(f"{record} has no labels in {labels or scores}")
        if masks is not None and record.id not in masks:
            raise InputError(f"{record} has no mask in {mask}")
        title, label = of_residues.pop(record.id)
        attributes, more = _header(record.description, record), _header(title, record)
        both = [key for key in _USED if attributes.get(key) and more.get(key)]
        if differs := next((key for key in both if attributes[key] != more[key]), None):
            raise InputError(f"{record}: {differs}= is not the same in {sequences} and in {labels or scores}")
        attributes |= {key: value for key, value in more.items() if value}
        yield Row(
            record=record,
            label=label,
            split=_set_of(attributes),
            mask=masks[record.id][1] if masks else None,
            attributes=attributes,
        )
    if of_residues:
        raise InputError(f"{labels or scores}: '{next(iter(of_residues))}' has no sequence in {sequences}")


def _strings(path: Path) -> dict[str, tuple[str, str]]:
    """Read a FASTA file of label letters: id -> header and letters. Not `read_fasta`: these are no residues."""
    found: dict[str, tuple[str, list[str]]] = {}
    lines: list[str] = []
    with open_text(path, str(path)) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.startswith(">"):
                if line.strip() and not found:
                    raise InputError(f"{path}, line {number}: not FASTA, a record must start with '>'")
                lines.append(line.strip())
                continue
            name = (line[1:].split(maxsplit=1) or [""])[0]
            if not name or name in found:
                raise InputError(f"{path}, line {number}: the id '{name}' is empty or stands here twice")
            lines = []
            found[name] = (line[1:].strip(), lines)
    return {name: (title, "".join(parts)) for name, (title, parts) in found.items()}
