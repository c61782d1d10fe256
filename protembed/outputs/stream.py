"""The writer of text that is sent as it comes: to standard output, a pipe, a device. It cannot be resumed."""

import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Generic

from protembed.errors import OutputError
from protembed.outputs.writer import Item
from protembed.sequences.windows import Failure


class StreamWriter(Generic[Item]):
    """Writes lines as they come; see writer.Writer. Records without a result are told on standard error.

    Raises OutputError; where the reader of standard output leaves early, as `head` does, BrokenPipeError.
    """

    def __init__(self, path: Path, lines: Callable[[Item], Iterator[str]], header: str, budget: int) -> None:
        self._path, self._lines, self._header = path, lines, header
        self.name = "standard output" if _is_stdout(path) else str(path)
        self.done, self.budget = 0, budget
        self.complete = False
        self.failed = self.left_out = 0

    def __enter__(self) -> "StreamWriter[Item]":
        with self._reported():
            self._file = _open(self._path)
        self._put(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not sys.stdout:
            with suppress(OSError):  # what is left cannot be written either; that was told
                self._file.close()

    def write(self, item: Item) -> None:
        for line in self._lines(item):
            self._put(line)

    def fail(self, failure: Failure) -> None:
        self.failed += 1
        warnings.warn(f"{failure.record} has no result: {failure.reason}", stacklevel=2)

    def batch_done(self) -> None:
        with self._reported():
            self._file.flush()

    def finish(self, *, left_out: int) -> None:
        self.left_out, self.complete = left_out, True
        self.batch_done()

    def _put(self, text: str) -> None:
        with self._reported():
            self._file.write(text)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if _is_stdout(self._path) and isinstance(error, BrokenPipeError):
                raise
            reason = "its reader has left" if isinstance(error, BrokenPipeError) else error.strerror
            raise OutputError(f"{self.name}: cannot be written ({reason})") from error


def _is_stdout(path: Path) -> bool:
    return str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _open(path: Path) -> IO[str]:
    """Open what is there, and never make or replace anything. Raises OutputError for what no text belongs into."""
    if _is_stdout(path):
        stdout: IO[str] | None = sys.stdout
        if stdout is None:
            raise OutputError("standard output is closed", hint="Name a file to write to.")
        return stdout
    if path.parent.name == "fd" or path.name == "stderr":
        number = 2 if path.name == "stderr" else int(path.name)
        return os.fdopen(os.dup(number), "w", encoding="utf-8", errors="backslashreplace")
    mode = os.stat(path).st_mode
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OutputError(f"{path} is a {'disk' if stat.S_ISBLK(mode) else 'socket'}", hint="Name a file or a pipe.")
    descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")
