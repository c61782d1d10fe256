"""ESM-2, ESM-1b and ESM-1v, as Hugging Face folders and as files of fair-esm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor

from protembed.checkpoints.foreign.alphabets import ESM
from protembed.checkpoints.foreign.checkpoint import Source, Told, number_of_heads
from protembed.checkpoints.foreign.config_keys import (
    TRANSFORMERS,
    Keys,
    Only,
    Unused,
    Used,
    agree_with,
    require,
    rope_theta,
)
from protembed.checkpoints.foreign.conversion import Combine, Leftover, Recipe, Rule, Table, agree, make_rules, strip
from protembed.checkpoints.foreign.rotary import stored_rule
from protembed.checkpoints.foreign.tensors import Weights, count_layers, is_equal
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, Epsilon, Layers, MlmHeadConfig, ModelCard, Rows, Width
from protembed.schema import Between
from protembed.sequences.alphabet import Alphabet

TOKEN_DROPOUT = 0.15 * 0.8  # share of masked tokens in training: fixed in both implementations
_FIRST_POSITION = 2  # the rows below belong to padding; fairseq counts positions from padding_idx + 1
_FAIR_PREFIXES = ("encoder.sentence_encoder.", "encoder.", "")

KEYS: Keys = {
    **TRANSFORMERS,
    "vocab_size": Used(Rows),
    "hidden_size": Used(Width),
    "num_hidden_layers": Used(Layers),
    "num_attention_heads": Used(Layers),
    "intermediate_size": Used(Width),
    "max_position_embeddings": Used(Annotated[int, Between(1, 2**24)]),
    "layer_norm_eps": Used(Epsilon),
    "position_embedding_type": Used(Literal["rotary", "absolute"]),
    "emb_layer_norm_before": Used(bool | None),
    "token_dropout": Used(bool | None),
    "tie_word_embeddings": Used(bool | None),
    "rope_theta": Used(Annotated[float, Between(1, 1e12)]),
    "rope_parameters": Used(Mapping[str, float | str] | None),
    "head_dim": Used(Width | None),
    "mask_token_id": Used(int | None),
    "pad_token_id": Used(int | None),
    "hidden_act": Only(("gelu", None), "ESM computes GELU"),
    "is_folding_model": Only((False, None), "ESMFold predicts structures"),
    "esmfold_config": Only((None,), "ESMFold predicts structures"),
    "vocab_list": Unused("is of ESMFold, and names the rows that vocab.txt names"),
}
"""What is made of the keys of config.json."""

OPTIONS: Keys = {
    **dict.fromkeys(("encoder_layers", "layers", "encoder_attention_heads", "attention_heads"), Used(Layers)),
    **dict.fromkeys(("encoder_embed_dim", "embed_dim", "encoder_ffn_embed_dim", "ffn_embed_dim"), Used(Width)),
    "max_positions": Used(Annotated[int, Between(1, 2**24)]),
    "token_dropout": Used(bool | None),
}
"""What is made of the options in a file of fair-esm, which itself reads no others."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one of the two implementations calls things."""

    always: Table
    positions: str
    embed_norm: str
    final_norm: str
    decoder: str
    frequencies: str
    shared_frequencies: tuple[str, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    heads: tuple[str, ...] = ()

    @property
    def embedding(self) -> str:
        return str(self.always["encoder.embedding.weight"])


HEAD: Table = {
    "mlm_head.dense": "lm_head.dense",
    "mlm_head.norm": "lm_head.layer_norm",
    "mlm_head.bias": "lm_head.bias",
}
CONTACTS = "contact_head.regression"

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
    decoder="lm_head.decoder.weight",
    frequencies="encoder.layer.{}.attention.self.rotary_embeddings.inv_freq",
    # transformers 5 has one buffer for all layers, and writes a star where the number of a layer was.
    shared_frequencies=("encoder.layer.*.attention.self.rotary_embeddings.inv_freq", "rotary_embeddings.inv_freq"),
    leftovers=(
        Leftover("embeddings.position_ids", "positions are counted from the tokens"),
        Leftover("pooler.dense.*", "hidden states do not go through it"),
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
    decoder="lm_head.weight",
    frequencies="layers.{}.self_attn.rot_emb.inv_freq",
)


def is_hugging_face(source: Source) -> bool:
    """Tell an ESM folder of transformers by its configuration."""
    return source.config.get("model_type") == "esm" and not source.config.get("is_folding_model")


def is_fair(source: Source) -> bool:
    """Tell a file of fair-esm by the names of its weights."""
    return any(source.has(f"{prefix}layers.0.self_attn.q_proj.") for prefix in _FAIR_PREFIXES)


def hugging_face(source: Source, told: Told) -> Recipe:
    """Read an ESM folder of transformers."""
    settings, place = source.settings(KEYS), source.config_place
    weights = strip(source.weights, "esm.")
    learned = settings.get("position_embedding_type", "absolute") == "absolute"
    alphabet = source.alphabet(ESM, require(settings, "vocab_size", place))
    d_model, n_heads = (require(settings, name, place) for name in ("hidden_size", "num_attention_heads"))
    agree_with(settings, {"head_dim": d_model // n_heads}, place)
    if settings.get("token_dropout"):
        agree_with(settings, {"mask_token_id": alphabet.mask_id}, place)
    if learned:  # positions are counted from the row of the padding token on
        agree_with(settings, {"pad_token_id": _FIRST_POSITION - 1}, place)
    limit = settings.get("max_position_embeddings", 1026)
    config = {
        "d_model": d_model,
        "n_layers": require(settings, "num_hidden_layers", place),
        "n_heads": n_heads,
        "d_ff": require(settings, "intermediate_size", place),
        "position": "learned" if learned else "rotary",
        "max_length": limit - _FIRST_POSITION if learned else None,
        "norm_eps": settings.get("layer_norm_eps", 1e-12),
        "embed_norm": bool(settings.get("emb_layer_norm_before")),
        "token_dropout": TOKEN_DROPOUT if settings.get("token_dropout") else 0.0,
    }
    has_decoder = HUGGING_FACE.decoder in weights.specs
    tied = settings.get("tie_word_embeddings") is not False
    if tied and has_decoder:  # if it differs, transformers 5 computes with it, whatever is said
        tied = is_equal(weights, HUGGING_FACE.decoder, HUGGING_FACE.embedding)
    table: dict[str, str | tuple[str, ...]] = {}
    if "lm_head.decoder.bias" in weights.specs:
        table["mlm_head.bias"] = ("lm_head.bias", "lm_head.decoder.bias")
    form = _Form(names=HUGGING_FACE, table=table, tied=tied, theta=rope_theta(settings, place))
    return form.recipe(source, weights, alphabet, config, {"mlm_head.bias": agree} if table else {})


def fair(source: Source, told: Told) -> Recipe:
    """Read a file of fair-esm: sizes from the shapes, the rest from its options, `cfg` (ESM-2) or `args` (ESM-1)."""
    options = source.options(OPTIONS)
    weights, said = strip(source.weights, *_FAIR_PREFIXES), options or {}
    try:
        embedding = weights.specs[FAIR.embedding]
        d_ff = weights.specs["layers.0.fc1.weight"].shape[0]
        rows, d_model = embedding.shape
        positions = weights.specs[FAIR.positions].shape[0] if FAIR.positions in weights.specs else None
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    n_layers = count_layers(weights, "layers.")
    sizes = {"layers": n_layers, "embed_dim": d_model, "ffn_embed_dim": d_ff}
    sizes |= {f"encoder_{name}": size for name, size in sizes.items()}
    sizes |= {"max_positions": positions - _FIRST_POSITION} if positions is not None else {}
    agree_with(said, sizes, f"{source.path}: its options")
    config = {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": number_of_heads(source, told, said.get("encoder_attention_heads", said.get("attention_heads"))),
        "d_ff": d_ff,
        "position": "rotary" if positions is None else "learned",
        "max_length": None if positions is None else positions - _FIRST_POSITION,
        "embed_norm": f"{FAIR.embed_norm}.weight" in weights.specs,
        # A state dictionary without options is taken for one of the published models, all of which have it.
        "token_dropout": TOKEN_DROPOUT if options is None or said.get("token_dropout") else 0.0,
    }
    table, transforms, leftovers = _fair_embedding(weights, learned=positions is not None)
    form = _Form(names=FAIR, table=table, tied=True, theta=10_000.0, leftovers=leftovers)
    return form.recipe(source, weights, source.alphabet(ESM, rows), config, transforms)


def _fair_embedding(
    weights: Weights, *, learned: bool
) -> tuple[dict[str, str | tuple[str, ...]], Mapping[str, Combine], tuple[Leftover, ...]]:
    """Tell where fair-esm has the embedding from, in the order in which it loads: the decoder is the same parameter.

    ESM-1b's loader clears the row of the mask token first; that lasts where the file holds both as the same memory.
    """
    decoder = weights.specs.get(FAIR.decoder)
    if decoder is None or decoder.address == weights.specs[FAIR.embedding].address:
        return {}, {"encoder.embedding.weight": _clear_mask} if learned and decoder is not None else {}, ()
    reason = "fair-esm loads lm_head.weight into the same parameter after it"
    return {"encoder.embedding.weight": FAIR.decoder}, {}, (Leftover(FAIR.embedding, reason),)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """One of the two forms, with what one file says of itself: changes of the table, whether the decoder is tied."""

    names: Names
    table: Table
    tied: bool
    theta: float
    leftovers: tuple[Leftover, ...] = ()

    def recipe(
        self,
        source: Source,
        weights: Weights,
        alphabet: Alphabet,
        sizes: Mapping[str, Any],
        transforms: Mapping[str, Combine],
    ) -> Recipe:
        """Put the table together for what this checkpoint has: positions, frequencies, norms, heads."""
        names = self.names
        frequencies, rows = self._frequencies(source, weights, sizes)
        config = source.encoder(vocab_size=len(alphabet), mask_id=alphabet.mask_id, frequencies=rows, **sizes)
        table: dict[str, str | tuple[str, ...]] = {**names.always, "encoder.final_norm": names.final_norm}
        if config.embed_norm:
            table["encoder.embed_norm"] = names.embed_norm
        if config.position == "learned":
            table["encoder.positions.weight"] = names.positions
        if has_head := "lm_head.bias" in weights.specs:
            table |= HEAD
            if not self.tied:
                table["mlm_head.weight"] = names.decoder
        if contacts := f"{CONTACTS}.weight" in weights.specs:
            table["contact_head.regression"] = CONTACTS
        card = ModelCard(
            name=source.name,
            encoder=config,
            alphabet=alphabet,
            mlm_head=MlmHeadConfig(tied=self.tied, norm_eps=config.norm_eps) if has_head else None,
            contact_head=contacts,
            license="MIT",
            source=str(source.path),
        )
        transforms = {"encoder.positions.weight": _cut_padding, **transforms}
        rules = make_rules({**table, **self.table}, n_layers=config.n_layers, transforms=transforms)
        leftovers = (*names.leftovers, *self.leftovers, *self._unread(config))
        return Recipe(card=card, weights=weights, rules=(*rules, *frequencies), leftovers=leftovers, heads=names.heads)

    def _frequencies(self, source: Source, weights: Weights, sizes: Mapping[str, Any]) -> tuple[tuple[Rule, ...], int]:
        if sizes["position"] == "learned":
            return (), 0
        per_layer = [self.names.frequencies.format(layer) for layer in range(sizes["n_layers"])]
        rule, rows = stored_rule(
            weights,
            per_layer=per_layer,
            shared=self.names.shared_frequencies,
            head_dim=sizes["d_model"] // sizes["n_heads"],
            theta=self.theta,
            place=str(source.path),
        )
        return (rule,), rows

    def _unread(self, config: EncoderConfig) -> list[Leftover]:
        found = [Leftover(self.names.decoder, "it is the embedding again")] if self.tied else []
        if config.position == "rotary":
            found.append(Leftover(self.names.positions, "positions are rotary"))
        return found


def _cut_padding(tensors: Sequence[Tensor]) -> Tensor:
    """Leave out the position rows that no token uses."""
    return tensors[0][_FIRST_POSITION:]


def _clear_mask(tensors: Sequence[Tensor]) -> Tensor:
    cleared = tensors[0].clone()
    cleared[ESM.mask_id] = 0
    return cleared
