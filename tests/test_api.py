"""The Python API."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import protembed
from protembed.errors import InputError, ModelError, UsageError
from tests.conftest import SEQUENCES


@pytest.fixture
def loaded(model_file: Path) -> protembed.Model:
    return protembed.load(model_file, device="cpu")


def test_embed_takes_paths_sequences_and_records(loaded: protembed.Model, fasta: Path) -> None:
    sequences = list(SEQUENCES.values())
    records = [protembed.Record(name, sequence) for name, sequence in SEQUENCES.items()]
    results = [list(loaded.embed(source)) for source in (fasta, sequences, records)]
    for result in results:
        assert [record.sequence for record, _ in result] == sequences
        for (_, vector), (_, expected) in zip(result, results[0], strict=True):
            np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert [record.id for record, _ in results[1]] == ["1", "2", "3", "4", "5", "6"]


def test_embed_residues(loaded: protembed.Model) -> None:
    residues = loaded.embed_residues(["MKTAYIAKQR", "MK"])
    assert [rows.shape for rows in residues] == [(10, 32), (2, 32)]


def test_layers_differ(loaded: protembed.Model) -> None:
    vectors = [next(loaded.embed(["MKTAYIAKQR"], layer=layer))[1] for layer in (0, 1, 2, -1)]
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[2], vectors[3])


def test_logits_see_the_mask(loaded: protembed.Model) -> None:
    plain, masked = loaded.logits(["MKTAYIAKQR"])[0], loaded.logits(["MKTAYIAKQR"], mask=[[3, 7]])[0]
    assert plain.shape == masked.shape == (10, 20)
    assert not np.allclose(plain[3], masked[3])
    same = loaded.logits(["MKTGYIAEQR"], mask=[[3, 7]])[0]
    np.testing.assert_allclose(masked, same, atol=1e-6)
    assert loaded.residues == "ACDEFGHIKLMNPQRSTVWY"


def test_mistakes(loaded: protembed.Model, model_file: Path) -> None:
    with pytest.raises(UsageError, match="says everything itself"):
        protembed.load(model_file, n_heads=4)
    with pytest.raises(UsageError, match="no position 10"):
        loaded.logits(["MKTAYIAKQR"], mask=[[10]])
    with pytest.raises(UsageError, match="1 entries for 2"):
        loaded.logits(["MK", "MK"], mask=[[0]])
    with pytest.raises(InputError, match="is no file"):
        list(loaded.embed("MKTAYIAKQR"))
    with pytest.raises(InputError, match="no residues"):
        list(loaded.embed([""]))
    with pytest.raises(InputError, match="cannot be read"):
        list(loaded.embed("gone.fasta"))


def test_embed_takes_what_users_have(loaded: protembed.Model) -> None:
    named = {"a": "MKTAYIAKQR", "b": "MKV"}
    expected = [vector for _, vector in loaded.embed(list(named.values()))]
    for source in (named, named.items(), [protembed.Record(*pair) for pair in named.items()]):
        found = list(loaded.embed(source))
        assert [record.id for record, _ in found] == ["a", "b"]
        for (_, vector), right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(vector, right)
    assert [record.id for record, _ in loaded.stream_residues(named)] == ["a", "b"]
    assert len(loaded.logits(named)) == len(loaded.hidden_states(named)) == len(loaded.attentions(named)) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.embed(["MK"], max_tokens=0),
        lambda model: model.embed(["MK"], max_tokens=-1),
        lambda model: model.embed(["MK"], max_tokens=1.5),
        lambda model: model.embed(["MK"], max_tokens="512"),
        lambda model: model.embed(["MK"], max_tokens=True),
        lambda model: model.embed(["MK"], layer=1.5),
        lambda model: model.embed(["MK"], pool="median"),
        lambda model: model.stream_residues(["MK"], max_tokens=0),
        lambda model: model.embed_residues(["MK"], max_tokens=0),
        lambda model: model.stream_predictions(["MK"], ["ss3"], max_tokens=0),
        lambda _: protembed.load(threads=0),
        lambda _: protembed.load(threads=-1),
        lambda model: model.embed(["MK"], max_tokens=10**30),
        lambda model: model.embed(["MK"], pool=None),
        lambda model: model.logits(["MK"], mask=[[0.5]]),
        lambda model: model.logits(["MK", "MK"], mask=[0, 1]),
        lambda model: model.logits(["MK"], mask=["0"]),
        lambda model: model.logits(["MK"], mask=[[0], [1]]),
        lambda _: protembed.load(threads=100_000),
        lambda _: protembed.load(n_heads=0),
    ],
)
def test_numbers_that_make_no_sense_are_refused_at_once(
    loaded: protembed.Model, call: Callable[[protembed.Model], object]
) -> None:
    with pytest.raises(UsageError) as caught:
        call(loaded)
    assert caught.value.hint


@pytest.mark.parametrize("layer", [3, -4, 99])
def test_a_layer_that_is_not_there_is_refused_at_once(loaded: protembed.Model, layer: int) -> None:
    with pytest.raises(ModelError, match=f"layer {layer} does not exist"):
        loaded.embed(["MK"], layer=layer)


def test_what_is_no_source_is_refused_at_once(loaded: protembed.Model) -> None:
    for call in (loaded.embed, loaded.stream_residues, loaded.logits, loaded.hidden_states, loaded.attentions):
        with pytest.raises(InputError, match="NoneType is no source"):
            call(None)  # type: ignore[operator]


def test_options_take_numbers_of_numpy(loaded: protembed.Model) -> None:
    (found,) = loaded.embed(["MK"], max_tokens=np.int64(5), layer=np.int32(1))  # type: ignore[arg-type]
    assert found[1].shape == (32,)


def test_one_task_need_not_be_a_list() -> None:
    model = protembed.load()
    (one,), (other,) = (
        model.stream_predictions(["MKTAYIAKQR"], "ss3"),
        model.stream_predictions(["MKTAYIAKQR"], ["ss3"]),
    )
    assert one[1]["ss3"].labels == other[1]["ss3"].labels


def test_the_bundled_model_loads_like_any_other() -> None:
    model = protembed.load()
    assert model.card.license == "Apache-2.0"
    assert model.embed_residues(["MKTAYIAKQR"])[0].shape == (10, model.card.encoder.d_model)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = protembed.gone
    assert "load" in dir(protembed)
