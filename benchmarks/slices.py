"""A file cut into slices that a limited transport takes, and put together again, byte for byte."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from protembed.errors import InputError

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def cut(path: Path, folder: Path, *, limit: int) -> list[Path]:
    """Cut a file into slices of at most `limit` bytes in `folder`, beside a manifest with their digests.

    Returns the files written, the manifest first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slices: list[dict[str, str | int]] = []
    with path.open("rb") as file:
        while data := file.read(limit):
            part = folder / f"{path.name}.{len(slices):03d}"
            part.write_bytes(data)
            slices.append({"name": part.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {"name": path.name, "size": path.stat().st_size, "sha256": file_digest(path), "slices": slices}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return [folder / MANIFEST, *(folder / str(part["name"]) for part in slices)]


def join(folder: Path, target: Path) -> None:
    """Put the slices of a folder together in `target`.

    Raises InputError when one is missing or altered; there is no target then.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        slices = [(folder / part["name"], part["sha256"]) for part in manifest["slices"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST}: cannot be read ({error})") from error
    for path, digest in slices:
        if not path.is_file() or file_digest(path) != digest:
            raise InputError(f"{path}: is missing or altered", hint="Send this slice again.")
    with target.open("wb") as file:
        for path, _ in slices:
            for block in blocks(path):
                file.write(block)
    if file_digest(target) != manifest["sha256"]:
        target.unlink()
        raise InputError(f"{folder}: the slices do not make the file that was cut", hint="Send all of them again.")


def blocks(path: Path) -> Iterator[bytes]:
    """Read a file a few megabytes at a time."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    state = hashlib.sha256()
    for block in blocks(path):
        state.update(block)
    return state.hexdigest()
