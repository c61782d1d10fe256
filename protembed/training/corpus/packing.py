"""Training data: proteins as memory-mapped tokens, and the plan by which they become batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from protembed.errors import TrainingError
from protembed.sequences.alphabet import Alphabet
from protembed.training.corpus.arrays import MappedArray
from protembed.training.corpus.counts import Counts, HomologPart, read_counts

Tokens = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.integer]

_BLOCK = 1 << 16
"""Entries of an epoch that are drawn at a time. Another number draws other members of clusters."""


@dataclass(frozen=True)
class Cursor:
    """A place in the stream of batches: the epoch, and how many entries of it are used up.

    It is the same for any number of ranks.
    """

    epoch: int = 0
    used: int = 0


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """Proteins of one split as residue tokens, no special ones among them.

    `parts` are rows of tokens, as a rule mapped from files; protein i is `lengths[i]` tokens from `starts[i]` on in
    the parts laid end to end, and lies in one of them. Cluster c is proteins `clusters[c]` to `clusters[c + 1] - 1`.
    `homologs` hold what the homologs of some proteins have at their residues.

    >>> store = TokenStore.of([np.array([4, 5], np.uint8), np.array([6], np.uint8)])
    >>> len(store), store.residues, store[1].tolist()
    (2, 3, [6])
    """

    parts: Sequence[Tokens | MappedArray]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    clusters: npt.NDArray[np.int64]
    homologs: Sequence[HomologPart] = ()

    @classmethod
    def of(cls, proteins: Sequence[Tokens], clusters: Sequence[int] | None = None) -> "TokenStore":
        """Hold proteins in memory; `clusters` are the offsets of clusters among them (None: each is its own)."""
        lengths = np.array([len(protein) for protein in proteins], dtype=np.int32)
        return cls(
            parts=[np.concatenate([np.empty(0, np.uint8), *proteins])],
            starts=np.cumsum(lengths, dtype=np.int64) - lengths,
            lengths=lengths,
            clusters=np.arange(len(proteins) + 1) if clusters is None else np.array(clusters, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tokens:
        start, length = int(self.starts[index]), int(self.lengths[index])
        part = int(np.searchsorted(self._borders, start, side="right")) - 1
        start -= int(self._borders[part])
        return self.parts[part][start : start + length]

    def counts(self, index: int) -> Counts:
        """Return what the homologs of a protein have at its residues, (L, 20); zeros where it has none."""
        return read_counts(self.homologs, int(self.starts[index]), int(self.lengths[index]))

    @cached_property
    def residues(self) -> int:
        """Residues of all proteins."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def _borders(self) -> npt.NDArray[np.int64]:
        """Where each part begins in the parts laid end to end; an empty part shares its border with the next."""
        return np.cumsum([0, *(len(part) for part in self.parts[:-1])], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A plan of one pass through the model: numbers of proteins (N,), and the cursor behind them.

    `epoch` is the first protein's; where an epoch ends in a batch, the others are of the next.
    """

    epoch: int
    indices: Indices
    cursor: Cursor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Draw batches of whole proteins, packed end to end, from a store.

    An epoch visits every protein once, in a new order; or every cluster once, by one member drawn at random, which
    keeps large families from prevailing (as ESM-2 samples UniRef90 within UniRef50; Lin et al. 2023,
    doi 10.1126/science.ade2574). A protein longer than `max_residues` gives a random window. All of it depends on
    seed, epoch and protein alone, so that a cursor is all it takes to go on. There is one stream, whoever reads it: of
    R ranks, rank r takes every R-th batch, and together they see what one rank sees that accumulates R of them.

    >>> from protembed.sequences.alphabet import PROTEMBED
    >>> store = TokenStore.of([PROTEMBED.encode("MKTAY")[1:-1].astype(np.uint8)] * 6)
    >>> packing = Packing(store=store, alphabet=PROTEMBED, batch_tokens=30, max_residues=100, seed=0)
    >>> first = next(packing.plan(Cursor()))
    >>> len(first.indices), first.cursor
    (4, Cursor(epoch=0, used=4))
    >>> [len(tokens) for tokens in packing.read(first)]
    [7, 7, 7, 7]
    """

    store: TokenStore
    alphabet: Alphabet
    batch_tokens: int
    max_residues: int
    seed: int
    sampling: Literal["proteins", "clusters"] = "proteins"

    @property
    def epoch_size(self) -> int:
        """How many entries an epoch has: proteins, or clusters."""
        return len(self.store) if self.sampling == "proteins" else len(self.store.clusters) - 1

    def plan(self, cursor: Cursor) -> Iterator[MicroBatch]:
        """Yield the batches from a place on, without end; lengths are read, tokens are not.

        A batch is as many proteins as fit into `batch_tokens` with their special tokens, in the order of the epoch; a
        protein that does not fit alone is a batch of its own. The end of an epoch does not end a batch.
        Raises TrainingError when there is no protein.
        """
        pending, began = np.empty(0, dtype=np.int64), cursor.epoch
        for epoch, place, drawn in self._draw(cursor):
            began = began if len(pending) else epoch
            place -= len(pending)
            indices = np.concatenate([pending, drawn])
            ends = np.cumsum(self.sizes(indices))
            # Where a batch that starts at each protein would end; only the last one can want more than was drawn.
            limits = np.searchsorted(ends, ends - self.sizes(indices) + self.batch_tokens, side="right")
            start = 0
            while (end := max(start + 1, int(limits[start]))) < len(indices):
                yield MicroBatch(epoch=began, indices=indices[start:end], cursor=Cursor(epoch, place + end))
                start, began = end, epoch
            pending = indices[start:]

    def read(self, micro: MicroBatch) -> list[npt.NDArray[np.int64]]:
        """Read the tokens of a batch's proteins, special tokens around each."""
        return [
            self.alphabet.surround(self.store[index][self._window(index, micro.epoch)])
            for index in micro.indices.tolist()
        ]

    def read_counts(self, micro: MicroBatch) -> list[Counts]:
        """Read the counts of homologs, (L + specials, 20), of the same proteins; rows of special tokens are zeros."""
        around = ((self.alphabet.prefix, self.alphabet.suffix), (0, 0))
        return [
            np.pad(self.store.counts(index)[self._window(index, micro.epoch)], around)
            for index in micro.indices.tolist()
        ]

    def waste(self, batches: int = 10_000) -> float:
        """Return the share of tokens that are padding when the first batches are filled up to `batch_tokens` each.

        Fixed shapes are what torch.compile wants. On average half a protein is missing at the end of a batch, so that
        the share falls with the size of the batch.
        """
        filled = [int(self.sizes(micro.indices).sum()) for micro in islice(self.plan(Cursor()), batches)]
        return 1 - sum(filled) / sum(max(self.batch_tokens, tokens) for tokens in filled)

    def _draw(self, cursor: Cursor) -> Iterator[tuple[int, int, Indices]]:
        """Yield the proteins of the epochs in order, a block at a time: epoch, place of the first one, indices."""
        if not self.epoch_size:
            raise TrainingError("there is no protein to train on", hint="Name proteins in [data] train.")
        epoch, used = cursor.epoch, cursor.used
        while True:
            order = np.arange(self.epoch_size, dtype=np.min_scalar_type(self.epoch_size))
            np.random.default_rng((self.seed, epoch)).shuffle(order)
            for first in range(used - used % _BLOCK, len(order), _BLOCK):
                entries = order[first : first + _BLOCK]
                skip = max(0, used - first)
                drawn = entries if self.sampling == "proteins" else self._members(entries, epoch, first)
                yield epoch, first + skip, drawn[skip:].astype(np.int64)
            epoch, used = epoch + 1, 0

    def _members(self, clusters: Indices, epoch: int, first: int) -> Indices:
        """Draw one member of each cluster of a block."""
        begins = self.store.clusters[clusters]
        sizes = self.store.clusters[clusters.astype(np.int64) + 1] - begins
        # numpy pads a short seed with zeros: the 1 keeps the draw apart from those of orders and windows.
        drawn: Indices = begins + np.random.default_rng((self.seed, epoch, first, 1)).integers(sizes)
        return drawn

    def sizes(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return how many tokens each protein takes in a batch."""
        specials = self.alphabet.prefix + self.alphabet.suffix
        return np.minimum(self.store.lengths[indices], self.max_residues).astype(np.int64) + specials

    def _window(self, index: int, epoch: int) -> slice:
        """Choose the residues of a protein that an epoch sees: all of them, or a random window."""
        spare = int(self.store.lengths[index]) - self.max_residues
        if spare <= 0:
            return slice(None)
        start = int(np.random.default_rng((self.seed, epoch, index)).integers(spare + 1))
        return slice(start, start + self.max_residues)
