"""The native checkpoint: one .safetensors file whose JSON header is the model card."""

import functools
import hashlib
import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from protembed.checkpoints.header import card_fields, in_file
from protembed.checkpoints.tensor_file import FLOATS, SafetensorsFile, Spec
from protembed.errors import ModelError
from protembed.models.config import ModelCard
from protembed.models.protein_model import FULL_PRECISION, ProteinModel, skeleton
from protembed.outputs.files import atomic

_KEY = "protembed"
_FORMAT = "1"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors: of every name, type, shape and its bytes, in order of name."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        feed(state, name, tensors[name])
    return state.hexdigest()


def save(model: ProteinModel, path: Path, *, dtype: torch.dtype = torch.float32) -> ModelCard:
    """Write the model to `path` (replaced as a whole, never left half-written) and return its card with the digest."""
    return save_weights(model.card, model.state_dict(), path, dtype=dtype)


def save_weights(
    card: ModelCard, weights: Mapping[str, Tensor], path: Path, *, dtype: torch.dtype = torch.float32
) -> ModelCard:
    """Do what `save` does with the weights of a model that is divided among processes, gathered."""
    tensors = {name: t.detach().to("cpu", _type_of(name, dtype)).contiguous() for name, t in weights.items()}
    card = replace(card, sha256=digest(tensors))
    write_tensors(tensors, path, {_KEY: json.dumps({"format": _FORMAT, **card.to_dict()})})
    return card


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, whole or not at all; its mode follows the umask. Raises OSError."""
    with atomic(path) as new:
        mode = stat.S_IMODE(new.stat().st_mode)
        try:
            save_file(dict(tensors), new, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        new.chmod(mode)  # safetensors writes for the owner alone


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

    The model's `card.sha256` is that of the file, whatever it is loaded as.

    Raises ModelError when the file is cut short, altered, or does not fit its card.
    """
    file = SafetensorsFile(path)
    card = _card(file)
    dtype = dtype or widest(spec.dtype for name, spec in file.specs.items() if name not in FULL_PRECISION)
    tensors = _verified(file, card)
    return make_model(card, tensors, device=device, dtype=dtype, place=str(path), stored=file.specs)


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type that holds the values of all of these.

    >>> widest([torch.float16, torch.float32])
    torch.float32
    """
    return functools.reduce(torch.promote_types, (dtype for dtype in dtypes if dtype in FLOATS), torch.uint8)


def make_model(
    card: ModelCard,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    place: str,
    stored: Mapping[str, Spec],
) -> ProteinModel:
    """Make a model of a stream of named tensors, cast on the way: no more than one of them is in memory beside it.

    Every weight must come, fit, and be finite. `stored` is what the file holds: a model that is much larger is not
    made. Raises ModelError, which begins with `place`.
    """
    model = _skeleton(card, stored, place)
    # All room is taken at once: temporary tensors between lasting ones would leave holes in the heap.
    room = {
        name: torch.empty(t.shape, dtype=_type_of(name, dtype), device=device) for name, t in model.state_dict().items()
    }
    _fill(room, tensors, place)
    for name, tensor in room.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{place}: {name} holds NaN or infinite values", hint="The checkpoint is damaged.")
    model.load_state_dict(room, assign=True)
    return model.requires_grad_(False).eval()


def _fill(room: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], place: str) -> None:
    """Copy named tensors to where they belong. Raises ModelError unless each has its place, and each place its own."""
    missing, extra, misfits = set(room), [], []
    for name, tensor in tensors:
        if name not in room:
            extra.append(name)
            continue
        missing.remove(name)
        if tensor.dtype not in FLOATS:
            misfits.append(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}: quantised, or no weight")
        elif tensor.shape == room[name].shape:
            room[name].copy_(tensor)
        else:
            misfits.append(f"{name} is {tuple(tensor.shape)}, not {tuple(room[name].shape)}")
    if missing:
        raise ModelError(f"{place}: {len(missing)} weights are missing, the first is {min(missing)}")
    if extra:
        raise ModelError(f"{place}: {len(extra)} weights do not belong to the model, the first is {min(extra)}")
    if misfits:
        raise ModelError(f"{place}: {misfits[0]}")


def _skeleton(card: ModelCard, stored: Mapping[str, Spec], place: str) -> ProteinModel:
    """Build the model without memory for its weights, after a look at whether the file can hold so many."""
    if card.encoder.n_layers > len(stored):
        raise ModelError(f"{place}: {card.encoder.n_layers:,} layers, and the file holds {len(stored)} tensors")
    model = skeleton(card)
    needed = sum(tensor.numel() for tensor in model.state_dict().values())
    held = sum(math.prod(spec.shape) for spec in stored.values())
    if needed > 2 * held + 2**20:  # biases that a published model does not have are added as zeros
        raise ModelError(
            f"{place}: a model of this shape has {needed:,} weights, and the file holds {held:,}",
            hint="Does the configuration belong to these weights?",
        )
    return model


def _type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type that a tensor is stored and kept in, in a model of `dtype`."""
    return torch.float32 if name in FULL_PRECISION else dtype


def _card(file: SafetensorsFile) -> ModelCard:
    values = card_fields(file.path, file.metadata, _KEY, version=_FORMAT, what="the model card")
    with in_file(file.path):
        return ModelCard.from_dict(values)


def _verified(file: SafetensorsFile, card: ModelCard) -> Iterator[tuple[str, Tensor]]:
    """Stream the tensors of a file; at its end raise ModelError unless they are those that the card speaks of."""
    state = hashlib.sha256()
    for name in sorted(file.specs):
        tensor = file.read(name)
        feed(state, name, tensor)
        yield name, tensor
    if state.hexdigest() != card.sha256:
        raise ModelError(
            f"{file.path}: the weights do not match their checksum", hint="The file is damaged: copy it again."
        )


def feed(state: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    """Add one tensor to a digest: its name, type, shape and bytes. Tensors must come in the order of their names."""
    state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    data: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    state.update(data)
