"""BERT with the norm after each sublayer: ProtBert (Hugging Face) and TAPE's bert-base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from protembed.checkpoints.foreign.alphabets import PROTBERT, TAPE, fit
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Combine, Recipe, Table, make_rules, strip
from protembed.checkpoints.foreign.tensors import Weights
from protembed.errors import ModelError
from protembed.models.config import EncoderConfig, MlmHeadConfig, ModelCard
from protembed.sequences.alphabet import Alphabet

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

_IGNORED = ("embeddings.position_ids", "cls.predictions.decoder.*", "cls.seq_relationship.*", "mlm.decoder.weight")


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
    table = {**ENCODER}
    if has_head := "mlm.bias" in weights.specs:
        table |= TAPE_HEAD
    if has_pooler := "pooler.dense.weight" in weights.specs:
        table |= POOLER
    card = _card(source, told, weights, TAPE, terms="BSD-3-Clause")
    card = replace(card, mlm_head=_head(card) if has_head else None, pooler="dense" if has_pooler else None)
    return _recipe(card, weights, table, ())


def hugging_face(source: Source, told: Told) -> Recipe:
    """Read a BERT of transformers whose tokens are residues; its pooler was not trained and is left out."""
    if source.config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{source.path}: only absolute positions are known for BERT")
    weights = strip(source.weights, "bert.")
    table = {**ENCODER}
    tied = source.config.get("tie_word_embeddings", True)
    if has_head := "cls.predictions.bias" in weights.specs:
        table |= HUGGING_FACE_HEAD
        if not tied:
            table["mlm_head.weight"] = "cls.predictions.decoder.weight"
    known = PROTBERT if source.vocabulary is None else replace(PROTBERT, tokens=source.vocabulary)
    card = _card(source, told, weights, known, terms="AFL-3.0")
    card = replace(card, mlm_head=_head(card, tied=tied) if has_head else None)
    return _recipe(card, weights, table, ("pooler.dense.*",))


def sizes(source: Source, told: Told, weights: Weights, *, feed_forward: str) -> dict[str, Any]:
    """Read the sizes of a BERT off its shapes; only the number of heads is in none. Raises ModelError."""
    n_heads = told.n_heads or source.config.get("num_attention_heads")
    if n_heads is None:
        raise ModelError(
            f"{source.path}: the number of attention heads is not in the file, and no config.json lies beside it",
            hint="Give it: n_heads= in Python, --n-heads on the command line.",
        )
    try:
        vocab_size, d_model = weights.specs["embeddings.word_embeddings.weight"].shape
        max_length = weights.specs["embeddings.position_embeddings.weight"].shape[0]
        d_ff = weights.specs[f"encoder.layer.0.{feed_forward}.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"{source.path}: {error.args[0]} is missing", hint="Is the file complete?") from error
    layers = {name.split(".")[2] for name in weights.specs if name.startswith("encoder.layer.")}
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "n_layers": source.config.get("num_hidden_layers", len(layers)),
        "n_heads": int(n_heads),
        "d_ff": d_ff,
        "max_length": max_length,
    }


def _card(source: Source, told: Told, weights: Weights, alphabet: Alphabet, *, terms: str) -> ModelCard:
    activation = source.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ModelError(f"{source.path}: the activation {activation!r} is not known for BERT", hint="Known: gelu.")
    shape = sizes(source, told, weights, feed_forward="intermediate.dense")
    alphabet = fit(alphabet, shape["vocab_size"])
    config = EncoderConfig(
        mask_id=alphabet.mask_id,
        position="learned",
        norm_order="post",
        norm_eps=source.config.get("layer_norm_eps", 1e-12),
        embed_norm=True,
        final_norm=False,
        **shape,
    )
    return ModelCard(name=source.name, encoder=config, alphabet=alphabet, license=terms, source=str(source.path))


def _head(card: ModelCard, *, tied: bool = True) -> MlmHeadConfig:
    return MlmHeadConfig(tied=tied, norm_eps=card.encoder.norm_eps)


def _recipe(card: ModelCard, weights: Weights, table: Table, ignored: tuple[str, ...]) -> Recipe:
    transforms: Mapping[str, Combine] = {"encoder.positions.weight": add_token_type}
    return Recipe(
        card=card,
        weights=weights,
        rules=make_rules(table, n_layers=card.encoder.n_layers, transforms=transforms),
        ignored=(*_IGNORED, *ignored),
        heads=TASK_HEADS,
    )


def add_token_type(tensors: Sequence[Tensor]) -> Tensor:
    """Add the first token type, which all tokens have, to every position: the tied decoder needs words without it."""
    positions, types = (tensor.float() for tensor in tensors)
    return positions + types[0]
