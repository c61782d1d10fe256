"""Exported files in other hands: a batch padded to one length gives every protein what it gives alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnxruntime
import pytest

from protembed.backends.load import ModelOptions
from protembed.backends.onnx.attention import AttentionKind, padding_id
from protembed.backends.onnx.backend import pack_inputs
from protembed.backends.onnx.builder import Weights
from protembed.backends.onnx.contents import OPERATORS
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.backends.onnx.heads import output_name
from protembed.backends.onnx.writer import serialise
from protembed.backends.torch_backend import TorchBackend
from protembed.models.head_config import Design, Kind, Reads
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED, Alphabet
from protembed.sequences.batching import TokenBatch
from tests.backends.test_export import CONFIGS, alone, draw, make_model, write
from tests.backends.test_onnx_heads import DRAWN, export, protembed_model, source, write_head
from tests.conftest import SEQUENCES

Array = npt.NDArray[Any]
PROTEINS: Sequence[str] = (SEQUENCES["sp|P0CG48|UBC_HUMAN"], "MKTAYIAKQRWW", "M", "XXBZMKTAYIAKQRQISFVKSHFSRQ")

__all__ = ["source"]


def encode(alphabet: Alphabet) -> list[npt.NDArray[np.int64]]:
    """Encode natural, short and single residues, some of them masked."""
    proteins = [alphabet.encode(protein) for protein in PROTEINS]
    proteins[0][3:30:4] = alphabet.mask_id
    proteins[1][2] = alphabet.mask_id
    return proteins


def pad(proteins: Sequence[Array], padding: int) -> Array:
    """Put proteins into rows of one length, three places longer than the longest."""
    rows = np.full((len(proteins), max(map(len, proteins)) + 3), padding, dtype=np.int64)
    for row, tokens in zip(rows, proteins, strict=True):
        row[: len(tokens)] = tokens
    return rows


def in_onnxruntime(path: Path, names: Sequence[str], tokens: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(list(names), {"tokens": tokens})
    return results


def in_reference(path: Path, names: Sequence[str], tokens: Array) -> list[Array]:
    """Run a file in the program that defines what the operators of ONNX do."""
    results: list[Array] = onnx.reference.ReferenceEvaluator(onnx.load(path)).run(list(names), {"tokens": tokens})
    return results


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_equals_torch_for_every_protein(name: str, attention: AttentionKind, tmp_path: Path) -> None:
    model = make_model("untied", **CONFIGS[name])
    path = write(model, tmp_path / "model.onnx", attention)
    names = [f"hidden.{layer}" for layer in range(model.card.encoder.n_layers + 1)] + ["logits", "pooled"]
    proteins = encode(model.card.alphabet)
    runs = [in_onnxruntime] + [in_reference] * (attention == "plain")
    for run in runs:
        padded = run(path, names, pad(proteins, model.card.alphabet.pad_id))
        for row, tokens in enumerate(proteins):
            wanted = [("residues", layer) for layer in range(len(names) - 2)] + [("logits", 0), ("pooled", 0)]
            right = TorchBackend(model).run(TokenBatch.of([tokens]), wanted)
            for output, values in zip(wanted, padded, strict=True):
                own = values[row] if output[0] == "pooled" else values[row, : len(tokens)]
                own = own[..., model.card.alphabet.standard_ids] if output[0] == "logits" else own
                np.testing.assert_allclose(np.atleast_2d(own), right[output], atol=2e-5, err_msg=str(output))


@pytest.mark.parametrize("attention", ["fused", "plain"])
@pytest.mark.parametrize(("kind", "design", "reads"), DRAWN)
def test_heads_do_not_see_padding(
    source: Path, tmp_path: Path, kind: Kind, design: Design, reads: Reads | None, attention: AttentionKind
) -> None:
    head = write_head(source, tmp_path, kind, design, reads)
    path = export(source, tmp_path, head, attention=attention)
    right = TorchBackend(protembed_model(source))
    card = right.attach(head)
    proteins = encode(right.card.alphabet)
    expected = right.predict(TokenBatch.of(proteins), ["ss3"])["ss3"]
    runs = [in_onnxruntime] + [in_reference] * (attention == "plain")
    for run in runs:
        (padded,) = run(path, [output_name("ss3")], pad(proteins, right.card.alphabet.pad_id))
        for values, protein, other in zip(padded, PROTEINS, expected, strict=True):
            length = len(protein)
            own = values[:length, :length] if card.kind == "contacts" else values[:length]
            np.testing.assert_allclose(
                own if card.config.per_residue or card.kind == "contacts" else values, other, atol=5e-5
            )


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_padding_before_a_token_is_seen(attention: AttentionKind, tmp_path: Path) -> None:
    model = make_model("untied", **CONFIGS["stem"])
    path = write(model, tmp_path / "model.onnx", attention)
    tokens = pad(encode(PROTEMBED)[:3], PROTEMBED.pad_id)
    tokens[1] = np.roll(tokens[1], 2)  # as tokenizers of other models pad
    tokens[2, 2:] = PROTEMBED.pad_id
    tokens[2, 5] = tokens[2, 1]  # a hole
    names = ["hidden.0", "hidden.3", "logits", "pooled"]
    for values in in_onnxruntime(path, names, tokens):
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1:]).all()


def test_rows_of_nothing_but_padding_hurt_nobody(tmp_path: Path) -> None:
    model = make_model("untied", **CONFIGS["esm2"])
    tokens = pad(encode(PROTEMBED)[:1], PROTEMBED.pad_id)
    rows = np.concatenate((tokens, np.full_like(tokens, PROTEMBED.pad_id)))
    for attention in ("fused", "plain"):
        path = write(model, tmp_path / f"{attention}.onnx", attention)
        (values,) = in_onnxruntime(path, ["hidden.3"], rows)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values[:1], in_onnxruntime(path, ["hidden.3"], tokens)[0], atol=1e-5)


def test_packed_graphs_refuse_padding() -> None:
    model = make_model("untied", **CONFIGS["esm2"])
    graph = alone(draw(model, "packed"))
    tokens = pad(encode(PROTEMBED)[1:2], PROTEMBED.pad_id)[0]
    session = onnxruntime.InferenceSession(serialise(graph))
    for length, finite in ((len(tokens) - 3, True), (len(tokens), False)):
        inputs = pack_inputs(TokenBatch.of([tokens[:length]]))
        (values,) = session.run(["hidden.3"], {name: values for name, values in inputs.items() if name in graph.inputs})
        assert np.isfinite(values).all() == finite
        assert np.isnan(values).all() != finite


def test_eight_bits_take_one_protein_a_call(tmp_path: Path) -> None:
    path = write(make_model(), tmp_path / "model.onnx", weights="int8")
    tokens = pad(encode(PROTEMBED), PROTEMBED.pad_id)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="Got: 4 Expected: 1"):
        in_onnxruntime(path, ["hidden.3"], tokens)
    assert in_onnxruntime(path, ["hidden.3"], tokens[:1])[0].shape == (1, tokens.shape[1], 32)


def test_an_alphabet_whose_padding_is_a_letter_masks_nothing() -> None:
    assert padding_id(PROTEMBED) == 0
    assert padding_id(replace(PROTEMBED, padding="X")) == -1
    assert padding_id(replace(PROTEMBED, padding="<eos>")) == -1


@pytest.mark.parametrize(("attention", "weights"), [("fused", "float32"), ("plain", "float16"), ("fused", "int8")])
def test_a_file_says_how_it_is_run(attention: AttentionKind, weights: Weights, tmp_path: Path) -> None:
    model = make_model("untied", position="learned", max_length=100)
    doc = onnx.load(write(model, tmp_path / "model.onnx", attention, weights)).doc_string
    batch = "1" if weights == "int8" else "proteins"
    assert f"tokens int64 ({batch}, length)" in doc
    assert f"hidden.3 float32 ({batch}, length, 32): the last layer" in doc
    assert "padded with <pad> (0) behind their end" in doc
    assert "A protein is <cls> residues <eos>, at most 98 residues." in doc
    assert "<pad>=0 <mask>=1 <cls>=2 <eos>=3 A=4" in doc
    assert ("every ONNX runtime" in doc.splitlines()[0]) == (attention == "plain")
    assert ("One protein a call" in doc) == (weights == "int8")


def test_a_file_says_what_its_heads_give(source: Path, tmp_path: Path) -> None:
    heads = [write_head(source, tmp_path, *shape, task=f"t{number}") for number, shape in enumerate(DRAWN)]
    doc = onnx.load(export(source, tmp_path, *heads)).doc_string
    for number, (kind, _, _) in enumerate(DRAWN):
        assert f"  task.t{number}: {kind}; " in doc
    assert "probability = softmax(output / 1.5) over H, E, C" in doc
    assert "probability = sigmoid(output / 1.5)" in doc
    assert "value = 1 * output + 0" in doc


def test_the_bundled_model_and_its_heads_in_a_padded_batch(tmp_path: Path) -> None:
    """The file that the README's command writes, in the program that defines the operators of ONNX."""
    path = tmp_path / "model.onnx"
    options = ExportOptions(out=path, attention="plain", tasks=("all",))
    done = export_model(ModelOptions(device="cpu"), options)
    assert {entry.domain for entry in onnx.load(path).opset_import} == {""}
    header = json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["protembed"])
    names = [output_name(head["task"]) for head in header["heads"]]
    assert len(names) == 11
    proteins = [done.card.alphabet.encode(protein) for protein in ("MKTAYIAKQR", "MKWVTFISLLFLFSSAYS", "M")]
    padded = pad(proteins, done.card.alphabet.pad_id)
    for run in (in_onnxruntime, in_reference):
        together = run(path, [*names, "hidden.8", "logits"], padded)
        for row, tokens in enumerate(proteins):
            for values, apart in zip(
                together, in_onnxruntime(path, [*names, "hidden.8", "logits"], tokens[None]), strict=True
            ):
                real = tuple(slice(size) for size in apart.shape[1:])
                np.testing.assert_allclose(values[row][real], apart[0], atol=1e-4, rtol=1e-4)


def test_every_operator_that_is_drawn_is_let_through_and_no_other(source: Path, tmp_path: Path) -> None:
    heads = [write_head(source, tmp_path, *shape, task=f"t{number}") for number, shape in enumerate(DRAWN)]
    graphs = [onnx.load(export(source, tmp_path, *heads)).graph.node]
    (tmp_path / "plain").mkdir()
    graphs.append(onnx.load(export(source, tmp_path / "plain", *heads, attention="plain")).graph.node)
    drawn = {(node.domain, node.op_type) for graph in graphs for node in graph}
    models: list[ProteinModel] = [make_model("untied", **config) for config in CONFIGS.values()]
    for model in models:
        for attention in ("fused", "plain", "packed"):
            for weights in ("float32", "float16", "int8"):
                if (attention, weights) != ("packed", "int8"):
                    drawn |= {(node.domain, node.operator) for node in draw(model, attention, weights).nodes}
    assert drawn == {(domain, operator) for domain, operators in OPERATORS.items() for operator in operators}
