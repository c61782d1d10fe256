"""Protein records, and FASTA files as a stream of them."""

import bz2
import gzip
import io
import lzma
import re
import shutil
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from protembed.errors import InputError

_OPENERS: Mapping[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7": lzma.open,
    b"BZ": bz2.open,
}
_NOT_A_LETTER = re.compile(r"[^A-Z]")


@dataclass(frozen=True, slots=True)
class Record:
    """One protein: an id (the first word of its header), upper-case residues, the whole header.

    `place` names the file and line it came from; `gaps` counts the `-` and `.` that were removed.

    >>> Record("P12345", "MKTAYIAKQR").id
    'P12345'
    """

    id: str
    sequence: str
    description: str = ""
    place: str = ""
    gaps: int = 0
    key: str = ""

    def __str__(self) -> str:
        return f"{self.place}: record '{self.id}'" if self.place else f"record '{self.id}'"


def clean(record: Record) -> Record:
    """Return the record with upper-case residues, without gaps and the final `*`; an inner `*` becomes X.

    Raises InputError when no residue is left, or a character is not a letter.
    """
    sequence = record.sequence.upper()
    gaps = 0
    if not (sequence.isascii() and sequence.isalpha()):
        gaps = sequence.count("-") + sequence.count(".")
        sequence = sequence.replace("-", "").replace(".", "").removesuffix("*").replace("*", "X")
        if wrong := _NOT_A_LETTER.search(sequence):
            raise InputError(
                f"{record} has {wrong.group()!r} at residue {wrong.start() + 1}, which is not a residue letter",
                hint="Protein FASTA holds letters, gaps (- .) and stops (*) only; correct or remove the record.",
            )
    if not sequence:
        raise InputError(f"{record} has no residues", hint="Remove the record, or complete it.")
    return Record(record.id, sequence, record.description, record.place, gaps)


def read_fasta(paths: Iterable[str | Path]) -> Iterator[Record]:
    """Stream the clean records of FASTA files, in order; files may be gzip, xz or bzip2, `-` is standard input.

    Memory does not grow with the file. Raises InputError naming file, line and record.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.fasta")
    >>> _ = path.write_text(">P1 first\\nmkt-a*\\n")
    >>> [(record.id, record.sequence) for record in read_fasta([path])]
    [('P1', 'MKTA')]
    """
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    for path in paths:
        name = "standard input" if str(path) == "-" else str(path)
        with open_text(path, name) as handle:
            lines = _Lines(handle, name)
            for title, sequence in SimpleFastaParser(lines):  # type: ignore[no-untyped-call]
                line = lines.headers.popleft()
                words = title.split(maxsplit=1)
                if not words:
                    raise InputError(
                        f"{name}, line {line}: the header is empty", hint="Give the record an id after '>'."
                    )
                yield clean(Record(words[0], sequence, title.strip(), f"{name}, line {line}"))
            if lines.number == 0:
                raise InputError(f"{name}: the file is empty", hint="It should hold FASTA records.")


@contextmanager
def input_files(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield paths that can be read more than once: standard input (`-`) is kept in a temporary file meanwhile."""
    if "-" not in paths:
        yield list(paths)
        return
    with tempfile.TemporaryDirectory(prefix="protembed-") as folder:
        copy = Path(folder, "standard input")
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [str(copy) if path == "-" else path for path in paths]


class _Lines:
    """Hand a FASTA parser its lines; remember where headers stand, and refuse what is not FASTA."""

    def __init__(self, handle: IO[str], name: str) -> None:
        self.headers: deque[int] = deque()
        self.number = 0
        self._handle = handle
        self._name = name
        self._in_record = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._handle)
        self.number += 1
        if line[0] == ">":
            self.headers.append(self.number)
            self._in_record = True
        elif not self._in_record and line.strip():
            raise InputError(
                f"{self._name}, line {self.number}: not FASTA, a record must start with '>'",
                hint=f"The line begins with {line.strip()[:20]!r}.",
            )
        return line


@contextmanager
def open_text(path: str | Path, name: str) -> Iterator[IO[str]]:
    """Open a text file, packed or not by its first bytes, and turn what can go wrong into InputError."""
    try:
        with sys.stdin.buffer if str(path) == "-" else open(path, "rb") as raw:
            file = cast(io.BufferedReader, raw)
            opener = _OPENERS.get(file.peek(2)[:2])
            yield io.TextIOWrapper(cast(io.BufferedReader, opener(file) if opener else file), encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not text in UTF-8 ({error.reason}, byte {error.object[error.start]:#x})",
            hint=f"If it is Latin-1: iconv -f latin1 -t utf-8 '{path}' > new.fasta",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: the compressed file is damaged or cut short ({error})") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})", hint="Check the path.") from error
