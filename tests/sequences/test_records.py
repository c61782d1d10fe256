"""Reading FASTA: what is accepted, what is refused, and what the message says."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from protembed.errors import InputError
from protembed.sequences import records
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


@pytest.mark.parametrize(
    "text",
    [
        b"; made by a tool\n# taxon 9606\n>a\nMK\nTA\n",
        b">a\n; a comment inside\nMK\n;another\nTA\n",
        b"#40\t1\n>a\nMKTA\n",
        b">a\nMKTA\n# the end",
    ],
    ids=["before", "inside", "a3m", "after"],
)
def test_comments_are_left_out(tmp_path: Path, text: bytes) -> None:
    (record,) = read(tmp_path / "a.fasta", text)
    assert record.sequence == "MKTA"


def test_an_alignment_is_read_as_its_sequences(tmp_path: Path) -> None:
    """In A3M lower-case letters are residues that the query has not: they belong to the protein."""
    found = read(tmp_path / "a.a3m", b"#5\t1\n>query\nMKTAY\n>hit\nMK-acA.\n")
    assert [(record.id, record.sequence, record.gaps) for record in found] == [
        ("query", "MKTAY", 0),
        ("hit", "MKACA", 2),
    ]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (b">a\nMKTA:MKVV\n", "'a' has ':' at residue 5", "every chain a record of its own"),
        (b">a\nMKTA/MKVV\n", "'a' has '/' at residue 5", "every chain a record of its own"),
        (b"#40,50\t1,1\n>101\t102\nMKTA\n", "line 1: the alignment of a complex", "every chain a record"),
        (b">a chain\0\nMKTA\n", r"line 1: its header holds the control character '\x00'", r"tr -d '\000'"),
        (b">a\nMKTA\n\0>b\nMKTA\n", r"'a' has '\x00' at residue 5", r"tr -d '\000'"),
        (b">a\x1b[31m b\nMKTA\n", r"line 1: its header holds the control character '\x1b'", "Remove it"),
        (b">P1;CRAB_ANAPL\nALPHA CRYSTALLIN B CHAIN\n MDITIHNPLI\n*\n", "line 1: this is a header of the PIR", ""),
        (">a\nMK\u017fTA\n".encode(), "'a' has '\u017f' at residue 3", ""),
        (">a\nMK\ufb01TA\n".encode(), "'a' has '\ufb01' at residue 3", ""),
        (">a\nMK\u00dfTA\n".encode(), "'a' has '\u00df' at residue 3", ""),
        (">a\nMK\u0131TA\n".encode(), "'a' has '\u0131' at residue 3", ""),
        (b"LOCUS       SCU49845\n", "line 1: not FASTA", "GenBank"),
        (b"ID   P53_HUMAN\n", "line 1: not FASTA", "UniProt"),
        (b"HEADER    HYDROLASE\n", "line 1: not FASTA", "PDB"),
        (b"data_1ABC\n", "line 1: not FASTA", "mmCIF"),
        (b"# STOCKHOLM 1.0\n", "line 1: not FASTA", "Stockholm"),
        (b"@read1\nACGT\n", "line 1: not FASTA", "FASTQ"),
        (b"<!DOCTYPE html>\n", "line 1: not FASTA", "a web page"),
        (b"id,sequence\nP1,MKTA\n", "line 1: not FASTA", "a table"),
        (b"id;sequence\nP1;MKTA\n", "line 1: not FASTA", "a table"),
        (b"id\tsequence\nP1\tMKTA\n", "line 1: not FASTA", "a table"),
    ],
)
def test_advice_that_helps(tmp_path: Path, text: bytes, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.fasta", text)
    assert message in str(caught.value)
    assert "a.fasta" in str(caught.value)
    assert hint in caught.value.hint


def test_headers_of_ncbi_keep_their_separators(tmp_path: Path) -> None:
    """Merged headers of NCBI's nr are joined by a control character, which is part of the description."""
    (record,) = read(tmp_path / "a.fasta", b">WP_1.1 protein S18 [L. lactis]\x01NP_2.1 the same\nMK\n")
    assert (record.id, "\x01" in record.description) == ("WP_1.1", True)


@pytest.mark.parametrize("text", [b">b\n\n", b">b\n", b">b\n--*\n"])
def test_empty_records_come_when_they_are_to_be_skipped(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.fasta"
    path.write_bytes(b">a\nMK\n" + text + b">c\nMK\n")
    assert [(r.id, len(r.sequence)) for r in read_fasta([path], empty="skip")] == [("a", 2), ("b", 0), ("c", 2)]
    with pytest.raises(InputError, match="line 3: record 'b' has no residues"):
        list(read_fasta([path]))


@pytest.mark.parametrize("record", [Record("a\0", "MK"), Record("a", "MK", "x\0y"), Record("a\ud800", "MK")])
def test_headers_that_no_output_can_hold(record: Record) -> None:
    with pytest.raises(InputError, match="control character"):
        clean(record)


def test_inner_stops_are_counted() -> None:
    record = clean(Record("a", "MK*TA**"))
    assert (record.sequence, record.stops) == ("MKXTAX", 2)


def test_the_limit_is_one_of_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 50)
    text = b"".join(b">r%d\n%s\n" % (number, b"MKTAY\n" * 7) for number in range(20))
    assert len(read(tmp_path / "a.fasta", text)) == 20
    with pytest.raises(InputError, match="line 1: record 'a' has more than 50 characters"):
        read(tmp_path / "b.fasta", b">a\n" + b"MKTAY\n" * 9)
    with pytest.raises(InputError, match="line 3: the header has more than 50"):
        read(tmp_path / "c.fasta", b">a\nMK\n>b " + b"x" * 60 + b"\nMK\n")
    with pytest.raises(InputError, match="record 'a' has more than 50"):
        clean(Record("a", "M" * 51))
