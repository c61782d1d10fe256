"""The second pass over the input: what changed since the survey is noticed, and nothing else is."""

import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from protembed.errors import InputError
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.reading import Reading
from protembed.sequences.records import read_fasta
from protembed.sequences.survey import survey

TEXT = ">a first\nMKTA\n>b\nMKVV\n>c\nMKLL\n"


def begin(path: Path) -> Reading:
    """Survey a file, and be ready to read it again."""
    path.write_text(TEXT)
    read = partial(read_fasta, [path])
    return Reading(read, survey(read, alphabet=PROTEMBED, unknown="x", key="id", files=[path]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + ">d\nMK\n", "record 'd' was not there"),
        (TEXT[: TEXT.index(">c")], "now has 2 records, and had 3"),
        (TEXT.replace("MKVV", "MKVA"), "line 3: record 'b' is not what stood in its place"),
        (TEXT.replace(">b", ">x"), "line 3: record 'x' is not what"),
        (TEXT.replace("first", "other"), "line 1: record 'a' is not what"),
        (">c\nMKLL\n>b\nMKVV\n>a first\nMKTA\n", "line 1: record 'c' is not what"),
        ("", "the file is empty"),
    ],
    ids=["appended", "cut", "residues", "id", "header", "order", "emptied"],
)
def test_a_change_before_the_second_pass_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        list(reading)
    assert "in.fasta" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(TEXT + ">d\nMK\n"),
        lambda path: path.write_text(TEXT.replace("MKLL", "MKLA")),
        lambda path: path.write_text(""),
        lambda path: path.unlink(),
    ],
    ids=["appended", "residues", "emptied", "gone"],
)
def test_a_change_outside_the_slice_that_was_read_is_refused_at_the_end(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    assert [record.id for record in islice(reading, 0, 2)] == ["a", "b"]
    change(path)
    with pytest.raises(InputError, match=r"in\.fasta"):
        reading.finish()


def test_a_change_that_keeps_size_and_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    before = path.stat()
    path.write_text(TEXT.replace("MKVV", "MKVA"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="record 'b'"):
        list(reading)


def test_a_file_that_was_only_touched_or_copied_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    assert len(list(reading)) == 3
    path.unlink()
    path.write_text(TEXT)
    os.utime(path, (0, 0))
    reading.finish()
    reading.finish()


def test_a_change_during_the_second_pass_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    stream = iter(reading)
    next(stream)
    with path.open("a") as file:
        file.write(">d\nMK\n")
    list(islice(stream, 2))
    with pytest.raises(InputError, match="record 'd' was not there"):
        reading.finish()


def test_a_change_outside_the_slice_that_keeps_size_and_time_is_refused_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "in.fasta"
    reading = begin(path)
    next(iter(reading))
    before = path.stat()
    path.write_text(TEXT.replace("MKLL", "MKLA"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="record 'c'"):
        reading.finish()
