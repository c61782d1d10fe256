"""Every key of a configuration is used, known to be irrelevant, or refused by name; the same of every tensor."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from protembed.checkpoints.foreign import amplify, bert, esm, esmc, load_foreign, megatron
from protembed.checkpoints.foreign.adapter import KEYS as ADAPTER_KEYS
from protembed.checkpoints.foreign.config_keys import Keys, Only, Unused, Used, read_keys
from protembed.errors import ModelError, UsageError
from protembed.models.protein_model import ProteinModel
from tests.conftest import GOLDEN
from tests.parity.test_transformers import ESM1B, ESM2, randomise
from tests.parity.test_transformers import esm as make_esm

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
TABLES: dict[str, Keys] = {
    "esm": esm.KEYS,
    "fair-esm": esm.OPTIONS,
    "bert": bert.KEYS,
    "tape": bert.TAPE_KEYS,
    "amplify": amplify.KEYS,
    "esmc": esmc.KEYS,
    "megatron": megatron.OPTIONS,
    "adapter": ADAPTER_KEYS,
}


def load(path: Path, **told: Any) -> ProteinModel:
    return load_foreign(path, device=CPU, **told)


def write_esm(folder: Path, change: dict[str, Any], **form: Any) -> Path:
    make_esm(**{**ESM2, **form}).save_pretrained(folder)
    return edit(folder, change)


def edit(folder: Path, change: dict[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    return folder


def write_bert(folder: Path, change: dict[str, Any], kind: str = "BertForMaskedLM") -> Path:
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    original = getattr(transformers, kind)(config).eval()
    randomise(original)
    original.save_pretrained(folder)
    return edit(folder, change)


@pytest.mark.parametrize("name", TABLES)
def test_a_value_that_is_not_computed_with_is_refused_and_the_key_named(name: str) -> None:
    for key, use in TABLES[name].items():
        match use:
            case Only(values=values):
                for value in values:
                    read_keys({key: value}, TABLES[name], "config.json")
                with pytest.raises(ModelError, match=rf"^config.json: {key} is 'novel', not "):
                    read_keys({key: "novel"}, TABLES[name], "config.json")
            case Unused(reason=reason):
                assert reason
                assert read_keys({key: ["whatever"]}, TABLES[name], "config.json") == {}
            case Used():
                with pytest.raises(ModelError, match=rf"^config.json: {key}(\.a)? is "):
                    read_keys({key: {"a": [1]}}, TABLES[name], "config.json")


@pytest.mark.parametrize("off", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_key_passes_when_it_is_off_and_is_refused_when_it_is_on(off: Any) -> None:
    assert read_keys({"sliding_window": off}, esm.KEYS, "config.json") == {}
    with pytest.raises(ModelError, match=r"the key 'sliding_window' = 512 is not known.*may change what it computes"):
        read_keys({"sliding_window": 512}, esm.KEYS, "config.json")


@pytest.mark.parametrize("kind", ["EsmConfig", "BertConfig"])
def test_whatever_transformers_writes_of_its_own_passes(kind: str) -> None:
    config = getattr(transformers, kind)(vocab_size=33, id2label={0: "a"}, problem_type="regression").to_dict()
    config |= {
        "_name_or_path": "x",
        "auto_map": {"AutoModel": "y"},
        "torch_dtype": "float16",
        "transformers_version": "4",
    }
    read_keys(config, esm.KEYS if kind == "EsmConfig" else bert.KEYS, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is "),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "the key 'rope_scaling'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is said twice, and differs"),
        ({"rope_theta": "10000"}, "rope_theta is '10000', not a number"),
        ({"head_dim": 16}, "head_dim is 16, and the weights have 8"),
        ({"mask_token_id": 3}, "mask_token_id is 3, and the weights have 32"),
        ({"quantization_config": {"load_in_8bit": True}}, "this is a quantised model"),
        ({"is_folding_model": True}, "this is an ESMFold"),
        ({"esmfold_config": {"trunk": {}}}, "this is an ESMFold"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole number from 1 to 4,096"),
        ({"num_hidden_layers": 4000}, "4,000 layers|weights are missing"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": "32"}, "hidden_size is '32', not a whole number"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
        ({"token_dropout": "yes"}, "token_dropout is 'yes'"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_what_an_esm_folder_may_not_say(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(write_esm(tmp_path, change))
    assert str(tmp_path) in str(caught.value)


def test_learned_positions_begin_behind_the_row_of_padding(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pad_token_id is 0, and the weights have 1"):
        load(write_esm(tmp_path, {"pad_token_id": 0}, **ESM1B))


@pytest.mark.parametrize(
    "change", [{"use_cache": False}, {"rope_parameters": {"rope_type": "default"}}, {"vocab_list": 1}]
)
def test_what_changes_nothing_changes_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    expected = load(write_esm(tmp_path, {})).card.sha256
    assert load(edit(tmp_path, change)).card.sha256 == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'.*only GELU"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_size": 40}, "hidden_size is 40, and the weights have 32"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, and the weights have 2"),
        ({"type_vocab_size": 3}, "type_vocab_size is 3, and the weights have 2"),
        ({"num_attention_heads": 5}, "d_model 32 is not a multiple of n_heads 5"),
    ],
)
def test_what_a_bert_folder_may_not_say(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(write_bert(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"openai_gelu": True}, "openai_gelu is True"),
        ({"use_rotary_position_embeddings": True}, "use_rotary_position_embeddings"),
        ({"normalization": "RMSNorm"}, "normalization is 'RMSNorm'"),
        ({"untie_embeddings_and_output_weights": True}, "the decoder is the embedding"),
        ({"hidden_size": 64}, "hidden_size is 64, and the weights have 48"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"apply_residual_connection_post_layernorm": True}, "residual connections after the norm"),
    ],
)
def test_what_the_options_of_megatron_may_not_say(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = Path(shutil.copytree(GOLDEN / "proteinlm_megatron", tmp_path / "proteinlm"))
    file = folder / "release/mp_rank_00/model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    content["args"] = Namespace(**{**vars(content["args"]), **change})
    torch.save(content, file)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_a_number_of_heads_that_contradicts_the_file_is_refused() -> None:
    with pytest.raises(UsageError, match="has 4 attention heads, as it says itself, not 8"):
        load(GOLDEN / "proteinlm_megatron", n_heads=8)
    load(GOLDEN / "proteinlm_megatron", n_heads=4)


@pytest.mark.parametrize("ending", [".SCB", ".quant_state.bitsandbytes__nf4", ".qweight", ".weight_scale"])
def test_what_lies_beside_quantised_weights_is_refused_by_name(tmp_path: Path, ending: str) -> None:
    folder = write_esm(tmp_path, {})
    state = load_file(folder / "model.safetensors")
    state[f"esm.encoder.layer.0.output.dense{ending}"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match="is of quantised weights, which are not read"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_eight_bits_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_esm(tmp_path, {})
    state = load_file(folder / "model.safetensors")
    name = "esm.encoder.layer.0.output.dense.weight"
    state[name] = state[name].to(dtype)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"feed_forward.down.weight is stored as \w+8\w*: quantised"):
        load(folder)


def test_buffers_that_say_another_function_are_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path, {})
    state = load_file(folder / "model.safetensors")
    for name, wrong in {
        "bert.embeddings.position_ids": torch.arange(40).flip(0)[None],
        "bert.embeddings.token_type_ids": torch.ones(1, 40, dtype=torch.long),
    }.items():
        save_file({**state, name: wrong}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=f"{name.removeprefix('bert.')} is not what is computed with"):
            load(folder)
    right = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    save_file({**state, **right}, folder / "model.safetensors")
    load(folder)
