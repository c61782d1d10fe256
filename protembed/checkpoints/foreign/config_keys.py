"""What a family makes of every key of its configuration: reads it, has no use for it, or computes with one value only.

A key that is in no table may change the function: unless its value says that something is off, the checkpoint is
refused, and the key named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protembed.errors import ModelError
from protembed.schema import check, said


@dataclass(frozen=True)
class Used:
    """A key that the family reads, and the type of its value."""

    kind: Any


@dataclass(frozen=True)
class Unused:
    """A key that does not change what is computed, and why."""

    reason: str


@dataclass(frozen=True)
class Only:
    """A key whose value is known and the only one that is computed with; `because` says what another would mean."""

    values: tuple[Any, ...]
    because: str


Keys = Mapping[str, Used | Unused | Only]


def unused(reason: str, *names: str) -> Keys:
    """Return entries for keys that go unused for one reason."""
    return {name: Unused(reason) for name in names}


TRANSFORMERS: Keys = {
    "model_type": Used(str),
    **unused(
        "says where the files come from",
        *("architectures", "auto_map", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash"),
        *("tokenizer_class", "finetuning_task", "task_specific_params", "library_name", "custom_pipelines", "tags"),
    ),
    **unused(
        "is of a task head, which reads it itself",
        *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "loss_type"),
    ),
    **unused("is the type of the weights, which they say themselves", "dtype", "torch_dtype", "use_bfloat16"),
    **unused(
        "names rows that the vocabulary names",
        *("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "pad_token_id"),
        *("mask_token_id", "decoder_start_token_id"),
    ),
    **unused(
        "is of training alone",
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range"),
        *("initializer_factor", "gradient_checkpointing", "layerdrop"),
    ),
    **unused(
        "is about what is returned, or how fast",
        *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "return_dict_in_generate"),
        *("torchscript", "use_cache", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation"),
        *("_attn_implementation_autoset", "_attn_implementation_internal", "output_scores", "tf_legacy_loss"),
        *("output_past", "xla_device", "_flash_attn_2_enabled", "is_composition"),
    ),
    **unused(
        "is of text generation",
        *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "prefix"),
        *("num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    ),
    "is_decoder": Only((False, None), "a decoder sees what stands before a residue alone"),
    "add_cross_attention": Only((False, None), "cross attention reads a second input"),
    "is_encoder_decoder": Only((False, None), "only encoders are run"),
    "cross_attention_hidden_size": Only((None,), "cross attention reads a second input"),
    "tie_encoder_decoder": Only((False, None), "only encoders are run"),
    "pruned_heads": Only(({}, None), "attention heads were taken out"),
    "quantization_config": Only((None,), "quantised weights are not read: use the checkpoint they were made of"),
    "compression_config": Only((None,), "compressed weights are not read: use the checkpoint they were made of"),
}
"""The keys that every configuration of transformers may have."""


def read_keys(values: Mapping[str, Any], keys: Keys, place: str, *, complete: bool = True) -> dict[str, Any]:
    """Return the values of the keys that are used, each of its type.

    With `complete` a key that no table has is refused unless it is off: null, false, zero or empty. Raises
    ModelError, which begins with `place` and names the key.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        match keys.get(name):
            case Used(kind=kind):
                found[name] = check(value, kind, name, place)
            case Only(values=known, because=reason) if not _is_one_of(value, known):
                computed = " or ".join(map(said, known))
                raise ModelError(f"{place}: {name} is {said(value)}, not {computed}: {reason}")
            case None if complete and not _is_off(value):
                raise ModelError(
                    f"{place}: the key {said(name)} = {said(value)} is not known for this kind of model, "
                    "and may change what it computes",
                    hint="If it changes nothing, take it out of the file.",
                )
    return found


def require(values: Mapping[str, Any], name: str, place: str) -> Any:
    """Return a value that must be there. Raises ModelError."""
    if values.get(name) is None:
        raise ModelError(f"{place} does not give {name}", hint="Is the folder complete?")
    return values[name]


def agree_with(values: Mapping[str, Any], shapes: Mapping[str, int], place: str) -> None:
    """Raise ModelError where a configuration says another size than the weights have."""
    for name, size in shapes.items():
        if values.get(name) not in (None, size):
            raise ModelError(
                f"{place}: {name} is {said(values[name])}, and the weights have {size}",
                hint="Does the configuration belong to these weights?",
            )


def rope_theta(values: Mapping[str, Any], place: str) -> float:
    """Return the base of the rotary frequencies, from `rope_theta` or `rope_parameters`; 10,000 where neither says."""
    parameters = values.get("rope_parameters") or {}
    read_keys(parameters, ROPE, f"{place}: rope_parameters")
    stated = {float(base) for base in (values.get("rope_theta"), parameters.get("rope_theta")) if base is not None}
    if len(stated) > 1:
        raise ModelError(f"{place}: rope_theta is said twice, and differs: {said(sorted(stated))}")
    return stated.pop() if stated else 10_000.0


def _is_one_of(value: Any, known: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in known)


def _is_off(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float | str | list | dict) and not value)


ROPE: Keys = {
    "rope_theta": Used(float),
    "rope_type": Only(("default",), "the angles are scaled"),
}
