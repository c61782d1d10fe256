"""Batches that do not fit into memory: halved with nothing of the failed try left in it, so that no record is lost."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from protembed.errors import OutOfMemoryError
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure, Piece, cut, run_pieces


class Activation:
    """What a device keeps for one protein while a batch runs."""


class Device:
    """Counts live activations: a batch fails when more than `room` are there at once, those of failed tries too."""

    def __init__(self, room: int, error: type[Exception]) -> None:
        self.room, self.error = room, error
        self.live: weakref.WeakSet[Activation] = weakref.WeakSet()

    def compute(self, pieces: Sequence[Piece]) -> list[int]:
        activations = []
        for _ in pieces:
            activation = Activation()
            self.live.add(activation)
            activations.append(activation)
            if len(self.live) > self.room:
                raise self.error("does not fit")
        return [len(piece.tokens) for piece in pieces]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A cycle that only the collector would free counts as memory that is taken."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pieces(count: int) -> list[Piece | Failure]:
    return list(cut([Record(str(n), "M" * (n + 1)) for n in range(count)], PROTEMBED, None, long="split"))


@pytest.mark.parametrize("error", [OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("room", [1, 2, 5, 7, 8])
def test_all_of_eight_succeed_where_any_five_fit(room: int, error: type[Exception]) -> None:
    device = Device(room, error)
    with no_garbage_collection():
        results = list(run_pieces(pieces(8), device.compute, 0))
    assert [result for _, result in results] == [n + 3 for n in range(8)]
    assert not any(isinstance(piece, Failure) for piece, _ in results)
    assert len(device.live) == 0


def test_a_single_piece_that_does_not_fit_is_a_failure_and_the_others_are_not() -> None:
    def compute(batch: Sequence[Piece]) -> list[int]:
        if any(len(piece.tokens) == 5 for piece in batch):
            raise OutOfMemoryError("does not fit")
        return [len(piece.tokens) for piece in batch]

    results = list(run_pieces(pieces(6), compute, -1))
    assert [result for _, result in results] == [3, 4, -1, 6, 7, 8]
    failure = results[2][0]
    assert isinstance(failure, Failure)
    assert failure.reason == "5 tokens do not fit into memory"


def test_an_empty_record_is_a_failure_in_its_place() -> None:
    records = [Record("a", "MK"), Record("b", ""), Record("c", "MK")]
    found = list(cut(records, PROTEMBED, None, long="split"))
    assert [type(item) for item in found] == [Piece, Failure, Piece]
    assert found[1].record.id == "b"
    assert isinstance(found[1], Failure)
    assert "no residues" in found[1].reason
    assert np.array_equal([3 + 1, 3 + 1], [len(item.tokens) for item in found if isinstance(item, Piece)])
