"""Files are written whole or not at all; an output has one owner."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protembed.errors import OutputError
from protembed.outputs.files import atomic, lock

HOLD = """
import sys, time
from pathlib import Path
from protembed.outputs.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic(tmp_path / "a") as new:
            new.write_text("half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_files_follow_the_umask(tmp_path: Path, umask: None) -> None:
    with atomic(tmp_path / "a") as new:
        new.write_text("x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    with atomic(tmp_path / "link") as new:
        new.write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_text() == "x"


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with atomic(tmp_path / "a", overwrite=False) as new:
            new.write_text("mine")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(OutputError, match="exists"):
        write()
    assert (tmp_path / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), atomic(tmp_path / "none" / "a"):
        pass


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_an_output_has_one_owner_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    process = hold(tmp_path / "out.h5")
    with pytest.raises(OutputError, match=f"process {process.pid} on"), lock(tmp_path / "out.h5"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(tmp_path / "out.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_locks_once(tmp_path: Path) -> None:
    with lock(tmp_path / "a"), pytest.raises(OutputError, match="another run"), lock(tmp_path / "a"):
        pass


def test_links_to_one_output_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with lock(tmp_path / "a"), pytest.raises(OutputError, match="another run"), lock(tmp_path / "link"):
        pass


def test_without_kernel_locks_a_file_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock(tmp_path / "a"), pytest.raises(OutputError, match="another run"), lock(tmp_path / "a"):
        pass
    owner = tmp_path / ".a.owner"
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host = os.uname().nodename
    owner.write_text(f"{host} {int(gone.stdout)} 1")
    with lock(tmp_path / "a"):
        assert owner.exists()
    owner.write_text("elsewhere 1 1")
    with pytest.raises(OutputError, match="process 1 on elsewhere"), lock(tmp_path / "a"):
        pass


def test_a_planted_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("x")
    (tmp_path / ".a.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError), lock(tmp_path / "a"):
        pass
    assert (tmp_path / "victim").read_text() == "x"
