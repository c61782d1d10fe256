"""Foreign checkpoints that are damaged, dangerous, incomplete or of a kind that is not supported."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from protembed.checkpoints.foreign import load_foreign
from protembed.checkpoints.foreign.conversion import make_rules
from protembed.errors import ModelError, UsageError
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN

State = dict[str, Tensor]


def load(path: Path, **told: Any) -> ProteinModel:
    return load_foreign(path, device=torch.device("cpu"), **told)


@pytest.fixture
def esm(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "esm2_hf", tmp_path / "esm"))


def edit(folder: Path, change: Callable[[State], object]) -> None:
    """Change the weights of an ESM folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def nan(state: State) -> None:
    state["esm.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")


def narrow(state: State) -> None:
    name = "esm.encoder.layer.1.output.dense.weight"
    state[name] = state[name][:, :-1].clone()


def uneven(state: State) -> None:
    name = "esm.encoder.layer.1.attention.self.key.weight"
    state[name] = state[name][:, :-1].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("esm.encoder.layer.1.output.dense.weight"), "1 weights are missing.*layer.1.output"),
        (lambda state: state.update({"esm.adapter": torch.zeros(2)}), "1 weights have no place.*adapter"),
        (narrow, r"blocks.1.feed_forward.down.weight is \(48, 191\), not \(48, 192\)"),
        (uneven, r"do not fit together.*attention.self.query.weight \(48, 48\).*\(48, 47\)"),
        (nan, "blocks.1.feed_forward.down.weight holds NaN"),
        (lambda state: state.update({"encoder.emb_layer_norm_after.weight": torch.zeros(48)}), "two tensors for one"),
    ],
)
def test_weights_that_do_not_fit(esm: Path, change: Callable[[State], object], message: str) -> None:
    edit(esm, change)
    with pytest.raises(ModelError, match=message):
        load(esm)


@pytest.mark.parametrize("kept", [4, 3000, 200_000])
def test_truncated_safetensors(esm: Path, kept: int) -> None:
    os.truncate(esm / "model.safetensors", kept)
    with pytest.raises(ModelError, match="cannot be read as safetensors") as caught:
        load(esm)
    assert "complete" in caught.value.hint


@pytest.mark.parametrize("kept", [0, 3, 3000, 200_000])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_torch_file(tmp_path: Path, zipped: bool, kept: int) -> None:
    path = tmp_path / "esm.pt"
    state = load_file(GOLDEN / "esm2_hf" / "model.safetensors")
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, kept)
    with pytest.raises(ModelError, match="cannot be read as a torch checkpoint"):
        load(path)


class Malicious:
    """Pickles as a call of os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "esm.pt", tmp_path / "trace"
    torch.save({"model": Malicious(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"asks to run \w+\.mkdir") as caught:
        load(path)
    assert "nothing was run" in str(caught.value)
    assert not trace.exists()


def test_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load(tmp_path / "whole.pt")


def test_file_without_names(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(ModelError, match="holds a Tensor, not named weights"):
        load(tmp_path / "tensor.pt")


@pytest.mark.parametrize(
    ("config", "names", "kind"),
    [
        ({"model_type": "t5"}, ["shared.weight"], "T5"),
        ({}, ["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
        ({}, ["encoder.sentence_encoder.layers.0.column_self_attention.layer.q_proj.weight"], "MSA Transformer"),
        ({"model_type": "E1"}, ["model.embed_tokens.weight"], "E1"),
        ({}, ["embedder.layers.0.sequence1.0.weight"], "CARP"),
        ({"model_type": "esm", "is_folding_model": True}, ["trunk.blocks.0.x"], "ESMFold"),
    ],
)
def test_refused_by_name(tmp_path: Path, config: dict[str, Any], names: list[str], kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"this is an? {kind}") as caught:
        load(tmp_path)
    assert "ESM-2" in caught.value.hint


def test_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    save_file({"wte.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="not known") as caught:
        load(tmp_path)
    assert all(name in caught.value.hint for name in ("ESM-2", "ProteinLM", "TAPE", "ProtBert", "ESM-C", "AMPLIFY"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent")
    with pytest.raises(ModelError, match="found none"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read as JSON"), ('{"model_type": "esm"}', "vocab_size")]
)
def test_bad_configuration(esm: Path, text: str, message: str) -> None:
    (esm / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load(esm)


def test_missing_shard(esm: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (esm / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="this shard is missing"):
        load(esm)


@pytest.mark.parametrize("told", [{"variant": "tape-port"}, {"checkpoint_version": 3.0}, {"n_heads": 4}])
def test_esm_cannot_be_told_what_it_says_itself(esm: Path, told: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be told"):
        load(esm, **told)


def test_published_names_equal_those_of_transformers_5(esm: Path) -> None:
    expected = load(esm).card.sha256

    def publish(state: State) -> None:
        for name in list(state):
            new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            state[new] = state.pop(name)
        state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
        state["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 48)
        frequencies = state.pop("esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
        for layer in range(3):
            name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
            state[name] = frequencies.clone()

    edit(esm, publish)
    assert load(esm).card.sha256 == expected


def test_dtype_is_the_files_own_unless_given(esm: Path) -> None:
    assert load(GOLDEN / "proteinlm_megatron").encoder.embedding.weight.dtype == torch.float16
    model = load(esm, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.state_dict()["encoder.frequencies"].dtype == torch.float32


def test_a_table_is_written_out_by_layer() -> None:
    rules = make_rules({"a.*.b": ("x.*.q", "x.*.k"), "c.weight": "d.weight"}, n_layers=2)
    assert [rule.native for rule in rules] == ["a.0.b.weight", "a.1.b.weight", "a.0.b.bias", "a.1.b.bias", "c.weight"]
    assert rules[1].sources == ("x.1.q.weight", "x.1.k.weight")


MEASURE = """
import sys, torch
from pathlib import Path
from protembed.checkpoints.foreign import load_foreign
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
torch.set_num_threads(1)
load_foreign(Path(sys.argv[1]), device=torch.device("cpu"))
before = memory("VmRSS")
model = load_foreign(Path(sys.argv[2]), device=torch.device("cpu"), dtype=torch.float32)
weights = sum(tensor.nbytes for tensor in model.state_dict().values())
print((memory("VmHWM") - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_is_never_in_memory_twice(esm: Path) -> None:
    width, n_layers = 512, 32
    config = json.loads((esm / "config.json").read_text())
    sizes = {"hidden_size": width, "num_hidden_layers": n_layers, "intermediate_size": 4 * width}
    (esm / "config.json").write_text(json.dumps({**config, **sizes}))
    scale = {48: width, 192: 4 * width, 12: 4 * n_layers, 33: 33, 6: 6, 1: 1}
    state: State = {}
    for name, tensor in load_file(esm / "model.safetensors").items():
        shape = [scale[size] for size in tensor.shape]
        layers = range(n_layers) if ".layer.0." in name else [0] if ".layer." not in name else []
        state |= {name.replace(".layer.0.", f".layer.{layer}."): torch.zeros(shape) for layer in layers}
    save_file(state, esm / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(GOLDEN / "esm2_hf"), str(esm)]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert ratio < 1.15
