"""A scheduler's or a person's wish that a run ends soon."""

import signal
from types import FrameType, TracebackType

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The run was told to end, and has saved itself."""


class Interruption:
    """While entered, SIGTERM, SIGHUP, SIGUSR1 (SLURM before preemption) and the first SIGINT only set `asked`.

    A signal that the caller ignores stays ignored: under nohup, or in the background of a script. Launchers and
    schedulers may send SIGTERM twice; a person who types Ctrl-C twice means it.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     interruption.asked
    True
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        heard = [number for number in _ASKING if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
