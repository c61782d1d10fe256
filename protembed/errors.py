"""Every error that protembed raises on purpose.

ProtembedError            base: a message, and a hint that says what to do
├── InputError            a sequence file or record is not what it should be
├── UsageError            options that contradict each other, a bad configuration
├── ModelError            a checkpoint is missing, damaged or of an unknown kind
├── OutputError           the output exists, is incomplete or cannot be written
├── DependencyError       an optional package is not installed
├── TrainingError         a training run cannot start or go on
│   └── WorkerLostError   another process of the run is gone
└── OutOfMemoryError      a batch does not fit; the caller splits it
"""

from operator import index
from typing import SupportsIndex

LARGEST = 2**31 - 1
"""The largest number that an option takes."""


class ProtembedError(Exception):
    """Carry a message for people, a hint that says what to do next, and the exit status of the command line.

    >>> error = ProtembedError("a.fasta: no records", hint="Is it the right file?")
    >>> error.hint
    'Is it the right file?'
    """

    exit_status = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(ProtembedError):
    """A sequence file or one of its records is not what it should be."""


class UsageError(ProtembedError):
    """Options contradict each other, or a value makes no sense."""


class ModelError(ProtembedError):
    """A checkpoint is missing, damaged, or of a kind that is not known."""


class OutputError(ProtembedError):
    """The output exists already, is incomplete, or cannot be written."""


class DependencyError(ProtembedError):
    """An optional package is needed and not installed."""


class TrainingError(ProtembedError):
    """A training run cannot start or go on."""


class WorkerLostError(TrainingError):
    """Another process of the run is gone."""

    exit_status = 1


class OutOfMemoryError(ProtembedError):
    """A batch does not fit into the memory of the device."""


def require_whole(name: str, value: object, *, least: int = -LARGEST, most: int = LARGEST) -> None:
    """Raise UsageError unless an option is a whole number in a range; None, a default, is always right.

    >>> require_whole("max_tokens", 4096, least=1)
    """
    if value is None:
        return
    if not isinstance(value, SupportsIndex) or isinstance(value, bool) or not least <= index(value) <= most:
        wanted = "a whole number" + (f" from {least} to {most:,}" if least > -LARGEST else "")
        raise UsageError(f"{name} is {value!r}, and must be {wanted}", hint=f"Leave {name} out for the default.")
