"""Opening text: every form of compression, and advice that helps for what is no text."""

import bz2
import gzip
import importlib
import io
import lzma
import shlex
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from protembed.errors import DependencyError, InputError
from protembed.sequences import compression, records
from protembed.sequences.records import Record, read_fasta

FASTA = b">a first\nMKTAYIAKQR\n>b\nMKV\n"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress}

try:
    zstandard = importlib.import_module("zstandard")
    PACKERS["zstd"] = zstandard.ZstdCompressor().compress
except ImportError:
    zstandard = None


def read(path: Path, content: bytes) -> list[Record]:
    path.write_bytes(content)
    return list(read_fasta([path]))


def refusal(path: Path, content: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, content)
    assert path.name in str(caught.value)
    return caught.value


@pytest.fixture(params=sorted(PACKERS))
def pack(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    return PACKERS[request.param]


def test_streams_end_to_end_are_one_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = read(tmp_path / "whole", pack(FASTA))
    assert [record.id for record in whole] == ["a", "b"]
    for parts in (pack(FASTA[:12]) + pack(FASTA[12:]), pack(FASTA) + pack(b""), pack(FASTA) + bytes(512)):
        assert [record.sequence for record in read(tmp_path / "parts", parts)] == ["MKTAYIAKQR", "MKV"]


def test_large_files_are_read_whole(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    text = b"".join(b">r%d\n%s\n" % (n, b"MKTAYIAKQRQISFVKSHFSRQ" * (n % 40 + 1)) for n in range(5000))
    packed = pack(text[:1_000_000]) + pack(text[1_000_000:])
    assert len(read(tmp_path / "a", packed)) == 5000


@pytest.mark.parametrize("rubbish", [b"rubbish behind it", b"\n", b"\x1f", b"BZ", bytes(600) + b"x"])
def test_rubbish_behind_a_stream_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes], rubbish: bytes) -> None:
    assert "something else follows" in str(refusal(tmp_path / "a", pack(FASTA) + rubbish))


def test_damage_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(FASTA * 500)
    for cut in (7, len(packed) // 2, len(packed) - 1):
        assert "damaged or cut short" in str(refusal(tmp_path / "a", packed[:cut]))
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :]
    refusal(tmp_path / "a", flipped)


def test_compressed_twice_is_said(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert "is compressed twice" in str(refusal(tmp_path / "a", pack(gzip.compress(FASTA))))


def test_zstd_without_a_package_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match=r"a\.zst: is compressed by zstd") as caught:
        read(tmp_path / "a.zst", b"\x28\xb5\x2f\xfd" + bytes(20))
    assert "zstd -dc" in caught.value.hint


def test_zstd_is_read_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own module and its backport have the interface of bz2's decoder, which stands in for it here."""
    magic = compression.COMPRESSIONS[-1].magic[0]

    class Decoder:
        def __init__(self) -> None:
            self._inner, self._begun = bz2.BZ2Decompressor(), False

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            data, self._begun = data if self._begun else data.removeprefix(magic), True
            return self._inner.decompress(data, max_length)

    monkeypatch.setitem(sys.modules, "compression.zstd", SimpleNamespace(ZstdDecompressor=Decoder))
    assert len(read(tmp_path / "a.zst", magic + bz2.compress(FASTA))) == 2


class TestBombs:
    """Small files that unpack to very large ones: refused by name, in bounded memory."""

    @pytest.mark.parametrize(
        ("first", "unit", "message"),
        [
            (b">a\n", b"A" * (1 << 20), "line 1: record 'a' has more than"),
            (b">a\n", b"MKTAY\n" * (1 << 17), "line 1: record 'a' has more than"),
            (b">", b"A" * (1 << 20), "line 1: the header has more than"),
            (b"", b"\n" * (1 << 20), "no record begins in the first"),
            (b">a\nMK\n", b"\n" * (1 << 20), "line 1: record 'a' has more than"),
            (b"", b";" * (1 << 20), "no record begins in the first"),
        ],
        ids=["one-line", "many-lines", "header", "blank", "blank-inside", "comment"],
    )
    def test_a_record_of_unlimited_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, unit: bytes, message: str
    ) -> None:
        monkeypatch.setattr(records, "LONGEST", 100_000)
        bomb = bz2.compress(first) + bz2.compress(unit) * 10
        assert message in str(refusal(tmp_path / "bomb.bz2", bomb))

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        bomb = bz2.compress(b">a\n") + bz2.compress(b"A" * (1 << 24)) * 100
        tracemalloc.start()
        try:
            assert "record 'a' has more than 10,000,000" in str(refusal(tmp_path / "bomb.bz2", bomb))
            assert tracemalloc.get_traced_memory()[1] < 1 << 27
        finally:
            tracemalloc.stop()

    def test_records_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compression, "LARGE", 1 << 20)
        text = b">a\n" + b"M" * 5000 + b"\n"
        bomb = bz2.compress(text * 10_000)
        assert "unpack to" in str(refusal(tmp_path / "bomb.bz2", bomb))

    def test_equal_proteins_in_great_number_are_no_bomb(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
    ) -> None:
        monkeypatch.setattr(compression, "LARGE", 1 << 20)
        text = b"".join(b">variant%d\n%s\n" % (n, b"A" * 300) for n in range(20_000))
        assert len(read(tmp_path / "set", pack(text))) == 20_000


def test_archives_and_other_encodings_get_a_command_that_works(tmp_path: Path) -> None:
    """The command that the hint names makes FASTA of the file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("in.fasta", FASTA)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as collection:
        member = tarfile.TarInfo("in.fasta")
        member.size = len(FASTA)
        collection.addfile(member, io.BytesIO(FASTA))
    latin = b">a prot\xe9ine\nMK\n"
    forms = {
        "a.zip": (archive.getvalue(), "is a zip archive", "unzip"),
        "a.tar": (tar.getvalue(), "is a tar archive", "tar"),
        "a b.tar.gz": (gzip.compress(tar.getvalue()), "is a tar archive", "tar"),
        "bom.txt": (FASTA.decode().encode("utf-16"), "is text in UTF-16", "iconv"),
        "le.txt": (FASTA.decode().encode("utf-16-le"), "is text in UTF-16", "iconv"),
        "be.txt": (FASTA.decode().encode("utf-16-be"), "is text in UTF-16", "iconv"),
        "latin.txt": (FASTA + latin, "line 5: not text in UTF-8", "iconv"),
        "latin.txt.gz": (gzip.compress(FASTA + latin), "line 5: not text in UTF-8", "iconv"),
    }
    for name, (content, message, tool) in forms.items():
        path = tmp_path / name
        error = refusal(path, content)
        assert message in str(error)
        command = error.hint.removeprefix("If it is Latin-1: ")
        assert tool in command
        assert shlex.quote(str(path)) in command
        done = subprocess.run(command, shell=True, cwd=tmp_path, check=False, capture_output=True)
        if done.returncode != 127:  # the tool is not installed
            assert [r.id for r in read_fasta([tmp_path / "new.fasta"])][:2] == (["a", "b"])
            (tmp_path / "new.fasta").unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7-Zip"),
        (b"Rar!\x1a\x07" + bytes(20), "RAR"),
        (b"\x04\x22\x4d\x18" + bytes(20), "lz4"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"PAR1" + bytes(20), "Parquet"),
        (b">a\n" + bytes(range(128, 256)) + bytes(9), "binary"),
        (b"\xff\xfe\x00\x00>\x00\x00\x00", "UTF-32"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    error = refusal(tmp_path / "a", content)
    assert message in str(error)
    assert "iconv -f latin1" not in error.hint


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_line_that_is_not_utf8_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    text = FASTA * 10_000 + b">b \xe9\nMK\n" + FASTA * 10_000
    assert "line 40001: not text in UTF-8" in str(refusal(tmp_path / "a", pack(text)))


@pytest.mark.parametrize("path", ["a\0b", ""])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(InputError):
        list(read_fasta([path]))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        list(read_fasta([tmp_path]))
    assert caught.value.hint == "Name the files in it."
