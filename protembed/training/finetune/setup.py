"""What the training data says before training, and what is told of a head after it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from protembed import __version__
from protembed.errors import InputError, UsageError
from protembed.models.config import ModelCard
from protembed.models.head_config import HeadConfig
from protembed.models.heads.contact import PairContactHead
from protembed.models.heads.run import design_head
from protembed.tasks import Task
from protembed.tasks.labels.encoding import Labelled
from protembed.training.finetune.config import TaskConfig
from protembed.training.finetune.examples import Examples
from protembed.training.finetune.scoring import VALUES

_SAMPLE = 64  # batches of contact maps that show how rare contacts are


def design(config: TaskConfig, task: Task, card: ModelCard, n_labels: int) -> HeadConfig:
    """Describe the head that a configuration asks for. Raises UsageError, ModelError."""
    section = config.head
    head = design_head(
        card,
        task.kind,
        outputs=max(1, n_labels),
        design=section.design,
        reads=section.reads or None,
        layers=config.encoder.layers,
        hidden=section.hidden,
        kernel=section.kernel,
        dropout=section.dropout,
    )
    if head.design == "pair" and head.hidden % PairContactHead.CHANNELS:
        raise UsageError(f"[head] hidden is {head.hidden}: a pair head takes a multiple of {PairContactHead.CHANNELS}")
    whole = task.kind.partition("_")[0], head.design
    needed = {("contacts", "compact"): ("attention",), ("sequence", "tape"): ("pooled",)}
    if head.reads not in needed.get(whole, ("hidden", "residue")):
        raise UsageError(
            f"[head] a {head.design} head for {task.kind} does not read {head.reads}",
            hint='design = "tape" reads residues for contacts, design = "compact" for proteins.',
        )
    return head


def value_scale(examples: Examples) -> tuple[float, float]:
    """Return standard deviation and mean of the values that are predicted; (1, 0) for what is no value.

    Raises InputError when all are the same.
    """
    if examples.kind not in VALUES:
        return 1.0, 0.0
    values = examples.targets[examples.counts].astype(np.float64)
    if not values.std() > 0:
        raise InputError(f"all {len(values):,} training targets are {values[0]:g}: there is nothing to learn")
    return float(values.std()), float(values.mean())


def standardise(examples: Examples, scale: float, offset: float) -> Examples:
    """Give values a mean of 0 and a standard deviation of 1; leave other targets alone."""
    if examples.kind not in VALUES:
        return examples
    return replace(examples, targets=((examples.targets - offset) / scale).astype(np.float32))


def class_weights(
    examples: Examples, n_labels: int, how: Literal["none", "root", "balanced"], device: torch.device
) -> Tensor | None:
    """Return a weight a class, on average 1 over the examples; or the weight of yes, for flags and contacts."""
    if how == "none" or examples.kind in VALUES:
        return None
    power = 1.0 if how == "balanced" else 0.5
    if examples.kind in ("residue_flags", "contacts"):
        yes, total = _count_yes(examples)
        return torch.tensor(((total - yes) / np.maximum(yes, 1)) ** power, dtype=torch.float32, device=device)
    shares = np.bincount(examples.targets[examples.counts], minlength=n_labels) / examples.counts.sum()
    weights = shares**-power
    return torch.tensor(weights / (weights @ shares), dtype=torch.float32, device=device)


def _count_yes(examples: Examples) -> tuple[np.typing.NDArray[np.float64], float]:
    if examples.kind == "residue_flags":
        return examples.targets[examples.counts].sum(axis=0).astype(np.float64), float(examples.counts.sum())
    yes = total = 0
    for batch, _ in zip(examples.batches(1024, torch.device("cpu")), range(_SAMPLE), strict=False):
        for touching, counted in zip(batch.targets, batch.counts, strict=True):
            yes, total = yes + int((touching & counted).sum()), total + int(counted.sum())
    return np.array(float(yes)), float(total)


def describe(
    config: TaskConfig, train: Sequence[Labelled], results: Mapping[str, float | int], *, shared: int = 0
) -> dict[str, str | int | float | bool]:
    """Return what a head's card tells of its training. Of paths only the last name: the rest is nobody's business."""
    data, section, negatives = config.data, config.train, config.negatives
    facts: dict[str, str | int | float | bool] = {
        "data": Path(data.path).name,
        "train": ",".join(data.train),
        "valid": ",".join(data.valid) or "val, or drawn from train",
        "proteins": len(train),
        "residues": sum(len(protein.record.sequence) for protein in train),
        "mode": config.encoder.mode,
        "seed": section.seed,
        "learning_rate": section.learning_rate,
        "class_weights": section.class_weights,
        "protembed": __version__,
    }
    if shared:
        facts["shared_with_valid_or_test"] = f"{shared} proteins, left out"
    if data.where:
        facts["where"] = ",".join(data.where)
    if negatives.path:
        chosen = f" ({' or '.join(negatives.where)})" if negatives.where else ""
        facts["negatives"] = f"{negatives.proteins} of {Path(negatives.path).name}{chosen}, all '{negatives.label}'"
    return facts | dict(results)
