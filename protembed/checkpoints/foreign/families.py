"""Which kind of checkpoint this is: the kinds that are known, and those that are refused by name."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from protembed.checkpoints.foreign import amplify, bert, esm, esmc, megatron
from protembed.checkpoints.foreign import proteinlm_tape as port
from protembed.checkpoints.foreign.checkpoint import Source, Told
from protembed.checkpoints.foreign.conversion import Recipe
from protembed.errors import ModelError, UsageError


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One form of checkpoint: how it is told from the others, how it is read, and what it may be told."""

    name: str
    matches: Callable[[Source], bool]
    recipe: Callable[[Source, Told], Recipe]
    accepts: tuple[str, ...] = ()


KINDS = (
    Kind(
        name="ProteinLM (Megatron)",
        matches=megatron.is_megatron,
        recipe=megatron.megatron,
        accepts=("variant", "checkpoint_version", "n_heads"),
    ),
    Kind(name="ProteinLM (TAPE form)", matches=port.is_port, recipe=port.port, accepts=("variant", "n_heads")),
    Kind(name="TAPE bert-base", matches=bert.is_tape, recipe=bert.tape, accepts=("n_heads",)),
    Kind(name="ESM-2, ESM-1b, ESM-1v (Hugging Face)", matches=esm.is_hugging_face, recipe=esm.hugging_face),
    Kind(name="ESM-2, ESM-1b, ESM-1v (fair-esm)", matches=esm.is_fair, recipe=esm.fair, accepts=("n_heads",)),
    Kind(name="ESM-C", matches=esmc.is_esmc, recipe=esmc.esmc, accepts=("n_heads",)),
    Kind(name="AMPLIFY", matches=amplify.is_amplify, recipe=amplify.amplify),
    Kind(name="ProtBert (Hugging Face)", matches=bert.is_hugging_face, recipe=bert.hugging_face),
)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A kind that is known and not supported, and why."""

    name: str
    matches: Callable[[Source], bool]
    reason: str


def _architecture(source: Source) -> str:
    return str(getattr(source.header.get("args"), "arch", ""))


def _folds(source: Source) -> bool:
    return bool(source.config.get("is_folding_model") or source.config.get("esmfold_config"))


REFUSALS = (
    Refusal(
        name="a quantised model",
        matches=lambda s: bool(s.config.get("quantization_config") or s.config.get("compression_config")),
        reason="its weights are rounded to a few bits, and cannot be read without the library that did so; use the "
        "checkpoint that it was made of",
    ),
    Refusal(
        name="an ESM-C in the form of transformers 5",
        matches=lambda s: s.config.get("model_type") == "esmc",
        reason="only its authors' own files (data/weights/*.pth) are read",
    ),
    Refusal(
        name="a T5 model (ProtT5, Ankh, ProstT5)",
        matches=lambda s: s.config.get("model_type") == "t5" or s.has("encoder.block.0.layer.0.SelfAttention."),
        reason="its attention has a relative bias, which the encoder does not have",
    ),
    Refusal(
        name="an MSA Transformer",
        matches=lambda s: (
            _architecture(s) == "msa_transformer"
            or s.config.get("model_type") == "msa_transformer"
            or any(".column_self_attention." in name for name in s.weights.specs)
        ),
        reason="it reads alignments, not single sequences",
    ),
    Refusal(
        name="an ESM-1",
        matches=lambda s: _architecture(s) == "protein_bert_base",
        reason="its positions are sinusoidal and its attention has a bias of its own",
    ),
    Refusal(
        name="an ESMFold",
        matches=lambda s: _folds(s) or s.has("trunk.blocks.") or s.has("esm_s_combine"),
        reason="it predicts structures; its language model is ESM-2 3B",
    ),
    Refusal(
        name="an E1",
        matches=lambda s: str(s.config.get("model_type", "")).upper() == "E1",
        reason="it reads a protein together with its homologues",
    ),
    Refusal(
        name="a CARP",
        matches=lambda s: str(s.header.get("model", "")).startswith("carp") or s.has("embedder.layers.0.sequence1."),
        reason="it is a convolutional network, not a Transformer",
    ),
)


def recognise(source: Source, told: Told) -> Recipe:
    """Find the kind of a checkpoint and read what it says about itself. Raises ModelError and UsageError."""
    known = f"Known: {'; '.join(kind.name for kind in KINDS)}; and protembed's own .safetensors."
    for refusal in REFUSALS:
        if refusal.matches(source):
            raise ModelError(f"{source.path}: this is {refusal.name}: {refusal.reason}", hint=known)
    for kind in KINDS:
        if kind.matches(source):
            for option, value in asdict(told).items():
                if value is not None and option not in kind.accepts:
                    raise UsageError(f"{source.path}: this is {kind.name}, which cannot be told its {option}")
            return kind.recipe(source, told)
    raise ModelError(f"{source.path}: this kind of checkpoint is not known", hint=known)
