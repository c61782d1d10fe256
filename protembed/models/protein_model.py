"""ProteinModel: the encoder and its heads, from tokens to named outputs."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.encoder import Encoder
from protembed.models.packing import Layout, Packed
from protembed.models.pretrained_heads import ContactHead, MaskedLanguageModelHead, Observed, Pooler
from protembed.sequences.alphabet import STANDARD_RESIDUES

FULL_PRECISION = frozenset({"encoder.frequencies"})
"""What stays in float32 whatever type the weights are of: positions go into the thousands, and angles with them."""

_FROM_LAST = ("logits", "profile", "pooled")  # outputs that exist for the last layer alone


class _NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device it would draw nothing, and import torch's compiler for it (0.8 s)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def skeleton(card: ModelCard) -> "ProteinModel":
    """Build a model without memory for its weights (meta device): shapes and names, to be filled."""
    with torch.device("meta"), _NoInitialisation():
        return ProteinModel(card)


class ProteinModel(nn.Module):
    """An encoder with a masked-language-model head, as one model card describes it."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card
        self.encoder = Encoder(card.encoder)
        self.mlm_head = MaskedLanguageModelHead(card.encoder, card.mlm_head) if card.mlm_head else None
        self.pooler = Pooler(card.encoder.d_model) if card.pooler == "dense" else None
        self.contact_head = ContactHead(card.encoder) if card.contact_head else None
        # Last, so that a seed draws the same other weights with it and without it.
        self.profile_head = nn.Linear(card.encoder.d_model, len(STANDARD_RESIDUES)) if card.profile_head else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary from last hidden states; (..., D) -> (..., vocab_size)."""
        if self.mlm_head is None:
            raise ModelError(
                f"{self.card.name} has no masked-language-model head",
                hint="The file holds an encoder only; logits need a checkpoint that was saved with its head.",
            )
        scores: Tensor = self.mlm_head(hidden, self.encoder.embedding.weight)
        return scores

    def profile_logits(self, hidden: Tensor) -> Tensor:
        """Score what homologs have at every residue, from last hidden states; (..., D) -> (..., 20)."""
        self.card.require_profile()
        assert self.profile_head is not None
        scores: Tensor = self.profile_head(hidden)
        return scores

    def contacts(self, tokens: Tensor) -> Tensor:
        """Return the probability of contact of every two residues of one protein; (L + specials,) -> (L, L)."""
        self.card.require_contacts()
        head, alphabet = self.contact_head, self.card.alphabet
        assert head is not None
        residues = slice(alphabet.prefix, len(tokens) - alphabet.suffix)
        scores: list[Tensor] = []

        def observe(probabilities: Tensor) -> None:
            scores.append(head.score(probabilities[:, residues, residues], len(scores)))

        self(tokens, Observed(len(tokens), observe, tokens.device))
        contacts: Tensor = head(scores)
        return contacts

    def attentions(self, tokens: Tensor) -> Tensor:
        """Return the attention maps of one protein, on the CPU: together they are large; (n_layers, H, T, T)."""
        config, length = self.card.encoder, len(tokens)
        maps = torch.empty(config.n_layers, config.n_heads, length, length)
        layers = iter(maps)
        self(tokens, Observed(length, lambda probabilities: next(layers).copy_(probabilities), tokens.device))
        return maps

    def pooled(self, hidden: Tensor, layout: Packed) -> Tensor:
        """Return the vector of every protein that the model was trained to make; (T, D) of the last layer -> (N, D)."""
        if self.card.pooler is None:
            raise ModelError(f"{self.card.name} has no pooler", hint="Known: mean, max, cls.")
        first = hidden[layout.offsets[:-1].long()]
        vectors: Tensor = first if self.pooler is None else self.pooler(first)
        return vectors

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return the last hidden states; (...) -> (..., D)."""
        last = self.card.encoder.n_layers
        hidden: dict[int, Tensor] = self.encoder(tokens, layout, {last})
        return hidden[last]

    def outputs(
        self, tokens: Tensor, layout: Packed, wanted: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], Tensor]:
        """Compute the outputs asked for, each named by (kind, layer) with the layer from 0 to n_layers.

        Kinds: `residues` (T, D) with the special tokens still in; `mean`, `max`, `cls` (N, D), float32, special tokens
        left out of mean and max; `logits` (T, 20) over the standard residues, `profile` (T, 20), probabilities over
        them, and `pooled` (N, D), float32, from the last layer whatever is named.
        """
        last = self.card.encoder.n_layers
        layers = {(kind, layer): last if kind in _FROM_LAST else layer for kind, layer in wanted}
        hidden = self.encoder(tokens, layout, set(layers.values()))
        return {name: self._output(name[0], hidden[layers[name]], layout) for name in wanted}

    def _output(self, kind: str, hidden: Tensor, layout: Packed) -> Tensor:
        alphabet = self.card.alphabet
        match kind:
            case "residues":
                return hidden
            case "logits":
                return self.logits(hidden)[:, torch.from_numpy(alphabet.standard_ids).to(hidden.device)].float()
            case "profile":
                return self.profile_logits(hidden).float().softmax(dim=-1)
            case "cls":
                return hidden[layout.offsets[:-1].long()].float()
            case "pooled":
                return self.pooled(hidden, layout).float()
            case "mean" | "max":
                return layout.pool(
                    hidden, "mean" if kind == "mean" else "max", prefix=alphabet.prefix, suffix=alphabet.suffix
                )
            case _:
                raise ModelError(
                    f"unknown output {kind!r}", hint="Known: residues, mean, max, cls, pooled, logits, profile."
                )

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw fresh weights: N(0, 0.02), residual outputs by 1 / sqrt(2 n_layers) (GPT-2); gains 1, the rest 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name == "encoder.stem.weight":
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            deep = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            scale = 0.02 / (2 * self.card.encoder.n_layers) ** 0.5 if deep else 0.02
            parameter.copy_(torch.empty(parameter.shape).normal_(0, scale, generator=generator))
