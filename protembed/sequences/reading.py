"""The second pass over the input: every record is compared with what the survey saw."""

from collections.abc import Callable, Iterable, Iterator

from protembed.errors import InputError
from protembed.sequences.records import Record
from protembed.sequences.survey import Survey, content_of, short_content

_HINT = "Leave the input alone while a run reads it, or give the run a copy; then start again."


class Reading:
    """Read the input again, and refuse whatever is not what the survey saw.

    Iterating gives the records in order, each compared before it is handed out. `finish` is for the end of the run:
    it looks at the files once more, so that records which this run did not read (another shard's) count, too.
    Both raise InputError.
    """

    def __init__(self, read: Callable[[], Iterable[Record]], found: Survey) -> None:
        self._read, self._found = read, found

    def __iter__(self) -> Iterator[Record]:
        expected = self._found.contents
        number = 0
        for number, record in enumerate(self._read(), start=1):
            if number > len(expected):
                raise InputError(f"{record} was not there when the run began: the input changed meanwhile", hint=_HINT)
            if short_content(content_of(record)) != expected[number - 1]:
                raise InputError(
                    f"{record} is not what stood in its place when the run began: the input changed meanwhile",
                    hint=_HINT,
                )
            yield record
        if number < len(expected):
            raise InputError(
                f"{self._names} now has {number:,} records, and had {len(expected):,} when the run began", hint=_HINT
            )

    def finish(self) -> None:
        """Raise InputError unless the files are as they were, or at least hold the same records."""
        if any(file.changed for file in self._found.files):
            for _ in self:
                pass

    @property
    def _names(self) -> str:
        return ", ".join(str(file.path) for file in self._found.files) or "the input"
