"""All proteins of a corpus' parts at once, found by name or by sequence: what homologs are looked up in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protembed.sequences.alphabet import Alphabet
from protembed.training.corpus.counts import WIDTH
from protembed.training.corpus.parts import Part
from protembed.training.corpus.splits import SplitRules, held_out

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Directory:
    """Proteins numbered through all parts. Memory holds about 70 bytes per protein.

    `same` (P,) is the first protein with the same residues; `held_out` (P,) says which may not be anyone's homolog:
    proteins of validation clusters, and copies of validation proteins.
    """

    parts: Sequence[Part]
    rules: SplitRules
    alphabet: Alphabet

    @cached_property
    def lengths(self) -> Numbers:
        return np.concatenate([np.empty(0, np.int64), *(part.lengths for part in self.parts)])

    @cached_property
    def starts(self) -> Numbers:
        """First token of every protein in the parts laid end to end."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def same(self) -> Numbers:
        digests = np.concatenate([np.empty(0, np.uint64), *(part.digests for part in self.parts)])
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        return np.asarray(first[inverse], dtype=np.int64)

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        valid, related = held_out(self.parts, self.rules)
        return related | np.isin(self.same, self.same[valid])

    def by_name(self, names: npt.NDArray[np.uint64]) -> Numbers:
        """Return the protein of every name: its number, -1 where there is none, -2 where several differ."""
        return self._find(*self._names, names)

    def by_digest(self, digests: npt.NDArray[np.uint64]) -> Numbers:
        """Return the first protein of every digest of residues, or -1."""
        return self._find(*self._digests, digests)

    def tokens(self, starts: Numbers, lengths: Numbers) -> npt.NDArray[np.uint8]:
        """Return the tokens of pieces, end to end: `lengths[i]` from `starts[i]` on in the parts laid end to end."""
        ends = np.cumsum(lengths)
        result = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        owners = np.searchsorted(self._borders, starts, side="right") - 1
        for owner in np.unique(owners):
            mine = np.flatnonzero(owners == owner)
            part, border = self.parts[owner].tokens, self._borders[owner]
            low, high = int(starts[mine].min() - border), int((starts[mine] + lengths[mine]).max() - border)
            places = ranges(starts[mine] - border - low, lengths[mine])
            result[ranges(ends[mine] - lengths[mine], lengths[mine])] = part[low:high][places]
        return result

    @cached_property
    def columns(self) -> npt.NDArray[np.int64]:
        """Column of every token among the 20 standard residues; 20 for the others; (256,)."""
        columns = np.full(256, WIDTH, dtype=np.int64)
        columns[self.alphabet.standard_ids] = np.arange(WIDTH)
        return columns

    @cached_property
    def _borders(self) -> Numbers:
        borders: Numbers = np.cumsum([0, *(len(part.tokens) for part in self.parts[:-1])], dtype=np.int64)
        return borders

    @cached_property
    def _digests(self) -> tuple[npt.NDArray[np.uint64], Numbers, npt.NDArray[np.bool_]]:
        digests = np.concatenate([np.empty(0, np.uint64), *(part.digests for part in self.parts)])
        order = np.argsort(digests, kind="stable")
        return digests[order], order, np.zeros(len(digests), bool)

    @cached_property
    def _names(self) -> tuple[npt.NDArray[np.uint64], Numbers, npt.NDArray[np.bool_]]:
        """Return all names in order, the proteins that have them, and whether others of the name differ in residues."""
        names = np.concatenate([np.empty(0, np.uint64), *(part.names for part in self.parts)])
        order = np.argsort(names, kind="stable")
        names = names[order]
        again = names[1:] == names[:-1]
        other = again & (self.same[order[1:]] != self.same[order[:-1]])
        several = np.zeros(len(names), bool)
        for place in np.flatnonzero(other):  # seldom any
            several |= names == names[place]
        return names, order, several

    @staticmethod
    def _find(
        known: npt.NDArray[np.uint64],
        numbers: Numbers,
        several: npt.NDArray[np.bool_],
        wanted: npt.NDArray[np.uint64],
    ) -> Numbers:
        if not len(known):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found = np.full(len(wanted), -1, dtype=np.int64)
        hits = known[places] == wanted
        found[hits] = numbers[places[hits]]
        found[(found >= 0) & several[places]] = -2
        return found


def ranges(starts: Numbers, lengths: Numbers) -> Numbers:
    """Return start, start + 1, ... of every range, end to end.

    >>> ranges(np.array([5, 2]), np.array([2, 3])).tolist()
    [5, 6, 2, 3, 4]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    every: Numbers = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return every
