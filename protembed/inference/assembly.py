"""From records to results in batches: cut into windows that the model takes, computed, put together, in their order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from protembed.backends.base import Backend
from protembed.sequences.batching import pack
from protembed.sequences.records import Record
from protembed.sequences.windows import Array, Failure, LongPolicy, Piece, cut, residue_limit, run_pieces

Outputs: TypeAlias = Mapping[str, Array]
Windows: TypeAlias = Sequence[tuple[Piece, Outputs]]
"""The windows of one protein in their order, or the one that is the whole of it, each with its outputs by name."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What happens to proteins longer than the model takes, or than `max_length` (residues) if that is less."""

    long: LongPolicy
    max_length: int | None

    def limit(self, backend: Backend) -> int | None:
        """Return how many residues go through the model in one piece; None means any number."""
        return residue_limit(backend.card.max_residues, self.max_length)


def compute_batches(
    records: Iterable[Record],
    backend: Backend,
    cutting: Cutting,
    budget: int,
    compute: Callable[[Sequence[Piece]], Sequence[Outputs]],
    put_together: Callable[[Windows], Item | Failure],
    *,
    doing: str = "computed",
) -> Iterator[list[Item | Failure]]:
    """Compute records under a token budget; yield those that are complete after a batch, in the order of the input.

    `compute` returns the outputs of each piece; `put_together` makes one result of those of a protein.
    Starting again at the first record that is not out yet makes the same batches as going on.
    A batch that does not fit into memory is halved until it does. A single protein that does not fit is a Failure, and
    so is one that the policy leaves out: no record is ever lost.
    """
    pieces = cut(records, backend.card.alphabet, cutting.limit(backend), long=cutting.long)
    windows: list[tuple[Piece, Outputs]] = []
    done: list[Item | Failure] = []
    failed: Record | None = None
    nothing: Outputs = {}
    for group in pack(pieces, size=lambda item: len(item.tokens) if isinstance(item, Piece) else 0, budget=budget):
        for piece, outputs in run_pieces(group, compute, nothing):
            if piece.record is failed:
                continue  # another window of a protein that has failed already
            if isinstance(piece, Failure):
                failed, windows = piece.record, []
                done.append(piece)
                continue
            windows.append((piece, outputs))
            if piece.last:
                done.append(_finish(windows, put_together, doing))
                windows = []
        last = group[-1]
        if done and (isinstance(last, Failure) or last.last):  # windows of a failed protein may come, too
            yield done
            done = []


def _finish(windows: Windows, put_together: Callable[[Windows], Item | Failure], doing: str) -> Item | Failure:
    """Make one result, or say that it takes more memory than there is."""
    try:
        return put_together(windows)
    except MemoryError:
        record = windows[0][0].record
        reason = f"what is {doing} of {len(record.sequence)} residues does not fit into memory"
        return Failure(record=record, reason=reason)
