"""A signal stops the process between two pieces of work, and is never lost."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from protembed import interrupts


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*interrupts.SIGNALS, signal.SIGALRM)}
    hooks = sys.excepthook, sys.unraisablehook
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a shell that runs the tests in the background has SIGINT ignored
    interrupts.install()
    yield
    interrupts.clear()
    sys.excepthook, sys.unraisablehook = hooks
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_waits_for_the_piece_of_work() -> None:
    done = []

    def work() -> None:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("piece")
            interrupts.check()
            done.append("next")

    with pytest.raises(interrupts.Interrupted, match="SIGTERM"):
        work()
    assert done == ["piece"]


def test_a_signal_during_the_last_piece_is_not_forgotten() -> None:
    with pytest.raises(interrupts.Interrupted), interrupts.deferred():
        signal.raise_signal(signal.SIGTERM)


def test_outside_of_work_it_stops_at_once() -> None:
    with pytest.raises(interrupts.Interrupted, match="SIGHUP"):
        signal.raise_signal(signal.SIGHUP)


def test_an_exception_that_python_drops_is_raised_again_at_the_next_check() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # what a weakref callback does with it
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(interrupts.Interrupted):
        interrupts.check()


def test_ctrl_c_twice_does_not_wait() -> None:
    def twice() -> None:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one waited")

    with pytest.raises(interrupts.Interrupted):
        twice()


def test_an_ignored_hang_up_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.install()
    signal.raise_signal(signal.SIGHUP)
    assert not interrupts.pending()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """A script that runs the process in the background means Ctrl-C for what is in the foreground."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    signal.raise_signal(signal.SIGINT)
    assert not interrupts.pending()


def test_code_that_cleans_up_after_a_stop_may_check() -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            interrupts.check()
            signal.raise_signal(signal.SIGTERM)  # as schedulers do
            cleaned.append("all")

    with pytest.raises(interrupts.Interrupted):
        work()
    assert cleaned == ["all"]


def test_an_exception_that_python_drops_is_raised_again_where_nobody_checks() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)

    with pytest.raises(interrupts.Interrupted, match="SIGTERM"):
        work()


def test_a_signal_that_nobody_checks_for_after_a_piece_is_raised_again() -> None:
    with pytest.raises(interrupts.Interrupted):
        with interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
            with contextlib.suppress(KeyboardInterrupt):
                interrupts.check()
        pytest.fail("the end of the block did not stop it")


def test_an_error_of_the_piece_is_what_is_raised() -> None:
    with pytest.raises(ValueError, match="wrong"), interrupts.deferred():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("wrong")
    assert interrupts.pending()


def test_it_says_what_is_kept() -> None:
    stop = interrupts.Interrupted(signal.SIGTERM, "half")
    assert (str(stop), stop.kept) == ("SIGTERM", "half")
