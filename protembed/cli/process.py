"""How the process meets the world: its three streams, and the way it ends."""

import contextlib
import errno
import io
import os
import re
import signal
import stat
import sys
import traceback
from collections.abc import Iterator
from typing import TextIO

from protembed import interrupts
from protembed.cli.console import plain_lines, show, show_error, show_problem
from protembed.errors import OutputError, ProtembedError

_SURROUNDINGS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF),
}
"""What files and machines can say at any place, and no bug of ours causes."""


class _Data(io.TextIOWrapper):
    """Standard output whose failures are errors of ours, wherever something is printed; a reader may leave.

    What a terminal shows is escaped; files and pipes get the data as it is.
    """

    reader_left = False

    def write(self, text: str) -> int:
        with self._told():
            return super().write(plain_lines(text) if self.line_buffering else text)

    def flush(self) -> None:
        with self._told():
            super().flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.reader_left = True
            _drop_the_rest(1)
            raise
        except OSError as error:
            _drop_the_rest(1)  # Python flushes once more at its end: there it must not fail again
            reason = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"standard output cannot be written ({reason})") from error


class _Messages(io.TextIOWrapper):
    """Standard error that never fails: a message that cannot be written is dropped, and the work goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:  # the terminal is closed, the reader has left, or the disk is full
            _drop_the_rest(2)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _drop_the_rest(2)


def _drop_the_rest(number: int) -> None:
    opened = os.open(os.devnull, os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)


def prepare_streams() -> None:
    """Make the standard streams what the commands rely on, whatever the shell and the locale did to them.

    A stream that the shell closed must not give its number to the next file that is opened: libraries that write
    warnings to it would write into an output. It is held by one that fails when it is used. Data is UTF-8 in files and
    pipes, whatever the locale; bytes of an input that are not UTF-8 come out as they were. On a terminal, what its
    encoding lacks is escaped.
    """
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        if not re.fullmatch("[1-9][0-9]{0,4}", os.environ.get(name, "80")):
            del os.environ[name]  # lines of no columns would be empty
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _hold(number, mode)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout, sys.stderr = _data(sys.stdout), _messages(sys.stderr)


def _data(stream: TextIO | None) -> _Data:
    buffer = stream.buffer if stream is not None else open(1, "wb", closefd=False)  # noqa: SIM115
    if stream is not None and stream.isatty():
        return _Data(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
    return _Data(buffer, encoding="utf-8", errors="surrogateescape")


def _messages(stream: TextIO | None) -> _Messages:
    buffer = stream.buffer if stream is not None else open(2, "wb", closefd=False)  # noqa: SIM115
    encoding = stream.encoding if stream is not None else "utf-8"
    return _Messages(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _hold(number: int, mode: int) -> None:
    try:
        usable = not stat.S_ISDIR(os.fstat(number).st_mode)
    except OSError:
        usable = False
    if not usable:
        opened = os.open(os.devnull, mode)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def report(error: BaseException) -> int:
    """Print why a command ended, and return the exit status."""
    if isinstance(error, KeyboardInterrupt) or interrupts.pending():
        # Code that is interrupted in C may raise an error of its own instead: that is no bug.
        return _report_stop(error)
    if isinstance(error, ProtembedError):
        show_error(error)
        return error.exit_status
    if isinstance(error, MemoryError):
        show_problem("there is not enough memory", "Split the work, or take a machine with more memory.")
        return OutputError.exit_status
    if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
        file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        show_problem(f"{file}{os.strerror(error.errno)}", "Check the folder, its free space and its permissions.")
        return OutputError.exit_status
    for line in "".join(traceback.format_exception(error)).splitlines():
        show(line)
    return 1


def _report_stop(error: BaseException) -> int:
    """Print that the process was told to stop, by what, and what is kept."""
    if isinstance(error, ProtembedError):
        show_error(error)
    number = interrupts.received()
    by = f" ({signal.Signals(number).name})" if number else ""
    kept = error.kept if isinstance(error, interrupts.Interrupted) else ""
    show(f"interrupted{by}: {kept}" if kept else f"interrupted{by}")
    return interrupts.EXIT_STATUS


def end_if_reader_left() -> None:
    """End quietly by SIGPIPE, as filters end when `head` has seen enough; a shell shows status 141."""
    if getattr(sys.stdout, "reader_left", False):
        sys.stderr.flush()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPIPE})
        os.kill(os.getpid(), signal.SIGPIPE)
        os._exit(128 + signal.SIGPIPE)
