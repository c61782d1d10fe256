"""AdamW or Muon, and the learning rate over a run."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from protembed.training.pretrain.config import TrainSection

_TABLES = ("embedding.weight", "positions.weight", "stem.weight", "mlm_head.weight", "profile_head.weight")
"""Lists of vectors, one per token, position or residue: AdamW without weight decay, never Muon."""


def build_optimizers(parameters: Iterable[tuple[str, nn.Parameter]], section: TrainSection) -> list[Optimizer]:
    """Build what updates the weights; every part takes the same learning rate.

    AdamW (Loshchilov and Hutter, arXiv 1711.05101): matrices decay; gains, biases and embeddings do not.
    Muon (Jordan 2024), for matrices that are no embeddings, with AdamW's update size (Liu et al., arXiv 2502.16982).
    """
    matrices: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        inner = parameter.ndim == 2 and not name.endswith(_TABLES)
        (matrices if inner else plain).append(parameter)
    flat = {"params": plain, "weight_decay": 0.0}
    decay = section.weight_decay
    if section.optimizer == "muon":
        return [
            Muon(matrices, lr=section.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            AdamW([flat], lr=section.learning_rate, betas=section.betas, eps=section.epsilon, fused=True),
        ]
    groups = [{"params": matrices, "weight_decay": decay}, flat]
    return [AdamW(groups, lr=section.learning_rate, betas=section.betas, eps=section.epsilon, fused=True)]


def learning_rate(step: int, section: TrainSection) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, a plateau, decay to the final one at the last step.

    With `decay_share=1` there is no plateau; with less, or with `decay_steps`, it is the warmup-stable-decay schedule
    (arXiv 2404.06395). A run shorter than its warm-up, a rehearsal for one, ends on the way up.

    >>> section = TrainSection(out="run", steps=100, warmup_steps=10, learning_rate=1.0, decay="linear")
    >>> learning_rate(4, section), learning_rate(100, section)
    (0.5, 0.0)
    """
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    behind = section.steps - section.warmup_steps
    span = max(1.0, min(section.decay_steps, behind) if section.decay_steps else behind * section.decay_share)
    progress = max(0.0, 1 - (section.steps - step) / span)
    remaining = 1 - progress if section.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return section.final_learning_rate + (section.learning_rate - section.final_learning_rate) * remaining
