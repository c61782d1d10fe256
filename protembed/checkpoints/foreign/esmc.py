"""ESM Cambrian (ESM-C), as its authors' state dictionaries."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from protembed.checkpoints.foreign.alphabets import ESMC, fit
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Combine, Recipe, Table, make_rules
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard
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

_DEPTH = 36  # residual branches are divided by sqrt(n_layers / 36)


def is_esmc(source: Source) -> bool:
    """Tell ESM-C by the names of its weights."""
    return source.has("transformer.blocks.0.attn.layernorm_qkv.")


def esmc(source: Source, told: Told) -> Recipe:
    """Read ESM-C: sizes from the shapes, the number of heads from the width or from config.json."""
    alphabet = fit(ESMC, source.shape("embed.weight")[0])
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
    return Recipe(card=card, weights=source.weights, rules=rules)


def _config(source: Source, told: Told, alphabet: Alphabet) -> EncoderConfig:
    vocab_size, d_model = source.shape("embed.weight")
    n_heads = told.n_heads or source.config.get("n_heads") or HEADS.get(d_model)
    if n_heads is None:
        raise ModelError(
            f"{source.path}: no published ESM-C is {d_model} wide, and the number of heads is not in the file",
            hint="Give it: n_heads= in Python, --n-heads on the command line.",
        )
    layers = {name.split(".")[2] for name in source.weights.specs if name.startswith("transformer.blocks.")}
    return EncoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=len(layers),
        n_heads=int(n_heads),
        d_ff=source.shape("transformer.blocks.0.ffn.3.weight")[1],
        mask_id=alphabet.mask_id,
        qk_norm=True,
        activation="swiglu",
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
