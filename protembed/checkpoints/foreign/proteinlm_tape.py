"""ProteinLM in the form of its fine-tuning code (a fork of TAPE): norms before each sublayer."""

from protembed.checkpoints.foreign.alphabets import TAPE
from protembed.checkpoints.foreign.bert import BUFFERS, TAPE_KEYS, TASK_HEADS, add_token_type, sizes
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Leftover, Recipe, Table, make_rules, strip
from protembed.checkpoints.foreign.megatron import function
from protembed.models.config import ModelCard

ENCODER: Table = {
    "encoder.embedding.weight": "embeddings.word_embeddings.weight",
    "encoder.positions.weight": ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"),
    "encoder.blocks.*.attention_norm": "encoder.layer.*.input_ln",
    "encoder.blocks.*.attention.qkv": (
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
    ),
    "encoder.blocks.*.attention.out": "encoder.layer.*.attention.dense",
    "encoder.blocks.*.feed_forward_norm": "encoder.layer.*.post_attn_ln",
    "encoder.blocks.*.feed_forward.up": "encoder.layer.*.mlp.dense_h_4h",
    "encoder.blocks.*.feed_forward.down": "encoder.layer.*.mlp.dense_4h_h",
}
FINAL_NORM: Table = {"encoder.final_norm": "encoder.final_ln"}

_LEFTOVERS = (
    *BUFFERS,
    Leftover("mlm.*", "ProteinLM's converter leaves it random"),
    Leftover("bert_tail_dense.*", "nothing reads it"),
)
_FINAL_NORM = Leftover("encoder.final_ln.*", "the port does not run it")


def is_port(source: Source) -> bool:
    """Tell the port by the names of its norms."""
    return any(source.has(f"{prefix}encoder.layer.0.input_ln.") for prefix in ("bert.", ""))


def port(source: Source, told: Told) -> Recipe:
    """Read the port's file, alone or below a fine-tuned head, as the port runs it unless told otherwise."""
    weights = strip(source.weights, "bert.")
    variant = told.variant or "tape-port"
    settings = source.settings(TAPE_KEYS)
    shape = sizes(source, told, weights, settings, feed_forward="mlp.dense_h_4h")
    alphabet = source.alphabet(TAPE, shape["vocab_size"], named=False)
    config = source.encoder(
        mask_id=alphabet.mask_id,
        position="learned",
        norm_eps=settings.get("layer_norm_eps", 1e-12),
        activation="gelu_tanh",
        **shape,
    )
    card = ModelCard(
        name=source.name,
        encoder=config,
        alphabet=alphabet,
        license="Apache-2.0",
        source=str(source.path),
    )
    card = function(card, variant)
    normed = card.encoder.final_norm
    table = {**ENCODER, **FINAL_NORM} if normed else ENCODER
    return Recipe(
        card=card,
        weights=weights,
        rules=make_rules(table, n_layers=config.n_layers, transforms={"encoder.positions.weight": add_token_type}),
        leftovers=_LEFTOVERS if normed else (*_LEFTOVERS, _FINAL_NORM),
        heads=TASK_HEADS,
    )
