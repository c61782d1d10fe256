"""Masked perplexity on held-out proteins."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from protembed.batching import pack
from protembed.layout import Packed
from protembed.model import ProteinModel
from protembed.train.masking import MaskedTokens, hide_groups

EVALUATION_SEED = 0
EVALUATION_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class ProteinLoss:
    """Summed cross entropy (nats) of the residues of one protein that were hidden and counted."""

    index: int
    length: int
    loss: float
    count: int


def perplexity(losses: Iterable[ProteinLoss]) -> float:
    """Return exp of the mean cross entropy over all residues."""
    total, count = 0.0, 0
    for item in losses:
        total, count = total + item.loss, count + item.count
    return math.exp(total / count) if count else math.nan


def protein_losses(
    model: ProteinModel, proteins: list[npt.NDArray[np.int64]], *, passes: int | None = None
) -> Iterator[ProteinLoss]:
    """Hide every standard residue of each protein once, in 7 groups with a fixed seed, and score it.

    `proteins` are token ids with their special tokens. With `passes=1` only one group of each protein is scored:
    a quick estimate on a seventh of the residues. The softmax runs over the whole vocabulary.
    """
    questions: list[tuple[int, MaskedTokens]] = []
    for index, tokens in enumerate(proteins):
        groups = hide_groups(tokens, model.card.alphabet, np.random.default_rng((EVALUATION_SEED, index)))
        questions += [(index, group) for group in groups[:passes] if len(group.places)]
    for batch in pack(questions, size=lambda question: len(question[1].tokens), budget=EVALUATION_TOKENS):
        for (index, group), loss in zip(batch, _score(model, [group for _, group in batch]), strict=True):
            yield ProteinLoss(index=index, length=len(proteins[index]), loss=loss, count=len(group.places))


@torch.no_grad()
def _score(model: ProteinModel, groups: list[MaskedTokens]) -> list[float]:
    """Return the summed cross entropy of each group."""
    device = model.encoder.embedding.weight.device
    lengths = [len(group.tokens) for group in groups]
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = torch.from_numpy(np.concatenate([group.tokens for group in groups])).to(device)
    places = np.concatenate([group.places + start for group, start in zip(groups, starts, strict=True)])
    targets = torch.from_numpy(np.concatenate([group.targets for group in groups])).to(device)
    hidden = model(tokens, Packed(lengths, device))[torch.from_numpy(places).to(device)]
    losses = torch.nn.functional.cross_entropy(model.logits(hidden).float(), targets, reduction="none")
    return [float(part.sum()) for part in torch.split(losses, [len(group.places) for group in groups])]
