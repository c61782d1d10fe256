"""LoRA adapters beside or apart from the base weights: merged, or refused by name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protembed.checkpoints import hub
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.heads import load_foreign_head
from protembed.errors import ModelError
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN

CPU = torch.device("cpu")
BASE = GOLDEN / "esm2_token_classification"
QUERY, DOWN = "esm.encoder.layer.1.attention.self.query", "esm.encoder.layer.0.output.dense"
WORDS = "esm.embeddings.word_embeddings"
RANK = 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*task head is left out"),
    pytest.mark.filterwarnings("ignore:.*adapter there is merged"),
]


def matrices(rank: int = RANK) -> dict[str, Tensor]:
    """Return an adapter for a square and an oblong layer."""
    generator = torch.Generator().manual_seed(5)
    state = load_file(BASE / "model.safetensors")
    found = {}
    for module in (QUERY, DOWN):
        rows, columns = state[f"{module}.weight"].shape
        found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
        found[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    return found


def write(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Put an adapter into a folder."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["query"], "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(BASE, tmp_path / "model"))
    for file in copy.iterdir():
        file.chmod(0o644)
    return copy


def load(path: Path) -> ProteinModel:
    return load_foreign(path, device=CPU, dtype=torch.float32)


def by_hand(tmp_path: Path, scale: dict[str, float], tensors: dict[str, Tensor]) -> ProteinModel:
    """Merge with a few lines of arithmetic, and load the result as a model without an adapter."""
    other = Path(shutil.copytree(BASE, tmp_path / "by_hand"))
    (other / "model.safetensors").chmod(0o644)
    state = load_file(other / "model.safetensors")
    for module, factor in scale.items():
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        state[f"{module}.weight"] = (state[f"{module}.weight"].double() + factor * (b.double() @ a.double())).float()
    save_file(state, other / "model.safetensors")
    return load(other)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, {QUERY: 4.0, DOWN: 4.0}),
        ({"use_rslora": True}, {QUERY: 8.0, DOWN: 8.0}),
        ({"alpha_pattern": {"self.query": 2}}, {QUERY: 0.5, DOWN: 4.0}),
    ],
    ids=["lora", "rslora", "alpha-pattern"],
)
def test_an_adapter_beside_the_weights_is_merged(
    folder: Path, tmp_path: Path, settings: dict[str, Any], scale: dict[str, float]
) -> None:
    tensors = matrices()
    write(folder, tensors, **settings)
    expected = by_hand(tmp_path, scale, tensors)
    with pytest.warns(UserWarning, match="adapter there is merged into 2 matrices"):
        model = load(folder)
    for name, tensor in expected.state_dict().items():
        assert model.state_dict()[name].equal(tensor), name
    assert model.card.sha256 == expected.card.sha256
    assert model.card.sha256 != load(BASE).card.sha256
    assert load(folder / "model.safetensors").card.sha256 == expected.card.sha256


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_an_adapter_apart_finds_its_base(tmp_path: Path, place: str) -> None:
    tensors = matrices()
    base = str(BASE) if place == "absolute" else os.path.relpath(BASE, tmp_path / "adapter")
    write(tmp_path / "adapter", tensors, base_model_name_or_path=base)
    expected = by_hand(tmp_path, {QUERY: 4.0, DOWN: 4.0}, tensors)
    assert load(tmp_path / "adapter").card.sha256 == expected.card.sha256
    assert load(tmp_path / "adapter").card.name == "adapter"


def test_an_adapter_apart_finds_its_base_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = hub.repo_folder("someone/base")
    shutil.copytree(BASE, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    tensors = matrices()
    write(tmp_path / "adapter", tensors, base_model_name_or_path="someone/base")
    expected = by_hand(tmp_path, {QUERY: 4.0, DOWN: 4.0}, tensors)
    assert load(tmp_path / "adapter").card.sha256 == expected.card.sha256


def test_an_adapter_of_an_embedding_and_a_trained_classifier_are_merged(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    rows, width = state[f"{WORDS}.weight"].shape
    a, b = torch.randn(RANK, rows), torch.randn(width, RANK)
    classifier = {f"classifier.{part}": state[f"classifier.{part}"] + 1 for part in ("weight", "bias")}
    tensors = {f"base_model.model.{WORDS}.lora_embedding_A": a, f"base_model.model.{WORDS}.lora_embedding_B": b}
    saved = {f"base_model.model.{name}": tensor for name, tensor in classifier.items()}
    write(folder, tensors | saved, modules_to_save=["classifier"])
    model = load(folder)
    expected = state[f"{WORDS}.weight"] + 4 * (b @ a).T
    torch.testing.assert_close(model.encoder.embedding.weight, expected, atol=1e-5, rtol=1e-5)
    head, _ = load_foreign_head(folder, model.card, device=CPU)
    assert head.state_dict()["outward.bias"].equal(classifier["classifier.bias"])


def test_prefixes_may_differ_by_the_name_of_the_base_model(folder: Path, tmp_path: Path) -> None:
    tensors = {name.replace("base_model.model.esm.", "base_model.model."): t for name, t in matrices().items()}
    write(folder, tensors)
    expected = by_hand(tmp_path, {QUERY: 4.0, DOWN: 4.0}, matrices())
    assert load(folder).card.sha256 == expected.card.sha256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not 'LORA'"),
        ({"use_dora": True}, "use_dora is True.*DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*changing the base weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_novelty": 3}, "the key 'use_novelty' = 3 is not known"),
        ({"r": 8}, "has the rank 4, and adapter_config.json says 8"),
        ({"r": "8"}, "r is '8', not a whole number"),
        ({"rank_pattern": {"(a+)+$": 4}}, "only names of layers are known"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(folder: Path, settings: dict[str, Any], message: str) -> None:
    write(folder, matrices(), **settings)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"base_model.model.{QUERY}.lora_B.weight"), "of the two matrices .* one is missing"),
        (
            lambda t: t.update({"base_model.model.esm.encoder.layer.9.x.lora_A.weight": torch.ones(4, 4)}),
            "has no place",
        ),
        (lambda t: t.update({"base_model.model.classifier.weight": torch.ones(3, 40)}), "not of modules_to_save"),
        (lambda t: t.update({f"base_model.model.{QUERY}.lora_B.weight": torch.ones(41, 4)}), r"is \(41, 40\) there"),
        (
            lambda t: t.update({f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(40)}),
            "lora_magnitude_vector is no matrix of LoRA",
        ),
    ],
)
def test_matrices_without_a_place_are_refused(folder: Path, change: Any, message: str) -> None:
    tensors = matrices()
    change(tensors)
    write(folder, tensors)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_an_adapter_whose_base_is_elsewhere_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    path = write(tmp_path / "adapter", matrices(), base_model_name_or_path="facebook/esm2_t6_8M_UR50D")
    with pytest.raises(ModelError, match="without the model that it was trained on, 'facebook/esm2_t6_8M") as caught:
        load(path)
    assert "protembed pull facebook/esm2_t6_8M_UR50D" in caught.value.hint


def test_an_adapter_without_weights_and_one_of_another_library(folder: Path) -> None:
    write(folder, matrices())
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_config.json is there, and adapter_model.safetensors is not"):
        load(folder)
    (folder / "adapter_config.json").write_text('{"config": {"adapter_residual_before_ln": false}}')
    with pytest.raises(ModelError, match="is no adapter of PEFT"):
        load(folder)
