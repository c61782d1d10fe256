"""ONNX files that are at hand: shipped beside a checkpoint, or kept in the user's cache by an earlier export.

One is taken in place of a checkpoint only if it is bound to the checkpoint's weights by their content (identity.py),
and only if nobody else can have put it there (trust.py).
"""

import os
import warnings
from pathlib import Path

from protembed.backends.onnx.file import OnnxFile
from protembed.backends.onnx.identity import NativeFile, digest_of_files, holds_weights_of, sketch_of_files
from protembed.backends.trust import find_distrust
from protembed.errors import ModelError


def cache_folder() -> Path:
    """Return the user's cache: $PROTEMBED_CACHE, else protembed in $XDG_CACHE_HOME or in ~/.cache."""
    if told := os.environ.get("PROTEMBED_CACHE"):
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "protembed"


def export_place(checkpoint: Path) -> tuple[Path, str]:
    """Return where the ONNX file of a checkpoint is kept, by the content of the checkpoint, and Header.source."""
    if (native := _open_native(checkpoint)) is not None:
        return _exports() / f"{native.card.sha256}.onnx", ""
    content = digest_of_files(checkpoint)
    return _exports() / f"{sketch_of_files(checkpoint)}-{content}.onnx", content


def find_exported(checkpoint: Path) -> OnnxFile | None:
    """Return the ONNX file of a checkpoint, verified, the one beside it first; None when there is none of its weights.

    A file that others may have written is left alone, with a warning. Raises ModelError for a native checkpoint that
    is damaged.
    """
    native = _open_native(checkpoint)
    if native is None:
        return _find_foreign(checkpoint)
    verified = False
    for place in (checkpoint.with_suffix(".onnx"), _exports() / f"{native.card.sha256}.onnx"):
        file = _open(place, checkpoint)
        if file is None or file.header.card != native.card:
            continue
        if not verified:
            native.verify()
            verified = True
        if holds_weights_of(file, native):
            return file
    return None


def _find_foreign(checkpoint: Path) -> OnnxFile | None:
    """Look into the cache; the content of a checkpoint is read only if its names and sizes are known there."""
    known = sorted(_exports().glob(f"{sketch_of_files(checkpoint)}-*.onnx")) if _exports().is_dir() else []
    files = [file for place in known if (file := _open(place, checkpoint)) is not None]
    if not files:
        return None
    content = digest_of_files(checkpoint)
    for file in files:
        if file.header.source != content:
            continue
        try:
            file.verify()
        except ModelError as error:
            warnings.warn(f"{error}: it is not used. Export the model again.", stacklevel=1)
        else:
            return file
    return None


def _exports() -> Path:
    return cache_folder() / "onnx"


def _open(path: Path, checkpoint: Path) -> OnnxFile | None:
    """Open a file that may stand in for a checkpoint: whole, in float32, for every device, and not another user's."""
    try:
        if not path.is_file() or not _is_ours(path, checkpoint):
            return None
        file = OnnxFile(path)
        if file.header.weights != "float32" or file.header.attention == "packed":
            return None
        file.verify_graph()
        return file if all(_is_ours(part, checkpoint) for part in file.paths[1:]) else None
    except (ModelError, OSError):
        return None


def _is_ours(path: Path, checkpoint: Path) -> bool:
    """Tell whether nobody else can have written a file but whoever owns the checkpoint; warn otherwise."""
    distrust = find_distrust(path, owners={checkpoint.stat().st_uid})
    if distrust:
        warnings.warn(f"{path} is not used: {distrust}. It is if you name it as the model.", stacklevel=1)
    return not distrust


def _open_native(checkpoint: Path) -> NativeFile | None:
    if checkpoint.suffix != ".safetensors" or not checkpoint.is_file():
        return None
    try:
        return NativeFile(checkpoint)
    except (ValueError, LookupError, TypeError, OSError, RecursionError, ModelError):
        return None
