"""How to run an exported file without protembed: the text that stands in its doc_string."""

from collections.abc import Sequence

from protembed.backends.onnx.attention import AttentionKind
from protembed.backends.onnx.builder import Value, Weights
from protembed.backends.onnx.heads import output_name
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadCard
from protembed.sequences.alphabet import STANDARD_RESIDUES

RUNTIMES: dict[AttentionKind, str] = {
    "fused": "onnxruntime (it has operators of com.microsoft; the form of attention for every runtime is plain)",
    "plain": "every ONNX runtime (it has operators of ai.onnx alone)",
    "packed": "onnxruntime on CUDA (it has operators of com.microsoft)",
}
"""Where a file runs, by its form of attention."""


def describe(
    card: ModelCard,
    inputs: dict[str, Value],
    outputs: dict[str, Value],
    *,
    attention: AttentionKind,
    weights: Weights,
    heads: Sequence[HeadCard],
) -> str:
    """Describe inputs, outputs, tokens and padding of a file for people."""
    lines = [
        f"{card.name}, exported by protembed; runs in {RUNTIMES[attention]}.",
        "Inputs:",
        *(f"  {_shape(name, value)}{_MEANING.get(name, '')}" for name, value in inputs.items()),
        *_protein(card),
        *_padding(card, attention, weights),
        "Outputs:",
        *(f"  {_shape(name, value)}{_meaning(card, name)}" for name, value in outputs.items()),
        *(_head(head) for head in heads),
    ]
    return "\n".join(lines)


_MEANING = {
    "tokens": ": the proteins",
    "positions": ": of every token in its own protein, from 0",
    "proteins": ": the number of every token's protein, from 0",
    "offsets": ": where the proteins begin, and where the last one ends",
    "places": ": where tokens stand in a batch padded to the longest protein, in order, and then where padding does",
}


def _shape(name: str, value: Value) -> str:
    return f"{name} {value.dtype} ({', '.join(map(str, value.shape))})"


def _protein(card: ModelCard) -> list[str]:
    alphabet, limit = card.alphabet, card.max_residues
    ends = [alphabet.start] * alphabet.prefix + ["residues"] + [alphabet.end] * alphabet.suffix
    ids = " ".join(f"{token}={row}" for row, token in enumerate(alphabet.tokens))
    return [
        f"A protein is {' '.join(map(str, ends))}{'' if limit is None else f', at most {limit} residues'}.",
        f"Letters without a token of their own are {alphabet.unknown}; a masked residue is {alphabet.mask}.",
        f"Tokens: {ids}",
    ]


def _padding(card: ModelCard, attention: AttentionKind, weights: Weights) -> list[str]:
    padding = f"{card.alphabet.padding} ({card.alphabet.pad_id})"
    if attention == "packed":
        return [f"Nothing is padded: proteins lie end to end. {padding} makes every output of its protein NaN."]
    lines = [
        f"Shorter proteins are padded with {padding} behind their end. No value of a real token depends on padding or "
        "on other proteins; values at padding mean nothing. Padding before a token makes the outputs of that row NaN."
    ]
    if weights == "int8":
        lines.append(
            "One protein a call, best without padding: the step of its 8-bit activations is one for a whole call."
        )
    return lines


def _meaning(card: ModelCard, name: str) -> str:
    prefix, last = card.alphabet.prefix, card.encoder.n_layers
    if name == "hidden.0":
        return f": the embedding layer, a row a token; the residues of a protein begin at row {prefix}"
    if name == f"hidden.{last}":
        return ": the last layer, after the final norm; the mean over a protein's residues is its usual embedding"
    if name.startswith("hidden."):
        return f": layer {name.removeprefix('hidden.')}"
    profile = f": probabilities of {' '.join(STANDARD_RESIDUES)}"
    return {
        "logits": ": scores of all tokens",
        "profile": profile,
        "pooled": ": what the model makes of the first token",
    }.get(name, "")


def _head(head: HeadCard) -> str:
    rows = "the n residues of a protein have the first n rows" if head.kind != "sequence_class" else "a row a protein"
    if head.kind == "sequence_value":
        rows = "a row a protein"
    if head.kind == "contacts":
        rows = "the n residues of a protein have the first n rows and columns"
    return f"  {output_name(head.task)}: {head.kind}; {rows}; {_finish(head)}"


def _finish(head: HeadCard) -> str:
    """Say what makes a prediction of an output."""
    if head.kind.endswith(("values", "value")):
        return f"value = {head.scale:.9g} * output + {head.offset:.9g}"
    function = "sigmoid" if head.kind in ("residue_flags", "contacts") else "softmax"
    labels = f" over {', '.join(head.labels)}" if head.labels else ""
    return f"probability = {function}(output / {head.temperature:.9g}){labels}"
