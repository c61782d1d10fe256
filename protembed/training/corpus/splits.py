"""From the parts of a corpus to its splits: copies dropped, clusters held out, members of a cluster side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protembed.training.corpus.parts import Part, digest

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """What of the proteins is taken, and what is held out.

    `valid_share` of the clusters are for validation; a cluster's lot depends on its id and the seed alone, so that
    files that come later move none. `valid_from` is the first part that holds nothing but validation proteins.
    """

    valid_from: int
    valid_share: float = 0.0
    min_residues: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Split:
    """The proteins of a split (N,) as TokenStore has them: starts, lengths, and the offsets of clusters (C + 1,)."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    clusters: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Both splits, and what is in neither: too `short`, or `copies` of another protein of the split.

    `shared` are training proteins that are validation proteins, too: a file of the user's says so; `related` are
    those of a cluster with a validation protein.
    """

    train: Split
    valid: Split
    short: int
    copies: int
    shared: int
    related: int


def make_splits(parts: Sequence[Part], rules: SplitRules) -> Splits:
    """Decide about every protein of the parts. Memory holds 95 bytes a protein; tokens are read of copies only."""
    lengths = np.concatenate([np.empty(0, np.int32), *(part.lengths for part in parts)])
    clusters = np.concatenate([np.empty(0, np.uint64), *(part.clusters for part in parts)])
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    explicit = _explicit(parts, rules)
    valid = explicit | _drawn(clusters, rules)
    keep = lengths >= rules.min_residues
    short = int(len(keep) - keep.sum())
    copies, shared = _copies(parts, np.flatnonzero(keep), starts, lengths, explicit)
    keep[copies] = False
    train_clusters, valid_clusters = clusters[keep & ~valid], np.unique(clusters[keep & valid])
    return Splits(
        train=_split(np.flatnonzero(keep & ~valid), starts, lengths, clusters),
        valid=_split(np.flatnonzero(keep & valid), starts, lengths, clusters),
        short=short,
        copies=len(copies),
        shared=shared,
        related=int(np.isin(train_clusters, valid_clusters).sum()),
    )


def held_out(parts: Sequence[Part], rules: SplitRules) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which proteins of the parts are for validation (P,), and which are of a cluster that has such (P,)."""
    clusters = np.concatenate([np.empty(0, np.uint64), *(part.clusters for part in parts)])
    valid = _explicit(parts, rules) | _drawn(clusters, rules)
    return valid, np.isin(clusters, clusters[valid])


def _explicit(parts: Sequence[Part], rules: SplitRules) -> npt.NDArray[np.bool_]:
    """Tell which proteins stand in files of validation proteins."""
    first = sum(part.counts.proteins for part in parts[: rules.valid_from])
    return np.arange(sum(part.counts.proteins for part in parts)) >= first


def _drawn(clusters: npt.NDArray[np.uint64], rules: SplitRules) -> npt.NDArray[np.bool_]:
    """Tell the clusters that the seed puts into validation: their hashes are even, and the seed turns them about."""
    lot = clusters ^ np.uint64(digest(f"seed {rules.seed}".encode()))
    return lot < np.uint64(int(rules.valid_share * 2.0**64))


def _copies(
    parts: Sequence[Part],
    candidates: Indices,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    explicit: npt.NDArray[np.bool_],
) -> tuple[list[int], int]:
    """Return the proteins with the tokens of an earlier one of their kind, and how many are of both kinds.

    Equal digests only say where to look; the tokens decide.
    """
    digests = np.concatenate([np.empty(0, np.uint64), *(part.digests for part in parts)])[candidates]
    borders = np.cumsum([0, *(part.counts.residues for part in parts)])
    order = np.argsort(digests, kind="stable")
    hits = np.flatnonzero(digests[order[1:]] == digests[order[:-1]])
    place = candidates[order]

    def tokens(index: int) -> bytes:
        part = int(np.searchsorted(borders, starts[index], side="right")) - 1
        start = int(starts[index] - borders[part])
        return parts[part].tokens[start : start + int(lengths[index])].tobytes()

    copies: list[int] = []
    shared = 0
    known: set[tuple[bytes, bool]] = set()
    previous = -2
    for hit in hits.tolist():
        if hit != previous + 1:
            first = int(place[hit])
            known = {(tokens(first), bool(explicit[first]))}
        index = int(place[hit + 1])
        residues, kind = tokens(index), bool(explicit[index])
        if (residues, kind) in known:
            copies.append(index)
        else:
            shared += (residues, not kind) in known
            known.add((residues, kind))
        previous = hit
    return copies, shared


def _split(
    chosen: Indices,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    clusters: npt.NDArray[np.uint64],
) -> Split:
    """Put the members of a cluster side by side; otherwise the order of the sources stays."""
    _, first, inverse = np.unique(clusters[chosen], return_index=True, return_inverse=True)
    cluster = first[inverse]
    order = np.argsort(cluster, kind="stable")
    begins = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    chosen = chosen[order]
    return Split(starts=starts[chosen], lengths=lengths[chosen], clusters=np.append(begins, len(chosen)))
