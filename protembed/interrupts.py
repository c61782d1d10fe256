"""Stop on Ctrl-C, SIGTERM or SIGHUP between two pieces of work, never inside one, and never not at all.

A handler that raises can be lost: Python calls it wherever the main thread happens to be, and an exception inside a
weakref callback or `__del__` is printed and dropped. So the handler also sets a flag, and whoever works checks it
after every piece: every batch, every layer, every file.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The process was told to stop; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """What the handler and the work have in common."""

    def __init__(self) -> None:
        self.received = 0
        self.deferred = 0


_STATE = _State()


def install() -> None:
    """Let the signals stop this process as described above; a signal that the caller ignores stays ignored (nohup)."""
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def _receive(number: int, frame: FrameType | None) -> None:
    again = _STATE.received == number == signal.SIGINT
    _STATE.received = number
    if again or not _STATE.deferred:  # who types Ctrl-C twice means it
        raise Interrupted(number)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back while the block runs: they take effect at the next `check`, or at the end of the block."""
    _STATE.deferred += 1
    try:
        yield
        check()
    finally:
        _STATE.deferred -= 1


def pending() -> bool:
    """Tell whether a signal has come that has not stopped the process yet."""
    return bool(_STATE.received)


def check() -> None:
    """Raise Interrupted if a signal has come. It costs an attribute look-up: call it after every piece of work."""
    if _STATE.received:
        raise Interrupted(_STATE.received)


def clear() -> None:
    """Forget what has come: for tests, and for a process that goes on after a stop."""
    _STATE.received = 0
