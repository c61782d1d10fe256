"""Told to stop, a process stops: at any time, with status 130, one line, no traceback; what it kept is not lost."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import h5py
import pytest

from tests.cli.callers import PROTEMBED, Screen, environment, not_ignored
from tests.conftest import ROOT, SEQUENCES, write_fasta

COMMANDS = """
import os, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
from protembed import interrupts
from protembed.__main__ import main
from protembed.cli import app
from protembed.cli.console import Console
from protembed.cli.options import carry_out
from protembed.errors import UsageError

def begun():
    Path("begun").write_text("")

def long(seconds=60):
    begun()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.005)

@app.command()
def wait():
    long()

@app.command()
def finish():
    long(1)
    print("done")

@app.command()
def drop():
    try:
        long()
    except BaseException:
        pass
    while True:
        time.sleep(0.005)

@app.command()
def collect():
    class Slow:
        def __del__(self):
            long()
    slow = Slow()
    del slow
    while True:
        time.sleep(0.005)

@app.command()
def translate():
    try:
        long()
    except BaseException:
        raise ImportError("numpy._core.multiarray failed to import")

@app.command()
def clean():
    try:
        long()
    finally:
        time.sleep(2.5)
        interrupts.check()
        Path("cleaned").write_text("")

@app.command()
def pieces():
    with interrupts.deferred():
        begun()
        time.sleep(1)
        Path("piece").write_text("")
        interrupts.check()
        Path("next").write_text("")

@app.command()
def hold():
    with interrupts.deferred():
        long()

@app.command()
def after():
    threading.Thread(target=long, args=(2,)).start()

class Last:
    def __del__(self, make=os.mkdir, sleep=time.sleep):  # its module's names are gone by then
        make("begun")
        sleep(1)

@app.command()
def teardown():
    sys.last_of_all = Last()

class Job:
    residues, failed, kept = 10, 0, "3 of 10 records are kept: resume the run to go on"
    def summary(self):
        return []
    def run(self):
        class Step:
            residues = 3
        yield Step
        long()

@app.command()
def job():
    carry_out(Job(), Console())

@app.command()
def rows():
    print("row")
    raise UsageError("no more rows")

@app.command()
def memory():
    raise MemoryError

@app.command()
def bug():
    raise ValueError("\\x1b[2Jno")

@app.command()
def full():
    raise OSError(28, "No space left on device", "a\\x1bb")

main()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start one of the commands above, and wait until it is at work."""
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS.format(root=str(ROOT)))

    def begin(
        command: str, *ignored: signal.Signals, wait: bool = True, stdout: int | IO[str] = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        def prepare() -> None:
            os.setpgid(0, 0)
            not_ignored()
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        process = subprocess.Popen(
            [sys.executable, str(script), command],
            cwd=tmp_path,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=prepare,
        )
        until = time.monotonic() + 120
        while wait and not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        return process

    return begin


def end(process: subprocess.Popen[str], *numbers: signal.Signals) -> tuple[int, str]:
    """Send signals, and return the exit status and what was said."""
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return process.returncode, (out or "") + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["wait", "drop", "collect", "translate"])
def test_a_signal_is_never_lost(
    start: Callable[..., subprocess.Popen[str]], number: signal.Signals, command: str
) -> None:
    """Whether it falls into plain code, an `except:`, a `__del__`, or code that raises an error of its own."""
    assert end(start(command), number) == (130, f"interrupted ({number.name})\n")


def test_cleaning_up_is_not_interrupted(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    status, said = end(start("clean"), signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
    assert (status, said.startswith("interrupted (SIG")) == (130, True)
    assert (tmp_path / "cleaned").exists()


def test_a_piece_of_work_is_finished_and_none_begun(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert end(start("pieces"), signal.SIGTERM) == (130, "interrupted (SIGTERM)\n")
    assert (tmp_path / "piece").exists()
    assert not (tmp_path / "next").exists()


def test_ctrl_c_twice_ends_at_once(start: Callable[..., subprocess.Popen[str]]) -> None:
    began = time.monotonic()
    assert end(start("hold"), signal.SIGINT, signal.SIGINT) == (130, "interrupted (SIGINT)\n")
    assert time.monotonic() - began < 55


@pytest.mark.parametrize("command", ["after", "teardown"])
def test_a_signal_after_the_end_changes_nothing(start: Callable[..., subprocess.Popen[str]], command: str) -> None:
    """The work is done: while threads are waited for, and while modules are taken down."""
    assert end(start(command), signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(start: Callable[..., subprocess.Popen[str]], number: signal.Signals) -> None:
    """As under nohup, or in the background of a script."""
    assert end(start("finish", number), number) == (0, "done\n")


def test_a_stopped_process_continues(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("finish")
    process.send_signal(signal.SIGTSTP)
    until = time.monotonic() + 30
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until
    assert end(process, signal.SIGCONT) == (0, "done\n")


def test_the_job_says_what_is_kept(start: Callable[..., subprocess.Popen[str]]) -> None:
    expected = (
        "interrupted (SIGTERM): 3 of 10 records are kept: resume the run to go on (the same command with --resume)\n"
    )
    assert end(start("job"), signal.SIGTERM) == (130, expected)


def test_what_ends_a_command_is_told_in_a_line(start: Callable[..., subprocess.Popen[str]]) -> None:
    status, said = end(start("memory", wait=False))
    assert (status, said.startswith("error: there is not enough memory\nhint: ")) == (2, True)
    status, said = end(start("full", wait=False))
    assert (status, said.startswith("error: a\\x1bb: No space left on device\nhint: ")) == (2, True)
    status, said = end(start("rows", wait=False))
    assert (status, said) == (2, "row\nerror: no more rows\n")
    with open("/dev/full", "w") as full:
        status, said = end(start("rows", wait=False, stdout=full))
    assert (status, said) == (2, "error: no more rows\n")
    bug = start("bug", wait=False)
    _, said = bug.communicate(timeout=60)
    assert bug.returncode == 1
    assert said.startswith("Traceback")
    assert said.endswith("ValueError: \\x1b[2Jno\n")


def test_ctrl_c_typed_at_the_bar_brings_the_cursor_back(tmp_path: Path) -> None:
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS.format(root=str(ROOT)))
    screen = Screen()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        not_ignored()

    words, device = [sys.executable, str(script), "job"], screen.device
    process = subprocess.Popen(
        words, cwd=tmp_path, stdin=device, stdout=device, stderr=device, env=environment(), preexec_fn=own_terminal
    )
    until = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        assert process.poll() is None, screen.close()
        time.sleep(0.01)
    screen.type(b"\x03")
    assert process.wait(timeout=60) == 130
    shown = screen.close().decode()
    assert "interrupted (SIGINT): 3 of 10 records are kept" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Traceback" not in shown


def handles_signals(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether our first line has run; before it Python itself starts, and the system's rule is in force."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


class Runs:
    """Runs of `embed` on a small file, told to stop after so many seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out.h5"
        write_fasta(folder / "x.fasta", SEQUENCES)
        began = time.monotonic()
        assert self.run(None)[0] == 0
        self.seconds = time.monotonic() - began
        self.whole = self.content()
        self.out.unlink()

    def content(self) -> dict[str, bytes]:
        with h5py.File(self.out) as file:
            return {key: file[key][()].tobytes() for key in file}

    def run(self, number: signal.Signals | None, after: float = 0.0) -> tuple[int, str]:
        process = subprocess.Popen(
            [*PROTEMBED, "embed", "x.fasta", "-o", "out.h5", "--resume"],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=not_ignored,
        )
        if number is not None:
            while process.poll() is None and not handles_signals(process):
                time.sleep(0.001)
            time.sleep(after)
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
        return process.returncode, err.decode()


def test_a_signal_at_any_time_of_a_run(tmp_path: Path) -> None:
    """Start-up, imports, loading, survey, run and end: status 130, or 0 and the whole output; the next run resumes."""
    runs, rng = Runs(tmp_path), random.Random(0)
    delays = [0.0, *(rng.uniform(0, 1.1 * runs.seconds) for _ in range(19))]
    for place, delay in enumerate(delays):
        number = (signal.SIGTERM, signal.SIGINT)[place % 2]
        status, said = runs.run(number, delay)
        assert status in (0, 130), (delay, status, said)
        assert "Traceback" not in said
        assert "Exception ignored" not in said
        assert (f"interrupted ({number.name})" in said) == (status == 130), said
        if status == 0:
            assert runs.content() == runs.whole
            runs.out.unlink()
    assert runs.run(None)[0] == 0
    assert runs.content() == runs.whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "x.fasta"]
