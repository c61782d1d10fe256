"""Fine-tuned heads of TAPE and ProteinLM, against what their authors' own code computes from the same files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import protembed
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.heads import load_foreign_head
from protembed.checkpoints.head_files import save_head
from protembed.errors import ModelError
from protembed.models.heads.run import run_heads
from protembed.models.packing import Packed
from tests.conftest import Run, write_fasta
from tests.parity.test_reference import INDEX, REFERENCE

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden" / "tape_remote_homology"
TOLERANCE = 2e-5
KINDS = ("secondary_structure_ss3", "secondary_structure_ss8", "remote_homology", "value", "contact")


def differences(path: Path) -> float:
    """Return the largest difference of the head's outputs, all proteins in one pass; contacts: of the one logit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*task head.*")
        model = load_foreign(path, device=CPU, dtype=torch.float32)
    head, card = load_foreign_head(path, model.card, device=CPU)
    card.require_encoder(model.card)
    worst = 0.0
    with np.load(path / "expected.npz") as arrays:
        proteins = [torch.from_numpy(arrays[f"{name}.tokens"])[0] for name in ("p2", "p3")]
        with torch.inference_mode():
            found = run_heads(model, {"x": head}, torch.cat(proteins), Packed([len(p) for p in proteins]))["x"]
        for name, output in zip(("p2", "p3"), found, strict=True):
            expected, actual = arrays[f"{name}.output"][0], output.numpy()
            if card.kind == "contacts":
                probability = 1 / (1 + np.exp(-actual))
                assert np.abs(probability - arrays[f"{name}.probability"][0]).max() < TOLERANCE
                expected = expected[..., 1] - expected[..., 0]
            elif card.kind == "residue_classes":
                expected = expected[1:-1]
            assert actual.shape == expected.shape
            worst = max(worst, float(np.abs(actual - expected).max()))
    return worst


@pytest.mark.skipif(not INDEX.is_file(), reason="no reference data; PROTEMBED_REFERENCE names its folder")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["tape_heads", "proteinlm_tape_heads"])
def test_head_equals_its_original(family: str, kind: str) -> None:
    assert differences(REFERENCE / family / kind) < TOLERANCE


def test_golden_head() -> None:
    assert differences(GOLDEN) < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*task head.*")
def test_head_and_encoder_of_one_file_by_one_path(run: Run, tmp_path: Path) -> None:
    proteins = {"a": "ALNSVNWDAHPPDTVSSGWTPKI", "b": "MKT"}
    fasta = write_fasta(tmp_path / "in.fasta", proteins)
    result = run("predict", fasta, "-m", GOLDEN, "--task", GOLDEN)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()[1:]]
    model = protembed.load(GOLDEN)
    found = model.predict(list(proteins.values()), task=str(GOLDEN))
    assert [line[5] for line in lines] == [prediction.labels for prediction in found]
    with np.load(GOLDEN / "expected.npz") as arrays:
        assert int(found[0].labels) == arrays["p2.output"][0].argmax()
    with pytest.raises(ModelError, match="trained together with the encoder in the same file"):
        protembed.load().predict(["MKT"], task=str(GOLDEN))


@pytest.mark.filterwarnings("ignore:.*task head.*")
def test_native_copy_of_both_computes_the_same(tmp_path: Path) -> None:
    model = load_foreign(GOLDEN, device=CPU, dtype=torch.float32)
    head, card = load_foreign_head(GOLDEN, model.card, device=CPU)
    checkpoint.save(model, tmp_path / "encoder.safetensors")
    save_head(head, card, tmp_path / "head.safetensors")
    native = protembed.load(tmp_path / "encoder.safetensors").predict(
        ["MKTAYI"], task=str(tmp_path / "head.safetensors")
    )
    foreign = protembed.load(GOLDEN).predict(["MKTAYI"], task=str(GOLDEN))
    np.testing.assert_array_equal(native[0].output, foreign[0].output)


def test_files_that_hold_no_head(tmp_path: Path) -> None:
    state = torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    model = load_foreign(_saved(tmp_path, {k: v for k, v in state.items() if "classify" not in k}), device=CPU)
    with pytest.raises(ModelError, match="holds no task head of a known form"):
        load_foreign_head(tmp_path, model.card, device=CPU)
    _saved(tmp_path, {k: v for k, v in state.items() if not k.endswith("main.3.weight_g")})
    with pytest.raises(ModelError, match=r"1 weights of the head are missing.*main\.3\.weight_g"):
        load_foreign_head(tmp_path, model.card, device=CPU)
    name = "classify.classify.main.3.bias"
    _saved(tmp_path, {**state, name: state[name][:-1]})
    with pytest.raises(ModelError, match="do not fit together"):
        load_foreign_head(tmp_path, model.card, device=CPU)


def _saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder
