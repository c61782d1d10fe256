"""What people see: messages, progress and errors on standard error, tables and data on standard output.

Names, headers and cards come from files that others wrote. Whatever is printed for people passes through `plain`,
which leaves nothing that a terminal would obey.
"""

import functools
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from protembed.errors import ProtembedError

LINE_SECONDS = 30.0
_LAYOUT = re.compile(r"(\x1b\[[0-9;]*m|[\n\t])")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str) -> str:
    r"""Return text without characters that control a terminal or hide what is there: they become escapes.

    These are control characters, line breaks, directional overrides and other formats of Unicode, and bytes that are
    not UTF-8.

    >>> print(plain("a\x1b[31m\n\u202eb\udce9"))
    a\x1b[31m\n\u202eb\xe9
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def plain_lines(text: str) -> str:
    r"""Do the same for text of several lines, with tabs, and with the colours that we or the help give it.

    >>> print(plain_lines("\x1b[1mname\x1b[0m\tb\u202e\n").encode())
    b'\x1b[1mname\x1b[0m\tb\\u202e\n'
    """
    if text.isprintable():
        return text
    return "".join(part if number % 2 else plain(part) for number, part in enumerate(_LAYOUT.split(text)))


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@functools.cache
def _rich() -> RichConsole:
    """Return the one console of the process: a bar that is drawn must know of every line that is printed."""
    return RichConsole(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)


def show(line: str) -> None:
    """Print a line for people, whatever is in it."""
    _rich().print(Text(plain(line)))


class _Speed(ProgressColumn):
    """Units done a second, as 12,345 residues/s."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


class Meter:
    """Told how much is done; draws a bar on a terminal, or prints a plain line every 30 s elsewhere."""

    def __init__(self, total: int, unit: str, progress: Progress | None, *, quiet: bool) -> None:
        self._total, self._unit, self._progress, self._quiet = total, unit, progress, quiet
        self._task = progress.add_task("", total=total) if progress else None
        self._began = self._printed = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Set how much is done; what is done at the first call does not count as work of this run."""
        self._first = done if self._first is None else self._first
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=plain(note))
        elif not self._quiet and now - self._printed >= LINE_SECONDS:
            self._printed = now
            speed = (done - self._first) / (now - self._began)
            left = (self._total - done) / speed if speed else float("inf")
            line = f"{done:,} of {self._total:,} {self._unit}, {speed:,.0f} {self._unit}/s, {left:,.0f} s left {note}"
            show(line.rstrip())


class Console:
    """The one place that draws; `quiet` leaves only warnings and errors.

    With `data`, the command writes its results to standard output: where that is the terminal, no bar is drawn into
    them.
    """

    def __init__(self, *, quiet: bool = False, data: bool = False) -> None:
        self._quiet, self._data = quiet, data

    def say(self, message: str) -> None:
        """Print a line for people."""
        if not self._quiet:
            show(message)

    def warn(self, message: str) -> None:
        """Print a line that stays under --quiet, too."""
        show(f"warning: {message}")

    @contextmanager
    def meter(self, total: int, unit: str) -> Iterator[Meter]:
        """Show progress towards `total` units while the block runs."""
        between_data = self._data and _is_terminal(sys.stdout)
        if self._quiet or between_data or not _is_terminal(sys.stderr) or _rich().is_dumb_terminal:
            yield Meter(total, unit, None, quiet=self._quiet or between_data)
            return
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), _Speed(unit), TimeRemainingColumn())
        note = TextColumn("{task.description}", markup=False)
        # Standard output is redirected by default, whatever it is: a table would go to the terminal, not to its file.
        with Progress(
            *columns, note, console=_rich(), transient=True, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            yield Meter(total, unit, progress, quiet=False)


def _is_terminal(stream: object) -> bool:
    """Ask the stream itself: FORCE_COLOR and other wishes about colours make no terminal of a file."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def show_error(error: ProtembedError) -> None:
    """Print an error and what to do about it: two lines, no traceback."""
    show_problem(str(error), error.hint)


def show_problem(message: str, hint: str = "") -> None:
    """Print what is wrong and what to do about it."""
    show(f"error: {message}")
    if hint:
        show(f"hint: {hint}")


def print_data(text: str) -> None:
    """Print on standard output, now. Raises OutputError where that cannot be written; a pipe's reader may leave."""
    print(text, flush=True)


def print_table(title: str, columns: list[str], rows: Iterable[list[str]]) -> None:
    """Print a table on standard output: drawn on a terminal, tab-separated in a pipe."""
    if not _is_terminal(sys.stdout):
        print_data("\n".join("\t".join(map(plain, row)) for row in (columns, *rows)))
        return
    table = Table(title=Text(plain(title)), title_justify="left")
    for column in columns:
        table.add_column(Text(plain(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = RichConsole(markup=False, emoji=False, highlight=False)
    with console.capture() as drawn:
        console.print(table)
    print_data(drawn.get().removesuffix("\n"))
