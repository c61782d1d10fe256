"""ESM-2, ESM-1b and ESM-1v, as Hugging Face folders and as files of fair-esm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from protembed.checkpoints.foreign.alphabets import ESM, fit
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Combine, Recipe, Table, make_rules, strip
from protembed.checkpoints.foreign.tensors import Weights
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard

TOKEN_DROPOUT = 0.15 * 0.8  # share of masked tokens in training: fixed in both implementations
_FIRST_POSITION = 2  # the rows below belong to padding; fairseq counts positions from padding_idx + 1
_FAIR_PREFIXES = ("encoder.sentence_encoder.", "encoder.", "")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one of the two implementations calls things."""

    always: Table
    positions: str
    embed_norm: str
    final_norm: str
    head: Table
    decoder: str
    contacts: str
    ignored: tuple[str, ...]
    heads: tuple[str, ...] = ()


HUGGING_FACE = Names(
    always={
        "encoder.embedding.weight": "embeddings.word_embeddings.weight",
        "encoder.blocks.*.attention_norm": "encoder.layer.*.attention.LayerNorm",
        "encoder.blocks.*.attention.qkv": (
            "encoder.layer.*.attention.self.query",
            "encoder.layer.*.attention.self.key",
            "encoder.layer.*.attention.self.value",
        ),
        "encoder.blocks.*.attention.out": "encoder.layer.*.attention.output.dense",
        "encoder.blocks.*.feed_forward_norm": "encoder.layer.*.LayerNorm",
        "encoder.blocks.*.feed_forward.up": "encoder.layer.*.intermediate.dense",
        "encoder.blocks.*.feed_forward.down": "encoder.layer.*.output.dense",
    },
    positions="embeddings.position_embeddings.weight",
    embed_norm="embeddings.layer_norm",
    final_norm="encoder.emb_layer_norm_after",
    head={
        "mlm_head.dense": "lm_head.dense",
        "mlm_head.norm": "lm_head.layer_norm",
        "mlm_head.bias": "lm_head.bias",
    },
    decoder="lm_head.decoder.weight",
    contacts="contact_head.regression",
    ignored=(
        "embeddings.position_ids",
        "*rotary_embeddings.inv_freq",
        "lm_head.decoder.bias",
        "pooler.dense.*",
    ),
    heads=("classifier.*",),
)

FAIR = Names(
    always={
        "encoder.embedding.weight": "embed_tokens.weight",
        "encoder.blocks.*.attention_norm": "layers.*.self_attn_layer_norm",
        "encoder.blocks.*.attention.qkv": (
            "layers.*.self_attn.q_proj",
            "layers.*.self_attn.k_proj",
            "layers.*.self_attn.v_proj",
        ),
        "encoder.blocks.*.attention.out": "layers.*.self_attn.out_proj",
        "encoder.blocks.*.feed_forward_norm": "layers.*.final_layer_norm",
        "encoder.blocks.*.feed_forward.up": "layers.*.fc1",
        "encoder.blocks.*.feed_forward.down": "layers.*.fc2",
    },
    positions="embed_positions.weight",
    embed_norm="emb_layer_norm_before",
    final_norm="emb_layer_norm_after",
    head={
        "mlm_head.dense": "lm_head.dense",
        "mlm_head.norm": "lm_head.layer_norm",
        "mlm_head.bias": "lm_head.bias",
    },
    decoder="lm_head.weight",
    contacts="contact_head.regression",
    ignored=("*.rot_emb.inv_freq",),
)


def is_hugging_face(source: Source) -> bool:
    """Tell an ESM folder of transformers by its configuration."""
    return source.config.get("model_type") == "esm" and not source.config.get("is_folding_model")


def is_fair(source: Source) -> bool:
    """Tell a file of fair-esm by the names of its weights."""
    return any(source.has(f"{prefix}layers.0.self_attn.q_proj.") for prefix in _FAIR_PREFIXES)


def hugging_face(source: Source, told: Told) -> Recipe:
    """Read an ESM folder of transformers."""
    position = source.config.get("position_embedding_type", "absolute")
    if position not in ("rotary", "absolute"):
        raise ModelError(f"{source.path}: positions of the kind {position!r} are not known")
    weights = strip(source.weights, "esm.")
    learned = position == "absolute"
    config = EncoderConfig(
        vocab_size=source.value("vocab_size"),
        d_model=source.value("hidden_size"),
        n_layers=source.value("num_hidden_layers"),
        n_heads=source.value("num_attention_heads"),
        d_ff=source.value("intermediate_size"),
        mask_id=fit(ESM, source.value("vocab_size"), source.vocabulary).mask_id,
        position="learned" if learned else "rotary",
        max_length=source.value("max_position_embeddings") - _FIRST_POSITION if learned else None,
        norm_eps=source.config.get("layer_norm_eps", 1e-12),
        embed_norm=bool(source.config.get("emb_layer_norm_before")),
        token_dropout=TOKEN_DROPOUT if source.config.get("token_dropout") else 0.0,
    )
    tied = source.config.get("tie_word_embeddings", True)
    return _recipe(source, weights, config, HUGGING_FACE, tied=tied, transforms={})


def fair(source: Source, told: Told) -> Recipe:
    """Read a file of fair-esm: sizes from the shapes, the rest from its options, `cfg` (ESM-2) or `args` (ESM-1)."""
    cfg: Any = source.header.get("cfg")
    args: Any = cfg.get("model") if isinstance(cfg, dict) else source.header.get("args")
    n_heads = told.n_heads or getattr(args, "encoder_attention_heads", None)
    if n_heads is None:
        raise ModelError(
            f"{source.path}: the number of attention heads is not in the file",
            hint="Give it: n_heads= in Python, --n-heads on the command line.",
        )
    weights = strip(source.weights, *_FAIR_PREFIXES)
    try:
        embedding = weights.specs["embed_tokens.weight"]
        d_ff = weights.specs["layers.0.fc1.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    layers = {name.split(".")[1] for name in weights.specs if name.startswith("layers.")}
    learned = FAIR.positions in weights.specs
    config = EncoderConfig(
        vocab_size=embedding.shape[0],
        d_model=embedding.shape[1],
        n_layers=getattr(args, "encoder_layers", len(layers)),
        n_heads=int(n_heads),
        d_ff=d_ff,
        mask_id=ESM.mask_id,
        position="learned" if learned else "rotary",
        max_length=weights.specs[FAIR.positions].shape[0] - _FIRST_POSITION if learned else None,
        embed_norm=f"{FAIR.embed_norm}.weight" in weights.specs,
        token_dropout=TOKEN_DROPOUT if getattr(args, "token_dropout", True) else 0.0,
    )
    # ESM-1b's loader clears the embedding of the mask token; it shows where the decoder's matrix is the same memory.
    decoder = weights.specs.get(FAIR.decoder)
    shared = learned and decoder is not None and decoder.address == embedding.address
    clear = {"encoder.embedding.weight": _clear_mask} if shared else {}
    return _recipe(source, weights, config, FAIR, tied=True, transforms=clear)


def _recipe(
    source: Source,
    weights: Weights,
    config: EncoderConfig,
    names: Names,
    *,
    tied: bool,
    transforms: Mapping[str, Combine],
) -> Recipe:
    """Put the table together for what this checkpoint has: positions, norms, heads."""
    table: dict[str, str | tuple[str, ...]] = {**names.always, "encoder.final_norm": names.final_norm}
    ignored = names.ignored
    if config.embed_norm:
        table["encoder.embed_norm"] = names.embed_norm
    if config.position == "learned":
        table["encoder.positions.weight"] = names.positions
    else:
        ignored = (*ignored, names.positions)
    if has_head := "lm_head.bias" in weights.specs:
        table |= names.head
        if not tied:
            table["mlm_head.weight"] = names.decoder
    if contacts := f"{names.contacts}.weight" in weights.specs:
        table["contact_head.regression"] = names.contacts
    card = ModelCard(
        name=source.name,
        encoder=config,
        alphabet=fit(ESM, config.vocab_size, source.vocabulary),
        mlm_head=MlmHeadConfig(tied=tied, norm_eps=config.norm_eps) if has_head else None,
        contact_head=contacts,
        license="MIT",
        source=str(source.path),
    )
    transforms = {"encoder.positions.weight": _cut_padding, **transforms}
    rules = make_rules(table, n_layers=config.n_layers, transforms=transforms)
    ignored = (*ignored, names.decoder) if tied else ignored
    return Recipe(card=card, weights=weights, rules=rules, ignored=ignored, heads=names.heads)


def _cut_padding(tensors: Sequence[Tensor]) -> Tensor:
    """Leave out the position rows that no token uses."""
    return tensors[0][_FIRST_POSITION:]


def _clear_mask(tensors: Sequence[Tensor]) -> Tensor:
    cleared = tensors[0].clone()
    cleared[ESM.mask_id] = 0
    return cleared
