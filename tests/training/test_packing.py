"""Batches for training: every protein once an epoch, the same stream for all, and going on from any place in it."""

from itertools import islice, pairwise
from typing import Literal

import numpy as np
import pytest

from protembed.errors import TrainingError
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.corpus import packing as data
from protembed.training.corpus.packing import Cursor, MicroBatch, Packing, TokenStore

Sampling = Literal["proteins", "clusters"]
SAMPLINGS: list[Sampling] = ["proteins", "clusters"]


def store_of(*lengths: int, cluster_size: int = 1) -> TokenStore:
    residues = np.random.default_rng(0).choice(PROTEMBED.standard_ids, sum(lengths)).astype(np.uint8)
    clusters = [*range(0, len(lengths), cluster_size), len(lengths)]
    return TokenStore.of(np.split(residues, np.cumsum(lengths)[:-1]), clusters)


def packing(store: TokenStore, sampling: Sampling = "proteins", **changes: int) -> Packing:
    fields = {"batch_tokens": 120, "max_residues": 50, "seed": 0, **changes}
    return Packing(store=store, alphabet=PROTEMBED, sampling=sampling, **fields)


def drawn(planned: list[MicroBatch]) -> list[int]:
    return [int(index) for micro in planned for index in micro.indices]


def same(left: MicroBatch, right: MicroBatch) -> bool:
    return left.indices.tolist() == right.indices.tolist() and left.cursor == right.cursor


class TestStore:
    def test_proteins_are_found_in_parts(self) -> None:
        parts = [np.array(values, np.uint8) for values in ([1, 2, 3], [], [4, 5], [6])]
        store = TokenStore(
            parts=parts,
            starts=np.array([3, 0, 5, 2]),
            lengths=np.array([2, 2, 1, 1], np.int32),
            clusters=np.arange(5),
        )
        assert [store[index].tolist() for index in range(4)] == [[4, 5], [1, 2], [6], [3]]
        assert (len(store), store.residues) == (4, 6)


class TestPlan:
    def test_an_epoch_has_every_protein_once(self) -> None:
        store = store_of(30, 10, 40, 20, 50, 5, 35)
        order = drawn(list(islice(packing(store).plan(Cursor()), 40)))
        epochs = [order[place : place + 7] for place in range(0, 7 * (len(order) // 7), 7)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_an_epoch_has_every_cluster_once_by_changing_members(self) -> None:
        store = store_of(*[20] * 30, cluster_size=3)
        plan = packing(store, "clusters")
        assert plan.epoch_size == 10
        order = drawn(list(islice(plan.plan(Cursor()), 200)))
        epochs = [order[place : place + 10] for place in range(0, 10 * (len(order) // 10), 10)]
        assert all(sorted(index // 3 for index in epoch) == list(range(10)) for epoch in epochs)
        shares = np.bincount(order, minlength=30) / len(epochs)
        assert shares.min() > 0.15, "each member of three stands for its cluster now and then"

    def test_large_clusters_do_not_prevail(self) -> None:
        store = TokenStore.of([np.full(10, 5, np.uint8)] * 101, [0, 100, 101])
        order = drawn(list(islice(packing(store, "clusters").plan(Cursor()), 20)))
        assert abs(order.count(100) - len(order) / 2) <= 1

    def test_a_batch_is_as_full_as_the_order_allows(self) -> None:
        store = store_of(*np.random.default_rng(1).integers(5, 90, 300).tolist())
        plan = packing(store)
        planned = list(islice(plan.plan(Cursor()), 100))
        sizes = [[min(int(store.lengths[index]), 50) + 2 for index in micro.indices] for micro in planned]
        for batch, following in pairwise(sizes):
            assert sum(batch) <= 120 < sum(batch) + following[0]

    def test_a_protein_over_the_budget_is_alone(self) -> None:
        plan = packing(store_of(10, 300, 10, 10), max_residues=1000)
        planned = list(islice(plan.plan(Cursor()), 30))
        assert all(len(micro.indices) == 1 for micro in planned if 1 in micro.indices)
        assert {1} < set(drawn(planned))

    @pytest.mark.parametrize("sampling", SAMPLINGS)
    @pytest.mark.parametrize("count", [3, 55])
    def test_a_cursor_goes_on_exactly(self, sampling: Sampling, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """From within an epoch, from its end, and from within a block of the order."""
        monkeypatch.setattr(data, "_BLOCK", 16)
        plan = packing(store_of(*range(5, 5 + count), cluster_size=2), sampling)
        planned = list(islice(plan.plan(Cursor()), 60))
        assert planned[-1].cursor.epoch >= 2
        for number in range(50):
            again = list(islice(plan.plan(planned[number].cursor), 5))
            assert all(map(same, again, planned[number + 1 : number + 6]))

    def test_blocks_only_matter_to_the_draw_of_members(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = packing(store_of(*range(5, 60)))
        whole = list(islice(plan.plan(Cursor()), 50))
        monkeypatch.setattr(data, "_BLOCK", 7)
        assert all(map(same, islice(plan.plan(Cursor()), 50), whole))

    def test_planning_reads_no_tokens_and_loops_over_no_proteins(self) -> None:
        """A store of 300,000 proteins without their tokens: an epoch's batches take as many turns as there are."""
        lengths = np.random.default_rng(0).integers(30, 60, 300_000).astype(np.int32)
        store = TokenStore(parts=[], starts=np.zeros(300_000, np.int64), lengths=lengths, clusters=np.arange(300_001))
        plan = packing(store, batch_tokens=1 << 16, max_residues=1000)
        planned = list(islice(plan.plan(Cursor()), 150))
        assert len(np.unique(drawn(planned))) == len(drawn(planned)) > 150_000

    def test_an_empty_store_is_an_error(self) -> None:
        with pytest.raises(TrainingError, match="no protein"):
            next(packing(TokenStore.of([])).plan(Cursor()))


class TestRead:
    def test_proteins_stand_whole_between_their_specials(self) -> None:
        store = store_of(30, 10, 40, 20, 50, 5, 35)
        plan = packing(store)
        for micro in islice(plan.plan(Cursor()), 10):
            for index, protein in zip(micro.indices, plan.read(micro), strict=True):
                assert protein.tolist() == [2, *store[int(index)].tolist(), 3]

    def test_long_proteins_give_windows_that_change_with_the_epoch(self) -> None:
        store = store_of(500)
        plan = packing(store)
        windows = [p[1:-1].astype(np.uint8).tobytes() for m in islice(plan.plan(Cursor()), 6) for p in plan.read(m)]
        assert all(len(window) == 50 and window in store[0].tobytes() for window in windows)
        assert len(set(windows)) > 1

    def test_a_batch_read_again_is_the_same(self) -> None:
        plan = packing(store_of(*[200] * 9))
        planned = list(islice(plan.plan(Cursor()), 12))
        again = list(islice(plan.plan(planned[6].cursor), 3))
        for left, right in zip(planned[7:10], again, strict=True):
            assert [p.tolist() for p in plan.read(left)] == [p.tolist() for p in plan.read(right)]


SHARES = {32: 7070, 64: 34613, 128: 90581, 256: 137587, 512: 64801, 1024: 15092, 2048: 2581, 4096: 449}
"""Proteins of 32 to 63 residues, of 64 to 127 and so on: the representatives of UniProt at 90 % identity, a sample."""


@pytest.mark.parametrize(("batch_tokens", "most"), [(16_384, 0.02), (65_536, 0.005)])
@pytest.mark.parametrize("max_residues", [510, 1022])
def test_batches_of_one_size_waste_little(batch_tokens: int, most: float, max_residues: int) -> None:
    rng = np.random.default_rng(0)
    low = rng.choice(list(SHARES), 50_000, p=np.array([*SHARES.values()]) / sum(SHARES.values()))
    lengths = (low * 2 ** rng.random(len(low))).astype(np.int32)
    store = TokenStore(parts=[], starts=np.zeros(len(low)), lengths=lengths, clusters=np.arange(len(low) + 1))
    wasted = packing(store, batch_tokens=batch_tokens, max_residues=max_residues).waste()
    assert 0 < wasted < most


def test_waste_counts_what_is_missing_in_each_batch() -> None:
    assert packing(store_of(*[28] * 20)).waste(7) == 0
    assert packing(store_of(*[43] * 20)).waste(7) == pytest.approx(1 - 90 / 120)
