"""Records to embeddings: the batch never shows in the result, nothing is lost, long proteins are put together."""

from collections.abc import Collection
from itertools import permutations

import numpy as np
import pytest

from protembed.backends.base import Output, Outputs
from protembed.backends.torch_backend import TorchBackend
from protembed.errors import InputError, OutOfMemoryError, UsageError
from protembed.inference.embed import Embedding, EmbedOptions, Pool, embed, embed_batches
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure
from tests.conftest import SEQUENCES

RECORDS = [Record(name, sequence) for name, sequence in SEQUENCES.items()]
EVERYTHING = EmbedOptions(pool="mean+max", residues=True)


class SmallBackend(TorchBackend):
    """A backend that holds only so many tokens."""

    def __init__(self, model: ProteinModel, room: int) -> None:
        super().__init__(model)
        self.room = room

    def run(self, batch: TokenBatch, wanted: Collection[Output]) -> Outputs:
        if len(batch.tokens) > self.room:
            raise OutOfMemoryError("no room")
        return super().run(batch, wanted)


def embeddings(records: list[Record], backend: TorchBackend, options: EmbedOptions) -> list[Embedding]:
    results = list(embed(records, backend, options))
    assert all(isinstance(item, Embedding) for item in results)
    return [item for item in results if isinstance(item, Embedding)]


def assert_same(ours: list[Embedding], theirs: list[Embedding]) -> None:
    assert [item.record for item in ours] == [item.record for item in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for left, right in ((one.vector, other.vector), (one.residues, other.residues)):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 100, 250, 100_000])
def test_the_budget_does_not_change_results(backend: TorchBackend, max_tokens: int) -> None:
    options = EmbedOptions(pool="mean+max", residues=True, max_tokens=max_tokens)
    alone = [embeddings([record], backend, EVERYTHING)[0] for record in RECORDS]
    assert_same(embeddings(RECORDS, backend, options), alone)


def test_neighbours_and_order_do_not_change_results(backend: TorchBackend) -> None:
    expected = {item.record.id: item for item in embeddings(RECORDS, backend, EVERYTHING)}
    for order in list(permutations(RECORDS))[::200]:
        found = embeddings(list(order), backend, EVERYTHING)
        assert_same(found, [expected[record.id] for record in order])


def test_shapes_and_pooling(backend: TorchBackend) -> None:
    (item,) = embeddings(RECORDS[:1], backend, EVERYTHING)
    assert item.vector is not None
    assert item.residues is not None
    assert item.residues.shape == (len(RECORDS[0].sequence), 32)
    np.testing.assert_allclose(item.vector[:32], item.residues.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(item.vector[32:], item.residues.max(axis=0), atol=1e-5)


@pytest.mark.parametrize("room", [200, 350, 600])
def test_no_record_is_lost_on_out_of_memory(model: ProteinModel, backend: TorchBackend, room: int) -> None:
    options = EmbedOptions(max_tokens=100_000)
    assert_same(embeddings(RECORDS, SmallBackend(model, room), options), embeddings(RECORDS, backend, EmbedOptions()))


def test_a_protein_that_does_not_fit_is_a_failure_in_its_place(model: ProteinModel) -> None:
    results = list(embed(RECORDS, SmallBackend(model, 160), EmbedOptions(max_tokens=100_000)))
    assert [item.record for item in results] == RECORDS
    failed = [item.record for item in results if isinstance(item, Failure)]
    assert failed == [record for record in RECORDS if len(record.sequence) + 2 > 160]


def test_windows_of_a_long_protein_are_averaged(backend: TorchBackend) -> None:
    options = EmbedOptions(pool="mean", residues=True, max_length=60)
    (item,) = embeddings(RECORDS[2:3], backend, options)
    sequence = RECORDS[2].sequence
    total, count = np.zeros((len(sequence), 32)), np.zeros((len(sequence), 1))
    for start in (0, 45, len(sequence) - 60):  # windows of 60, a quarter shared, the last one flush with the end
        (window,) = embeddings([Record("w", sequence[start : start + 60])], backend, EVERYTHING)
        total[start : start + 60] += window.residues
        count[start : start + 60] += 1
    assert item.residues is not None
    assert item.vector is not None
    np.testing.assert_allclose(item.residues, total / count, atol=1e-5)
    np.testing.assert_allclose(item.vector, (total / count).mean(axis=0), atol=1e-5)


def windows_of(record: Record, backend: TorchBackend, pool: Pool) -> tuple[list[Embedding], Embedding]:
    """Return the embeddings of a protein's windows of 60 residues, each by itself, and that of the whole protein."""
    (whole,) = embeddings([record], backend, EmbedOptions(pool=pool, residues=True, max_length=60))
    starts = (0, 45, len(record.sequence) - 60)
    parts = [Record("w", record.sequence[start : start + 60]) for start in starts]
    return [embeddings([part], backend, EmbedOptions(pool=pool, residues=True))[0] for part in parts], whole


def test_the_maximum_of_a_long_protein_is_that_of_its_residues(backend: TorchBackend) -> None:
    _, whole = windows_of(RECORDS[2], backend, "max")
    assert whole.residues is not None
    assert whole.vector is not None
    np.testing.assert_array_equal(whole.vector, whole.residues.max(axis=0))
    assert (whole.vector > whole.residues.min(axis=0)).all()
    _, both = windows_of(RECORDS[2], backend, "mean+max")
    assert both.vector is not None
    np.testing.assert_allclose(both.vector[32:], whole.vector, atol=1e-6)


def test_the_first_token_of_a_long_protein_is_the_mean_of_its_windows(backend: TorchBackend) -> None:
    windows, whole = windows_of(RECORDS[2], backend, "cls")
    vectors = [window.vector for window in windows if window.vector is not None]
    assert len(vectors) == 3
    assert np.abs(vectors[0] - np.mean(vectors, axis=0)).max() > 1e-3, "one window would do"
    np.testing.assert_allclose(whole.vector, np.mean(vectors, axis=0), atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_tokens", [10, 130, 100_000])
def test_windows_do_not_depend_on_the_batch(backend: TorchBackend, max_tokens: int) -> None:
    options = EmbedOptions(pool="cls", residues=True, max_length=40, max_tokens=max_tokens)
    reference = EmbedOptions(pool="cls", residues=True, max_length=40)
    alone = [embeddings([record], backend, reference)[0] for record in RECORDS]
    assert_same(embeddings(RECORDS, backend, options), alone)


def test_a_window_that_fails_fails_its_record_once(model: ProteinModel) -> None:
    options = EmbedOptions(max_length=70, max_tokens=1)
    results = list(embed(RECORDS, SmallBackend(model, 50), options))
    assert [item.record for item in results] == RECORDS
    assert all(isinstance(item, Failure) for item in results)


def test_batches_end_between_records(backend: TorchBackend) -> None:
    """Going on after any batch makes the same batches as going on from the start: resume gives equal bits."""
    options = EmbedOptions(max_length=40, max_tokens=100)
    batches = list(embed_batches(RECORDS, backend, options))
    for number in range(1, len(batches)):
        done = sum(len(batch) for batch in batches[:number])
        rest = list(embed_batches(RECORDS[done:], backend, options))
        assert [[i.record.id for i in b] for b in rest] == [[i.record.id for i in b] for b in batches[number:]]
        first, again = rest[0][0], batches[number][0]
        assert isinstance(first, Embedding)
        assert isinstance(again, Embedding)
        assert first.vector is not None
        assert again.vector is not None
        assert first.vector.tobytes() == again.vector.tobytes()


def test_batches_end_between_records_even_where_windows_fail(model: ProteinModel) -> None:
    """The windows that are left of a failed protein are in a batch: a run that goes on must find it as it was."""
    options = EmbedOptions(max_length=40, max_tokens=100)
    records = [Record("long", "W" * 300), *RECORDS]
    batches = list(embed_batches(records, SmallBackend(model, 41), options))
    for number in range(1, len(batches)):
        done = sum(len(batch) for batch in batches[:number])
        rest = list(embed_batches(records[done:], SmallBackend(model, 41), options))
        assert [[i.record.id for i in b] for b in rest] == [[i.record.id for i in b] for b in batches[number:]]


def test_truncate_skip_and_error(backend: TorchBackend) -> None:
    limit = 100
    cut = embeddings(RECORDS, backend, EmbedOptions(long="truncate", max_length=limit))
    short = [Record(record.id, record.sequence[:limit]) for record in RECORDS]
    for one, other in zip(cut, embeddings(short, backend, EmbedOptions()), strict=True):
        assert one.vector is not None
        assert other.vector is not None
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)
    skipped = list(embed(RECORDS, backend, EmbedOptions(long="skip", max_length=limit)))
    assert [item.record for item in skipped] == RECORDS
    assert [isinstance(item, Failure) for item in skipped] == [len(r.sequence) > limit for r in RECORDS]
    with pytest.raises(InputError, match="more than 100"):
        list(embed(RECORDS, backend, EmbedOptions(long="error", max_length=limit)))


def test_options_that_make_no_sense(backend: TorchBackend) -> None:
    with pytest.raises(UsageError):
        EmbedOptions(max_length=1)


def test_a_result_that_is_not_finite_is_a_failure(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TorchBackend.run

    def broken(self: TorchBackend, batch: TokenBatch, wanted: Collection[Output]) -> Outputs:
        return {name: values * np.nan for name, values in real(self, batch, wanted).items()}

    monkeypatch.setattr(TorchBackend, "run", broken)
    assert all(isinstance(item, Failure) for item in embed(RECORDS, backend))
