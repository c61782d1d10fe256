"""Task heads in ONNX graphs: each design against torch, inside a file or put behind one, and without torch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import protembed
from protembed.backends.load import ModelOptions
from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.backend import OnnxBackend
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.backends.onnx.heads import can_draw, output_name
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.head_arrays import read_head, read_head_card
from protembed.checkpoints.head_files import save_head
from protembed.errors import ModelError, UsageError
from protembed.models.head_config import Design, HeadCard, Kind, Reads
from protembed.models.protein_model import ProteinModel
from protembed.sequences.batching import TokenBatch
from tests.backends.test_onnx_backend import run_alone
from tests.conftest import SEQUENCES
from tests.models.test_heads import PROTEINS, SHAPES, head_of

DRAWN = [shape for shape in SHAPES if shape[1] != "proteinlm"]


@pytest.fixture(scope="module")
def source(model: ProteinModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared model with a pooled vector, as a file."""
    path = tmp_path_factory.mktemp("source") / "pooled.safetensors"
    other = ProteinModel(replace(model.card, name="pooled", pooler="first"))
    other.load_state_dict(model.state_dict())
    checkpoint.save(other, path)
    return path


def write_head(source: Path, folder: Path, kind: Kind, design: Design, reads: Reads | None, task: str = "ss3") -> Path:
    model = checkpoint.read_card(source)
    head = head_of(model, kind, design, reads)
    labels = tuple("HEC") if head.config.outputs == 3 else ()
    card = HeadCard(
        task=task, config=head.config, encoder=model.name, encoder_sha256=model.sha256, labels=labels, temperature=1.5
    )
    save_head(head, card, folder / f"{task}.safetensors")
    return folder / f"{task}.safetensors"


def export(source: Path, folder: Path, *heads: Path, attention: AttentionKind = "fused") -> Path:
    options = ExportOptions(out=folder / "model.onnx", attention=attention, tasks=tuple(map(str, heads)))
    export_model(ModelOptions(model=str(source), device="cpu"), options)
    return folder / "model.onnx"


def export_without(source: Path, folder: Path, attention: AttentionKind = "fused") -> Path:
    (folder / "plain").mkdir()
    return export(source, folder / "plain", attention=attention)


def batch_of(source: Path) -> TokenBatch:
    """Lay unequal, equally long and single residues end to end."""
    alphabet = checkpoint.read_card(source).alphabet
    return TokenBatch.of([alphabet.encode(sequence) for sequence in [*PROTEINS, PROTEINS[0][::-1]]])


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize(("kind", "design", "reads"), DRAWN)
def test_every_design_equals_torch(
    source: Path, tmp_path: Path, kind: Kind, design: Design, reads: Reads | None, attention: AttentionKind
) -> None:
    path, batch = write_head(source, tmp_path, kind, design, reads), batch_of(source)
    right = TorchBackend(protembed_model(source))
    right.attach(path)
    expected = right.predict(batch, ["ss3"])["ss3"]
    inside = OnnxBackend(export(source, tmp_path, path, attention=attention), device="cpu")
    assert list(inside.included) == ["ss3"]
    behind = OnnxBackend(export_without(source, tmp_path, attention), device="cpu")
    assert behind.attach(path) == inside.included["ss3"]
    for backend in (inside, behind):
        found = backend.predict(batch, ["ss3"])["ss3"]
        assert [x.shape for x in found] == [x.shape for x in expected]
        for own, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, other, atol=2e-5)


def protembed_model(source: Path) -> ProteinModel:
    import torch

    return checkpoint.load(source, device=torch.device("cpu"))


def test_several_tasks_in_one_pass(source: Path, tmp_path: Path) -> None:
    heads = [
        write_head(source, tmp_path, kind, design, reads, task=f"task-{number}")
        for number, (kind, design, reads) in enumerate(DRAWN)
    ]
    backend, batch = OnnxBackend(export(source, tmp_path, *heads[:4]), device="cpu"), batch_of(source)
    for path in heads[4:]:
        backend.attach(path)
    names = [f"task-{number}" for number in range(len(DRAWN))]
    together = backend.predict(batch, names)
    assert list(together) == names
    for name in names:
        for one, other in zip(together[name], backend.predict(batch, [name])[name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    hidden = backend.run(batch, [("residues", 2)])["residues", 2]
    assert hidden.shape == (len(batch.tokens), 32), "heads do not stand in the way of embeddings"


def test_a_file_says_what_its_outputs_are(source: Path, tmp_path: Path) -> None:
    path = write_head(source, tmp_path, "residue_classes", "compact", None)
    file = export(source, tmp_path, path)
    onnx.checker.check_model(onnx.load(file), full_check=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = {output.name: output.shape for output in session.get_outputs()}
    assert outputs[output_name("ss3")] == ["proteins", "residues", 3]
    header = json.loads(session.get_modelmeta().custom_metadata_map["protembed"])
    assert [HeadCard.from_dict(head) for head in header["heads"]] == [read_head_card(path)]
    (found,) = protembed.load(file).predict(["MKTAYIAKQR"], task="ss3")
    assert len(found.labels) == 10


def test_one_head_named_twice_is_not_exported(source: Path, tmp_path: Path) -> None:
    path = write_head(source, tmp_path, "residue_classes", "compact", None)
    with pytest.raises(UsageError, match="the task ss3 is named twice"):
        export(source, tmp_path, path, path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_has_no_onnx_form_runs_in_torch(source: Path, tmp_path: Path) -> None:
    path = write_head(source, tmp_path, "contacts", "proteinlm", None, task="contact")
    card, _ = read_head(path)
    assert not can_draw(card, "fused")
    with pytest.raises(UsageError, match="no ONNX form"):
        export(source, tmp_path, path)
    assert list(tmp_path.iterdir()) == [path]
    file = export(source, tmp_path)
    with pytest.raises(ModelError, match="no head of this kind"):
        OnnxBackend(file, device="cpu").attach(path)
    residues = write_head(source, tmp_path, "residue_classes", "compact", None)
    backend = OnnxBackend(file, device="cpu", other=lambda: TorchBackend(protembed_model(source)))
    backend.attach(path)
    backend.attach(residues)
    found = backend.predict(batch_of(source), ["contact", "ss3"])
    assert {len(proteins) for proteins in found.values()} == {len(PROTEINS) + 1}
    other = tmp_path / "other.safetensors"
    other.write_bytes(residues.read_bytes())
    for _ in range(2):  # a head that was refused once stays out
        with pytest.raises(UsageError, match="another head for ss3"):
            backend.attach(other)


def test_a_head_of_another_encoder_is_refused(source: Path, tmp_path: Path) -> None:
    path = write_head(source, tmp_path, "residue_classes", "compact", None)
    with pytest.raises(ModelError, match="belongs to the encoder pooled"):
        protembed.load(backend="onnx").predict(["MKT"], task=str(path))
    with pytest.raises(UsageError, match="of the encoder alone"):
        ExportOptions(out=tmp_path / "x.onnx", attention="packed", tasks=("ss3",))
    with pytest.raises(ModelError, match="no heads are bundled with the model pooled"):
        export_model(
            ModelOptions(model=str(source), device="cpu"), ExportOptions(out=tmp_path / "x.onnx", tasks=("all",))
        )


def test_predict_does_not_import_torch(source: Path, fasta: Path, tmp_path: Path) -> None:
    path, out = write_head(source, tmp_path, "residue_classes", "compact", None), tmp_path / "out.tsv"
    for task, file in (("ss3", export(source, tmp_path, path)), (path, export_without(source, tmp_path))):
        words = ("predict", fasta, "--task", task, "-m", file, "-o", out, "--overwrite")
        run_alone(*words, "--device", "cpu", "--threads", 1)
        assert len(out.read_text().splitlines()) == 1 + sum(map(len, SEQUENCES.values()))
