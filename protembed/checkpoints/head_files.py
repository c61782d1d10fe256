"""Heads into files, and out of them into torch; head_arrays.py has the form."""

from dataclasses import replace
from pathlib import Path

import torch

from protembed.checkpoints.head_arrays import read_head, to_metadata
from protembed.checkpoints.native import digest, write_tensors
from protembed.errors import ModelError
from protembed.models.head_config import HeadCard
from protembed.models.heads.base import TaskHead
from protembed.models.heads.registry import make_head


def round_weights(head: TaskHead, dtype: torch.dtype) -> None:
    """Round the weights of a head, in place, to what a file of that type holds; statistics stay as they are."""
    for parameter in head.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def save_head(head: TaskHead, card: HeadCard, path: Path, *, dtype: torch.dtype = torch.float32) -> HeadCard:
    """Write the head to `path` (replaced as a whole, never left half-written) and return its card with the digest.

    Weights are written as `dtype`, running statistics as they are: a variance may be smaller than float16 holds.
    """
    weights = {name for name, _ in head.named_parameters()}
    stored = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    tensors = {name: tensor.to(dtype) if name in weights else tensor for name, tensor in stored.items()}
    card = replace(card, config=head.config, sha256=digest(tensors))
    write_tensors(tensors, path, to_metadata(card))
    return card


def load_head(path: Path, *, device: torch.device) -> tuple[TaskHead, HeadCard]:
    """Load a head, in float32, ready to run, and check it against its digest.

    Raises ModelError when the file is cut short, altered, or does not fit its card.
    """
    card, arrays = read_head(path)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in make_head(card.config).state_dict().items()}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise ModelError(f"{path}: the weights do not fit the head's card")
    head = make_head(card.config)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    head.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return head.to(device).requires_grad_(False).eval(), card
