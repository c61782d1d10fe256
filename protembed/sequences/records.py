"""Protein records, and FASTA files as a stream of them."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Literal

from protembed.errors import InputError
from protembed.sequences.files import AnyPath, open_text

EmptyPolicy = Literal["error", "skip"]

LONGEST = 10_000_000
"""A record or header of more characters is refused: the longest known protein has 45,212 residues (PKZILLA-1)."""

_NOT_A_LETTER = re.compile(r"[^A-Za-z]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_COMMENTS = (";", "#")
_CHAINS = re.compile(r"#\d+,")
"""How ColabFold begins the alignment of a complex: the lengths of its chains, joined in every record."""
_PIR = re.compile(r"(?:P1|F1|D[LC]|R[LC]|N[13]|XX);\S")
"""How headers of NBRF/PIR begin; a line of text follows them."""

_OTHER_FORMATS = (
    ("LOCUS ", "GenBank"),
    ("ID   ", "UniProt's or EMBL's text"),
    ("HEADER ", "PDB"),
    ("ATOM ", "PDB"),
    ("data_", "mmCIF"),
    ("# STOCKHOLM", "Stockholm"),
    ("CLUSTAL", "Clustal"),
    ("@", "FASTQ, which holds reads of DNA"),
    ("{", "JSON"),
    ("[", "JSON"),
    ("<", "XML or a web page"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One protein: an id (the first word of its header), upper-case residues, the whole header.

    `place` names the file and line it came from; `gaps` counts the `-` and `.` that were removed, `stops` the `*`
    inside the sequence that became X. `key` is its name in the outputs of a run, which tells it from all others.

    >>> Record("P12345", "MKTAYIAKQR").id
    'P12345'
    """

    id: str
    sequence: str
    description: str = ""
    place: str = ""
    gaps: int = 0
    stops: int = 0
    key: str = ""

    def __str__(self) -> str:
        return f"{self.place}: record '{self.id}'" if self.place else f"record '{self.id}'"


def clean(record: Record, *, empty: EmptyPolicy = "error") -> Record:
    """Return the record with upper-case residues, without gaps and the final `*`; an inner `*` becomes X.

    Raises InputError when a character is not a letter, when the record is longer than any protein, when no residue is
    left (unless `empty` is `skip`), or when its id or header holds characters that no output can.
    """
    sequence = record.sequence
    if len(sequence) > LONGEST:
        raise _too_long(str(record))
    _check_header(record)
    gaps = stops = 0
    if not (sequence.isascii() and sequence.isalpha()):
        gaps = sequence.count("-") + sequence.count(".")
        sequence = sequence.replace("-", "").replace(".", "").removesuffix("*")
        stops = sequence.count("*")
        sequence = sequence.replace("*", "X")
        if wrong := _NOT_A_LETTER.search(sequence):
            raise _not_a_residue(record, wrong)
    if not sequence and empty == "error":
        raise InputError(
            f"{record} has no residues", hint="Remove the record or complete it, or have empty records skipped."
        )
    return Record(record.id, sequence.upper(), record.description, record.place, gaps, stops)


def _check_header(record: Record) -> None:
    if record.id.isprintable() and record.description.isprintable():
        return
    if wrong := _CONTROL.search(record.id) or _UNWRITABLE.search(record.description):
        raise InputError(
            f"{record.place or 'a record'}: its header holds the control character {wrong.group()!r}",
            hint=r"Remove it, for example: tr -d '\000' < old.fasta > new.fasta",
        )


def _not_a_residue(record: Record, wrong: re.Match[str]) -> InputError:
    letter = wrong.group()
    hint = "Protein FASTA holds letters, gaps (- .) and stops (*) only; correct or remove the record."
    if letter in ":/":
        hint = f"If '{letter}' joins the chains of a complex: give every chain a record of its own."
    elif letter == "\0":
        hint = r"Remove it: tr -d '\000' < old.fasta > new.fasta"
    return InputError(
        f"{record} has {letter!r} at residue {wrong.start() + 1}, which is not a residue letter", hint=hint
    )


def _too_long(what: str) -> InputError:
    return InputError(
        f"{what} has more than {LONGEST:,} characters", hint="Proteins do not: is it a genome, or damaged?"
    )


def read_fasta(paths: Iterable[AnyPath], *, empty: EmptyPolicy = "error") -> Iterator[Record]:
    """Stream the clean records of FASTA files, in order; files may be gzip, xz, bzip2 or zstd, `-` is standard input.

    Lines that begin with `;` or `#` are comments. A record without residues is refused, or comes as it is when
    `empty` is `skip`. Memory does not grow with the file. Raises InputError naming file, line and record.

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
                place = f"{name}, line {lines.headers.popleft()}"
                yield clean(Record(title.split(maxsplit=1)[0], sequence, title.strip(), place), empty=empty)
            if lines.number == 0:
                raise InputError(f"{name}: the file is empty", hint="It should hold FASTA records.")


class _Lines:
    """Hand a FASTA parser its lines; remember where headers stand, and refuse what is not FASTA.

    Comments are left out. A record is counted as it grows: what is no protein never stands in memory as a whole.
    """

    def __init__(self, handle: IO[str], name: str) -> None:
        self.headers: deque[int] = deque()
        self.number = 0
        self._handle = handle
        self._name = name
        self._record = ""
        self._size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        while line := self._handle.readline(LONGEST + 1):
            self.number += 1
            self._size += len(line)
            if self._size > LONGEST:
                self._refuse_size(line)
            if line[0] == ">":
                self._begin(line)
            elif line[0] in _COMMENTS:
                self._check_comment(line)
                continue
            elif not self._record and line.strip():
                raise self._not_fasta(line)
            return line
        raise StopIteration

    @property
    def _place(self) -> str:
        return f"{self._name}, line {self.number}"

    def _begin(self, line: str) -> None:
        """Note where a record begins. Raises InputError for a header without an id, or of another format."""
        words = line[1:].split(maxsplit=1)
        if not words:
            raise InputError(f"{self._place}: the header is empty", hint="Give the record an id after '>'.")
        if _PIR.match(words[0]):
            raise InputError(
                f"{self._place}: this is a header of the PIR format",
                hint="Convert it to FASTA: its second line is text, and would be read as residues.",
            )
        self.headers.append(self.number)
        self._record = words[0]
        self._size = 0

    def _refuse_size(self, line: str) -> None:
        if line[0] == ">":
            if len(line) > LONGEST:
                raise _too_long(f"{self._place}: the header")
        elif self._record:
            raise _too_long(f"{self._name}, line {self.headers[-1]}: record '{self._record}'")
        else:
            raise InputError(
                f"{self._name}: no record begins in the first {LONGEST:,} characters", hint="Is it a FASTA file?"
            )

    def _check_comment(self, line: str) -> None:
        if _CHAINS.match(line):
            raise InputError(
                f"{self._place}: the alignment of a complex, whose records join several chains",
                hint="Give every chain a record of its own.",
            )
        if not self._record and line.startswith("# STOCKHOLM"):
            raise self._not_fasta(line)

    def _not_fasta(self, line: str) -> InputError:
        known = next((name for begin, name in _OTHER_FORMATS if line.startswith(begin)), None)
        hint = f"The line begins with {line.strip()[:20]!r}."
        if known:
            hint = f"This looks like {known}; convert it to FASTA."
        elif "sequence" in (words := re.split(r"[,;\t]", line.strip().lower())) and len(words) > 1:
            hint = "This looks like a table: write its ids and sequences as FASTA, '>id' and the sequence below it."
        return InputError(f"{self._place}: not FASTA, a record must start with '>'", hint=hint)
