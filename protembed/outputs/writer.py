"""The seam between a run and its outputs: what takes results in their order, and what a file format does."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from protembed.outputs.journal import Entry, Facts
from protembed.sequences.records import Record
from protembed.sequences.windows import Failure


class Result(Protocol):
    """What was computed from one record."""

    @property
    def record(self) -> Record: ...


Item = TypeVar("Item", bound=Result)
ItemIn = TypeVar("ItemIn", bound=Result, contravariant=True)


class UnstorableError(Exception):
    """A result cannot be stored in the format that was asked for; the text says why."""


class Writer(Protocol[ItemIn]):
    """Takes the results of a run in the order of the input; a context manager, which opens and closes.

    `done` records were written by an earlier run, in batches of `budget` tokens; `complete`: it wrote all. At the end
    `failed` records are without a result and `left_out` were not to be computed.
    """

    done: int
    budget: int
    complete: bool
    failed: int
    left_out: int

    def __enter__(self) -> "Writer[ItemIn]": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, item: ItemIn) -> None:
        """Take the next record's result."""

    def fail(self, failure: Failure) -> None:
        """Take the next record, which has no result."""

    def batch_done(self) -> None:
        """Note that a batch ends here: a resumed run makes the same batches from here on."""

    def finish(self, *, left_out: int) -> None:
        """Make what was written final; `left_out` records of the input were not to be computed."""


class Form(Protocol[ItemIn]):
    """A file format: how a result is kept in the journal, and how the file is made of it."""

    @property
    def attributes(self) -> Facts:
        """What the file says of its content."""

    def encode(self, item: ItemIn) -> tuple[Facts, bytes]:
        """Return what is to be known of a record, and its bytes. Raises UnstorableError."""

    def build(self, path: Path, entries: Iterable[Entry], attributes: Callable[[], Facts]) -> Facts:
        """Make the whole file at `path`, which is empty, from the entries of its records; return its attributes.

        `attributes` gives those that the run has for it, after the last entry.
        """

    def name(self, path: Path, attributes: Facts, folder: Path) -> None:
        """Do what is to be done before the built file gets its name, `path`; `folder` is that of the run."""

    def named(self, path: Path, *, keep: bool) -> None:
        """Do what is to be done when all files have their names; `keep` what tells a later run that all is done."""

    def describe(self, path: Path) -> Facts:
        """Return the attributes of a finished file, none where they cannot be told."""
