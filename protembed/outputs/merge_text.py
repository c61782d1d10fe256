"""Text shards of `predict`: what the file beside each says of its run, and putting them end to end."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from protembed.errors import InputError
from protembed.interrupts import check
from protembed.outputs.files import sync, write_errors
from protembed.outputs.guarded_bytes import open_file
from protembed.outputs.origin import Origin, read_origin
from protembed.outputs.printing import printable
from protembed.outputs.target import format_of, run_file_of
from protembed.outputs.text import TEXT_FORMATS

_LARGEST_RUN_FILE: Final = 2**20
_BLOCK: Final = 2**20


def is_text(path: Path) -> bool:
    """Tell whether a shard is text by its name, or by the file beside it."""
    return format_of(path) in TEXT_FORMATS or (format_of(path) is None and run_file_of(path).exists())


def read_text_origin(path: Path) -> Origin:
    """Read what the file beside a text shard says of it. Raises InputError."""
    beside = run_file_of(path)
    place = printable(str(beside))
    if not beside.exists():
        raise InputError(
            f"{printable(str(path))}: {printable(beside.name)}, which says of which run it is, is not there",
            hint="Runs with a shard write it beside the text; keep the two together.",
        )
    try:
        with os.fdopen(open_file(beside, place), "rb") as file:
            found = json.loads(file.read(_LARGEST_RUN_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{place}: cannot be read as JSON ({printable(str(error))})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str | int | float) for value in found.values()):
        raise InputError(f"{place}: is not an object of texts and numbers")
    return read_origin(path, found)


def append_text(new: Path, out: Path, ordered: Sequence[Origin]) -> int:
    """Write the texts of all shards into `new`, which is to be `out`, under one header; return the number of records.

    Raises InputError for a text that is not as it was written, OutputError where the disk is full.
    """
    with write_errors(out), new.open("r+b") as file:
        file.write(_header(ordered[0]))
        for origin in ordered:
            for block in _body(origin):
                check()
                file.write(block)
    with write_errors(out):
        sync(new)
    return sum(origin.number("records") or 0 for origin in ordered)


def _header(origin: Origin) -> bytes:
    form = str(origin.options.get("format"))
    if form not in TEXT_FORMATS:
        raise origin.error(f"its format is {printable(form)!r}, not one of {', '.join(TEXT_FORMATS)}")
    return TEXT_FORMATS[form].header.encode()


def _body(origin: Origin) -> Iterator[bytes]:
    """Yield a text without its header; raise InputError at its end if it is not as it was written."""
    place, header = origin.name, _header(origin)
    try:
        with os.fdopen(open_file(origin.path, place, empty=True), "rb") as file:
            start = file.read(len(header))
            state, size = hashlib.sha256(start), len(start)
            while block := file.read(_BLOCK):
                state.update(block)
                size += len(block)
                yield block
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror or error})") from error
    if start != header or size != origin.number("bytes") or state.hexdigest() != origin.text("content_sha256"):
        raise InputError(f"{place} is not as it was written: its checksum is wrong", hint="Compute the shard again.")
