"""ProteinLM as Megatron wrote it in pretraining."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import MEGATRON, fit
from protembed.checkpoints.foreign.checkpoint import Source, Told, Variant
from protembed.checkpoints.foreign.conversion import Combine, Recipe, Table, make_rules, strip
from protembed.checkpoints.foreign.megatron_ranks import Ranks
from protembed.checkpoints.foreign.tensors import Weights
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard

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
    args: Any = source.header.get("args")
    if getattr(args, "apply_residual_connection_post_layernorm", False):
        raise ModelError(f"{source.path}: residual connections after the norm are not known")
    weights = strip(ranks, "language_model.")
    card = function(_card(source, told, weights, args), told.variant or "trained")
    config = card.encoder
    table = {**TABLE}
    ignored: tuple[str, ...] = ()
    for part, wanted in ((FINAL_NORM, config.final_norm), (HEAD, card.mlm_head is not None)):
        if wanted:
            table |= part
        else:
            ignored += tuple(f"{name}*" for name in part.values() if isinstance(name, str))
    if (copy := "word_embeddings_for_head.weight") in weights.specs:
        table["encoder.embedding.weight"] = (str(table["encoder.embedding.weight"]), copy)
    order = partial(order_rows, version=_version(source, told), n_heads=config.n_heads, parts=ranks.parts)
    transforms: dict[str, Combine] = {
        "encoder.embedding.weight": agree,
        "encoder.blocks.*.attention.qkv.weight": order,
        "encoder.blocks.*.attention.qkv.bias": order,
    }
    rules = make_rules(table, n_layers=config.n_layers, transforms=transforms)
    return Recipe(card=card, weights=weights, rules=rules, ignored=ignored)


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


def _card(source: Source, told: Told, weights: Weights, args: Any) -> ModelCard:
    """Read sizes off the shapes, and what is in no shape off the options."""
    n_heads = told.n_heads or getattr(args, "num_attention_heads", None)
    if n_heads is None:
        raise ModelError(
            f"{source.path}: the file does not say how many attention heads the model has",
            hint="Give their number: n_heads= in Python, --n-heads on the command line (ProteinLM-200M has 16).",
        )
    try:
        vocab_size, d_model = weights.specs["embedding.word_embeddings.weight"].shape
        max_length = weights.specs["embedding.position_embeddings.weight"].shape[0]
        d_ff = weights.specs["transformer.layers.0.mlp.dense_h_to_4h.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    layers = {name.split(".")[2] for name in weights.specs if name.startswith("transformer.layers.")}
    alphabet = fit(MEGATRON, vocab_size)
    fused = getattr(args, "bias_gelu_fusion", True) or getattr(args, "openai_gelu", False)
    config = EncoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=getattr(args, "num_layers", len(layers)),
        n_heads=int(n_heads),
        d_ff=d_ff,
        mask_id=alphabet.mask_id,
        position="learned",
        max_length=max_length,
        norm_eps=getattr(args, "layernorm_epsilon", _EPS),
        activation="gelu_tanh" if fused else "gelu",  # the fused kernel approximates by tanh
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
    return float(source.header.get("checkpoint_version", 0.0))
