"""AMPLIFY, as a Hugging Face folder."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import AMPLIFY
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.config_keys import TRANSFORMERS, Keys, Only, Used, require, unused
from protembed.checkpoints.foreign.conversion import Leftover, Recipe, Table, make_rules
from protembed.checkpoints.foreign.rotary import by_formula, formula_rule
from protembed.models.config import Epsilon, Layers, MlmHeadConfig, ModelCard, Rows, Width
from protembed.schema import Between

TABLE: Table = {
    "encoder.embedding.weight": "encoder.weight",
    "encoder.blocks.*.attention_norm.weight": "transformer_encoder.*.attention_norm.weight",
    "encoder.blocks.*.attention.qkv.weight": (
        "transformer_encoder.*.q.weight",
        "transformer_encoder.*.k.weight",
        "transformer_encoder.*.v.weight",
    ),
    "encoder.blocks.*.attention.out.weight": "transformer_encoder.*.wo.weight",
    "encoder.blocks.*.feed_forward_norm.weight": "transformer_encoder.*.ffn_norm.weight",
    "encoder.blocks.*.feed_forward.up.weight": "transformer_encoder.*.ffn.w12.weight",
    "encoder.blocks.*.feed_forward.down.weight": "transformer_encoder.*.ffn.w3.weight",
    "encoder.final_norm.weight": "layer_norm_2.weight",
    "mlm_head.weight": "decoder.weight",
    "mlm_head.bias": "decoder.bias",
}
KEYS: Keys = {
    **TRANSFORMERS,
    "vocab_size": Used(Rows),
    "hidden_size": Used(Width),
    "num_hidden_layers": Used(Layers),
    "num_attention_heads": Used(Layers),
    "max_length": Used(Annotated[int, Between(1, 2**24)]),
    "norm_eps": Used(Epsilon),
    "rms_norm": Only((True,), "the published models normalise by the root mean square"),
    "hidden_act": Only(("SwiGLU", "swiglu"), "the published models have SwiGLU"),
    "att_bias": Only((False,), "the published models have no biases"),
    "ffn_bias": Only((False,), "the published models have no biases"),
    "layer_norm_after_embedding": Only((False,), "the published models have no norm there"),
    "layer_norm_before_last_layer": Only((True,), "the published models have a norm there"),
    **unused("is of training alone", "dropout_prob", "embedding_init_range", "decoder_init_range"),
    **unused("its decoder is its own, whatever transformers writes here", "tie_word_embeddings"),
    **unused("the shapes say it: two thirds of it, rounded up", "intermediate_size"),
    **unused("names rows that the vocabulary names", "other_special_token_ids", "ambiguous_token_ids"),
}
"""What is made of the keys of config.json; absent ones stand for the published value."""


def is_amplify(source: Source) -> bool:
    """Tell AMPLIFY by its configuration."""
    return str(source.config.get("model_type", "")).upper() == "AMPLIFY"


def amplify(source: Source, told: Told) -> Recipe:
    """Read AMPLIFY in the form of the published models; its code computes rotary angles up to max_length."""
    settings, place = source.settings(KEYS), source.config_place
    vocab_size = require(settings, "vocab_size", place)
    alphabet = source.alphabet(AMPLIFY, vocab_size)
    config = source.encoder(
        vocab_size=vocab_size,
        d_model=require(settings, "hidden_size", place),
        n_layers=require(settings, "num_hidden_layers", place),
        n_heads=require(settings, "num_attention_heads", place),
        d_ff=source.shape("transformer_encoder.0.ffn.w3.weight")[-1],
        mask_id=alphabet.mask_id,
        max_length=settings.get("max_length"),
        norm="rmsnorm",
        norm_eps=settings.get("norm_eps", 1e-5),
        activation="swiglu",
        bias=False,
        frequencies=1,
    )
    card = ModelCard(
        name=source.name,
        encoder=config,
        alphabet=alphabet,
        mlm_head=MlmHeadConfig(transform=False, tied=False),
        license="MIT",
        source=str(source.path),
    )
    halves = {"encoder.blocks.*.attention.qkv.weight": partial(to_halves, n_heads=config.n_heads)}
    rules = make_rules(TABLE, n_layers=config.n_layers, transforms=halves)
    head_dim = config.d_model // config.n_heads
    rotary = Leftover("freqs_cis", "its angles follow from the formula", partial(_is_turn, head_dim=head_dim))
    return Recipe(card=card, weights=source.weights, rules=(*rules, formula_rule(head_dim)), leftovers=(rotary,))


def _is_turn(tensor: Tensor, *, head_dim: int) -> bool:
    """Tell whether a buffer of complex numbers (positions, head_dim / 2) holds the turns that are computed with."""
    angles = torch.arange(len(tensor)).float().outer(by_formula(head_dim))
    turns = torch.polar(torch.ones_like(angles), angles)
    return tensor.shape == turns.shape and torch.allclose(tensor.to(turns.dtype), turns, rtol=0, atol=1e-6)


def to_halves(tensors: Sequence[Tensor], *, n_heads: int) -> Tensor:
    """Fuse q, k and v, with the rows of q and k reordered from rotary pairs side by side to pairs half a head apart."""
    q, k = (torch.unflatten(x, 0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2) for x in tensors[:2])
    return torch.cat((q, k, tensors[2]))
