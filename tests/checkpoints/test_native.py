"""The native checkpoint: what goes in comes out, and what is damaged is refused by name."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.checkpoints import native as checkpoint
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, ModelCard
from protembed.models.protein_model import ProteinModel
from protembed.training.pretrain.config import ModelSection, make_card

CPU = torch.device("cpu")


def test_round_trip(model: ProteinModel, model_file: Path) -> None:
    again = checkpoint.load(model_file, device=CPU)
    assert again.card == replace(model.card, sha256=checkpoint.digest(model.state_dict()))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_half_precision_files_load_as_float32(model: ProteinModel, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    checkpoint.save(model, path, dtype=torch.float16)
    again = checkpoint.load(path, device=CPU, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert again.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_writing_replaces_the_file_as_a_whole(
    model: ProteinModel, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.read_bytes())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_bytes() == model_file.read_bytes()


MEASURE = """
import sys, torch
from pathlib import Path
from protembed.checkpoints import native as checkpoint
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
checkpoint.load(Path(sys.argv[1]), device=torch.device("cpu"))
before = memory("VmRSS")
model = checkpoint.load(Path(sys.argv[2]), device=torch.device("cpu"), dtype=getattr(torch, sys.argv[3]))
print((memory("VmHWM") - before) / sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_never_in_memory_twice(model_file: Path, tmp_path: Path, dtype: str) -> None:
    card = make_card(ModelSection(name="large", d_model=512, n_layers=16, n_heads=8, d_ff=2048))
    model = ProteinModel(card)
    model.initialise(0)
    checkpoint.save(model, tmp_path / "large.safetensors")
    command = [sys.executable, "-c", MEASURE, model_file, tmp_path / "large.safetensors", dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ratio < 1.15


def altered(model_file: Path, path: Path, change: str) -> Path:
    """Write a checkpoint with one fault, its digest correct."""
    tensors = load_file(model_file)
    name = "encoder.final_norm.weight"
    match change:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["encoder.other"] = torch.zeros(3)
        case "shape":
            tensors[name] = torch.zeros(7)
        case "nan":
            tensors[name][3] = torch.nan
    card = replace(checkpoint.read_card(model_file), sha256=checkpoint.digest(tensors))
    import json

    save_file(tensors, path, {"protembed": json.dumps({"format": "1", **card.to_dict()})})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 weights are missing, the first is encoder.final_norm.weight"),
        ("extra", "1 weights do not belong to the model, the first is encoder.other"),
        ("shape", r"encoder.final_norm.weight is \(7,\), not \(32,\)"),
        ("nan", "holds NaN or infinite values"),
    ],
)
def test_faults_are_named(model_file: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        checkpoint.load(altered(model_file, tmp_path / "bad.safetensors", change), device=CPU)


def test_damage_is_seen(model_file: Path, tmp_path: Path) -> None:
    content = bytearray(model_file.read_bytes())
    content[-1] ^= 1
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="do not match their checksum"):
        checkpoint.load(path, device=CPU)
    path.write_bytes(content[:-5])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        checkpoint.load(path, device=CPU)


def test_cards_of_the_future_are_refused(model: ProteinModel) -> None:
    with pytest.raises(ModelError, match="fields that this version does not know: novelty"):
        ModelCard.from_dict({**model.card.to_dict(), "novelty": 1})


def test_configurations_that_cannot_be(model: ProteinModel) -> None:
    fields = {"vocab_size": 29, "n_layers": 1, "d_ff": 8, "mask_id": 1}
    with pytest.raises(ModelError, match="not a multiple"):
        EncoderConfig(d_model=10, n_heads=3, **fields)
    with pytest.raises(ModelError, match="even head size"):
        EncoderConfig(d_model=9, n_heads=3, **fields)
    with pytest.raises(ModelError, match="need max_length"):
        EncoderConfig(d_model=8, n_heads=2, position="learned", **fields)
