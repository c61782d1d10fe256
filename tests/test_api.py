"""The Python API."""

from pathlib import Path

import numpy as np
import pytest

import protembed
from protembed.errors import InputError, UsageError
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


def test_the_bundled_model_loads_like_any_other() -> None:
    model = protembed.load()
    assert model.card.license == "Apache-2.0"
    assert model.embed_residues(["MKTAYIAKQR"])[0].shape == (10, model.card.encoder.d_model)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = protembed.gone
    assert "load" in dir(protembed)
