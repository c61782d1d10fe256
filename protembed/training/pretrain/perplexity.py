"""Masked perplexity on held-out proteins."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.batching import pack
from protembed.training.corpus.counts import Counts
from protembed.training.pretrain.batches import Batch
from protembed.training.pretrain.masking import MaskedTokens, hide_groups
from protembed.training.pretrain.objective import MaskedResidues

EVALUATION_SEED = 0
EVALUATION_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class ProteinLoss:
    """Summed cross entropy (nats) of the residues of one protein that were hidden and counted.

    `profile_loss` is that of the profiles of its `profiled` residues, hidden or not, where profiles were asked for.
    """

    index: int
    length: int
    loss: float
    count: int
    profile_loss: float = 0.0
    profiled: int = 0


def perplexity(losses: Iterable[ProteinLoss]) -> float:
    """Return exp of the mean cross entropy over all residues."""
    total, count = 0.0, 0
    for item in losses:
        total, count = total + item.loss, count + item.count
    return exponential(total / count) if count else math.nan


def exponential(loss: float) -> float:
    """Return exp(loss); infinite where a model gone astray has a loss that no float can hold the exponential of."""
    return math.exp(loss) if loss < 700 else math.inf


def protein_losses(
    model: ProteinModel, proteins: Sequence[npt.NDArray[np.int64]], *, passes: int | None = None
) -> Iterator[ProteinLoss]:
    """Hide every standard residue of each protein once, in 7 groups with a fixed seed, and score it.

    `proteins` are token ids with their special tokens. With `passes=1` only one group of each protein is scored:
    a quick estimate on a seventh of the residues. The softmax runs over the whole vocabulary.
    """
    device = model.encoder.embedding.weight.device
    yield from score_proteins(MaskedResidues(model), model.card.alphabet, proteins, device, passes=passes)


def score_proteins(
    module: nn.Module,
    alphabet: Alphabet,
    proteins: Sequence[npt.NDArray[np.int64]],
    device: torch.device,
    *,
    passes: int | None = None,
    profiles: Sequence[Counts] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[ProteinLoss]:
    """Do what `protein_losses` does with a MaskedResidues module, divided among processes or not.

    `profiles` (T, 20) of the proteins are scored beside it. `numbers` choose some of the proteins: what is hidden of a
    protein depends on its number alone, so that however they are divided, the same residues are scored.
    """
    questions: list[tuple[int, MaskedTokens]] = []
    for index in range(len(proteins)) if numbers is None else numbers:
        groups = hide_groups(proteins[index], alphabet, np.random.default_rng((EVALUATION_SEED, index)))
        questions += [(index, group) for group in groups[:passes] if len(group.places)]
    for packed in pack(questions, size=lambda question: len(question[1].tokens), budget=EVALUATION_TOKENS):
        asked = [profiles[index] for index, _ in packed] if profiles is not None else None
        with torch.no_grad():
            losses = module(*_join([group for _, group in packed], asked).on(device))
        counts = [len(group.places) for _, group in packed]
        spread = [len(group.tokens) for _, group in packed] if asked is not None else []
        sums = [float(part.sum()) for part in torch.split(losses, counts + spread)]
        for place, (index, group) in enumerate(packed):
            yield ProteinLoss(
                index=index,
                length=len(proteins[index]),
                loss=sums[place],
                count=len(group.places),
                profile_loss=sums[len(packed) + place] if asked is not None else 0.0,
                profiled=int(asked[place].any(axis=1).sum()) if asked is not None else 0,
            )


def _join(groups: Sequence[MaskedTokens], profiles: Sequence[Counts] | None) -> Batch:
    """Put masked proteins end to end."""
    lengths = [len(group.tokens) for group in groups]
    starts = np.cumsum([0, *lengths[:-1]])
    question = MaskedTokens(
        tokens=np.concatenate([group.tokens for group in groups]),
        places=np.concatenate([group.places + start for group, start in zip(groups, starts, strict=True)]),
        targets=np.concatenate([group.targets for group in groups]),
    )
    return Batch(lengths=lengths, question=question, profile=np.concatenate(profiles) if profiles is not None else None)
