"""Alphabets: residues to token ids and back, for one family of models."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from protembed.errors import ModelError
from protembed.schema import Size, build

STANDARD_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard residues, in the order of every logits output."""


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """Translate between residues and the rows of a model's embedding table.

    `tokens` are the rows in order; `start` and `end` are put around every sequence (None: nothing);
    `unknown` stands in for letters that have no row.

    >>> alphabet = PROTEMBED
    >>> alphabet.encode("MKX").tolist()
    [2, 14, 12, 24, 3]
    >>> alphabet.decode(alphabet.encode("MKX"))
    'MKX'
    """

    tokens: Annotated[tuple[Annotated[str, Size(200)], ...], Size(2**20)]
    start: str | None
    end: str | None
    mask: str
    padding: str
    unknown: str

    def __post_init__(self) -> None:
        named = {self.start, self.end, self.mask, self.padding, self.unknown} - {None}
        if missing := named - set(self.tokens):
            raise ModelError(f"the alphabet has no row for {', '.join(sorted(map(str, missing)))}")
        if absent := [r for r in STANDARD_RESIDUES if r not in self.tokens]:
            raise ModelError(f"the alphabet has no row for the residues {', '.join(absent)}")
        if len(set(self.tokens)) < len(self.tokens):
            repeated = Counter(self.tokens).most_common(1)[0][0]
            raise ModelError(f"the alphabet has two rows for {repeated!r}")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token to row."""
        return {token: row for row, token in enumerate(self.tokens)}

    @property
    def mask_id(self) -> int:
        return self.ids[self.mask]

    @property
    def pad_id(self) -> int:
        return self.ids[self.padding]

    @property
    def prefix(self) -> int:
        """How many special tokens stand before the residues of a sequence: 0 or 1."""
        return int(self.start is not None)

    @property
    def suffix(self) -> int:
        """How many special tokens stand after the residues of a sequence: 0 or 1."""
        return int(self.end is not None)

    @cached_property
    def letters(self) -> frozenset[str]:
        """The letters that have a row of their own."""
        return frozenset(t for t in self.tokens if len(t) == 1 and "A" <= t <= "Z")

    @cached_property
    def standard_ids(self) -> npt.NDArray[np.int64]:
        """Rows of the 20 standard residues, in the order of STANDARD_RESIDUES; shape (20,)."""
        return np.array([self.ids[residue] for residue in STANDARD_RESIDUES], dtype=np.int64)

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        rows = np.full(256, self.ids[self.unknown], dtype=np.int64)
        for letter in self.letters:
            rows[ord(letter)] = self.ids[letter]
        return rows

    def encode(self, sequence: str) -> npt.NDArray[np.int64]:
        """Turn upper-case residues into token ids, special tokens around them; shape (L + specials,)."""
        return self.surround(self._rows[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)])

    def surround(self, residues: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Put the special tokens around residue tokens; (L,) -> (L + specials,)."""
        tokens = np.empty(self.prefix + len(residues) + self.suffix, dtype=np.int64)
        tokens[self.prefix : self.prefix + len(residues)] = residues
        if self.start is not None:
            tokens[0] = self.ids[self.start]
        if self.end is not None:
            tokens[-1] = self.ids[self.end]
        return tokens

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        """Turn token ids back into letters; special tokens are left out."""
        return "".join(t for t in (self.tokens[row] for row in tokens) if t in self.letters)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        return {
            "tokens": list(self.tokens),
            "start": self.start,
            "end": self.end,
            "mask": self.mask,
            "padding": self.padding,
            "unknown": self.unknown,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Alphabet":
        """Read what `to_dict` wrote. Raises ModelError."""
        return build(cls, fields, "the alphabet")


PROTEMBED = Alphabet(
    tokens=("<pad>", "<mask>", "<cls>", "<eos>", *STANDARD_RESIDUES, "X", "B", "U", "Z", "O"),
    start="<cls>",
    end="<eos>",
    mask="<mask>",
    padding="<pad>",
    unknown="X",
)
"""The alphabet of models that protembed trains."""
