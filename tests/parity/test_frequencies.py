"""Rotary frequencies: those that a file holds are computed with, to the last bit, in torch and in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protembed.backends.load import ModelOptions
from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.rotary import by_formula
from protembed.errors import ModelError
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch
from tests.conftest import GOLDEN
from tests.parity.test_fair_esm import OPTIONS, esm2, save
from tests.parity.test_transformers import ESM2, esm, randomise

fair_esm = pytest.importorskip("esm")

CPU = torch.device("cpu")
LONG = 300
BUFFER = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"


def long_protein() -> Tensor:
    """Return a protein of ESM's alphabet, special tokens included."""
    residues = torch.randint(4, 24, (LONG,), generator=torch.Generator().manual_seed(3))
    return torch.cat((torch.tensor([0]), residues, torch.tensor([2])))


def last_hidden(model: ProteinModel, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens, Packed([len(tokens)]))


def rounded(original: Any) -> None:
    """Round every layer's frequencies to float16, as ESM-2 was trained and is published."""
    for layer in original.layers:
        layer.self_attn.rot_emb.inv_freq.copy_(layer.self_attn.rot_emb.inv_freq.half().float())


def apart(original: Any) -> None:
    """Give every layer frequencies of its own."""
    for number, layer in enumerate(original.layers):
        layer.self_attn.rot_emb.inv_freq.mul_(1 - 0.05 * number)


@pytest.fixture(params=[rounded, apart], ids=["rounded", "one-per-layer"])
def fair_file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    original = esm2(fair_esm.Alphabet.from_architecture("ESM-1b")).eval()
    randomise(original)
    request.param(original)
    from argparse import Namespace

    options = Namespace(**OPTIONS, token_dropout=True)
    save(original, tmp_path / "tiny.pt", {"cfg": {"model": options}})
    return original, tmp_path / "tiny.pt"


def test_stored_frequencies_of_fair_esm_count_in_long_proteins(fair_file: tuple[Any, Path], tmp_path: Path) -> None:
    original, path = fair_file
    model, tokens = load_foreign(path, device=CPU), long_protein()
    with torch.inference_mode():
        expected = original(tokens[None], repr_layers=[3])["representations"][3][0]
    torch.testing.assert_close(last_hidden(model, tokens), expected, atol=1e-5, rtol=1e-5)

    checkpoint.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    again = checkpoint.load(tmp_path / "half.safetensors", device=CPU, dtype=torch.bfloat16)
    frequencies = again.state_dict()["encoder.frequencies"]
    assert frequencies.equal(model.state_dict()["encoder.frequencies"])
    assert frequencies.dtype == torch.float32
    assert again.encoder.embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_stored_frequencies_reach_onnx(fair_file: tuple[Any, Path], tmp_path: Path, attention: AttentionKind) -> None:
    original, path = fair_file
    tokens, out = long_protein(), tmp_path / "tiny.onnx"
    export_model(ModelOptions(model=str(path), device="cpu"), ExportOptions(out=out, attention=attention))
    backend = OnnxBackend(out, device="cpu")
    with torch.inference_mode():
        expected = original(tokens[None], repr_layers=[3])["representations"][3][0].numpy()
    found = backend.run(TokenBatch.of([tokens.numpy()]), [("residues", 3)])["residues", 3]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert backend.card.sha256 == load_foreign(path, device=CPU, dtype=torch.bfloat16).card.sha256


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "formula"])
def test_rope_theta_of_transformers_counts(stored: bool, tmp_path: Path) -> None:
    original = esm(**ESM2, rope_theta=500_000.0)
    original.save_pretrained(tmp_path)
    if not stored:
        state = load_file(tmp_path / "model.safetensors")
        kept = {name: tensor for name, tensor in state.items() if "inv_freq" not in name}
        assert len(kept) == len(state) - 1
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    model, tokens = load_foreign(tmp_path, device=CPU), long_protein()
    with torch.inference_mode():
        expected = original.esm(tokens[None]).last_hidden_state[0]
    torch.testing.assert_close(last_hidden(model, tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [8, 16, 20, 24, 32, 64, 80, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_the_formula_has_the_roundings_of_the_originals(head_dim: int, theta: float) -> None:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    assert by_formula(head_dim, theta).equal(1.0 / (theta**exponents))


def test_golden_frequencies_are_not_those_of_the_formula() -> None:
    model = load_foreign(GOLDEN / "esm2_stored_frequencies", device=CPU)
    found = model.state_dict()["encoder.frequencies"]
    assert found.shape == (1, 5)
    assert 1e-5 < (found[0] - by_formula(10)).abs().max() < 1e-3


def changed(path: Path, change: Any) -> Path:
    state = load_file(GOLDEN / "esm2_stored_frequencies" / "model.safetensors")
    change(state)
    for name in ("config.json", "vocab.txt"):
        (path / name).write_bytes((GOLDEN / "esm2_stored_frequencies" / name).read_bytes())
    save_file(state, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(BUFFER.format(1)), r"some layers are there, and encoder.layer.1.*inv_freq is not"),
        (lambda state: state.update({BUFFER.format(1): torch.ones(4)}), r"inv_freq is \(4,\), not \(5,\)"),
        (lambda state: state.update({BUFFER.format("*"): torch.ones(5)}), "are both there, and differ"),
        (lambda state: state.update({BUFFER.format(0): torch.full((5,), torch.nan)}), "frequencies holds NaN"),
    ],
)
def test_frequencies_that_make_no_sense_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_foreign(changed(tmp_path, change), device=CPU)
