"""Journals: what stands in them is whole, and whatever is not is cut off."""

import errno
import os
from pathlib import Path

import pytest

from protembed.outputs import journal as journals
from protembed.outputs.journal import Journal, read_entries, scan


def write(path: Path, records: int = 5) -> list[int]:
    """Write a journal with a mark after every record; return its size after each."""
    journal = Journal(path, at=0)
    journal.add({"run_sha256": "x"})
    journal.mark(0)
    sizes = []
    for number in range(1, records + 1):
        journal.add({"key": f"P{number}"}, bytes([number]) * 50)
        journal.mark(number)
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def test_entries_come_back(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    entries = [entry for entry in read_entries(tmp_path / "journal") if entry.data]
    assert [(entry.facts["key"], entry.data) for entry in entries] == [(f"P{n}", bytes([n]) * 50) for n in range(1, 6)]
    found = scan(tmp_path / "journal")
    assert found.run == {"run_sha256": "x"}
    assert found.done == 5


def test_every_cut_leaves_what_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert scan(path).done == sum(size >= whole for whole in sizes)


def test_every_tail_of_zeros_leaves_what_was_whole(tmp_path: Path) -> None:
    """After a power cut a file can have its size, and zeros for its end."""
    path = tmp_path / "journal"
    sizes = write(path)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size] + bytes(len(data) - size))
        assert scan(path).done == sum(size >= whole for whole in sizes)


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write(path)
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert scan(path).done == sum(place >= whole for whole in sizes), place


def test_what_follows_the_last_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    found = scan(path)
    journal = Journal(path, at=found.marks[3])
    journal.add({"key": "half"}, bytes(2 * 2**20))  # too large to wait for its mark
    journal.close()
    assert path.stat().st_size > 2**20
    assert scan(path).done == 3
    journal = Journal(path, at=scan(path).marks[3])
    journal.add({"key": "P4"}, b"other")
    journal.mark(4)
    journal.close()
    assert [entry.data for entry in read_entries(path)][-2:] == [b"other", b""]


@pytest.mark.parametrize("content", [b"", b"hello", b"PEJ2" * 100, bytes(1000), b"PEJ2" + b"\xff" * 12 + b"x" * 100])
def test_what_is_no_journal_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    assert scan(tmp_path / "journal") == scan(tmp_path / "absent")


def test_a_new_journal_replaces_and_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "journal").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"File exists|Too many levels"):
        Journal(tmp_path / "journal", at=0)
    with pytest.raises(OSError, match="Too many levels"):
        Journal(tmp_path / "journal", at=3)
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_the_disk_says_late_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SYNC_SECONDS", 0.0)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path / "journal", at=0)
    monkeypatch.setattr(os, "fsync", fail)
    journal.mark(1)  # begins to sync
    with pytest.raises(OSError, match="Input/output"):
        for number in range(2, 1000):
            journal.mark(number)
        journal.close()


def test_a_write_that_takes_less_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    write(tmp_path / "journal")
    assert scan(tmp_path / "journal").done == 5
