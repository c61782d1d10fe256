"""Stop on Ctrl-C, SIGTERM or SIGHUP between two pieces of work, never inside one, and never not at all.

A handler that raises can be lost: Python calls it wherever the main thread happens to be, and an exception inside a
weakref callback, a `__del__` or another library's `except:` is dropped. So the handler also sets a flag. Whoever works
checks it after every piece: every batch, every layer, every file; and an alarm raises again, every second, as long as
nothing is being unwound and no work defers it.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_STATUS = 130
REMINDER_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """The process was told to stop; `number` is the signal, `kept` says what is kept and how to resume."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.kept = kept


class _State:
    """What the handler and the work have in common."""

    def __init__(self) -> None:
        self.received = 0
        self.deferred = 0
        self.status: int | None = None
        """Where there is nothing to lose: the exit status with which a signal ends the process at once."""


_STATE = _State()


def install() -> None:
    """Let the signals stop this process as described above; a signal that the caller ignores stays ignored.

    So `nohup` keeps what it promises, and so does a shell whose script runs the process in the background: Ctrl-C is
    then meant for what runs in the foreground.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)
    signal.signal(signal.SIGALRM, _remind)
    for hook in ("excepthook", "unraisablehook"):
        if not isinstance(getattr(sys, hook), _WithoutInterrupts):
            setattr(sys, hook, _WithoutInterrupts(getattr(sys, hook)))


class _WithoutInterrupts:
    """A hook of `sys` that prints exceptions, but those of a stop: they are reported where they end, or raised again.

    C code prints exceptions that it drops; numpy does while it is imported.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, first: Any, *rest: Any) -> None:
        kind = first if isinstance(first, type) else getattr(first, "exc_type", None)
        if not (isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)):
            self._inner(first, *rest)


def _receive(number: int, frame: FrameType | None) -> None:
    if _STATE.status is not None:
        _end_at_once(number, _STATE.status)
    again = _STATE.received == number == signal.SIGINT
    _STATE.received = number
    signal.setitimer(signal.ITIMER_REAL, REMINDER_SECONDS, REMINDER_SECONDS)
    if again or not (_STATE.deferred or _unwinding()):  # who types Ctrl-C twice means it
        raise Interrupted(number)


def _end_at_once(number: int, status: int) -> None:
    if status == EXIT_STATUS and not _STATE.received:
        with contextlib.suppress(OSError):
            os.write(2, f"interrupted ({signal.Signals(number).name})\n".encode())
    os._exit(status)


def _remind(number: int, frame: FrameType | None) -> None:
    """Raise a stop again that someone has dropped."""
    if not _STATE.deferred:
        check()


def _unwinding() -> bool:
    """Tell whether the code that runs cleans up after a stop, or closes a generator: that is not stopped again."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted | GeneratorExit):
            return True
        error = error.__context__
    return False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back while the block runs: they take effect at the next `check`, or at the end of the block."""
    _STATE.deferred += 1
    try:
        yield
    finally:
        _STATE.deferred -= 1
    check()  # after the count: whatever comes later is raised by the handler


def pending() -> bool:
    """Tell whether a signal has come that has not stopped the process yet."""
    return bool(_STATE.received)


def received() -> int:
    """Return the number of the last signal that has come, or 0."""
    return _STATE.received


def check() -> None:
    """Raise Interrupted if a signal has come. It costs an attribute look-up: call it after every piece of work."""
    if _STATE.received and not _unwinding():
        raise Interrupted(_STATE.received)


def clear() -> None:
    """Forget what has come: for tests, and for a process that goes on after a stop."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    _STATE.received = 0
    _STATE.status = None


@contextlib.contextmanager
def nothing_to_lose() -> Iterator[None]:
    """Let a signal end the process at once while the block runs: for imports, where an exception would be dropped."""
    _STATE.status = EXIT_STATUS
    try:
        yield
    finally:
        _STATE.status = None


def over(status: int) -> None:
    """Let signals change nothing any more: the work is done, or its end is reported, and `status` stands.

    One that comes while the process waits for its threads ends it with that status; later ones are ignored.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    _STATE.status = status
    atexit.register(_ignore)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
