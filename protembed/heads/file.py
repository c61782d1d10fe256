"""The head checkpoint: one .safetensors file whose JSON header is the head's card."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from protembed.checkpoint import digest
from protembed.errors import ModelError
from protembed.heads.card import HeadCard
from protembed.heads.modules import TaskHead, make_head
from protembed.tensorfile import SafetensorsFile

_KEY = "protembed_head"
_FORMAT = "1"


def save_head(head: TaskHead, card: HeadCard, path: Path) -> HeadCard:
    """Write the head to `path` (replaced as a whole, never left half-written) and return its card with the digest."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    card = replace(card, config=head.config, sha256=digest(tensors))
    metadata = {_KEY: json.dumps({"format": _FORMAT, **card.to_dict()})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return card


def is_head(path: Path) -> bool:
    """Tell whether a file is a head of ours, by its header."""
    return path.is_file() and path.suffix == ".safetensors" and _KEY in SafetensorsFile(path).metadata


def read_head_card(path: Path) -> HeadCard:
    """Read the card of a head without its weights. Raises ModelError."""
    return _card(SafetensorsFile(path))


def load_head(path: Path, *, device: torch.device) -> tuple[TaskHead, HeadCard]:
    """Load a head, in float32, ready to run, and check it against its digest.

    Raises ModelError when the file is cut short, altered, or does not fit its card.
    """
    file = SafetensorsFile(path)
    card = _card(file)
    tensors = {name: file.read(name).clone() for name in file.specs}
    if digest(tensors) != card.sha256:
        raise ModelError(f"{path}: the weights do not match their checksum", hint="The file is damaged: copy it again.")
    head = make_head(card.config)
    expected = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ModelError(f"{path}: the weights do not fit the head's card")
    head.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return head.to(device).requires_grad_(False).eval(), card


def _card(file: SafetensorsFile) -> HeadCard:
    if _KEY not in file.metadata:
        raise ModelError(f"{file.path}: is not a task head", hint="`protembed train` writes heads; -m names a model.")
    values = json.loads(file.metadata[_KEY])
    if values.pop("format", None) != _FORMAT:
        raise ModelError(
            f"{file.path}: written by another version of protembed", hint="pip install --upgrade protembed"
        )
    return HeadCard.from_dict(values)
