"""BERT with the norm after each sublayer: ProtBert (Hugging Face) and TAPE's bert-base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import Tensor

from protembed.checkpoints.foreign.alphabets import PROTBERT, TAPE
from protembed.checkpoints.foreign.checkpoint import Source, Told, number_of_heads
from protembed.checkpoints.foreign.config_keys import TRANSFORMERS, Keys, Only, Used, agree_with, unused
from protembed.checkpoints.foreign.conversion import (
    Combine,
    Leftover,
    Recipe,
    Table,
    agree,
    is_counting,
    is_zero,
    make_rules,
    strip,
)
from protembed.checkpoints.foreign.tensors import Weights, count_layers, is_equal
from protembed.errors import ModelError
from protembed.models.config import Epsilon, Layers, MlmHeadConfig, ModelCard, Rows, Width
from protembed.schema import Between
from protembed.sequences.alphabet import Alphabet

KEYS: Keys = {
    **TRANSFORMERS,
    "vocab_size": Used(Rows),
    "hidden_size": Used(Width),
    "num_hidden_layers": Used(Layers),
    "num_attention_heads": Used(Layers),
    "intermediate_size": Used(Width),
    "max_position_embeddings": Used(Annotated[int, Between(1, 2**24)]),
    "type_vocab_size": Used(Rows),
    "layer_norm_eps": Used(Epsilon),
    "tie_word_embeddings": Used(bool | None),
    "hidden_act": Only(("gelu", None), "only GELU by erf is known for BERT"),
    "position_embedding_type": Only(("absolute", None), "relative positions are not known for BERT"),
}
"""What is made of the keys of config.json; TAPE's and its port's are the same, and older."""

TAPE_KEYS: Keys = {
    **{name: use for name, use in KEYS.items() if name != "model_type"},
    **unused("names the class that wrote it", "base_model", "model_type"),
}

ENCODER: Table = {
    "encoder.embedding.weight": "embeddings.word_embeddings.weight",
    "encoder.positions.weight": ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
    "encoder.embed_norm": "embeddings.LayerNorm",
    "encoder.blocks.*.attention.qkv": (
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
    ),
    "encoder.blocks.*.attention.out": "encoder.layer.*.attention.output.dense",
    "encoder.blocks.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "encoder.blocks.*.feed_forward.up": "encoder.layer.*.intermediate.dense",
    "encoder.blocks.*.feed_forward.down": "encoder.layer.*.output.dense",
    "encoder.blocks.*.feed_forward_norm": "encoder.layer.*.output.LayerNorm",
}
HUGGING_FACE_HEAD: Table = {
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
    "mlm_head.bias": "cls.predictions.bias",
}
TAPE_HEAD: Table = {
    "mlm_head.dense": "mlm.transform.dense",
    "mlm_head.norm": "mlm.transform.LayerNorm",
    "mlm_head.bias": "mlm.bias",
}
POOLER: Table = {"pooler.dense": "pooler.dense"}
TASK_HEADS = ("classify.*", "predict.*")
"""TAPE's fine-tuned heads begin so."""

BUFFERS = (
    Leftover("embeddings.position_ids", "positions count from 0", is_counting),
    Leftover("embeddings.token_type_ids", "all tokens are of the first type", is_zero),
)
_NEXT_SENTENCE = Leftover("cls.seq_relationship.*", "is of next-sentence prediction")
_UNTRAINED_POOLER = Leftover("pooler.dense.*", "hidden states do not go through it")
_DECODER = "cls.predictions.decoder.weight"
_TAPE_ONLY = ("mlm.", "classify.", "predict.")


def is_tape(source: Source) -> bool:
    """Tell TAPE's models by their names: those of BERT, without the configuration of transformers."""
    return "model_type" not in source.config and any(
        source.has(f"{prefix}encoder.layer.0.attention.output.LayerNorm.") for prefix in ("bert.", "")
    )


def is_hugging_face(source: Source) -> bool:
    """Tell a BERT folder of transformers by its configuration."""
    return source.config.get("model_type") == "bert"


def tape(source: Source, told: Told) -> Recipe:
    """Read TAPE's bert-base, alone or below a fine-tuned head; its pooler is trained and kept."""
    weights = strip(source.weights, "bert.")
    if not source.config and not any(source.has(prefix) for prefix in _TAPE_ONLY):
        raise ModelError(
            f"{source.path}: is a BERT, and nothing says whose: TAPE's and ProtBert's rows mean other residues",
            hint="Put its config.json beside it, and its vocab.txt if it has one.",
        )
    table, transforms = {**ENCODER}, dict[str, Combine]()
    if has_head := "mlm.bias" in weights.specs:
        table |= TAPE_HEAD
        if "mlm.decoder.weight" in weights.specs:  # the same parameter as the embedding
            table["encoder.embedding.weight"] = (str(ENCODER["encoder.embedding.weight"]), "mlm.decoder.weight")
            transforms["encoder.embedding.weight"] = agree
    if has_pooler := "pooler.dense.weight" in weights.specs:
        table |= POOLER
    form = _Form(known=TAPE, keys=TAPE_KEYS, license="BSD-3-Clause")
    card = form.card(source, told, weights)
    card = replace(card, mlm_head=_head(card) if has_head else None, pooler="dense" if has_pooler else None)
    return _recipe(card, weights, table, transforms, heads=TASK_HEADS)


def hugging_face(source: Source, told: Told) -> Recipe:
    """Read a BERT of transformers whose tokens are residues; its pooler was not trained and is left out."""
    weights = strip(source.weights, "bert.")
    table, transforms = {**ENCODER}, dict[str, Combine]()
    form = _Form(known=PROTBERT, keys=KEYS, license="AFL-3.0")
    card = form.card(source, told, weights)
    leftovers: list[Leftover] = [_NEXT_SENTENCE, _UNTRAINED_POOLER]
    tied = source.config.get("tie_word_embeddings") is not False
    if has_head := "cls.predictions.bias" in weights.specs:
        table |= HUGGING_FACE_HEAD
        if tied and _DECODER in weights.specs:  # if it differs, transformers 5 computes with it, whatever is said
            tied = is_equal(weights, _DECODER, str(ENCODER["encoder.embedding.weight"]))
        if "cls.predictions.decoder.bias" in weights.specs:
            table["mlm_head.bias"] = ("cls.predictions.bias", "cls.predictions.decoder.bias")
            transforms["mlm_head.bias"] = agree
        if tied:
            leftovers.append(Leftover(_DECODER, "it is the embedding again"))
        else:
            table["mlm_head.weight"] = _DECODER
    card = replace(card, mlm_head=_head(card, tied=tied) if has_head else None)
    return _recipe(card, weights, table, transforms, leftovers=leftovers, heads=("classifier.*",))


def sizes(
    source: Source, told: Told, weights: Weights, settings: Mapping[str, Any], *, feed_forward: str
) -> dict[str, Any]:
    """Read the sizes of a BERT off its shapes; only the number of heads is in none. Raises ModelError."""
    try:
        vocab_size, d_model = weights.specs["embeddings.word_embeddings.weight"].shape
        max_length = weights.specs["embeddings.position_embeddings.weight"].shape[0]
        types = weights.specs["embeddings.token_type_embeddings.weight"].shape[0]
        d_ff = weights.specs[f"encoder.layer.0.{feed_forward}.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    n_layers = count_layers(weights, "encoder.layer.")
    stated = {"vocab_size": vocab_size, "hidden_size": d_model, "num_hidden_layers": n_layers}
    stated |= {"intermediate_size": d_ff, "max_position_embeddings": max_length, "type_vocab_size": types}
    agree_with(settings, stated, source.config_place)
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": number_of_heads(source, told, settings.get("num_attention_heads")),
        "d_ff": d_ff,
        "max_length": max_length,
    }


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What TAPE's and transformers' forms differ in beside names."""

    known: Alphabet
    keys: Keys
    license: str

    def card(self, source: Source, told: Told, weights: Weights) -> ModelCard:
        settings = source.settings(self.keys)
        shape = sizes(source, told, weights, settings, feed_forward="intermediate.dense")
        alphabet = source.alphabet(self.known, shape["vocab_size"])
        config = source.encoder(
            mask_id=alphabet.mask_id,
            position="learned",
            norm_order="post",
            norm_eps=settings.get("layer_norm_eps", 1e-12),
            embed_norm=True,
            final_norm=False,
            **shape,
        )
        return ModelCard(
            name=source.name, encoder=config, alphabet=alphabet, license=self.license, source=str(source.path)
        )


def _head(card: ModelCard, *, tied: bool = True) -> MlmHeadConfig:
    return MlmHeadConfig(tied=tied, norm_eps=card.encoder.norm_eps)


def _recipe(
    card: ModelCard,
    weights: Weights,
    table: Table,
    transforms: Mapping[str, Combine],
    *,
    leftovers: Sequence[Leftover] = (),
    heads: tuple[str, ...],
) -> Recipe:
    transforms = {"encoder.positions.weight": add_token_type, **transforms}
    return Recipe(
        card=card,
        weights=weights,
        rules=make_rules(table, n_layers=card.encoder.n_layers, transforms=transforms),
        leftovers=(*BUFFERS, *leftovers),
        heads=heads,
    )


def add_token_type(tensors: Sequence[Tensor]) -> Tensor:
    """Add the first token type, which all tokens have, to every position: the tied decoder needs words without it."""
    positions, types = (tensor.float() for tensor in tensors)
    return positions + types[0]
