"""Ways to call the command line: in a real pseudo-terminal, without any, and within this process."""

import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from protembed.cli.app import run

PROTEMBED = (sys.executable, "-m", "protembed")


class Seen(NamedTuple):
    """What a command left: its exit status, and what the terminal showed or the file got."""

    status: int
    out: bytes
    err: str


class Screen:
    """A terminal of 80 columns, and all that is written on it."""

    def __init__(self, columns: int = 80) -> None:
        self._master, self.device = pty.openpty()
        fcntl.ioctl(self.device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # no process has the terminal any more
                return
            if not data:
                return
            self._shown.append(data)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def close(self) -> bytes:
        """Return what was shown; call it when the commands have ended."""
        os.close(self.device)
        self._reader.join(timeout=30)
        os.close(self._master)
        return b"".join(self._shown)


def environment(**changes: str | None) -> dict[str, str]:
    """Return the environment of a plain terminal, with changes; None removes."""
    told = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **changes}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"):
        if name not in changes:
            told.pop(name, None)
    return {name: value for name, value in told.items() if value is not None}


def type_in_terminal(
    *words: object, folder: Path, out: str = "file", err: str = "terminal", env: Mapping[str, str] | None = None
) -> Seen:
    """Run a command whose standard input is a terminal; its outputs are the `terminal`, a `file`, or a `pipe`."""
    screens = {"in": Screen(), "out": Screen(), "err": Screen()}
    places = {"out": folder / "typed.out", "err": folder / "typed.err"}

    def stream(name: str, kind: str) -> int | IO[bytes]:
        return screens[name].device if kind == "terminal" else places[name].open("wb")

    process = subprocess.Popen(
        [*PROTEMBED, *map(str, words)],
        cwd=folder,
        stdin=screens["in"].device,
        stdout=subprocess.PIPE if out == "pipe" else stream("out", out),
        stderr=stream("err", err),
        env=dict(env or environment()),
        preexec_fn=not_ignored,
    )
    piped, _ = process.communicate(timeout=300)
    shown = {name: screen.close() for name, screen in screens.items()}
    data = piped if out == "pipe" else shown["out"] if out == "terminal" else places["out"].read_bytes()
    told = shown["err"] if err == "terminal" else places["err"].read_bytes()
    return Seen(process.returncode, data, told.decode(errors="replace"))


def not_ignored() -> None:
    """Let signals act: a shell that runs the tests in the background has SIGINT ignored in all that it starts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def call(*words: object) -> Seen:
    """Run a command within this process: quicker, where streams and signals do not matter."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(word) for word in words])
    return Seen(status, out.getvalue().encode(), err.getvalue())
