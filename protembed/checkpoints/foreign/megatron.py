"""ProteinLM as Megatron wrote it in pretraining."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import MEGATRON
from protembed.checkpoints.foreign.checkpoint import Source, Told, Variant, number_of_heads
from protembed.checkpoints.foreign.config_keys import Keys, Only, Used, agree_with
from protembed.checkpoints.foreign.conversion import Combine, Leftover, Recipe, Table, make_rules, strip
from protembed.checkpoints.foreign.megatron_ranks import Ranks
from protembed.checkpoints.foreign.tensors import Weights, count_layers
from protembed.errors import ModelError
from protembed.models.config import Epsilon, Layers, MlmHeadConfig, ModelCard, Width
from protembed.schema import Between, said

TABLE: Table = {
    "encoder.embedding.weight": "embedding.word_embeddings.weight",
    "encoder.positions.weight": "embedding.position_embeddings.weight",
    "encoder.blocks.*.attention_norm": "transformer.layers.*.input_layernorm",
    "encoder.blocks.*.attention.qkv": "transformer.layers.*.attention.query_key_value",
    "encoder.blocks.*.attention.out": "transformer.layers.*.attention.dense",
    "encoder.blocks.*.feed_forward_norm": "transformer.layers.*.post_attention_layernorm",
    "encoder.blocks.*.feed_forward.up": "transformer.layers.*.mlp.dense_h_to_4h",
    "encoder.blocks.*.feed_forward.down": "transformer.layers.*.mlp.dense_4h_to_h",
}
FINAL_NORM: Table = {"encoder.final_norm": "transformer.final_layernorm"}
HEAD: Table = {
    "mlm_head.dense": "lm_head.dense",
    "mlm_head.norm": "lm_head.layernorm",
    "mlm_head.bias": "lm_head.bias",
}
_EPS = 1e-12
_PADDED_TO = 128  # rows of the embedding are a multiple of so many a tensor-parallel part

OPTIONS: Keys = {
    "num_layers": Used(Layers),
    "hidden_size": Used(Width),
    "num_attention_heads": Used(Layers),
    "ffn_hidden_size": Used(Width | None),
    "max_position_embeddings": Used(Annotated[int, Between(1, 2**24)]),
    "make_vocab_size_divisible_by": Used(Annotated[int, Between(1, 2**20)]),
    "layernorm_epsilon": Used(Epsilon),
    "bias_gelu_fusion": Used(bool | None),
    "kv_channels": Used(Width | None),
    "apply_residual_connection_post_layernorm": Only((False, None), "residual connections after the norm"),
    "openai_gelu": Only((False, None), "its GELU is another in the head of the language model, too"),
    # Of later versions of Megatron.
    "position_embedding_type": Only(("learned_absolute", None), "positions are learned"),
    "use_rotary_position_embeddings": Only((False, None), "positions are learned"),
    "normalization": Only(("LayerNorm", None), "norms are layer norms"),
    "apply_layernorm_1p": Only((False, None), "gains are as they are stored"),
    "add_bias_linear": Only((True, None), "all layers have biases"),
    "untie_embeddings_and_output_weights": Only((False, None), "the decoder is the embedding"),
    "swiglu": Only((False, None), "activations are GELU"),
    "squared_relu": Only((False, None), "activations are GELU"),
    "group_query_attention": Only((False, None), "every head has keys of its own"),
    "multi_query_attention": Only((False, None), "every head has keys of its own"),
    "qk_layernorm": Only((False, None), "queries and keys are not normalised"),
    "num_experts": Only((None,), "there are no experts"),
}
"""What is made of the options of a run, of which most are of training; these change the function."""


def is_megatron(source: Source) -> bool:
    """Tell a Megatron checkpoint by the names of its weights."""
    return source.has("language_model.")


def function(card: ModelCard, variant: Variant) -> ModelCard:
    """Make the card of what was trained compute what the fine-tuning code computes with the same weights, if asked to.

    `trained`: no end token. `tape-port`: GELU by erf, no final norm, an end token, and the first token's state as the
    vector of the protein; no masked-language-model head was trained for these states.
    """
    if variant == "trained":
        return replace(card, alphabet=replace(card.alphabet, end=None))
    encoder = replace(card.encoder, activation="gelu", final_norm=False)
    return replace(card, encoder=encoder, mlm_head=None, pooler="first")


def megatron(source: Source, told: Told) -> Recipe:
    """Read a checkpoint of ProteinLM's pretraining; its options are in it, as `args`, unless a tool left them out."""
    ranks = source.weights if isinstance(source.weights, Ranks) else Ranks.alone(source.weights)
    options = source.options(OPTIONS) or {}
    weights = strip(ranks, "language_model.")
    card = function(_card(source, told, weights, options, ranks.parts), told.variant or "trained")
    config = card.encoder
    table = {**TABLE}
    leftovers: list[Leftover] = []
    for part, wanted in ((FINAL_NORM, config.final_norm), (HEAD, card.mlm_head is not None)):
        if wanted:
            table |= part
        else:
            reason = "the function of the fine-tuning code does not run it"
            leftovers += [Leftover(f"{name}*", reason) for name in part.values() if isinstance(name, str)]
    if (copy := "word_embeddings_for_head.weight") in weights.specs:
        table["encoder.embedding.weight"] = (str(table["encoder.embedding.weight"]), copy)
    order = partial(order_rows, version=_version(source, told), n_heads=config.n_heads, parts=ranks.parts)
    transforms: dict[str, Combine] = {
        "encoder.embedding.weight": agree,
        "encoder.blocks.*.attention.qkv.weight": order,
        "encoder.blocks.*.attention.qkv.bias": order,
    }
    rules = make_rules(table, n_layers=config.n_layers, transforms=transforms)
    return Recipe(card=card, weights=weights, rules=rules, leftovers=tuple(leftovers))


def order_rows(tensors: Sequence[Tensor], *, version: float, n_heads: int, parts: int) -> Tensor:
    """Bring the rows of query, key and value into the order [3, heads, head_dim], from the one of the file's version.

    Before version 1 every tensor-parallel part is [3, its heads, head_dim]; 1: [heads, head_dim, 3]; from 2 on:
    [heads, 3, head_dim].
    """
    rows = tensors[0]
    if version < 1:
        return torch.unflatten(rows, 0, (parts, 3, n_heads // parts, -1)).transpose(0, 1).flatten(0, 3)
    if version < 2:
        return torch.unflatten(rows, 0, (n_heads, -1, 3)).movedim(2, 0).flatten(0, 2)
    return torch.unflatten(rows, 0, (n_heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def agree(tensors: Sequence[Tensor]) -> Tensor:
    """Take the first of several copies of one tensor, which must be equal."""
    if any(not tensor.equal(tensors[0]) for tensor in tensors):
        raise ModelError(
            "the first and the last pipeline stage hold different word embeddings",
            hint="The stages do not come from one checkpoint.",
        )
    return tensors[0]


def _card(source: Source, told: Told, weights: Weights, options: Mapping[str, Any], parts: int) -> ModelCard:
    """Read sizes off the shapes, and what is in no shape off the options."""
    try:
        vocab_size, d_model = weights.specs["embedding.word_embeddings.weight"].shape
        max_length = weights.specs["embedding.position_embeddings.weight"].shape[0]
        d_ff = weights.specs["transformer.layers.0.mlp.dense_h_to_4h.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    n_layers = count_layers(weights, "transformer.layers.")
    n_heads = number_of_heads(source, told, options.get("num_attention_heads"), example=" (ProteinLM-200M has 16)")
    stated = {"num_layers": n_layers, "hidden_size": d_model, "ffn_hidden_size": d_ff}
    stated |= {"max_position_embeddings": max_length, "kv_channels": d_model // max(1, n_heads)}
    agree_with(options, stated, f"{source.path}: its options")
    padding = options.get("make_vocab_size_divisible_by", _PADDED_TO) * parts
    padded = {-(-len(MEGATRON) // padding) * padding, *range(_PADDED_TO, 8 * _PADDED_TO + 1, _PADDED_TO)}
    alphabet = source.alphabet(MEGATRON, vocab_size, padded=sorted(padded), named=False)
    config = source.encoder(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        mask_id=alphabet.mask_id,
        position="learned",
        max_length=max_length,
        norm_eps=options.get("layernorm_epsilon", _EPS),
        activation="gelu" if options.get("bias_gelu_fusion") is False else "gelu_tanh",  # the fused kernel: by tanh
    )
    return ModelCard(
        name=source.name,
        encoder=config,
        alphabet=alphabet,
        mlm_head=MlmHeadConfig(norm_eps=config.norm_eps) if "lm_head.bias" in weights.specs else None,
        license="Apache-2.0",
        source=str(source.path),
    )


def _version(source: Source, told: Told) -> float:
    """Return the version that says how the fused rows lie: as told, as written, else 0 as Megatron takes it."""
    if told.checkpoint_version is not None:
        return told.checkpoint_version
    if "args" not in source.header and "checkpoint_version" not in source.header:
        warnings.warn(
            f"{source.path}: the file says neither its version nor its options, and is read as version 0. Files of "
            "ProteinLM's merge tool look like this and are of version 3: checkpoint_version=3.0 (Python) or "
            "--checkpoint-version 3.0. With a wrong version masked residues are predicted no better than by chance.",
            stacklevel=5,
        )
    version = source.header.get("checkpoint_version", 0.0)
    if not isinstance(version, int | float) or not 0 <= version < 100:
        raise ModelError(f"{source.path}: checkpoint_version is {said(version)}, not a version of Megatron")
    return float(version)
