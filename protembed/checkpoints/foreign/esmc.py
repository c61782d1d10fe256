"""ESM Cambrian (ESM-C), as its authors' state dictionaries."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import ESMC
from protembed.checkpoints.foreign.checkpoint import Source, Told, number_of_heads
from protembed.checkpoints.foreign.config_keys import Keys, Used, agree_with, unused
from protembed.checkpoints.foreign.conversion import Combine, Recipe, Table, make_rules
from protembed.checkpoints.foreign.rotary import formula_rule
from protembed.checkpoints.foreign.tensors import count_layers
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, Layers, MlmHeadConfig, ModelCard, Width
from protembed.sequences.alphabet import Alphabet

TABLE: Table = {
    "encoder.embedding.weight": "embed.weight",
    "encoder.blocks.*.attention_norm": "transformer.blocks.*.attn.layernorm_qkv.0",
    "encoder.blocks.*.attention.qkv.weight": "transformer.blocks.*.attn.layernorm_qkv.1.weight",
    "encoder.blocks.*.attention.q_norm.weight": "transformer.blocks.*.attn.q_ln.weight",
    "encoder.blocks.*.attention.k_norm.weight": "transformer.blocks.*.attn.k_ln.weight",
    "encoder.blocks.*.attention.out.weight": "transformer.blocks.*.attn.out_proj.weight",
    "encoder.blocks.*.feed_forward_norm": "transformer.blocks.*.ffn.0",
    "encoder.blocks.*.feed_forward.up.weight": "transformer.blocks.*.ffn.1.weight",
    "encoder.blocks.*.feed_forward.down.weight": "transformer.blocks.*.ffn.3.weight",
    "encoder.final_norm.weight": "transformer.norm.weight",
}
HEAD: Table = {
    "mlm_head.dense": "sequence_head.0",
    "mlm_head.norm": "sequence_head.2",
    "mlm_head.weight": "sequence_head.3.weight",
    "mlm_head.bias": "sequence_head.3.bias",
}
HEADS = {960: 15, 1152: 18}
"""Width to number of heads of the two published models."""
LICENSES = {960: "Cambrian Open", 1152: "Cambrian Non-Commercial"}

_ROWS = 64  # the embedding is padded to so many

_DEPTH = 36  # residual branches are divided by sqrt(n_layers / 36)


KEYS: Keys = {
    "d_model": Used(Width),
    "n_layers": Used(Layers),
    "n_heads": Used(Layers),
    "ffn_hidden": Used(Width),
    "residual_scale": Used(float),
    "vocab": Used(tuple[str, ...]),
    **unused("says where the files come from", "model_type", "architectures", "auto_map", "transformers_version"),
}
"""What is made of the keys of a config.json beside the weights; that of the published models is empty."""


def is_esmc(source: Source) -> bool:
    """Tell ESM-C by the names of its weights."""
    return source.has("transformer.blocks.0.attn.layernorm_qkv.")


def esmc(source: Source, told: Told) -> Recipe:
    """Read ESM-C: sizes from the shapes, the number of heads from the width or from config.json."""
    alphabet = source.alphabet(ESMC, source.shape("embed.weight")[0], padded=(_ROWS,), named=False)
    config = _config(source, told, alphabet)
    has_head = source.has("sequence_head.")
    card = ModelCard(
        name=source.name,
        encoder=config,
        alphabet=alphabet,
        mlm_head=MlmHeadConfig(tied=False) if has_head else None,
        license=LICENSES.get(config.d_model, ""),
        source=str(source.path),
    )
    zeros = _zero_biases(config)
    fold = partial(scale, factor=(config.n_layers / _DEPTH) ** -0.5)
    transforms: dict[str, Combine] = {
        **zeros,
        "encoder.blocks.*.attention.out.weight": fold,
        "encoder.blocks.*.feed_forward.down.weight": fold,
    }
    table: Table = {**TABLE, **dict.fromkeys(zeros, ()), **(HEAD if has_head else {})}
    rules = make_rules(table, n_layers=config.n_layers, transforms=transforms)
    rotary = formula_rule(config.d_model // config.n_heads)
    return Recipe(card=card, weights=source.weights, rules=(*rules, rotary))


def _config(source: Source, told: Told, alphabet: Alphabet) -> EncoderConfig:
    settings, place = source.settings(KEYS), source.config_place
    try:
        vocab_size, d_model = source.shape("embed.weight")
        d_ff = source.shape("transformer.blocks.0.ffn.3.weight")[1]
    except (ValueError, IndexError) as error:
        raise ModelError(f"{source.path}: its embedding or first layer is no matrix") from error
    n_layers = count_layers(source.weights, "transformer.blocks.")
    agree_with(settings, {"d_model": d_model, "n_layers": n_layers, "ffn_hidden": d_ff}, place)
    residual = (n_layers / _DEPTH) ** 0.5
    if abs(settings.get("residual_scale", residual) - residual) > 1e-6 * residual:
        raise ModelError(f"{place}: residual_scale is {settings['residual_scale']}, not {residual}, as ESM-C has it")
    if settings.get("vocab", ESMC.tokens) != ESMC.tokens:
        raise ModelError(f"{place}: vocab is not that of ESM-C")
    stated = settings.get("n_heads")
    return source.encoder(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=number_of_heads(source, told, stated if told.n_heads else stated or HEADS.get(d_model)),
        d_ff=d_ff,
        mask_id=alphabet.mask_id,
        qk_norm=True,
        activation="swiglu",
        frequencies=1,
    )


def scale(tensors: Sequence[Tensor], *, factor: float) -> Tensor:
    """Multiply, in float32 at least."""
    tensor = tensors[0]
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor


def _zero_biases(config: EncoderConfig) -> Mapping[str, Combine]:
    """The biases that ESM-C does not have; it has some, so the encoder has them all."""
    d_model, d_ff = config.d_model, config.d_ff
    sizes = {
        "encoder.blocks.*.attention.qkv.bias": 3 * d_model,
        "encoder.blocks.*.attention.q_norm.bias": d_model,
        "encoder.blocks.*.attention.k_norm.bias": d_model,
        "encoder.blocks.*.attention.out.bias": d_model,
        "encoder.blocks.*.feed_forward.up.bias": 2 * d_ff,
        "encoder.blocks.*.feed_forward.down.bias": d_model,
        "encoder.final_norm.bias": d_model,
    }
    return {name: partial(_zeros, size=size) for name, size in sizes.items()}


def _zeros(tensors: Sequence[Tensor], *, size: int) -> Tensor:
    return torch.zeros(size)
