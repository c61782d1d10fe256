"""Tiny random models of fair-esm, saved as its published files are, converted and compared with the original."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from protembed.checkpoints.foreign import load_foreign
from protembed.models.packing import Packed
from tests.parity.test_transformers import randomise

esm = pytest.importorskip("esm")

SEQUENCES = [("a", "MKTAYIAKQRQISFVKSH<mask>SRQ"), ("b", "GAVLIXBZUO"), ("c", "MNPQ")]
OPTIONS = {"encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4}


def esm2(alphabet: Any) -> Any:
    return esm.ESM2(num_layers=3, embed_dim=32, attention_heads=4, alphabet=alphabet, token_dropout=True)


def esm1b(alphabet: Any) -> Any:
    args = Namespace(
        arch="roberta_large",
        layers=3,
        embed_dim=32,
        ffn_embed_dim=128,
        attention_heads=4,
        max_positions=64,
        token_dropout=True,
        emb_layer_norm_before=True,
    )
    return esm.ProteinBertModel(args, alphabet)


def save(original: Any, path: Path, prefixed: dict[str, Any]) -> None:
    """Write weights and options as published: the contact regression in a file of its own."""
    state, contacts = {}, {}
    for name, tensor in original.state_dict().items():
        if name.startswith("contact_head."):
            contacts[name] = tensor
        else:
            state[f"encoder.{name}" if name.startswith("lm_head.") else f"encoder.sentence_encoder.{name}"] = tensor
    torch.save({"model": state, **prefixed}, path)
    torch.save({"model": contacts}, path.with_name(f"{path.stem}-contact-regression.pt"))


@pytest.mark.parametrize("build", [esm2, esm1b])
def test_fair_esm(build: Any, tmp_path: Path) -> None:
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    original = build(alphabet).eval()
    randomise(original)
    with torch.no_grad():
        original.embed_tokens.weight[alphabet.mask_idx].zero_()  # as the loader of ESM-1b does
    options = Namespace(**OPTIONS, token_dropout=True, arch="roberta_large")
    save(original, tmp_path / "tiny.pt", {"cfg": {"model": options}} if build is esm2 else {"args": options})

    model = load_foreign(tmp_path / "tiny.pt", device=torch.device("cpu"))
    tokens = alphabet.get_batch_converter()(SEQUENCES)[2]
    proteins = [row[row != alphabet.padding_idx] for row in tokens]
    lengths = [len(protein) for protein in proteins]
    with torch.inference_mode():
        theirs = original(tokens, repr_layers=range(4), return_contacts=True)
        ours = model.encoder(torch.cat(proteins), Packed(lengths), range(4))
        logits = torch.split(model.logits(ours[3]), lengths)
        for row, protein in enumerate(proteins):
            size, residues = lengths[row], lengths[row] - 2
            for layer in range(4):
                expected = theirs["representations"][layer][row, :size]
                torch.testing.assert_close(torch.split(ours[layer], lengths)[row], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(logits[row], theirs["logits"][row, :size], atol=1e-5, rtol=1e-5)
            expected = theirs["contacts"][row, :residues, :residues]
            torch.testing.assert_close(model.contacts(protein), expected, atol=1e-5, rtol=1e-5)


def test_state_dictionary_alone_needs_the_heads(tmp_path: Path) -> None:
    original = esm2(esm.Alphabet.from_architecture("ESM-1b"))
    torch.save(original.state_dict(), tmp_path / "tiny.pt")
    model = load_foreign(tmp_path / "tiny.pt", device=torch.device("cpu"), n_heads=4)
    assert model.card.contact_head
