"""An encoder with task heads: what heads read is computed once, in one pass, for all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from protembed.models.config import ModelCard
from protembed.models.head_config import Design, HeadConfig, Kind, Reads
from protembed.models.heads.base import TaskHead
from protembed.models.heads.contact import AttentionContactHead
from protembed.models.packing import Packed
from protembed.models.pretrained_heads import ObservedBatch, symmetric_maps
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import Alphabet

_DESIGN_READS: dict[tuple[str, Design], Reads] = {("sequence", "tape"): "pooled", ("contacts", "compact"): "attention"}


def design_head(
    card: ModelCard,
    kind: Kind,
    *,
    outputs: int = 1,
    design: Design = "compact",
    reads: Reads | None = None,
    layers: tuple[int, ...] = (-1,),
    hidden: int = 96,
    kernel: int = 7,
    dropout: float = 0.1,
) -> HeadConfig:
    """Describe a head for an encoder: what it reads by its design, unless `reads` says so, and the width of that."""
    encoder = card.encoder
    reads = reads or _DESIGN_READS.get((kind.partition("_")[0], design), "hidden")
    resolved = tuple(encoder.layer(layer) for layer in layers) if reads == "hidden" else ()
    widths = {
        "hidden": len(resolved) * encoder.d_model,
        "pooled": encoder.d_model,
        "residue": encoder.vocab_size,
        "attention": encoder.n_layers * encoder.n_heads,
    }
    return HeadConfig(
        kind=kind,
        outputs=outputs,
        d_input=widths[reads],
        design=design,
        reads=reads,
        layers=resolved,
        n_heads=encoder.n_heads if reads == "attention" else 0,
        hidden=hidden,
        kernel=kernel,
        dropout=dropout,
    )


def required_layers(model: ProteinModel, configs: list[HeadConfig]) -> set[int]:
    """Return the layers whose hidden states these heads read, or that must be run for their attention."""
    layers = {layer for config in configs for layer in config.layers}
    last = {"pooled", "attention"} & {config.reads for config in configs}
    return layers | {model.card.encoder.n_layers} if last else layers


def read_inputs(
    model: ProteinModel, config: HeadConfig, tokens: Tensor, layout: Packed, hidden: Mapping[int, Tensor]
) -> Tensor:
    """Return what a head reads, float32: (T, d_input), or (N, d_input) of the pooled vector; not the attention."""
    match config.reads:
        case "pooled":
            return model.pooled(hidden[model.card.encoder.n_layers], layout).float()
        case "residue":
            return functional.one_hot(tokens, config.d_input).float()
        case _:
            return torch.cat([hidden[layer].float() for layer in config.layers], dim=-1)


def lay_out(rows: Sequence[Tensor], alphabet: Alphabet) -> Tensor:
    """Lay what residues have, one tensor (L, ...) a protein, beside the tokens, zeros at the special ones; (T, ...).

    >>> from protembed.sequences.alphabet import PROTEMBED
    >>> lay_out([torch.tensor([5, 6]), torch.tensor([7])], PROTEMBED).tolist()
    [0, 5, 6, 0, 0, 7, 0]
    """
    ends = (alphabet.prefix, alphabet.suffix)
    return torch.cat([functional.pad(row, (*(0, 0) * (row.ndim - 1), *ends)) for row in rows])


def attention_inputs(model: ProteinModel, tokens: Tensor, layout: Packed) -> list[Tensor]:
    """Return the symmetric attention maps of every protein's residues, all layers together; (M, L, L) each."""
    maps: list[list[Tensor]] = [[] for _ in layout.sizes]
    observers = [
        _inside(model, size, lambda inner, own=own: own.append(symmetric_maps(inner)))  # type: ignore[misc]
        for size, own in zip(layout.sizes, maps, strict=True)
    ]
    model(tokens, ObservedBatch(layout.sizes, observers, tokens.device))
    return [torch.cat(own) for own in maps]


def run_heads(
    model: ProteinModel, heads: Mapping[str, TaskHead], tokens: Tensor, layout: Packed
) -> dict[str, list[Tensor]]:
    """Run the encoder once and every head on it; return the outputs of each head, one tensor a protein.

    Residues (L, C), proteins (C,), contacts (L, L), special tokens left out: logits, or values.
    """
    watching = {name: head for name, head in heads.items() if isinstance(head, AttentionContactHead)}
    layers = required_layers(model, [head.config for head in heads.values()])
    scores: dict[str, list[Tensor]] = {}
    if watching:
        scores = {name: [torch.zeros(()) for _ in layout.sizes] for name in watching}
        observers = [_scorer(model, watching, scores, number) for number in range(len(layout.sizes))]
        layout = ObservedBatch(layout.sizes, observers, tokens.device)
    hidden = model.encoder(tokens, layout, layers) if layers else {}
    found = {name: [head.finish(score) for score in scores[name]] for name, head in watching.items()}
    return {
        name: found[name] if name in found else _split(model, head, tokens, layout, hidden)
        for name, head in heads.items()
    }


def _scorer(
    model: ProteinModel, heads: Mapping[str, AttentionContactHead], scores: dict[str, list[Tensor]], number: int
) -> Callable[[Tensor], None]:
    """Make the observer that adds every layer's part to the contact logits of protein `number`."""
    layer = 0

    def observe(probabilities: Tensor) -> None:
        nonlocal layer
        inside = _residues(model, probabilities.shape[-1])
        for name, head in heads.items():
            part = head.score(probabilities[:, inside, inside], layer)
            scores[name][number] = part if layer == 0 else scores[name][number] + part
        layer += 1

    return observe


def _inside(model: ProteinModel, size: int, use: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    inside = _residues(model, size)
    return lambda probabilities: use(probabilities[:, inside, inside])


def _residues(model: ProteinModel, size: int) -> slice:
    """Return where the residues are in a sequence of so many tokens."""
    alphabet = model.card.alphabet
    return slice(alphabet.prefix, size - alphabet.suffix)


def _split(
    model: ProteinModel, head: TaskHead, tokens: Tensor, layout: Packed, hidden: Mapping[int, Tensor]
) -> list[Tensor]:
    """Run one head and divide its outputs among the proteins, special tokens left out."""
    outputs = head(read_inputs(model, head.config, tokens, layout, hidden), layout)
    if head.config.per_residue:
        parts = torch.split(outputs, layout.sizes)
        return [part[_residues(model, len(part))] for part in parts]
    if head.config.kind == "contacts":
        return [logits[_residues(model, len(logits)), _residues(model, len(logits))] for logits in outputs]
    return list(cast(Tensor, outputs))
