"""A scheduler's or a person's wish that a run ends soon."""

import signal
from types import FrameType, TracebackType

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """The run was told to end, and has saved itself."""


class Interruption:
    """While entered, SIGTERM, SIGUSR1 (SLURM before preemption) and the first SIGINT only set `asked`.

    Launchers and schedulers may send SIGTERM twice; a person who types Ctrl-C twice means it.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGUSR1)
    ...     interruption.asked
    True
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._ask) for number in _ASKING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
