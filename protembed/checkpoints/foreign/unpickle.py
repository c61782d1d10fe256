"""Read what torch.save wrote without running anything of it."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from protembed.errors import ModelError
from protembed.schema import said

ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    *((function, f"numpy.{core}.multiarray.{function.__name__}")
      for function in (multiarray._reconstruct, multiarray.scalar)
      for core in ("core", "_core")),
]  # fmt: skip
"""What a checkpoint may name beside tensors: options, and the arrays of a random state (numpy < 2 said `core`)."""

_ZIP = b"PK\x03\x04"


def is_mappable(path: Path) -> bool:
    """Tell whether the file has torch's zip form, whose tensors can be mapped into memory."""
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def unpickle(path: Path) -> Any:
    """Load a torch file, mapped into memory where its form allows. Raises ModelError.

    Whatever can be wrong with the bytes raises here, and is of many kinds: so all of them are caught.
    """
    try:
        mapped = is_mappable(path)
        if mapped:
            _check_archive(path)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        if forbidden := re.search(r"(?:GLOBAL|global) ([\w.]+\.[\w.]+)", str(error)):
            raise ModelError(
                f"{path}: the file asks to run {forbidden[1]}, which a checkpoint has no need of; nothing was run",
                hint="Ask its author for a .safetensors file, or for a plain state dictionary.",
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _check_archive(path: Path) -> None:
    """Raise ModelError for parts that are compressed: torch compresses none, and a small file could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if packed := next((part for part in parts if part.compress_type != zipfile.ZIP_STORED), None):
        raise ModelError(
            f"{path}: {said(packed.filename)} in it is compressed, which torch.save never does",
            hint="Save the weights again with torch.save.",
        )
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ModelError(f"{path}: its parts are said to be larger than the file", hint="Copy it again.")


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ModelError(
        f"{path}: cannot be read as a torch checkpoint ({reason})", hint="Is the file complete? Copy it again."
    )
