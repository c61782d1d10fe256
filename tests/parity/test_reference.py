"""Every checkpoint of the reference folder, against what its authors' own code computes from it.

The folder is not part of the repository (tests/golden holds a few of its files): PROTEMBED_REFERENCE names it, else
it is looked for beside the repository, at ../shared/reference.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.errors import ModelError
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from tests.parity.compare import differences, standard_logits

BESIDE = Path(__file__).parents[2].parent / "shared" / "reference"
REFERENCE = Path(os.environ.get("PROTEMBED_REFERENCE", BESIDE))
INDEX = REFERENCE / "index.json"
TOLERANCE = 2e-5
ARRAYS = {
    "proteinlm_tape_heads/contact": 1e-4,  # weights of float16
    "esm2_rope_theta": 4e-5,  # logits to 24, of which the original's own are 2.4e-5 from float64
}

REFUSED = (
    *("prott5_hf", "prott5_encoder_fp16", "prostt5_hf", "ankh_hf", "ankh2_hf"),
    *("saprot_hf", "bert_own_vocabulary", "esmc_hf", "esm2_module_prefix"),
)
"""Forms that are not run yet: each is refused by name rather than computed as something else."""

pytestmark = pytest.mark.skipif(not INDEX.is_file(), reason="no reference data; PROTEMBED_REFERENCE names its folder")


def entries() -> list[dict[str, Any]]:
    if not INDEX.is_file():
        return []
    found = json.loads(INDEX.read_text())["checkpoints"]
    ours = [entry for entry in found if entry["checkpoint"] and entry["family"] not in ("data", "metrics")]
    return [entry for entry in ours if entry["checkpoint"] not in REFUSED]


def load(name: str, **told: Any) -> ProteinModel:
    if "merged" in name:
        told = {"n_heads": 4, "checkpoint_version": 3.0, **told}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*task head.*")
        return load_foreign(REFERENCE / name, device=torch.device("cpu"), dtype=torch.float32, **told)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["checkpoint"]))
def test_checkpoint_equals_its_original(entry: dict[str, Any], tmp_path: Path) -> None:
    model = load(entry["checkpoint"])
    with np.load(REFERENCE / entry["expected"]) as arrays:
        found = differences(model, arrays)
    assert found
    tolerance = ARRAYS.get(entry["checkpoint"], TOLERANCE)
    assert max(found.values()) < tolerance, found

    checkpoint.save(model, tmp_path / "native.safetensors")
    again = checkpoint.load(tmp_path / "native.safetensors", device=torch.device("cpu"))
    assert again.card == model.card
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_is_not_run_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        load(name)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["checkpoint"]))
def test_packed_equals_alone(entry: dict[str, Any]) -> None:
    model = load(entry["checkpoint"])
    with np.load(REFERENCE / entry["expected"]) as arrays:
        names = [key for key in arrays if key.endswith(".tokens") and not key.startswith(("batch", "packed"))]
        proteins = [torch.from_numpy(arrays[name]).flatten() for name in names]
    with torch.inference_mode():
        packed = model(torch.cat(proteins), Packed([len(tokens) for tokens in proteins]))
        alone = torch.cat([model(tokens, Packed([len(tokens)])) for tokens in proteins])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["checkpoint"]))
def test_alphabet_makes_the_tokens_of_the_original(entry: dict[str, Any]) -> None:
    model = load(entry["checkpoint"])
    sequences = json.loads(INDEX.read_text())["sequences"]
    with np.load(REFERENCE / entry["expected"]) as arrays:
        names = [name for name in sequences if f"{name}.tokens" in arrays]
        assert names
        for name in names:
            assert model.card.alphabet.encode(sequences[name]).tolist() == arrays[f"{name}.tokens"].flatten().tolist()


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["checkpoint"]))
def test_columns_of_logits_are_the_standard_residues(entry: dict[str, Any]) -> None:
    model = load(entry["checkpoint"])
    with np.load(REFERENCE / entry["expected"]) as arrays:
        if model.mlm_head is None or "p2.logits" not in arrays:
            pytest.skip("no logits")
        assert standard_logits(model, arrays) < ARRAYS.get(entry["checkpoint"], TOLERANCE)


def test_attentions_of_esm2() -> None:
    model = load("esm2_hf")
    with np.load(REFERENCE / "esm2_fair/expected.npz") as arrays:
        name, expected = arrays["batch.ids"][0], arrays["batch.attentions_first"]
        tokens = torch.from_numpy(arrays[f"{name}.tokens"]).flatten()
    with torch.inference_mode():
        maps = model.attentions(tokens).numpy()
    assert np.abs(maps - expected[..., : len(tokens), : len(tokens)]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["packed", "packedall"])
def test_packed_pretraining_sample(name: str) -> None:
    model = load("proteinlm_megatron/v3_fp32")
    with np.load(REFERENCE / "proteinlm_megatron/expected_fp32.npz") as arrays:
        expected, positions = arrays[f"{name}.hidden"], arrays[f"{name}.positions"]
        tokens = torch.from_numpy(arrays[f"{name}.tokens"])[: len(positions)]
    starts = [*np.flatnonzero(positions == 0), len(positions)]
    with torch.inference_mode():
        hidden = model(tokens, Packed(np.diff(starts).tolist())).numpy()
    assert np.abs(hidden - expected).max() < TOLERANCE


def test_masked_loss_runs_over_all_rows() -> None:
    model = load("proteinlm_megatron/v3_fp32")
    with np.load(REFERENCE / "proteinlm_megatron/expected_fp32.npz") as arrays:
        tokens, labels = torch.from_numpy(arrays["masked.tokens"]), torch.from_numpy(arrays["masked.labels"])
        chosen, expected = torch.from_numpy(arrays["masked.positions_masked"]), torch.from_numpy(arrays["masked.loss"])
    with torch.inference_mode():
        logits = model.logits(model(tokens, Packed([len(tokens)])))[chosen]
    loss = torch.nn.functional.cross_entropy(logits, labels[chosen], reduction="none")
    torch.testing.assert_close(loss, expected[chosen], atol=TOLERANCE, rtol=0)


def test_merged_file_read_as_version_0() -> None:
    with pytest.warns(UserWarning, match="read as version 0"):
        model = load_foreign(REFERENCE / "proteinlm_megatron/merged_fp32", device=torch.device("cpu"), n_heads=4)
    with np.load(REFERENCE / "proteinlm_megatron/expected_merged_read_as_version0.npz") as arrays:
        assert max(differences(model, arrays).values()) < TOLERANCE


def test_port_and_megatron_are_two_forms_of_two_functions() -> None:
    names = ("proteinlm_megatron/v3_fp32", "proteinlm_tape")
    for variant in ("trained", "tape-port"):
        megatron, port = (load(name, variant=variant) for name in names)
        assert len(megatron.card.alphabet.encode("MKT")) == (4 if variant == "trained" else 5)
        hidden = []
        with torch.inference_mode():
            for model in (megatron, port):
                tokens = torch.from_numpy(model.card.alphabet.encode("MKTAYIAKQRUZ"))
                hidden.append(model(tokens, Packed([len(tokens)])))
        torch.testing.assert_close(*hidden, atol=1e-5, rtol=0)
