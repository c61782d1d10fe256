"""The native checkpoint: one .safetensors file whose JSON header is the model card."""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from protembed.checkpoints.tensor_file import SafetensorsFile
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.protein_model import ProteinModel, skeleton

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
    return save_weights(model.card, model.state_dict(), path, dtype=dtype)


def save_weights(
    card: ModelCard, weights: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype = torch.float32
) -> ModelCard:
    """Do what `save` does with the weights of a model that is divided among processes, gathered."""
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in weights.items()}
    card = replace(card, sha256=digest(tensors))
    metadata = {_KEY: json.dumps({"format": _FORMAT, **card.to_dict()})}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # safetensors writes for the owner alone; a model is for the group, too
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return card


def is_native(path: Path) -> bool:
    """Tell whether a file is one of ours, by its header."""
    return path.is_file() and path.suffix == ".safetensors" and _KEY in SafetensorsFile(path).metadata


def read_card(path: Path) -> ModelCard:
    """Read the model card of a native checkpoint without its weights."""
    return _card(SafetensorsFile(path))


def count_parameters(path: Path) -> int:
    """Return the number of weights in a checkpoint, from its header."""
    return sum(math.prod(spec.shape) for spec in SafetensorsFile(path).specs.values())


def load(path: Path, *, device: torch.device, dtype: torch.dtype | None = None) -> ProteinModel:
    """Load a native checkpoint, in its own dtype unless one is given, and check it against its digest.

    Raises ModelError when the file is cut short, altered, or does not fit its card.
    """
    file = SafetensorsFile(path)
    card = _card(file)
    dtype = dtype or widest(spec.dtype for spec in file.specs.values())
    return make_model(card, _verified(file, card), device=device, dtype=dtype, place=str(path))


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type that holds the values of all of these.

    >>> widest([torch.float16, torch.float32])
    torch.float32
    """
    return functools.reduce(torch.promote_types, dtypes, torch.uint8)


def make_model(
    card: ModelCard,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    place: str,
) -> ProteinModel:
    """Make a model of a stream of named tensors, cast on the way: no more than one of them is in memory beside it.

    Every weight must come, fit, and be finite. Raises ModelError, which begins with `place`.
    """
    model = skeleton(card)
    # All room is taken at once: temporary tensors between lasting ones would leave holes in the heap.
    room = {name: torch.empty(t.shape, dtype=dtype, device=device) for name, t in model.state_dict().items()}
    missing, extra, misfits = set(room), [], []
    for name, tensor in tensors:
        if name not in room:
            extra.append(name)
            continue
        missing.remove(name)
        if tensor.shape == room[name].shape:
            room[name].copy_(tensor)
        else:
            misfits.append(f"{name} is {tuple(tensor.shape)}, not {tuple(room[name].shape)}")
    if missing:
        raise ModelError(f"{place}: {len(missing)} weights are missing, the first is {min(missing)}")
    if extra:
        raise ModelError(f"{place}: {len(extra)} weights do not belong to the model, the first is {min(extra)}")
    if misfits:
        raise ModelError(f"{place}: {misfits[0]}")
    for name, tensor in room.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{place}: {name} holds NaN or infinite values", hint="The checkpoint is damaged.")
    model.load_state_dict(room, assign=True)
    return model.requires_grad_(False).eval()


def _card(file: SafetensorsFile) -> ModelCard:
    values = json.loads(file.metadata[_KEY])
    if values.pop("format", None) != _FORMAT:
        raise ModelError(
            f"{file.path}: written by another version of protembed", hint="pip install --upgrade protembed"
        )
    return ModelCard.from_dict(values)


def _verified(file: SafetensorsFile, card: ModelCard) -> Iterator[tuple[str, Tensor]]:
    """Stream the tensors of a file; at its end raise ModelError unless they are those that the card speaks of."""
    state = hashlib.sha256()
    for name in sorted(file.specs):
        tensor = file.read(name)
        _feed(state, name, tensor)
        yield name, tensor
    if state.hexdigest() != card.sha256:
        raise ModelError(
            f"{file.path}: the weights do not match their checksum", hint="The file is damaged: copy it again."
        )


def _feed(state: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    data: Any = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    state.update(data)
