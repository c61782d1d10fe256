"""Tiny random models of transformers, saved, converted and compared with the original."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.alphabets import ESM, PROTBERT
from protembed.models.packing import Packed

transformers = pytest.importorskip("transformers")

LENGTHS = [9, 30, 4]
ESM2: dict[str, Any] = {"position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": False}
ESM1B: dict[str, Any] = {"position_embedding_type": "absolute", "token_dropout": True, "emb_layer_norm_before": True}
ESM1V: dict[str, Any] = {**ESM1B, "emb_layer_norm_before": False}


def randomise(model: nn.Module) -> None:
    """Give every parameter, norms and biases too, a value that shows when it is misused."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith(("norm.weight", "Norm.weight", "norm_after.weight", "gamma"))
            parameter.copy_(1 + 0.3 * noise if gain else 0.15 * noise)


def esm(kind: str = "EsmForMaskedLM", **form: Any) -> Any:
    config = transformers.EsmConfig(
        vocab_size=33,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
        pad_token_id=1,
        mask_token_id=32,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **form,
    )
    model = getattr(transformers, kind)(config).eval()
    randomise(model)
    return model


def batch(padding: int, mask: int, letters: range) -> tuple[list[Tensor], Tensor]:
    """Return proteins as tokens, one with two masks, and the same padded to one length."""
    generator = torch.Generator().manual_seed(1)
    proteins = [torch.randint(letters.start, letters.stop, (n,), generator=generator) for n in LENGTHS]
    proteins[1][[5, 9]] = mask
    return proteins, nn.utils.rnn.pad_sequence(proteins, batch_first=True, padding_value=padding)


def check(original: Any, path: Path, *, padding: int, mask: int, letters: range) -> None:
    """Compare all layers and the logits of a padded batch there with a packed one here."""
    proteins, padded = batch(padding, mask, letters)
    model = load_foreign(path, device=torch.device("cpu"))
    n_layers = model.card.encoder.n_layers
    with torch.inference_mode():
        theirs = original(padded, attention_mask=padded != padding, output_hidden_states=True)
        ours = model.encoder(torch.cat(proteins), Packed(LENGTHS), range(n_layers + 1))
        for layer, expected in enumerate(theirs.hidden_states):
            real = torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])
            torch.testing.assert_close(ours[layer], real, atol=1e-5, rtol=1e-5)
        assert (model.mlm_head is not None) == hasattr(theirs, "logits")
        if hasattr(theirs, "logits"):
            real = torch.cat([row[:length] for row, length in zip(theirs.logits, LENGTHS, strict=True)])
            torch.testing.assert_close(model.logits(ours[n_layers]), real, atol=1e-5, rtol=1e-5)


def check_esm(original: Any, path: Path) -> None:
    check(original, path, padding=1, mask=32, letters=range(4, 24))


@pytest.mark.parametrize("form", [ESM2, ESM1B, ESM1V], ids=["esm2", "esm1b", "esm1v"])
def test_esm(form: dict[str, Any], tmp_path: Path) -> None:
    original = esm(**form)
    original.save_pretrained(tmp_path)
    check_esm(original, tmp_path)


@pytest.mark.parametrize("form", [ESM2, ESM1B], ids=["esm2", "esm1b"])
def test_esm_contacts(form: dict[str, Any], tmp_path: Path) -> None:
    original = esm(**form)
    original.save_pretrained(tmp_path)
    original.set_attn_implementation("eager")  # the others give no attention maps
    model = load_foreign(tmp_path, device=torch.device("cpu"))
    tokens = torch.from_numpy(ESM.encode("MKTAYIAKQRQISFVKSHFSRQ"))
    with torch.inference_mode():
        expected = original.predict_contacts(tokens[None], torch.ones(1, len(tokens), dtype=torch.long))[0]
        torch.testing.assert_close(model.contacts(tokens), expected, atol=1e-5, rtol=1e-5)


def test_base_model_has_no_head(tmp_path: Path) -> None:
    original = esm("EsmModel", **ESM2)
    original.save_pretrained(tmp_path)
    check_esm(original, tmp_path)


def test_shards(tmp_path: Path) -> None:
    original = esm(**ESM2)
    original.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_esm(original, tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_file(zipped: bool, tmp_path: Path) -> None:
    original = esm(**ESM2)
    original.config.save_pretrained(tmp_path)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    check_esm(original, tmp_path)


def test_fine_tuned_classifier_gives_its_encoder(tmp_path: Path) -> None:
    original = esm("EsmForTokenClassification", **ESM2)
    original.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="task head is left out"):
        model = load_foreign(tmp_path, device=torch.device("cpu"))
    assert model.mlm_head is None


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertModel"])
def test_bert(kind: str, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    original = getattr(transformers, kind)(config).eval()
    randomise(original)
    original.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(PROTBERT.tokens))
    check(original, tmp_path, padding=0, mask=4, letters=range(5, 25))
