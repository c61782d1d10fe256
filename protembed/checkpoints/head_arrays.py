"""The file of a head as numpy arrays: a .safetensors file whose JSON header is the head's card. No torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from protembed.errors import ModelError
from protembed.models.head_config import HeadCard

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


def read_head_card(path: Path) -> HeadCard:
    """Read the card of a head without its weights. Raises ModelError."""
    return _read(path, weights=False)[0]


def read_head(path: Path) -> tuple[HeadCard, Arrays]:
    """Read a head, its weights as they are stored, and check them against its digest.

    Raises ModelError when the file is cut short, altered, or no head.
    """
    card, arrays = _read(path, weights=True)
    if digest(arrays) != card.sha256:
        raise ModelError(f"{path}: the weights do not match their checksum", hint="The file is damaged: copy it again.")
    return card, arrays


def _read(path: Path, *, weights: bool) -> tuple[HeadCard, dict[str, npt.NDArray[Any]]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            names = file.keys() if weights else ()
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError) as error:
        raise ModelError(
            f"{path}: cannot be read as safetensors ({error})", hint="Is the file complete? Copy it again."
        ) from error
    if KEY not in metadata:
        raise ModelError(f"{path}: is not a task head", hint="`protembed train` writes heads; -m names a model.")
    try:
        values = json.loads(metadata[KEY])
        if values.pop("format", None) != FORMAT:
            raise ModelError("written by another version of protembed", hint="pip install --upgrade protembed")
        return HeadCard.from_dict(values), arrays
    except ModelError as error:
        raise ModelError(f"{path}: {error}", hint=error.hint) from error
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: the head's card cannot be read ({error})", hint="The file is damaged: copy it again."
        ) from error
