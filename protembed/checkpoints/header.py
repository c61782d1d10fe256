"""A .safetensors file, opened, and the card in its header: whatever is wrong with them is one clear error. No torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from protembed.errors import ModelError, ProtembedError
from protembed.schema import parse_json, said

CARD_BYTES = 16 * 2**20
"""A card with a vocabulary of a million tokens takes no more."""


@contextmanager
def open_tensors(path: Path, framework: Literal["pt", "np"]) -> Iterator[Any]:
    """Open a .safetensors file. Raises ModelError for whatever can be wrong with its bytes.

    The library checks its header against the length of the file before it allocates; what it then raises is of many
    kinds, and so it is caught here, where bytes become tensors, and nowhere else.
    """
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except ProtembedError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{path}: cannot be read as safetensors ({reason[0][:200]})", hint="Is the file complete? Copy it again."
        ) from error


def card_fields(path: Path, metadata: Mapping[str, str], key: str, *, version: str, what: str) -> Mapping[str, Any]:
    """Return the fields of the card that a header holds under `key`; `what` names it in errors.

    Raises ModelError when there is none, it is not JSON, or another version of the format.
    """
    text = metadata.get(key, "{}")
    if len(text) > CARD_BYTES:
        raise ModelError(f"{path}: {what} has {len(text):,} letters, more than {CARD_BYTES:,}")
    values = parse_json(text, f"{path}: {what} cannot be read")
    if not isinstance(values, dict):
        raise ModelError(f"{path}: {what} cannot be read: it is {said(values)}, not an object")
    if values.pop("format", None) != version:
        raise ModelError(f"{path}: written by another version of protembed", hint="pip install --upgrade protembed")
    return values


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Name the file in a ModelError that does not."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error}", hint=error.hint) from error
