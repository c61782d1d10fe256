"""`check --recompute`: what is stored is what the model computes, up to rounding; anything else is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from protembed.backends.base import Backend
from protembed.backends.load import ModelOptions, open_backend
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_files import save_head
from protembed.errors import OutputError
from protembed.inference.contacts import ContactOptions, contact_run
from protembed.inference.embed import EmbedOptions
from protembed.inference.embed_run import EmbedOutput, embed_run
from protembed.inference.predict import PredictOptions
from protembed.inference.predict_run import PredictionOutput, predict_run
from protembed.inference.recompute import loading_of, recompute, require_model
from protembed.models.head_config import HeadCard, Kind
from protembed.models.heads.registry import make_head
from protembed.models.heads.run import design_head
from protembed.models.protein_model import ProteinModel
from protembed.outputs.check import check_output
from protembed.outputs.content import ContentDigest, checksum, digest_attributes
from protembed.training.pretrain.config import ModelSection, make_card

HEADS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "ss3": ("residue_classes", tuple("HEC")),
    "binding": ("residue_flags", tuple("MNS")),
    "disorder": ("residue_values", ()),
    "localisation": ("sequence_class", ("Nucleus", "Cytoplasm")),
    "stability": ("sequence_value", ()),
    "contact": ("contacts", ()),
}


def load(path: Path, dtype: str = "float32") -> Backend:
    return open_backend(ModelOptions(model=str(path), device="cpu", dtype=dtype, backend="torch"))


@pytest.fixture
def backend(model_file: Path) -> Backend:
    return load(model_file)


def finish(run: Any) -> None:
    for _ in run.run():
        pass


def forge(path: Path, number: int, change: Callable[[Any], Any]) -> str:
    """Change one record's values, and every checksum with it; return its key."""
    with h5py.File(path, "r+") as file:
        key = list(file)[number]
        file[key][...] = change(file[key][()])
        file[key].attrs["crc32"] = np.uint32(checksum(file[key][()]))
        digest = ContentDigest()
        for name in file:
            values = file[name][()]
            digest.add(name, file[name].attrs, values.dtype.str, values.shape, checksum(values))
        file.attrs["content_sha256"] = digest.hexdigest()
        file.attrs["attributes_sha256"] = digest_attributes(dict(file.attrs))
    return key


@pytest.fixture(params=["mean", "mean+max", "cls", "residues", "residues in windows", "truncated", "layer 0"])
def embedded(request: pytest.FixtureRequest, backend: Backend, fasta: Path, tmp_path: Path) -> Path:
    """A file of each sort that `embed` writes."""
    how, out = request.param, tmp_path / "out.h5"
    output = EmbedOutput(proteins=out)
    if how.startswith("residues") or how == "truncated":
        options, output = EmbedOptions(pool=None, residues=True), EmbedOutput(residues=out)
        if how != "residues":
            options = replace(options, max_length=100, long="truncate" if how == "truncated" else "split")
    elif how == "layer 0":
        options = EmbedOptions(layer=0)
    else:
        options = EmbedOptions(pool=how)
    finish(embed_run([fasta], backend, options, output))
    return out


def test_what_embed_writes_is_computed_again(embedded: Path, backend: Backend, fasta: Path) -> None:
    found = check_output(embedded, [str(fasta)], sample=4)
    result = recompute(found.origin, found.sample, backend)
    assert result.records == 4
    assert result.difference < 1e-5
    forge(embedded, 3, lambda values: values + np.asarray(0.05, values.dtype))
    found = check_output(embedded, [str(fasta)], sample=6)
    with pytest.raises(OutputError, match=r"P0CG48.* is not what the model computes: off by"):
        recompute(found.origin, found.sample, backend)


def test_vectors_of_another_protein_are_noticed_although_every_checksum_is_right(
    backend: Backend, fasta: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    finish(embed_run([fasta], backend, EmbedOptions(), EmbedOutput(proteins=out)))
    with h5py.File(out) as file:
        other = file[next(iter(file))][()]
    forge(out, 5, lambda values: other)
    found = check_output(out, [str(fasta)], sample=6)
    with pytest.raises(OutputError, match="P61626"):
        recompute(found.origin, found.sample, backend)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_arithmetic_of_the_file_is_allowed_for(
    model_file: Path, backend: Backend, fasta: Path, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out.h5"
    finish(embed_run([fasta], load(model_file, dtype), EmbedOptions(), EmbedOutput(proteins=out)))
    found = check_output(out, [str(fasta)], sample=6)
    assert loading_of(found.origin) == ("tiny", dtype, "torch")
    assert recompute(found.origin, found.sample, backend).records == 6
    forge(out, 2, lambda values: values + 0.2)
    found = check_output(out, [str(fasta)], sample=6)
    with pytest.raises(OutputError, match="P69905"):
        recompute(found.origin, found.sample, backend)


def test_another_model_is_refused_before_anything_is_computed(
    model: ProteinModel, backend: Backend, fasta: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    finish(embed_run([fasta], backend, EmbedOptions(), EmbedOutput(proteins=out)))
    found = check_output(out, [str(fasta)], sample=1)
    require_model(found.origin, backend)
    with pytest.raises(OutputError, match="was computed with other weights than those of tiny"):
        recompute(found.origin, found.sample, TorchBackend(model))


def write_head(folder: Path, model: Path, task: str) -> str:
    """Write a head with random weights for a model; return its path."""
    kind, labels = HEADS[task]
    encoder = checkpoint.read_card(model)
    torch.manual_seed(1)
    module = make_head(design_head(encoder, kind, outputs=max(1, len(labels)), hidden=8, kernel=3))
    named = {"encoder": encoder.name, "encoder_sha256": encoder.sha256}
    path = folder / f"{task}.safetensors"
    save_head(module, HeadCard(task=task, config=module.config, labels=labels, **named), path)
    return str(path)


@pytest.mark.parametrize("task", HEADS)
def test_predictions_are_computed_again(model_file: Path, fasta: Path, tmp_path: Path, task: str) -> None:
    backend = load(model_file)
    head = write_head(tmp_path, model_file, task)
    out = tmp_path / "out.h5"
    finish(predict_run([fasta], backend, PredictOptions(), PredictionOutput(tasks=(head,), out=out)))
    found = check_output(out, [str(fasta)], sample=3)
    assert recompute(found.origin, found.sample, backend, head=head).records == 3
    forge(out, 1, lambda values: np.flip(values) if values.size > 1 and task != "contact" else values * 0.9)
    found = check_output(out, [str(fasta)], sample=6)
    with pytest.raises(OutputError, match="P01308"):
        recompute(found.origin, found.sample, backend, head=head)


def test_a_prediction_of_another_head_is_refused(model_file: Path, fasta: Path, tmp_path: Path) -> None:
    backend = load(model_file)
    out = tmp_path / "out.h5"
    head = write_head(tmp_path, model_file, "ss3")
    finish(predict_run([fasta], backend, PredictOptions(), PredictionOutput(tasks=(head,), out=out)))
    found = check_output(out, [str(fasta)], sample=1)
    with pytest.raises(OutputError, match="was predicted with another head"):
        recompute(found.origin, found.sample, backend, head=write_head(tmp_path, model_file, "binding"))


def test_contact_maps_are_computed_again(fasta: Path, tmp_path: Path) -> None:
    card = make_card(ModelSection(name="contacts", d_model=16, n_layers=2, n_heads=4, d_ff=32))
    model = ProteinModel(replace(card, contact_head=True))
    model.initialise(0)
    checkpoint.save(model, tmp_path / "contacts.safetensors")
    backend = load(tmp_path / "contacts.safetensors")
    out = tmp_path / "out.h5"
    finish(contact_run([fasta], backend, ContactOptions(out=out)))
    found = check_output(out, [str(fasta)], sample=3)
    assert recompute(found.origin, found.sample, backend).records == 3
    forge(out, 1, lambda values: values * np.float16(0.9))
    found = check_output(out, [str(fasta)], sample=6)
    with pytest.raises(OutputError, match="P01308"):
        recompute(found.origin, found.sample, backend)
