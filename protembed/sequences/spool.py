"""Input that can be read once only (standard input, pipes): copied to a temporary file, under its own name."""

import errno
import io
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from protembed.errors import InputError, OutputError
from protembed.sequences.files import AnyPath, open_bytes, unreadable

_CHUNK = 1 << 20
_DESCRIPTOR = re.compile(r"/dev/stdin|(?:/dev|/proc/(?:self|\d+))/fd/\d+")
"""Names of what a process has open: on some systems opening one again does not begin at the start."""


@dataclass(frozen=True)
class InputFile:
    """The copy of an input: os.fspath() is where it lies, str() what a user calls it (standard input, /dev/fd/63)."""

    path: Path
    name: str

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name


@contextmanager
def input_files(words: Sequence[str], *, beside: Path | None = None) -> Iterator[list[AnyPath]]:
    """Yield paths that can be read more than once: whatever cannot be is copied, and the copy removed afterwards.

    The copy lies in the system's temporary folder (TMPDIR), or in the folder `beside` where that has no room. Raises
    InputError for what cannot be read, or is named twice and can be read once; OutputError when no folder has room.
    """
    seen: set[tuple[int, int]] = set()
    with ExitStack() as stack:
        paths: list[AnyPath] = []
        for word in words:
            status = _status(word)
            if status is None:
                paths.append(word)
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                raise InputError(
                    f"{_name(word)} is named twice, and can be read once",
                    hint="Name it once, or save it to a file first.",
                )
            seen.add(identity)
            paths.append(stack.enter_context(_copied(word, beside)))
        yield paths


def _status(word: str) -> os.stat_result | None:
    """Return what is known of an input that can be read once; None for files, folders and what is not there."""
    try:
        status = _status_of_standard_input() if word == "-" else os.stat(word)
    except (OSError, ValueError):
        return None  # reading it says why
    mode, is_descriptor = status.st_mode, word == "-" or _DESCRIPTOR.fullmatch(word)
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _ends(word, status)):
        raise InputError(f"{_name(word)}: a device, not a file", hint="Name a FASTA file, or pipe the records in.")
    if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and not is_descriptor):
        return None
    return status


def _status_of_standard_input() -> os.stat_result:
    if sys.stdin is None:
        raise unreadable("standard input", OSError(errno.EBADF, ""))
    try:
        return os.fstat(sys.stdin.fileno())
    except (OSError, ValueError) as error:
        raise InputError(f"standard input cannot be read ({error})", hint="Name a file.") from error


def _ends(word: str, status: os.stat_result) -> bool:
    """Tell whether a character device comes to an end: a terminal, or the null device."""
    if word in ("-", "/dev/stdin") and sys.stdin is not None and sys.stdin.isatty():
        return True
    return os.path.samestat(status, os.stat(os.devnull))


def _name(word: str) -> str:
    return "standard input" if word == "-" else word


@contextmanager
def _copied(word: str, beside: Path | None) -> Iterator[InputFile]:
    """Copy an input to the first folder that has room; remove the copy at the end."""
    name = _name(word)
    folders: list[Path] = []

    def read() -> bytes:
        try:
            return source.read(_CHUNK)
        except OSError as error:
            raise unreadable(name, error) from error

    try:
        with open_bytes(word, name) as source:
            path = _copy(read, name, _choices(beside), folders)
        yield InputFile(path, name)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _choices(beside: Path | None) -> list[Path]:
    """Return the folders for a copy, the preferred one first."""
    choices = [] if beside is None else [beside]
    try:
        return [Path(tempfile.gettempdir()), *choices]
    except OSError:  # none of the system's temporary folders can be written to
        return choices


def _copy(read: Callable[[], bytes], name: str, choices: Sequence[Path], made: list[Path]) -> Path:
    """Write what `read` returns to a file; where a folder has no room, move on to the next with what there is.

    `made` gets the folders that are to be removed. Raises OutputError when no folder is left.
    """
    held: Path | None = None
    size, data, reason = 0, b"", "there is no folder for temporary files"
    for choice in choices:
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=".protembed-", dir=choice))
            made.append(folder)
            path = folder / "input"
            with open(path, "wb", buffering=0) as file:
                if held is not None:
                    _append_start(file, held, size)
                    shutil.rmtree(held.parent, ignore_errors=True)
                while data := data or read():
                    _append(file, data)
                    size, data = size + len(data), b""
            return path
        except OSError as error:
            reason = f"{choice}: {error.strerror or error}"
            if folder is not None and size and held is None:
                held = folder / "input"
            elif folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    raise OutputError(
        f"{name} can be read once, and there is no room for its copy ({reason})",
        hint="Set TMPDIR to a folder with room, or save it to a file first.",
    )


def _append_start(file: io.FileIO, path: Path, size: int) -> None:
    """Append the first `size` bytes of another file."""
    with open(path, "rb") as other:
        while size:
            if not (data := other.read(min(size, _CHUNK))):
                raise OSError(errno.EIO, "the copy is cut short")
            _append(file, data)
            size -= len(data)


def _append(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
