"""Computing in native code that signals can end."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from protembed import interrupts

Result = TypeVar("Result")

_WAIT = 0.1  # seconds


class Worker:
    """Computes in a second thread while the first one listens for signals.

    Python runs the handlers of signals in its main thread alone, between two of its own instructions: a call into a
    runtime would hold them back until it returns. The thread stays, so that what a runtime keeps for each thread is
    there before memory is short: the C library ends the process where it cannot have it.

    >>> Worker().run(lambda: 6 * 7, stop=lambda: None)
    42
    """

    def __init__(self) -> None:
        self._pool = _make_pool()

    def run(self, compute: Callable[[], Result], *, stop: Callable[[], None]) -> Result:
        """Return what `compute` returns; `stop` asks it to end early, when a signal or an exception came here."""
        done: Future[Result] | None = None
        try:
            with interrupts.deferred():
                done = self._submit(compute)
            while done is not None and not wait((done,), timeout=_WAIT).done:
                interrupts.check()
        except BaseException:
            stop()
            if done is not None:
                wait((done,))
            raise
        return compute() if done is None else done.result()

    def _submit(self, compute: Callable[[], Result]) -> Future[Result] | None:
        """Begin a computation; None where there is no memory for a thread, or too many of them are there."""
        try:
            return self._pool.submit(compute)
        except RuntimeError:
            self._pool = _make_pool()  # the old one would compute it as soon as it has a thread
            return None


def _make_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="computation")
