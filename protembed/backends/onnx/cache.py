"""ONNX files that are at hand: shipped beside a checkpoint, or kept in the user's cache by an earlier export."""

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from protembed.backends.onnx.file import OnnxFile
from protembed.errors import ModelError


def cache_folder() -> Path:
    """Return the user's cache: $PROTEMBED_CACHE, else protembed in $XDG_CACHE_HOME or in ~/.cache."""
    if told := os.environ.get("PROTEMBED_CACHE"):
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "protembed"


def export_place(checkpoint: Path) -> Path:
    """Return where the ONNX file of a checkpoint is kept, by the digest of its weights.

    Those of a foreign checkpoint are not known before it is loaded: it goes by its path and its files' size and time.
    """
    return _exports() / f"{_weights_digest(checkpoint) or _files_digest(checkpoint)}.onnx"


def find_exported(checkpoint: Path) -> Path | None:
    """Return the ONNX file of a checkpoint, the one beside it first; None when there is none of just these weights."""
    digest, beside = _weights_digest(checkpoint), checkpoint.with_suffix(".onnx")
    if digest and beside.is_file() and _is_plain_export(beside, digest):
        return beside
    if not _exports().is_dir():
        return None
    place = export_place(checkpoint)
    return place if place.is_file() and _is_plain_export(place, digest) else None


def _exports() -> Path:
    return cache_folder() / "onnx"


def _is_plain_export(path: Path, digest: str) -> bool:
    """Tell whether a file can stand in for a checkpoint: whole, of its weights (an empty digest: any), in float32."""
    try:
        header = OnnxFile(path).header
    except ModelError:
        return False
    return header.weights == "float32" and header.attention != "packed" and digest in ("", header.card.sha256)


def _weights_digest(checkpoint: Path) -> str:
    """Return the digest that a native checkpoint's header names; empty for every other file."""
    if checkpoint.suffix != ".safetensors":
        return ""
    try:
        with safe_open(checkpoint, framework="np") as file:
            metadata = file.metadata() or {}
        return str(json.loads(metadata.get("protembed", "{}")).get("sha256", ""))
    except (SafetensorError, OSError, ValueError):
        return ""


def _files_digest(checkpoint: Path) -> str:
    """Digest the path of a checkpoint, and name, size and time of all its files."""
    path = checkpoint.resolve()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()
