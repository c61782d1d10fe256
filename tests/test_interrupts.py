"""A signal stops the process between two pieces of work, and is never lost."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from protembed import interrupts


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    interrupts.clear()
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
