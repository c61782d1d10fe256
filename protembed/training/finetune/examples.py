"""Labelled proteins as flat arrays, special tokens around each, ready to be batched.

Legend: T tokens of all proteins, N proteins, C flags, L residues of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protembed.errors import InputError
from protembed.models.head_config import Kind
from protembed.models.packing import Packed
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.batching import pack
from protembed.tasks.labels.encoding import CONTACT_DISTANCE, Labelled
from protembed.tasks.metrics import Separation

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some proteins: their numbers and the rows of their tokens in the Examples, and what a head and its loss take."""

    indices: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    tokens: Tensor
    layout: Packed
    targets: Tensor | list[Tensor]
    counts: Tensor | list[Tensor]

    @property
    def counted(self) -> bool:
        """Whether anything counts."""
        each = [self.counts] if isinstance(self.counts, Tensor) else self.counts
        return any(bool(counts.any()) for counts in each)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Proteins, or windows of them, end to end: tokens (T,), and where each begins and the last ends (N + 1,).

    `targets` and `counts` have a row a token when residues or contacts are predicted ((T,), flags (T, C), coordinates
    (T, 3)), else a row a protein. `long` proteins were longer than allowed, and cut.
    """

    kind: Kind
    alphabet: Alphabet
    tokens: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    targets: Array
    counts: npt.NDArray[np.bool_]
    long: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def residues(self) -> int:
        return len(self.tokens) - len(self) * (self.alphabet.prefix + self.alphabet.suffix)

    def batches(self, budget: int, device: torch.device, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of at most `budget` tokens, in order or shuffled."""
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        sizes = self.lengths
        for group in pack(order.tolist(), size=lambda index: int(sizes[index]), budget=budget):
            yield self._batch(np.array(group), device)

    def count_batches(self, budget: int) -> int:
        """Return about how many batches an epoch has."""
        return max(1, round(len(self.tokens) / max(1.0, budget - float(self.lengths.mean()) / 2)))

    def _batch(self, indices: npt.NDArray[np.int64], device: torch.device) -> Batch:
        lengths = self.lengths[indices]
        ends = np.cumsum(lengths)
        rows = np.arange(ends[-1]) + np.repeat(self.offsets[indices] - ends + lengths, lengths)
        places = indices if self.kind in ("sequence_class", "sequence_value") else rows
        targets: Tensor | list[Tensor] = torch.from_numpy(self.targets[places]).to(device)
        counts: Tensor | list[Tensor] = torch.from_numpy(self.counts[places]).to(device)
        if self.kind == "contacts":
            targets, counts = self._pairs(targets, counts, lengths.tolist())  # type: ignore[arg-type]
        return Batch(
            indices=indices,
            rows=rows,
            tokens=torch.from_numpy(self.tokens[rows]).to(device),
            layout=Packed(lengths.tolist(), device),
            targets=targets,
            counts=counts,
        )

    def _pairs(self, coordinates: Tensor, counts: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Return which pairs of residues touch, and which count: each once, i < j; (L, L) a protein."""
        touching, counted = [], []
        for where, known in zip(torch.split(coordinates, sizes), torch.split(counts, sizes), strict=True):
            inside = slice(self.alphabet.prefix, len(where) - self.alphabet.suffix)
            where, known = where[inside], known[inside]
            # The default way by matrix products is wrong by more than the data's precision.
            distance = torch.cdist(where, where, compute_mode="donot_use_mm_for_euclid_dist")
            touching.append(distance < CONTACT_DISTANCE)
            counted.append(torch.triu(known.unsqueeze(1) & known.unsqueeze(0), Separation().low))
        return touching, counted


def lay_out(proteins: Sequence[Labelled], kind: Kind, alphabet: Alphabet, *, longest: int, cut: bool) -> Examples:
    """Put proteins end to end; those of more than `longest` residues in windows, or only their first residues.

    Raises InputError when there are no proteins, nothing counts, or one is too long and not to be cut.
    """
    if not proteins:
        raise InputError("a split is empty")
    pieces = [piece for protein in proteins for piece in _pieces(protein, kind, longest)]
    long = [protein for protein in proteins if len(protein.record.sequence) > longest]
    if long and not cut:
        raise InputError(
            f"{long[0].record} has {len(long[0].record.sequence)} residues, and {longest} are allowed "
            f"({len(long)} such proteins)",
            hint='Raise [data] max_residues, or data.long="cut".',
        )
    tokens = [alphabet.encode(sequence) for sequence, _, _ in pieces]
    offsets = np.cumsum([0, *map(len, tokens)])
    targets, counts = [target for _, target, _ in pieces], [counted for _, _, counted in pieces]
    if kind in ("sequence_class", "sequence_value"):
        target, counted = np.array(targets), np.array(counts)
    else:
        target, counted = (np.concatenate([_around(part, alphabet) for part in parts]) for parts in (targets, counts))
    if not counted.any():
        raise InputError("no label of a split counts", hint="Its mask or missing values leave nothing.")
    return Examples(
        kind=kind,
        alphabet=alphabet,
        tokens=np.concatenate(tokens),
        offsets=offsets,
        targets=target,
        counts=counted,
        long=len(long),
    )


def _pieces(protein: Labelled, kind: Kind, longest: int) -> Iterator[tuple[str, Array, Array]]:
    """Yield sequence, target and counts of a protein, or of its windows, all of about one length."""
    sequence = protein.record.sequence
    if kind in ("sequence_class", "sequence_value"):
        yield sequence[:longest], protein.target, protein.counts
        return
    windows = 1 if kind == "contacts" else -(-len(sequence) // longest)
    borders = np.linspace(0, len(sequence), windows + 1).astype(int)
    for start, stop in pairwise(borders):
        part = slice(start, min(stop, start + longest))
        yield sequence[part], protein.target[part], protein.counts[part]


def _around(values: Array, alphabet: Alphabet) -> Array:
    """Put rows for special tokens around those of residues: zeros, which do not count."""
    around = ((alphabet.prefix, alphabet.suffix), *((0, 0) for _ in values.shape[1:]))
    return np.pad(values, around)
