"""AdamW, and the learning rate over a run."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from protembed.train.config import TrainSection


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], section: TrainSection) -> AdamW:
    """Build AdamW (Loshchilov and Hutter, arXiv 1711.05101); matrices decay, gains, biases and embeddings do not."""
    decayed, plain = [], []
    for name, parameter in parameters:
        (plain if parameter.ndim < 2 or "embedding" in name or "positions" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": section.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW(groups, lr=section.learning_rate, betas=section.betas, eps=section.epsilon, fused=True)


def learning_rate(step: int, section: TrainSection) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then decay to the final one at the last step.

    >>> section = TrainSection(out="run", steps=100, warmup_steps=10, learning_rate=1.0, decay="linear")
    >>> learning_rate(4, section), learning_rate(100, section)
    (0.5, 0.0)
    """
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    progress = (step - section.warmup_steps) / max(1, section.steps - section.warmup_steps)
    remaining = 1 - progress if section.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return section.final_learning_rate + (section.learning_rate - section.final_learning_rate) * remaining
