"""Models as ONNX files: the graph against torch for every field of the configuration, and what is written where."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from protembed.backends.load import ModelOptions
from protembed.backends.onnx import export
from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.backend import OnnxBackend, pack_inputs
from protembed.backends.onnx.builder import MICROSOFT, Graph, Node, Weights
from protembed.backends.onnx.export import ExportOptions, arrays_of, export_model
from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.graph import build_graph
from protembed.backends.onnx.parity import smallest_cosine
from protembed.backends.onnx.writer import serialise, write_onnx
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints.foreign import load_foreign
from protembed.errors import ModelError, OutputError, UsageError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.batching import TokenBatch
from tests.conftest import GOLDEN, SEQUENCES, Run
from tests.parity.test_reference import REFERENCE, entries
from tests.parity.test_reference import load as load_reference

SIZES: dict[str, Any] = {"vocab_size": len(PROTEMBED), "d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "esm2": {"token_dropout": 0.12},
    "esm1b": {"position": "learned", "max_length": 200, "embed_norm": True, "token_dropout": 0.12},
    "esmc": {"activation": "swiglu", "bias": False, "qk_norm": True},
    "amplify": {"norm": "rmsnorm", "activation": "swiglu", "bias": False},
    "rms_qk": {"norm": "rmsnorm", "qk_norm": True, "embed_norm": True},
    "bert": {
        "position": "learned",
        "max_length": 200,
        "norm_order": "post",
        "embed_norm": True,
        "final_norm": False,
        "norm_eps": 1e-12,
    },
    "proteinlm": {"position": "learned", "max_length": 200, "activation": "gelu_tanh", "norm_eps": 1e-12},
    "stem": {"stem": 5, "token_dropout": 0.12},
    "stem_1": {"stem": 1, "position": "learned", "max_length": 200},
    "head_dim_6": {"d_model": 24, "n_heads": 4},
    "one_layer": {"n_layers": 1},
    "frequencies": {"frequencies": 1},
    "frequencies_each": {"frequencies": 3},
}
HEADS: dict[str, dict[str, Any]] = {
    "tied": {"mlm_head": MlmHeadConfig()},
    "untied": {"mlm_head": MlmHeadConfig(tied=False, norm_eps=1e-12), "pooler": "dense"},
    "decoder": {"mlm_head": MlmHeadConfig(transform=False), "pooler": "first"},
    "none": {},
    "profile": {"mlm_head": MlmHeadConfig(), "profile_head": True},
}


def make_model(heads: str = "tied", **config: Any) -> ProteinModel:
    """Make a model with random weights of ordinary size."""
    encoder = EncoderConfig(**{**SIZES, "mask_id": PROTEMBED.mask_id, **config})
    model = ProteinModel(ModelCard(name="random", encoder=encoder, alphabet=PROTEMBED, **HEADS[heads]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = float("norm" in name and name.endswith("weight"))
            parameter.copy_(0.2 * noise + gain if parameter.ndim < 2 else noise * parameter.shape[1] ** -0.5)
        if model.encoder.frequencies is not None:
            model.encoder.frequencies *= 1 + 0.2 * torch.rand(model.encoder.frequencies.shape, generator=generator)
    return model.requires_grad_(False).eval()


def make_batch(model: ProteinModel) -> TokenBatch:
    """Lay natural, short, unknown, masked and equally long proteins end to end."""
    alphabet = model.card.alphabet
    sequences = ["M", *SEQUENCES.values(), "XXXX", "MKTAYIAKQR", "MK", "RQKAIYATKM"]
    encoded = [alphabet.encode(sequence[: min(model.card.max_residues or 90, 90)]) for sequence in sequences]
    encoded[1][alphabet.prefix : -1 : 5] = alphabet.mask_id
    encoded[2][alphabet.prefix] = alphabet.mask_id
    return TokenBatch.of(encoded)


def all_outputs(card: ModelCard) -> list[tuple[str, int]]:
    layers = range(card.encoder.n_layers + 1)
    wanted = [(kind, layer) for kind in ("residues", "mean", "max", "cls") for layer in layers]
    wanted += [("logits", 0)] * (card.mlm_head is not None) + [("pooled", 0)] * (card.pooler is not None)
    wanted += [("profile", 0)] * card.profile_head
    return wanted


def draw(model: ProteinModel, attention: AttentionKind = "fused", weights: Weights = "float32") -> Graph:
    return build_graph(model.card, arrays_of(model), attention=attention, weights=weights)


def write(
    model: ProteinModel, path: Path, attention: AttentionKind = "fused", weights: Weights = "float32", **how: Any
) -> Path:
    write_onnx(path, draw(model, attention, weights), model.card, attention=attention, weights=weights, **how)
    return path


def worst_difference(model: ProteinModel, path: Path) -> float:
    """Return the largest difference of any output from torch's."""
    batch, wanted = make_batch(model), all_outputs(model.card)
    own, right = OnnxBackend(path, device="cpu").run(batch, wanted), TorchBackend(model).run(batch, wanted)
    for output in wanted:
        assert own[output].shape == right[output].shape
        assert own[output].dtype == right[output].dtype
    return max(float(np.abs(own[output] - right[output]).max()) for output in wanted)


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_equals_torch(name: str, attention: AttentionKind, tmp_path: Path) -> None:
    model = make_model(**CONFIGS[name])
    path = write(model, tmp_path / "model.onnx", attention)
    assert worst_difference(model, path) < 1e-4
    onnx.checker.check_model(str(path), full_check=attention == "plain")
    domains = {entry.domain for entry in onnx.load(path).opset_import}
    assert domains == ({""} if attention == "plain" else {"", MICROSOFT})


def test_configurations_vary_every_field() -> None:
    varied = {field for config in CONFIGS.values() for field in config}
    assert {field.name for field in fields(EncoderConfig)} - {*varied} == {"vocab_size", "d_ff", "mask_id"}


@pytest.mark.parametrize("heads", HEADS)
def test_every_head_equals_torch(heads: str, tmp_path: Path) -> None:
    model = make_model(heads)
    path = write(model, tmp_path / "model.onnx")
    assert worst_difference(model, path) < 1e-4
    assert ("logits" in OnnxFile(path).outputs) == (heads != "none")


@pytest.mark.parametrize("name", ["esm2_hf", "proteinlm_megatron"])
def test_golden_checkpoints_equal_torch(name: str, tmp_path: Path) -> None:
    model = load_foreign(GOLDEN / name, device=torch.device("cpu"), dtype=torch.float32)
    assert worst_difference(model, write(model, tmp_path / "model.onnx")) < 1e-4


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: str(entry["checkpoint"]))
def test_reference_checkpoints_equal_torch(entry: dict[str, Any], tmp_path: Path) -> None:
    assert REFERENCE.is_dir()
    model = load_reference(entry["checkpoint"])
    for attention in ("fused", "plain"):
        assert worst_difference(model, write(model, tmp_path / f"{attention}.onnx", attention)) < 1e-4


@pytest.mark.parametrize(("weights", "lowest", "share"), [("float16", 0.99999, 0.6), ("int8", 0.99, 0.45)])
@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_smaller_weights(
    attention: AttentionKind, weights: Weights, lowest: float, share: float, tmp_path: Path
) -> None:
    model = make_model(d_model=64, d_ff=256)
    whole, small = write(model, tmp_path / "whole.onnx"), write(model, tmp_path / "small.onnx", attention, weights)
    batch = TokenBatch.of([PROTEMBED.encode(sequence) for sequence in SEQUENCES.values()])
    vectors = [OnnxBackend(path, device="cpu").run(batch, [("mean", 3)])["mean", 3] for path in (small, whole)]
    assert lowest < smallest_cosine(*vectors) < 1
    assert small.stat().st_size < share * whole.stat().st_size


def test_weights_of_half_precision_stay_so(tmp_path: Path) -> None:
    model = make_model(d_model=64, d_ff=256)
    whole = write(model, tmp_path / "whole.onnx")
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    path = write(model, tmp_path / "model.onnx")
    assert worst_difference(model, path) < 1e-4
    assert path.stat().st_size < 0.6 * whole.stat().st_size
    assert OnnxFile(path).header.weights == "float32"


def test_unsigned_weights_are_the_same_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    path, batch = write(model, tmp_path / "model.onnx", weights="int8"), make_batch(model)
    results = []
    for answer in (False, True):
        monkeypatch.setattr("protembed.backends.onnx.session.saturates", lambda _, answer=answer: answer)
        results.append(OnnxBackend(path, device="cpu").run(batch, [("residues", 3)])["residues", 3])
    np.testing.assert_array_equal(*results)
    stored = onnx.load_from_string(OnnxFile(path).cut(["hidden.3"], unsigned=True)).graph.initializer
    assert {entry.data_type for entry in stored if entry.name.endswith((".int8", ".zeros"))} == {onnx.TensorProto.UINT8}


def test_eight_bits_do_not_see_their_neighbours(tmp_path: Path) -> None:
    model = make_model()
    backend = OnnxBackend(write(model, tmp_path / "model.onnx", weights="int8"), device="cpu")
    proteins = [PROTEMBED.encode(sequence) for sequence in ("MKTAYIAKQR", "WWWWWWWWWW")]
    together = backend.run(TokenBatch.of(proteins), [("mean", 3)])["mean", 3]
    alone = [backend.run(TokenBatch.of([tokens]), [("mean", 3)])["mean", 3][0] for tokens in proteins]
    np.testing.assert_array_equal(together, alone)


def test_a_cut_graph_holds_what_its_outputs_need(tmp_path: Path) -> None:
    path = write(make_model(), tmp_path / "model.onnx")
    cut = onnx.load_from_string(OnnxFile(path).cut(["hidden.1"])).graph
    weights = {entry.name for entry in cut.initializer}
    assert any("blocks.0" in name for name in weights)
    assert not any("blocks.1" in name or "mlm_head" in name for name in weights)
    assert [output.name for output in cut.output] == ["hidden.1"]
    assert len(cut.node) < len(onnx.load(path).graph.node) / 2


def test_large_models_have_a_second_file(tmp_path: Path) -> None:
    model = make_model()
    path = write(model, tmp_path / "model.onnx", largest=1000)
    assert path.stat().st_size < 30_000
    assert worst_difference(model, path) < 1e-4
    onnx.checker.check_model(str(path))
    values = onnx.numpy_helper.to_array(
        next(entry for entry in onnx.load(path).graph.initializer if entry.name == "encoder.embedding.weight")
    )
    np.testing.assert_array_equal(values, model.encoder.embedding.weight.numpy())
    data = tmp_path / "model.onnx.data"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"model\.onnx\.data: is cut short"):
        OnnxFile(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data: not there") as caught:
        OnnxFile(path)
    assert "copy both" in caught.value.hint


def alone(graph: Graph) -> Graph:
    """Put a CPU's attention for one protein in the place of the one that only CUDA has."""
    nodes = []
    for node in graph.nodes:
        if node.operator != "PackedMultiHeadAttention":
            nodes.append(node)
            continue
        rows = [f"{name}.row" for name in node.inputs[:3]]
        for name, row in zip(node.inputs, rows, strict=False):
            nodes.append(Node(operator="Unsqueeze", inputs=(name, "first"), outputs=(row,), attributes={}))
        (out,) = node.outputs
        nodes.append(replace(node, operator="MultiHeadAttention", inputs=tuple(rows), outputs=(f"{out}.row",)))
        nodes.append(Node(operator="Squeeze", inputs=(f"{out}.row", "first"), outputs=(out,), attributes={}))
    return replace(graph, nodes=nodes, weights={**graph.weights, "first": np.array([0])})


@pytest.mark.parametrize("name", ["esm2", "esm1b", "amplify", "stem"])
def test_packed_graph_but_for_its_attention(name: str) -> None:
    model = make_model("untied", **CONFIGS[name])
    tokens = model.card.alphabet.encode("MKTAYIAKQR")
    tokens[3:5] = model.card.alphabet.mask_id
    batch, wanted = TokenBatch.of([tokens]), [("residues", 3), ("residues", 0), ("pooled", 3)]
    right = TorchBackend(model).run(batch, wanted)
    graph = alone(draw(model, "packed"))
    feeds = {name: values for name, values in pack_inputs(batch).items() if name in graph.inputs}
    own = onnxruntime.InferenceSession(serialise(graph)).run(["hidden.3", "hidden.0", "pooled"], feeds)
    for values, output in zip(own, wanted, strict=True):
        np.testing.assert_allclose(values, right[output], atol=1e-5)


@pytest.mark.parametrize("name", ["esm1b", "stem"])
def test_packed_embedding_of_many_proteins(name: str, tmp_path: Path) -> None:
    model = make_model(**CONFIGS[name])
    file = OnnxFile(write(model, tmp_path / "model.onnx", "packed"))
    batch = make_batch(model)
    feeds = {name: values for name, values in pack_inputs(batch).items() if name in file.inputs}
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    (own,) = onnxruntime.InferenceSession(file.cut(["hidden.0"]), options).run(None, feeds)
    np.testing.assert_allclose(own, TorchBackend(model).run(batch, [("residues", 0)])["residues", 0], atol=1e-6)


@pytest.mark.parametrize("weights", ["float32", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_graph_follows_the_schemas(name: str, weights: Weights) -> None:
    model = serialise(draw(make_model("untied", **CONFIGS[name]), "packed", weights))
    state = onnxruntime.capi.onnxruntime_pybind11_state
    with pytest.raises(state.NotImplemented, match="PackedMultiHeadAttention"):  # types and shapes were checked before
        onnxruntime.InferenceSession(model)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no onnxruntime-gpu")
def test_packed_graph_on_a_gpu(tmp_path: Path) -> None:
    model = make_model(**CONFIGS["esm2"])
    path, batch = write(model, tmp_path / "model.onnx", "packed"), make_batch(model)
    own = OnnxBackend(path, device="cuda").run(batch, [("mean", 3)])["mean", 3]
    np.testing.assert_allclose(own, TorchBackend(model).run(batch, [("mean", 3)])["mean", 3], atol=1e-3)


def options_of(path: Path) -> ModelOptions:
    return ModelOptions(model=str(path), device="cpu", dtype="float32")


def test_export_tells_what_it_wrote(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    done = export_model(options_of(model_file), ExportOptions(out=out))
    assert done.agreement.difference < 1e-4
    assert "largest difference" in done.describe()[1]
    header = OnnxFile(out).header
    assert header.card == done.card
    assert len(header.card.sha256) == len(header.digest) == 64
    assert onnx.load(out).metadata_props[0].key == "protembed"
    small = export_model(options_of(model_file), ExportOptions(out=tmp_path / "int8.onnx", weights="int8"))
    assert "smallest cosine of mean-centred embeddings 0." in small.describe()[1]
    assert sorted(os.listdir(tmp_path)) == ["int8.onnx", "tiny.onnx"]


def test_export_keeps_nothing_that_is_wrong(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: ProteinModel) -> dict[str, Any]:
        arrays = arrays_of(model)
        return {**arrays, "encoder.final_norm.bias": arrays["encoder.final_norm.bias"] + 0.001}

    monkeypatch.setattr(export, "arrays_of", shifted)
    with pytest.raises(ModelError, match="not accurate"):
        export_model(options_of(model_file), ExportOptions(out=tmp_path / "tiny.onnx"))
    assert os.listdir(tmp_path) == []


def test_export_refuses(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_model(options_of(model_file), ExportOptions(out=out))
    with pytest.raises(OutputError, match="no such folder"):
        export_model(options_of(model_file), ExportOptions(out=tmp_path / "gone" / "tiny.onnx"))
    with pytest.raises(OutputError, match=r"ends in \.onnx"):
        ExportOptions(out=tmp_path / "tiny.bin")
    with pytest.raises(UsageError, match="plain exports only"):
        ExportOptions(weights="int8")
    with pytest.raises(UsageError, match="no int8"):
        ExportOptions(out=out, attention="packed", weights="int8")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UsageError, match="without CUDA"):
            export_model(options_of(model_file), ExportOptions(out=tmp_path / "packed.onnx", attention="packed"))
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["tiny.onnx"]


def test_export_of_an_onnx_file(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    export_model(options_of(model_file), ExportOptions(out=out))
    with pytest.raises(ModelError, match="cannot be loaded into torch"):
        export_model(options_of(out), ExportOptions(out=tmp_path / "again.onnx"))


def test_command(run: Run, model_file: Path, fasta: Path, tmp_path: Path) -> None:
    done = run("export", model_file, "-o", "tiny.onnx")
    assert done.returncode == 0, done.stderr
    assert "checked against torch" in done.stderr
    again = run("export", model_file, "-o", "tiny.onnx")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert run("models", "info", "tiny.onnx").stdout.splitlines()[1] == "name\ttiny"


@pytest.mark.parametrize("name", CONFIGS)
def test_openvino_reads_a_plain_file(name: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = make_model(**CONFIGS[name])
    path = write(model, tmp_path / "model.onnx", "plain")
    config = {"INFERENCE_PRECISION_HINT": "f32"}  # it would compute in bfloat16 where the CPU can
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    last = model.card.encoder.n_layers
    proteins: Sequence[str] = ("M", "MKTAYIAKQR", SEQUENCES["sp|P01308|INS_HUMAN"])
    for protein in proteins:
        tokens = PROTEMBED.encode(protein)
        right = TorchBackend(model).run(TokenBatch.of([tokens]), [("residues", last)])["residues", last]
        np.testing.assert_allclose(compiled({"tokens": tokens[None]})[f"hidden.{last}"][0], right, atol=1e-4)
