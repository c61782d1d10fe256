"""A model's sha256 names its weights as they are stored: not the type, form or place that they are loaded from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import hub
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.find import bundled_models, find_model, heads_folder
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.head_arrays import read_head_card
from protembed.checkpoints.head_files import save_head
from protembed.errors import ModelError
from protembed.models.head_config import HeadCard
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from tests.conftest import GOLDEN

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, None]
FOREIGN = ["esm2_hf", "esm2_stored_frequencies", "proteinlm_megatron", "tape_remote_homology"]

pytestmark = pytest.mark.filterwarnings("ignore:.*task head is left out")


@pytest.mark.parametrize("name", FOREIGN)
def test_it_does_not_depend_on_the_type_that_a_foreign_model_is_loaded_in(name: str) -> None:
    found = {load_foreign(GOLDEN / name, device=CPU, dtype=dtype).card.sha256 for dtype in DTYPES}
    assert len(found) == 1
    assert len(found.pop()) == 64


@pytest.mark.parametrize("name", FOREIGN)
def test_a_native_copy_in_full_precision_has_the_same(name: str, tmp_path: Path) -> None:
    model = load_foreign(GOLDEN / name, device=CPU, dtype=torch.float32)
    checkpoint.save(model, tmp_path / "native.safetensors")
    for dtype in DTYPES:
        again = checkpoint.load(tmp_path / "native.safetensors", device=CPU, dtype=dtype)
        assert again.card == model.card


def test_it_does_not_depend_on_how_the_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = GOLDEN / "esm2_hf"
    expected = load_foreign(source, device=CPU).card.sha256
    assert load_foreign(source / "model.safetensors", device=CPU).card.sha256 == expected

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    home = hub.repo_folder("someone/esm2_hf")
    shutil.copytree(source, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    assert load_foreign(find_model("someone/esm2_hf", offline=True), device=CPU).card.sha256 == expected

    state = load_file(source / "model.safetensors")
    other = Path(shutil.copytree(source, tmp_path / "torch"))
    (other / "model.safetensors").unlink()
    torch.save(state, other / "pytorch_model.bin")
    assert load_foreign(other, device=CPU).card.sha256 == expected

    (other / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, other / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_foreign(other, device=CPU).card.sha256 == expected


def test_other_weights_or_frequencies_are_another_model(tmp_path: Path) -> None:
    other = Path(shutil.copytree(GOLDEN / "esm2_stored_frequencies", tmp_path / "other"))
    seen = {load_foreign(other, device=CPU).card.sha256}
    state = load_file(other / "model.safetensors")
    for name in (
        "esm.encoder.layer.2.attention.self.rotary_embeddings.inv_freq",
        "esm.encoder.emb_layer_norm_after.bias",
    ):
        bent = {**state, name: torch.nextafter(state[name], torch.tensor(9.0))}
        save_file(bent, other / "model.safetensors")
        seen.add(load_foreign(other, device=CPU).card.sha256)
    assert len(seen) == 3


def test_the_shipped_model_keeps_its_identity_and_its_heads() -> None:
    path = bundled_models()["protembed-6m"]
    card = checkpoint.read_card(path)
    for dtype in DTYPES:
        assert checkpoint.load(path, device=CPU, dtype=dtype).card.sha256 == card.sha256
    heads = sorted(heads_folder().glob("*.safetensors"))
    assert heads
    for head in heads:
        read_head_card(head).require_encoder(card)


def test_a_head_trained_in_half_precision_runs_in_full(tmp_path: Path) -> None:
    trained = load_foreign(GOLDEN / "esm2_hf", device=CPU, dtype=torch.bfloat16)
    head = make_head(design_head(trained.card, "residue_classes", outputs=3))
    card = HeadCard(
        task="ss3",
        config=head.config,
        encoder=trained.card.name,
        encoder_sha256=trained.card.sha256,
        labels=tuple("HEC"),
    )
    save_head(head, card, tmp_path / "head.safetensors")
    for dtype in DTYPES:
        backend = TorchBackend(load_foreign(GOLDEN / "esm2_hf", device=CPU, dtype=dtype))
        assert backend.attach(tmp_path / "head.safetensors").task == "ss3"
    other = TorchBackend(load_foreign(GOLDEN / "esm2_stored_frequencies", device=CPU))
    with pytest.raises(ModelError, match="belongs to the encoder esm2_hf"):
        other.attach(tmp_path / "head.safetensors")


def test_a_head_whose_card_asks_for_layers_that_are_not_there_is_refused() -> None:
    encoder = load_foreign(GOLDEN / "esm2_hf", device=CPU).card
    config = design_head(encoder, "residue_classes", outputs=3)
    card = HeadCard(task="x", config=config, encoder="e", encoder_sha256=encoder.sha256, labels=tuple("HEC"))
    card.require_encoder(encoder)
    for wrong in (replace(config, layers=(9,)), replace(config, d_input=47), replace(config, reads="attention")):
        with pytest.raises(ModelError, match="which esm2_hf does not have"):
            replace(card, config=wrong).require_encoder(encoder)
