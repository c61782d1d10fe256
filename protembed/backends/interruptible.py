"""Computing in native code that signals can end."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from protembed import interrupts

Result = TypeVar("Result")

_WAIT = 0.1  # seconds


def run_interruptibly(compute: Callable[[], Result], stop: Callable[[], None]) -> Result:
    """Compute in another thread and listen for signals in this one; `stop` asks the computation to end early.

    Python runs the handlers of signals in its main thread alone, between two of its own instructions: a call into a
    runtime would hold them back until it returns.

    >>> run_interruptibly(lambda: 6 * 7, lambda: None)
    42
    """
    done: Future[Result] = Future()

    def work() -> None:
        try:
            done.set_result(compute())
        except BaseException as error:  # it is raised again in the thread that waits
            done.set_exception(error)

    thread = Thread(target=work, name="computation")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_WAIT)
            interrupts.check()
    except BaseException:
        stop()
        thread.join()
        raise
    return done.result()
