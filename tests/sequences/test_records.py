"""Reading FASTA: what is accepted, what is refused, and what the message says."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from protembed.errors import InputError
from protembed.sequences.records import Record, clean, read_fasta


def read(path: Path, content: bytes) -> list[Record]:
    path.write_bytes(content)
    return list(read_fasta([path]))


def test_first_word_is_the_id_and_the_header_is_kept(tmp_path: Path) -> None:
    (record,) = read(tmp_path / "a.fasta", b">sp|P1|X_Y first second\nMK\nTA\n")
    assert (record.id, record.sequence, record.description) == ("sp|P1|X_Y", "MKTA", "sp|P1|X_Y first second")


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        (b">a\r\nMK\r\nTA\r\n", "MKTA"),
        (b">a\nmkta\n", "MKTA"),
        (b">a\nMKTA*\n", "MKTA"),
        (b">a\nMK--T.A\n", "MKTA"),
        (b">a\nMK*TA\n", "MKXTA"),
        (b">a\nM K T A", "MKTA"),
        (b"\xef\xbb\xbf>a\nMKTA\n", "MKTA"),
        (b"\n\n>a\n\nMK\n\nTA\n", "MKTA"),
        (b">a\nMXUOBZJ\n", "MXUOBZJ"),
    ],
    ids=["crlf", "lowercase", "final-stop", "gaps", "inner-stop", "spaces", "bom", "blank-lines", "ambiguous"],
)
def test_forms_of_sequence(tmp_path: Path, text: bytes, sequence: str) -> None:
    (record,) = read(tmp_path / "a.fasta", text)
    assert record.sequence == sequence


def test_gaps_are_counted() -> None:
    assert clean(Record("a", "M-K.T")).gaps == 2


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_compressed_files_are_known_by_their_content(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (record,) = read(tmp_path / "no_suffix", pack(b">a\nMKTA\n"))
    assert record.sequence == "MKTA"


def test_several_files_are_one_stream(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f">{name}\nMK\n")
    assert [r.id for r in read_fasta([tmp_path / "a", tmp_path / "b"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (b"MKTA\n", "line 1: not FASTA"),
        (b"\nATOM 1 N\n", "line 2: not FASTA"),
        (b">a\nMK\n>b\n>c\nMK\n", "line 3: record 'b' has no residues"),
        (b">a\n--*\n", "line 1: record 'a' has no residues"),
        (b">a\nMK\n>\nMK\n", "line 3: the header is empty"),
        (b">a\nMK1T\n", "record 'a' has '1' at residue 3"),
        (b">a \xe9\nMK\n", "not text in UTF-8"),
        (gzip.compress(b">a\nMKTA\n" * 100, mtime=0)[:-20], "damaged or cut short"),
        (lzma.compress(b">a\nMKTA\n" * 100)[:-20], "damaged or cut short"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.fasta", text)
    assert message in str(caught.value)
    assert "a.fasta" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.fasta: cannot be read"):
        list(read_fasta([tmp_path / "gone.fasta"]))


def test_reading_streams(tmp_path: Path) -> None:
    """The first record comes before a fault later in the file is seen."""
    path = tmp_path / "a.fasta"
    path.write_text(">a\nMK\n>b\nM1\n")
    stream = read_fasta([path])
    assert next(stream).id == "a"
    with pytest.raises(InputError):
        next(stream)
