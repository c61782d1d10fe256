"""The file of a head as numpy arrays: a .safetensors file whose JSON header is the head's card. No torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from protembed.checkpoints.header import card_fields, in_file, open_tensors
from protembed.errors import ModelError
from protembed.models.head_config import HeadCard
from protembed.models.head_shapes import head_shapes

KEY = "protembed_head"
FORMAT = "1"

Arrays = Mapping[str, npt.NDArray[Any]]


def digest(arrays: Arrays) -> str:
    """Return the sha256 of named arrays, as checkpoint.digest has it for tensors."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"{name} torch.{array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def to_metadata(card: HeadCard) -> dict[str, str]:
    """Return the header of a head's file."""
    return {KEY: json.dumps({"format": FORMAT, **card.to_dict()})}


def is_own(path: Path) -> bool:
    """Tell whether a file is one of ours (a head, or a model by mistake), not a fine-tuned model of another program.

    Raises ModelError when it is damaged.
    """
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    with open_tensors(path, "np") as file:
        return any(key.startswith("protembed") for key in file.metadata() or {})


def read_head_card(path: Path) -> HeadCard:
    """Read the card of a head without its weights. Raises ModelError."""
    return _read(path, weights=False)[0]


def read_head(path: Path) -> tuple[HeadCard, Arrays]:
    """Read a head, its weights as they are stored, and check them against its card and digest.

    Raises ModelError when the file is cut short, altered, or no head.
    """
    card, arrays = _read(path, weights=True)
    if digest(arrays) != card.sha256:
        raise ModelError(f"{path}: the weights do not match their checksum", hint="The file is damaged: copy it again.")
    shapes = head_shapes(card.config)
    if shapes is not None and {name: array.shape for name, array in arrays.items()} != shapes:
        raise ModelError(f"{path}: the weights do not fit the head's card")
    return card, arrays


def _read(path: Path, *, weights: bool) -> tuple[HeadCard, dict[str, npt.NDArray[Any]]]:
    with open_tensors(path, "np") as file:
        metadata = dict(file.metadata() or {})
        if KEY not in metadata:
            raise ModelError(f"{path}: is not a task head", hint="`protembed train` writes heads; -m names a model.")
        values = card_fields(path, metadata, KEY, version=FORMAT, what="the head's card")
        with in_file(path):
            card = HeadCard.from_dict(values)
        names = file.keys() if weights else ()
        return card, {name: file.get_tensor(name) for name in names}
