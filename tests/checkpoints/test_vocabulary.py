"""Vocabularies that are not of residues are refused by name, whatever files say or do not say about them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.alphabets import AMPLIFY, ESM, ESMC, MEGATRON, PROTBERT, TAPE, fit, require_residues
from protembed.checkpoints.foreign.vocabulary import read_vocabulary
from protembed.errors import ModelError, UsageError
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN

SPECIALS = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
SAPROT = [*SPECIALS, *(residue + state for residue in "ACDEFGHIKLMNPQRSTVWY#" for state in "pynwrqhgdlvtmfsaeikc#")]
SIX_MERS = [*SPECIALS, "ACGTAC", "ACGTAG", "A", "C", "G", "T", "N"]


def load(path: Path, **told: Any) -> ProteinModel:
    return load_foreign(path, device=torch.device("cpu"), **told)


def widened(tmp_path: Path, rows: int, vocabulary: list[str] | None) -> Path:
    """Write an ESM folder whose embedding has so many rows."""
    folder = tmp_path / "model"
    folder.mkdir()
    state = load_file(GOLDEN / "esm2_hf" / "model.safetensors")
    for name in ("esm.embeddings.word_embeddings.weight", "lm_head.bias"):
        state[name] = torch.randn(rows, *state[name].shape[1:]) * 0.1
    save_file(state, folder / "model.safetensors")
    config = json.loads((GOLDEN / "esm2_hf" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return folder


@pytest.mark.parametrize("known", [ESM, ESMC, TAPE, MEGATRON, PROTBERT, AMPLIFY])
def test_the_known_alphabets_are_of_residues(known: Any) -> None:
    assert fit(known, len(known)) == known
    assert fit(known, len(known), known.tokens) == known


@pytest.mark.parametrize(
    ("rows", "vocabulary", "kind"),
    [
        (446, SAPROT, "that of SaProt"),
        (446, None, "that of SaProt"),
        (12, SIX_MERS, "one of nucleotides"),
        (4107, None, "one of nucleotides, in words of several letters"),
        (4101, None, "one of nucleotides, in words of several letters"),
        (32_128, None, "one of words or word pieces"),
        (34, None, "another one"),
        (446, list(ESM.tokens), "the vocabulary file 33 tokens: its vocabulary is that of SaProt"),
        (35, [*ESM.tokens, "MK", "KT"], "one of words or word pieces \\('MK'\\)"),
        (9, [*SPECIALS, "A", "C", "G", "U"], "one of nucleotides"),
        (24, [*SPECIALS, *"ACDEFGHIKLMNPQRSTVW"], "without a row for Y"),
    ],
)
def test_other_letters_than_residues_are_refused(
    tmp_path: Path, rows: int, vocabulary: list[str] | None, kind: str
) -> None:
    with pytest.raises(ModelError, match=kind) as caught:
        load(widened(tmp_path, rows, vocabulary))
    assert "other letters than residues" in caught.value.hint or "row for" in str(caught.value)


def test_rows_that_only_pad_a_named_vocabulary_are_taken(tmp_path: Path) -> None:
    model = load(widened(tmp_path, 64, list(ESM.tokens)))
    assert model.card.alphabet.tokens[32:35] == ("<mask>", "<unused33>", "<unused34>")


@pytest.mark.parametrize("rows", [4101, 30_522])
def test_the_hint_to_tell_the_heads_leads_to_no_nonsense(tmp_path: Path, rows: int) -> None:
    state = torch.load(GOLDEN / "tape_remote_homology" / "pytorch_model.bin", weights_only=True)
    name = "bert.embeddings.word_embeddings.weight"
    state[name] = torch.zeros(rows, state[name].shape[1])
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="number of attention heads is not in the file"):
        load(tmp_path / "model.pt")
    with pytest.raises(ModelError, match=f"the embedding has {rows:,} rows"):
        load(tmp_path / "model.pt", n_heads=3)


def test_a_bert_that_does_not_say_whose_it_is_is_refused(tmp_path: Path) -> None:
    state = torch.load(GOLDEN / "tape_remote_homology" / "pytorch_model.bin", weights_only=True)
    torch.save({k: v for k, v in state.items() if "classify" not in k}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="nothing says whose") as caught:
        load(tmp_path / "model.pt", n_heads=3)
    assert "config.json" in caught.value.hint


def tokenizer(rows: Any, added: Any = ()) -> str:
    return json.dumps({"model": {"vocab": rows}, "added_tokens": list(added)})


def test_tokenizer_json_with_added_tokens_is_read_in_the_order_of_rows(tmp_path: Path) -> None:
    rows = {token: row for row, token in enumerate(ESM.tokens) if token != "<mask>"}
    (tmp_path / "tokenizer.json").write_text(tokenizer(rows, [{"content": "<mask>", "id": 32}]))
    assert read_vocabulary(tmp_path) == ESM.tokens
    (tmp_path / "tokenizer.json").write_text(tokenizer({t: r for t, r in rows.items() if r != 29}))
    (tmp_path / "added_tokens.json").write_text('{"<mask>": 32}')
    found = read_vocabulary(tmp_path)
    assert found is not None
    assert found[28:] == ("O", "<free29>", "-", "<null_1>", "<mask>")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", tokenizer([["A", 0.1]]), "does not say which row a token has"),
        ("tokenizer.json", tokenizer({"A": "0"}), "the token 'A' has the row '0'"),
        ("tokenizer.json", tokenizer({"A": -1}), "the token 'A' has the row -1"),
        ("tokenizer.json", tokenizer({"A": 10**9}), "the token 'A' has the row 1000000000"),
        ("tokenizer.json", tokenizer({"A": 0, "B": 0}), "two tokens in row 0"),
        ("tokenizer.json", tokenizer({"A": 0}, [{"content": "A", "id": 1}]), "'A' has two rows, 0 and 1"),
        ("tokenizer.json", tokenizer({"A": 0}, ["A"]), "added_tokens is .*, not a list of tokens"),
        ("tokenizer.json", "[]", "is not a JSON object"),
        ("vocab.txt", "A\nB\nA", "the token 'A' has two rows"),
        ("vocab.txt", "\udcff", "cannot be read as text"),
    ],
)
def test_vocabulary_files_that_make_no_sense(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match=message):
        read_vocabulary(tmp_path)


def test_a_vocabulary_of_another_model_beside_the_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "esm2_hf", tmp_path / "esm"))
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").write_text("\n".join([*ESM.tokens, "*"]))
    with pytest.raises(ModelError, match="has 34 tokens and the embedding 33 rows"):
        load(folder)


@pytest.mark.parametrize("n_heads", [0, -4])
def test_a_number_of_heads_that_is_none(tmp_path: Path, n_heads: int) -> None:
    state = torch.load(GOLDEN / "tape_remote_homology" / "pytorch_model.bin", weights_only=True)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="attention heads are no number of heads"):
        load(tmp_path / "model.pt", n_heads=n_heads)


def test_a_vocabulary_beside_a_form_that_has_none_must_say_the_same(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "proteinlm_megatron", tmp_path / "proteinlm"))
    (folder / "vocab.txt").write_text("\n".join(MEGATRON.tokens))
    expected = load(folder).card.sha256
    assert load(GOLDEN / "proteinlm_megatron").card.sha256 == expected
    (folder / "vocab.txt").write_text("\n".join(TAPE.tokens))
    with pytest.raises(ModelError, match="vocabulary file beside it is not that of this kind of model"):
        load(folder)


def test_words_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"one of words or word pieces \('the'\)"):
        require_residues(["[PAD]", "the", *"ACDEFGHIKLMNPQRSTVWY"])
