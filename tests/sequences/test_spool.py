"""Input that can be read once only: copied once, under its own name, in a folder with room, and cleared away."""

import errno
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from protembed.errors import InputError, OutputError
from protembed.sequences import spool
from protembed.sequences.records import read_fasta
from protembed.sequences.spool import input_files

FASTA = b">a\nMKTA\n>b\nMKV\n"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the system that only this test uses."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def pipe(content: bytes) -> Iterator[str]:
    """The path of a pipe that another thread writes to, as a shell makes it for <(command)."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


def ids(path: object) -> list[str]:
    return [record.id for record in read_fasta([path])]  # type: ignore[list-item]


def test_pipes_are_read_twice_under_their_own_name(scratch: Path) -> None:
    with pipe(FASTA) as word, input_files([word]) as (path,):
        assert (ids(path), ids(path)) == (["a", "b"], ["a", "b"])
        assert str(path) == word
        assert [record.place for record in read_fasta([path])] == [f"{word}, line 1", f"{word}, line 3"]
    assert list(scratch.iterdir()) == []


def test_named_pipes(tmp_path: Path, scratch: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=lambda: fifo.write_bytes(FASTA))
    thread.start()
    with input_files([str(fifo)]) as (path,):
        assert (ids(path), ids(path), str(path)) == (["a", "b"], ["a", "b"], str(fifo))
    thread.join()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_standard_input(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe(FASTA) as name:
        number = int(name.rpartition("/")[2])
        saved = os.dup(0)
        os.dup2(number, 0)
        try:
            with open(0, closefd=False) as stdin, monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", stdin)
                with input_files([word]) as (path,):
                    assert (ids(path), ids(path)) == (["a", "b"], ["a", "b"])
                    assert str(path) == ("standard input" if word == "-" else word)
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def test_files_and_folders_are_left_where_they_are(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "a.fasta").write_bytes(FASTA)
    words = [str(tmp_path / "a.fasta"), str(tmp_path), str(tmp_path / "gone")]
    with input_files(words) as paths:
        assert paths == words
        assert list(scratch.iterdir()) == []


def test_what_is_read_once_cannot_be_named_twice() -> None:
    with pipe(FASTA) as word, pytest.raises(InputError, match="is named twice"), input_files([word, word]):
        pass


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"), input_files(["-"]):
        pass
    with pytest.raises(InputError, match="standard input is closed"):
        list(read_fasta(["-"]))


def test_standard_input_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(">a\nMK\n"))
    with pytest.raises(InputError, match="standard input cannot be read"), input_files(["-"]):
        pass


def test_devices_without_an_end_are_refused() -> None:
    with pytest.raises(InputError, match="/dev/zero: a device"), input_files(["/dev/zero"]):
        pass
    with input_files(["/dev/null"]) as (path,), pytest.raises(InputError, match="/dev/null: the file is empty"):
        ids(path)


class FullDisk:
    """Folders that take so many bytes: a write beyond them is done in part, and the next one fails."""

    def __init__(self, room: dict[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.append = room, spool._append
        monkeypatch.setattr(spool, "_append", self.write)

    def write(self, file: io.FileIO, data: bytes) -> None:
        folder = Path(str(file.name)).parent.parent
        if folder in self.room:
            part, self.room[folder] = data[: self.room[folder]], max(0, self.room[folder] - len(data))
            self.append(file, part)
            if len(part) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            self.append(file, data)


@pytest.mark.parametrize("room", [0, 7, len(FASTA) - 1])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_full_temporary_folder_is_left_for_that_of_the_output(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, room: int, chunk: int
) -> None:
    FullDisk({scratch: room}, monkeypatch)
    monkeypatch.setattr(spool, "_CHUNK", chunk)
    output = tmp_path / "output"
    output.mkdir()
    with pipe(FASTA) as word, input_files([word], beside=output) as (path,):
        assert output in Path(os.fspath(path)).parents
        assert Path(os.fspath(path)).read_bytes() == FASTA
        assert not any(scratch.rglob("input"))
    assert list(output.iterdir()) == list(scratch.iterdir()) == []


def test_no_room_anywhere_is_one_clear_error(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk({scratch: 3, tmp_path: 9}, monkeypatch)
    with (
        pipe(FASTA) as word,
        pytest.raises(OutputError, match=f"{word} can be read once, and there is no room") as caught,
        input_files([word], beside=tmp_path),
    ):
        pass
    assert "TMPDIR" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


def test_no_temporary_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", gone)
    with pipe(FASTA) as word, input_files([word], beside=tmp_path) as (path,):
        assert ids(path) == ["a", "b"]
    with pipe(FASTA) as word, pytest.raises(OutputError, match="no room for its copy"), input_files([word]):
        pass


def test_the_copy_goes_when_the_run_fails(scratch: Path) -> None:
    with pipe(b">a\nM1\n") as word, pytest.raises(InputError, match=f"{word}, line 1"), input_files([word]) as (path,):
        ids(path)
    assert list(scratch.iterdir()) == []
