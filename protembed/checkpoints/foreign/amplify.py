"""AMPLIFY, as a Hugging Face folder."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import AMPLIFY, fit
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Recipe, Table, make_rules
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard

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
_PUBLISHED = {
    "rms_norm": True,
    "hidden_act": "SwiGLU",
    "att_bias": False,
    "ffn_bias": False,
    "layer_norm_after_embedding": False,
    "layer_norm_before_last_layer": True,
}


def is_amplify(source: Source) -> bool:
    """Tell AMPLIFY by its configuration."""
    return str(source.config.get("model_type", "")).upper() == "AMPLIFY"


def amplify(source: Source, told: Told) -> Recipe:
    """Read AMPLIFY in the form of the published models; its code computes rotary angles up to max_length."""
    for key, value in _PUBLISHED.items():
        if source.config.get(key, value) != value:
            raise ModelError(f"{source.path}: an AMPLIFY with {key} = {source.config[key]!r} is not known")
    vocab_size = source.value("vocab_size")
    alphabet = fit(AMPLIFY, vocab_size, source.vocabulary)
    config = EncoderConfig(
        vocab_size=vocab_size,
        d_model=source.value("hidden_size"),
        n_layers=source.value("num_hidden_layers"),
        n_heads=source.value("num_attention_heads"),
        d_ff=source.shape("transformer_encoder.0.ffn.w3.weight")[1],
        mask_id=alphabet.mask_id,
        max_length=source.config.get("max_length"),
        norm="rmsnorm",
        norm_eps=source.config.get("norm_eps", 1e-5),
        activation="swiglu",
        bias=False,
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
    return Recipe(card=card, weights=source.weights, rules=rules, ignored=("freqs_cis",))


def to_halves(tensors: Sequence[Tensor], *, n_heads: int) -> Tensor:
    """Fuse q, k and v, with the rows of q and k reordered from rotary pairs side by side to pairs half a head apart."""
    q, k = (torch.unflatten(x, 0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2) for x in tensors[:2])
    return torch.cat((q, k, tensors[2]))
