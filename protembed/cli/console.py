"""What people see: messages, progress and errors, all on standard error."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from protembed.errors import OutputError, ProtembedError

LINE_SECONDS = 30.0


class _Speed(ProgressColumn):
    """Units done a second, as 12,345 residues/s."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


class Meter:
    """Told how much is done; draws a bar on a terminal, or prints a plain line every 30 s elsewhere."""

    def __init__(self, console: RichConsole, total: int, unit: str, progress: Progress | None) -> None:
        self._console, self._total, self._unit, self._progress = console, total, unit, progress
        self._task = progress.add_task("", total=total) if progress else None
        self._began = self._printed = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Set how much is done; what is done at the first call does not count as work of this run."""
        self._first = done if self._first is None else self._first
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=note)
        elif not self._console.quiet and now - self._printed >= LINE_SECONDS:
            self._printed = now
            speed = (done - self._first) / (now - self._began)
            left = (self._total - done) / speed if speed else float("inf")
            line = f"{done:,} of {self._total:,} {self._unit}, {speed:,.0f} {self._unit}/s, {left:,.0f} s left {note}"
            self._console.print(line.rstrip(), highlight=False)


class Console:
    """The one place that draws; `quiet` leaves only warnings and errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rich = RichConsole(stderr=True, quiet=quiet, soft_wrap=True)

    def say(self, message: str) -> None:
        """Print a line for people."""
        self._rich.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """Print a line that stays under --quiet, too."""
        print(f"warning: {message}", file=sys.stderr)

    @contextmanager
    def meter(self, total: int, unit: str) -> Iterator[Meter]:
        """Show progress towards `total` units while the block runs."""
        if self._quiet or not self._rich.is_terminal:
            yield Meter(self._rich, total, unit, None)
            return
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), _Speed(unit), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=self._rich, transient=True) as progress:
            yield Meter(self._rich, total, unit, progress)


def show_error(error: ProtembedError) -> None:
    """Print an error and what to do about it: two lines, no traceback."""
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_data(text: str) -> None:
    """Print on standard output. Raises OutputError where that cannot be written; a pipe's reader may leave."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes standard output once more at the end: there it must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output cannot be written ({error.strerror})") from error


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on standard output: drawn on a terminal, tab-separated in a pipe."""
    console = RichConsole()
    if not console.is_terminal:
        print_data("\n".join("\t".join(row) for row in (columns, *rows)))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
