"""Decoders that a file holds beside the embedding: equal to it, or computed with as the originals do."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.checkpoints.foreign import load_foreign
from protembed.errors import ModelError
from protembed.models.packing import Packed
from tests.conftest import GOLDEN
from tests.parity.test_fair_esm import OPTIONS, esm1b, esm2, save
from tests.parity.test_transformers import ESM2, check_esm, esm, randomise

transformers = pytest.importorskip("transformers")
fair_esm = pytest.importorskip("esm")

CPU = torch.device("cpu")
DECODER, BIAS = "lm_head.decoder.weight", "lm_head.decoder.bias"
EMBEDDING = "esm.embeddings.word_embeddings.weight"


def with_tensors(folder: Path, **form: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    original = esm(**ESM2, **form)
    original.save_pretrained(folder)
    return original, load_file(folder / "model.safetensors")


def test_an_equal_decoder_is_the_embedding(tmp_path: Path) -> None:
    original, state = with_tensors(tmp_path)
    save_file({**state, DECODER: state[EMBEDDING].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    check_esm(original, tmp_path)
    model = load_foreign(tmp_path, device=CPU)
    assert model.card.mlm_head is not None
    assert model.card.mlm_head.tied


def test_a_decoder_of_its_own_is_computed_with_whatever_the_configuration_says(tmp_path: Path) -> None:
    _, state = with_tensors(tmp_path)
    own = torch.randn(state[EMBEDDING].shape, generator=torch.Generator().manual_seed(1)) * 0.1
    save_file({**state, DECODER: own}, tmp_path / "model.safetensors", {"format": "pt"})
    original = transformers.EsmForMaskedLM.from_pretrained(tmp_path).eval()
    assert not original.lm_head.decoder.weight.equal(original.esm.embeddings.word_embeddings.weight)
    check_esm(original, tmp_path)


def test_an_untied_model_needs_its_decoder(tmp_path: Path) -> None:
    original, state = with_tensors(tmp_path, tie_word_embeddings=False)
    check_esm(original, tmp_path)
    save_file({n: t for n, t in state.items() if n != DECODER}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights are missing, the first is lm_head\.decoder\.weight"):
        load_foreign(tmp_path, device=CPU)


def test_two_biases_that_differ_are_refused(tmp_path: Path) -> None:
    _, state = with_tensors(tmp_path)
    save_file({**state, BIAS: state["lm_head.bias"].clone()}, tmp_path / "model.safetensors")
    load_foreign(tmp_path, device=CPU)
    save_file({**state, BIAS: state["lm_head.bias"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head.bias .*lm_head.decoder.bias .*copies of one tensor, and differ"):
        load_foreign(tmp_path, device=CPU)


@pytest.mark.parametrize("build", [esm2, esm1b])
@pytest.mark.parametrize("differs", [False, True], ids=["equal", "different"])
def test_fair_esm_loads_the_decoder_over_the_embedding(build: Any, differs: bool, tmp_path: Path) -> None:
    alphabet = fair_esm.Alphabet.from_architecture("ESM-1b")
    original = build(alphabet).eval()
    randomise(original)
    options = Namespace(**OPTIONS, token_dropout=True, arch="roberta_large", max_positions=64)
    name = "esm2_tiny" if build is esm2 else "esm1b_tiny"
    save(original, tmp_path / f"{name}.pt", {"cfg": {"model": options}} if build is esm2 else {"args": options})
    content = torch.load(tmp_path / f"{name}.pt", weights_only=False)
    decoder = content["model"]["encoder.lm_head.weight"].clone()
    content["model"]["encoder.lm_head.weight"] = decoder + 0.1 if differs else decoder
    torch.save(content, tmp_path / f"{name}.pt")

    contacts = torch.load(tmp_path / f"{name}-contact-regression.pt", weights_only=False)
    theirs, _ = fair_esm.pretrained.load_model_and_alphabet_core(name, content, contacts)
    model = load_foreign(tmp_path / f"{name}.pt", device=CPU)
    tokens = alphabet.get_batch_converter()([("a", "MKTAYIAK<mask>RQISFVKSH")])[2]
    with torch.inference_mode():
        expected = theirs.eval()(tokens, repr_layers=[3])
        hidden = model(tokens[0], Packed([tokens.shape[1]]))
        torch.testing.assert_close(hidden, expected["representations"][3][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.logits(hidden), expected["logits"][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stated", [True, False, None])
def test_token_dropout_of_fair_esm_is_what_the_options_say(stated: bool | None, tmp_path: Path) -> None:
    original = esm1b(fair_esm.Alphabet.from_architecture("ESM-1b")).eval()
    options = Namespace(**OPTIONS, arch="roberta_large", **({} if stated is None else {"token_dropout": stated}))
    save(original, tmp_path / "tiny.pt", {"args": options})
    model = load_foreign(tmp_path / "tiny.pt", device=CPU)
    assert bool(model.card.encoder.token_dropout) == bool(stated)


@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_esm_with_a_norm_over_its_embeddings(position: str, tmp_path: Path) -> None:
    original = esm(position_embedding_type=position, token_dropout=True, emb_layer_norm_before=True)
    original.save_pretrained(tmp_path)
    check_esm(original, tmp_path)


def test_tape_refuses_a_decoder_that_is_not_the_embedding(tmp_path: Path) -> None:
    source = GOLDEN / "tape_remote_homology"
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    width = state["bert.embeddings.word_embeddings.weight"].shape[1]
    state |= {
        "mlm.bias": torch.zeros(30),
        "mlm.transform.dense.weight": torch.zeros(width, width),
        "mlm.transform.dense.bias": torch.zeros(width),
        "mlm.transform.LayerNorm.weight": torch.ones(width),
        "mlm.transform.LayerNorm.bias": torch.zeros(width),
        "mlm.decoder.weight": state["bert.embeddings.word_embeddings.weight"] + 1,
    }
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"mlm.decoder.weight .*copies of one tensor, and differ"):
        load_foreign(tmp_path, device=CPU)
