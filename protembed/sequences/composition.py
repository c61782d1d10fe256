"""The letters of sequences: what they are when they are no protein (DNA, RNA, three-letter codes), and counts."""

import warnings
from collections import Counter
from typing import Literal

from protembed.errors import InputError
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.records import Record

UnknownPolicy = Literal["x", "error"]
ExpectPolicy = Literal["warn", "protein", "error"]
"""What happens to DNA, RNA and the like: a warning and a count, or an error (`protein` and `error` are the same)."""

_BASES = "ACGTU"
_AMBIGUOUS_BASES = frozenset(_BASES + "NRYSWKMBDHV")
"""IUPAC's nucleotide codes: a sequence with another letter is no nucleic acid."""

_CODES = frozenset({
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS", "MET", "PHE", "PRO", "SER",
    "THR", "TRP", "TYR", "VAL", "ASX", "GLX", "SEC", "PYL", "XAA", "TER", "STP",
})  # fmt: skip

_SHORTEST = 20
"""Letters from which three different bases and N alone are enough; all four bases are from _SHORTEST_WITH_ALL on."""
_SHORTEST_WITH_ALL = 12
_SHARE = 0.9
"""Least share of A, C, G, T, U and N where all four bases are there; the rest may be ambiguity codes."""


def other_than_protein(sequence: str) -> str | None:
    """Return what upper-case letters are when they are surely no protein, and None otherwise.

    Low-complexity proteins are the danger: chains of one or two residues (poly-A, AATAAT, silk) are always proteins
    here. Of 354,129 proteins of UniClust none is taken for something else, and of peptides of 9 to 100 residues cut
    from them at random at most 1 in 100,000.

    >>> [other_than_protein(letters) for letters in ("ATGAAAACCGCGTATATTGCG", "METLYSTHRALA", "MKTAYIAKQR")]
    ['DNA', 'three-letter codes', None]
    """
    if len(sequence) >= 9 and len(sequence) % 3 == 0 and sequence[:3] in _CODES and _all_codes(sequence):
        return "three-letter codes"
    # Nearly every protein has one of these, and nothing that follows does: the quick way out.
    if "L" in sequence or "P" in sequence or "I" in sequence:
        return None
    if len(sequence) >= _SHORTEST and set(sequence) == {"C", "E", "H"}:
        return "secondary structure"
    return _nucleic_acid(sequence) if len(sequence) >= _SHORTEST_WITH_ALL else None


def _nucleic_acid(sequence: str) -> str | None:
    counts = [sequence.count(base) for base in _BASES]
    different = sum(map(bool, counts)) - (counts[3] > 0 and counts[4] > 0)  # T and U are one base
    bases, unknown = sum(counts), sequence.count("N")
    if different == 4:
        alike = bases + unknown >= _SHARE * len(sequence) and _AMBIGUOUS_BASES.issuperset(sequence)
    else:
        alike = different == 3 and len(sequence) >= _SHORTEST and bases + unknown == len(sequence)
    if not alike or bases < unknown:
        return None
    return "RNA" if counts[4] > counts[3] else "DNA"


def _all_codes(sequence: str) -> bool:
    return all(sequence[start : start + 3] in _CODES for start in range(0, len(sequence), 3))


class LetterCount:
    """Counts what is not plain about the letters of records, and refuses what is not wanted."""

    def __init__(self, alphabet: Alphabet, unknown: UnknownPolicy, expect: ExpectPolicy) -> None:
        self._replacement = alphabet.unknown
        self._allowed = str.maketrans("", "", "".join(alphabet.letters))
        self._refuse_unknown, self._refuse_others = unknown == "error", expect != "warn"
        self.unknown = self.stops = self.gaps = 0
        self.others: Counter[str] = Counter()
        self._first = ""

    def add(self, record: Record) -> None:
        self.gaps += record.gaps
        self.stops += record.stops
        self.unknown += record.stops
        if record.stops and self._refuse_unknown:
            raise InputError(
                f"{record} has a stop (*) inside its sequence",
                hint="Is it a pseudogene or a wrong reading frame? Where unknown letters are allowed, it is read as X.",
            )
        if others := record.sequence.translate(self._allowed):
            self.unknown += len(others)
            if self._refuse_unknown:
                raise InputError(
                    f"{record} has the letter {others[0]}, which the model does not know",
                    hint=f"--unknown x reads such letters as {self._replacement}.",
                )
        if what := other_than_protein(record.sequence):
            self.others[what] += 1
            self._first = self._first or f"{record} looks like {what}, not like a protein"
            if self._refuse_others:
                raise InputError(self._first, hint="Translate it to one-letter residues first, or remove it.")

    def warn(self) -> None:
        """Warn once of all records that are something else than proteins."""
        if self.others:
            more = self.others.total() - 1
            warnings.warn(f"{self._first}{f', and {more:,} more' if more else ''}", stacklevel=3)
