"""The native checkpoint: one .safetensors file whose JSON header is the model card."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protembed.card import ModelCard
from protembed.errors import ModelError
from protembed.model import ProteinModel

_KEY = "protembed"
_FORMAT = "1"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors: of every name, type, shape and its bytes, in order of name."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        _feed(state, name, tensors[name])
    return state.hexdigest()


def save(model: ProteinModel, path: Path, *, dtype: torch.dtype = torch.float32) -> ModelCard:
    """Write the model to `path` (replaced as a whole, never left half-written) and return its card with the digest."""
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in model.state_dict().items()}
    card = replace(model.card, sha256=digest(tensors))
    metadata = {_KEY: json.dumps({"format": _FORMAT, **card.to_dict()})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return card


def is_native(path: Path) -> bool:
    """Tell whether a file is one of ours, by its header."""
    return path.is_file() and path.suffix == ".safetensors" and _KEY in _metadata(path)


def read_card(path: Path) -> ModelCard:
    """Read the model card of a native checkpoint without its weights."""
    values = json.loads(_metadata(path)[_KEY])
    if values.pop("format", None) != _FORMAT:
        raise ModelError(f"{path}: written by another version of protembed", hint="pip install --upgrade protembed")
    return ModelCard.from_dict(values)


def count_parameters(path: Path) -> int:
    """Return the number of weights in a checkpoint, from its header."""
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def load(path: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> ProteinModel:
    """Load a native checkpoint, in its own dtype unless one is given, and check it against its digest.

    Raises ModelError when the file is cut short, altered, or does not fit its card.
    """
    card = read_card(path)
    with torch.device("meta"):
        model = ProteinModel(card)
    state = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            _feed(state, name, tensor)
            tensors[name] = tensor.to(device, dtype or tensor.dtype)
    if state.hexdigest() != card.sha256:
        raise ModelError(f"{path}: the weights do not match their checksum", hint="The file is damaged: copy it again.")
    fill(model, tensors, place=str(path))
    return model


def fill(model: ProteinModel, tensors: Mapping[str, Tensor], *, place: str) -> None:
    """Put named tensors into a model that has none yet; every one must be there, fit, and be finite."""
    expected = model.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise ModelError(f"{place}: {len(missing)} weights are missing, the first is {missing[0]}")
    if extra := sorted(set(tensors) - set(expected)):
        raise ModelError(f"{place}: {len(extra)} weights do not belong to the model, the first is {extra[0]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{place}: {name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}")
        if not tensor.isfinite().all():
            raise ModelError(f"{place}: {name} holds NaN or infinite values", hint="The checkpoint is damaged.")
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False)
    model.eval()


def _feed(state: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    data: Any = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    state.update(data)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error})", hint="Is the file complete?") from error
