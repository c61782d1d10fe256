"""Contacts, attention maps and hidden states of all layers: in Python, on the command line, and as pictures."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

import protembed
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.errors import DependencyError, InputError, ModelError, OutOfMemoryError, OutputError
from protembed.inference.contacts import ContactMap, contact_map
from protembed.models.protein_model import ProteinModel
from protembed.outputs import plots
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure
from protembed.training.pretrain.config import ModelSection, make_card
from tests.conftest import GOLDEN, Run, write_fasta

ESM2 = GOLDEN / "esm2_hf"
LIMIT = 20
PROTEINS = {"sp|P1|A": "MKTAYIAKQR", "b/c": "MKTAYIAKQRWWW"}


@pytest.fixture(scope="module")
def esm2() -> protembed.Model:
    return protembed.load(ESM2, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def contact_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a contact regression and a limit of 20 residues."""
    card = make_card(ModelSection(name="contacts", d_model=16, n_layers=2, n_heads=4, d_ff=32))
    encoder = replace(card.encoder, position="learned", max_length=LIMIT + 2)
    model = ProteinModel(replace(card, encoder=encoder, contact_head=True))
    model.initialise(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    path = tmp_path_factory.mktemp("model") / "contacts.safetensors"
    checkpoint.save(model, path)
    return path


def expected(model: protembed.Model, name: str, kind: str) -> tuple[str, npt.NDArray[np.float32]]:
    """Return a golden sequence and what the authors' code computed from it."""
    with np.load(ESM2 / "expected.npz") as arrays:
        return model.card.alphabet.decode(arrays[f"{name}.tokens"]), arrays[f"{name}.{kind}"]


@pytest.mark.parametrize("name", ["p2", "pa"])
def test_contacts_equal_those_of_fair_esm(esm2: protembed.Model, name: str) -> None:
    sequence, contacts = expected(esm2, name, "contacts")
    ours = esm2.contacts(["MKTAYI", sequence])
    assert ours[0].shape == (6, 6)
    assert ours[1].dtype == np.float32
    np.testing.assert_allclose(ours[1], contacts, atol=1e-5)
    np.testing.assert_allclose(ours[1], ours[1].T, atol=1e-6)


@pytest.mark.parametrize("name", ["p2", "pa"])
def test_hidden_states_are_those_of_every_layer(esm2: protembed.Model, name: str) -> None:
    sequence, layers = expected(esm2, name, "representations")
    ours = esm2.hidden_states(["MKTAYI", sequence])
    assert ours[0].shape == (4, 6, 48)
    np.testing.assert_allclose(ours[1], layers[:, 1:-1], atol=2e-5)
    for layer in range(4):
        np.testing.assert_allclose(ours[1][layer], esm2.embed_residues([sequence], layer=layer)[0], atol=1e-5)


def test_attentions(esm2: protembed.Model) -> None:
    maps = esm2.attentions(["MKTAYIAKQR"])[0]
    assert maps.shape == (3, 4, 10, 10)
    assert maps.dtype == np.float32
    assert (maps.sum(axis=-1) < 1).all()
    whole = esm2._backend.attentions(esm2.card.alphabet.encode("MKTAYIAKQR"))
    np.testing.assert_allclose(whole.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(maps, whole[:, :, 1:-1, 1:-1])


def test_a_model_without_the_regression_says_so(model_file: Path) -> None:
    with pytest.raises(ModelError, match="tiny has no contact regression") as caught:
        protembed.load(model_file).contacts(["MKTA"])
    assert "contact-regression.pt" in caught.value.hint


@pytest.mark.parametrize("ask", ["contacts", "attentions", "hidden_states", "logits"])
def test_a_protein_over_the_limit_is_an_error(contact_model: Path, ask: str) -> None:
    model = protembed.load(contact_model)
    assert len(getattr(model, ask)(["A" * LIMIT])) == 1
    with pytest.raises(InputError, match="'1' has 21 residues, and the model takes 20"):
        getattr(model, ask)(["A" * (LIMIT + 1)])


def test_memory_that_is_short_is_a_failure(contact_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint.load(contact_model, device=torch.device("cpu"))
    backend, record = TorchBackend(model), Record("a", "MKTA")
    assert isinstance(contact_map(record, backend), ContactMap)
    monkeypatch.setattr(model, "contacts", lambda _: torch.empty(10**16))
    with pytest.raises(OutOfMemoryError):
        backend.contacts(model.card.alphabet.encode("MKTA"))
    result = contact_map(record, backend)
    assert isinstance(result, Failure)
    assert "do not fit into memory" in result.reason


def test_command_writes_maps_and_pictures(run: Run, contact_model: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", PROTEINS)
    result = run("contacts", fasta, "-m", contact_model, "-o", "out.h5", "--plot", "maps/all")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "2 records, 23 residues -> out.h5" in result.stderr
    maps = protembed.load(contact_model).contacts(fasta)
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["sp|P1|A", "b_c"]
        assert (file.attrs["content"], bool(file.attrs["complete"])) == ("contacts", True)
        for key, name, contacts in zip(file, PROTEINS, maps, strict=True):
            assert file[key].dtype == np.float16
            assert (file[key].attrs["original_id"], file[key].attrs["length"]) == (name, len(contacts))
            np.testing.assert_allclose(file[key][()], contacts, atol=1e-3)
    pictures = sorted((tmp_path / "maps/all").iterdir())
    assert [path.name for path in pictures] == sorted(plots.file_name(key) for key in ("sp|P1|A", "b_c"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert run("check", "out.h5", "--input", fasta).returncode == 0
    again = ("contacts", fasta, "-m", contact_model, "-o", "out.h5")
    assert "out.h5 exists" in run(*again).stderr
    assert run(*again, "--resume").returncode == 0


def test_command_lists_what_is_too_long(run: Run, contact_model: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", {"a": "MKTA", "long": "A" * (LIMIT + 1), "z": "MKWW"})
    result = run("contacts", fasta, "-m", contact_model, "-o", "out.h5", "--store-dtype", "float32", "--plot", "maps")
    assert result.returncode == 3, result.stderr
    assert "1 records without a result" in result.stderr
    failed = (tmp_path / "out.failed.tsv").read_text().splitlines()
    assert failed == ["id\treason", "long\t21 residues are more than 20, and a map needs all at once"]
    with protembed.open(tmp_path / "out.h5") as store:
        assert list(store) == ["a", "z"]
        assert store["a"].dtype == np.float32
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"a.png", "z.png"}


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (">a\nMK\n>a\nMA\n", (), "line 3: record 'a' has the same id"),
        (">a\nMK\n", ("-m", "protembed-6m"), "has no contact regression"),
        (">a\nMK\n", ("--plot", "in.fasta"), "in.fasta: cannot be written"),
        (">a\nMK\n", ("-o", "no/out.h5"), "no such folder"),
    ],
)
def test_command_fails_before_computing(
    run: Run, contact_model: Path, tmp_path: Path, content: str, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "in.fasta").write_text(content)
    result = run("contacts", "in.fasta", "-m", contact_model, "-o", "out.h5", *words)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


def test_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DependencyError, match="matplotlib") as caught:
        plots.require_matplotlib()
    assert caught.value.hint == "pip install 'protembed[plot]'"


def test_pictures_of_every_size(tmp_path: Path) -> None:
    for length in (1, 2, 300):
        plots.draw_contacts(np.eye(length, dtype=np.float16), tmp_path / f"{length}.png", title="$x" * length)
    with pytest.raises(OutputError, match="cannot be written"):
        plots.draw_contacts(np.eye(3), tmp_path / "gone" / "3.png", title="x")


def test_names_of_pictures() -> None:
    keys = ["a", "a|b", "a_b", "a b", "..", ".a", "x" * 300, "x" * 301, "ß"]
    names = [plots.file_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all(name.isascii() and len(name) < 120 and not name.startswith((".", "-")) for name in names)
    assert names[0] == "a.png"
