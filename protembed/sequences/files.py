"""Text files, compressed or not: opened by their content, and refused with advice when they are something else."""

import codecs
import errno
import io
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Any

from protembed.errors import InputError
from protembed.sequences.compression import COMPRESSIONS, Compression, Unpacked

AnyPath = str | os.PathLike[str]
"""A path, `-` for standard input, or an InputFile: str() is its name in messages, os.fspath() the file."""

_HEAD = 512
"""So many first bytes tell what a file is."""

_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", "unzip -p {file} > new.fasta"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x -so {file} > new.fasta"),
    (0, b"Rar!", "a RAR archive", "unrar p -inul {file} > new.fasta"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "lz4 -dc {file} > new.fasta"),
    (0, b"\x1f\x9d", "compressed by compress", "uncompress -c {file} > new.fasta"),
    (0, b"LZIP", "compressed by lzip", "lzip -dc {file} > new.fasta"),
    (257, b"ustar", "a tar archive", "tar -xOf {file} > new.fasta"),
    (0, b"\xff\xfe\x00\x00", "text in UTF-32", "iconv -f utf-32 -t utf-8 {file} > new.fasta"),
    (0, b"\xff\xfe", "text in UTF-16", "iconv -f utf-16 -t utf-8 {file} > new.fasta"),
    (0, b"\xfe\xff", "text in UTF-16", "iconv -f utf-16 -t utf-8 {file} > new.fasta"),
    (0, b"\x89HDF", "an HDF5 file", ""),
    (0, b"PAR1", "a Parquet table", ""),
    (0, b"SQLite format 3", "a database", ""),
    (0, b"%PDF", "a PDF", ""),
)
"""Where bytes stand, the bytes, what they begin, and a command that makes text of it."""


class _Source:
    """The bytes of a file, the first of which were looked at already; counts what is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0
        self.head = b""
        while len(self.head) < _HEAD and (more := file.read(_HEAD - len(self.head))):
            self.head += more
        self._pending = self.head

    def read(self, size: int) -> bytes:
        data = self._pending or self._file.read(size)
        self._pending = b""
        self.count += len(data)
        return data


class _Plain(io.RawIOBase):
    """The bytes of a source, for a buffered reader."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._rest or self._source.read(len(buffer))
        data, self._rest = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_text(path: AnyPath, name: str) -> Iterator[IO[str]]:
    """Open a text file, compressed or not by its first bytes, and turn what can go wrong into InputError.

    Memory is bounded whatever the file unpacks to. Zstandard needs Python 3.14, or the package zstandard.
    """
    unpacked = None
    try:
        with open_bytes(path, name) as file:
            source = _Source(file)
            unpacked = next((known for known in COMPRESSIONS if source.head.startswith(known.magic)), None)
            if unpacked is None:
                _refuse_foreign(source.head, name, path)
            yield io.TextIOWrapper(_reader(source, unpacked, name, path), encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, name, path, unpacked) from error
    except OSError as error:
        raise unreadable(name, error) from error


def open_bytes(path: AnyPath, name: str) -> AbstractContextManager[IO[bytes]]:
    """Open a file, or standard input (`-`), which stays open afterwards. Raises InputError."""
    if str(path) == "-":
        if sys.stdin is None:
            raise unreadable(name, OSError(errno.EBADF, ""))
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise unreadable(name, error) from error
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{name!r} cannot be a path ({error})", hint="Check the path.") from error


def unreadable(name: str, error: OSError) -> InputError:
    """Turn what the system says into an InputError."""
    if error.errno == errno.EBADF:
        return InputError(f"{name} is closed", hint="Name a file, or pipe the records in.")
    hint = "Name the files in it." if isinstance(error, IsADirectoryError) else "Check the path."
    return InputError(f"{name}: cannot be read ({error.strerror or error})", hint=hint)


def _reader(source: _Source, compression: Compression | None, name: str, path: AnyPath) -> "io.BufferedReader[Any]":
    if compression is None:
        return io.BufferedReader(_Plain(source), buffer_size=1 << 17)
    reader: io.BufferedReader[Any] = io.BufferedReader(Unpacked(source, compression, name), buffer_size=1 << 17)
    head = reader.peek(_HEAD)
    if any(head.startswith(known.magic) for known in COMPRESSIONS):
        raise InputError(f"{name}: is compressed twice", hint=f"Unpack it once: {compression.command} ...")
    _refuse_foreign(head, name, path, compression)
    return reader


def _refuse_foreign(head: bytes, name: str, path: AnyPath, compression: Compression | None = None) -> None:
    """Raise InputError, with advice that helps, for what is neither text nor compressed in a known way."""
    found = next(((what, how) for start, magic, what, how in _FOREIGN if head[start:].startswith(magic)), None)
    if found is None and len(head) >= 4 and (even := _utf16_without_mark(head)):
        found = "text in UTF-16", f"iconv -f {even} -t utf-8 {{file}} > new.fasta"
    if found is not None:
        what, how = found
        hint = _command(how, path, compression) if how else "It should be a text file, FASTA for sequences."
        raise InputError(f"{name}: is {what}, not plain text", hint=hint)


def _utf16_without_mark(head: bytes) -> str | None:
    if head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16le"
    return "utf-16be" if head[0] == head[2] == 0 and head[1] and head[3] else None


def _command(how: str, path: AnyPath, compression: Compression | None) -> str:
    """Fill the file into a command: named if it can be named again, unpacked first if it is compressed."""
    again = not (str(path) == "-" or str(path) != os.fspath(path))
    file = shlex.quote(str(path)) if again else "FILE"
    if compression is not None:
        return f"{compression.command} {file} | {how.replace(' {file}', ' -' if how.startswith('tar') else '')}"
    return how.format(file=file)


def _not_utf8(error: UnicodeDecodeError, name: str, path: AnyPath, compression: Compression | None) -> InputError:
    if b"\0" in error.object:
        return InputError(f"{name}: is binary, not plain text", hint="It should be a text file, FASTA for sequences.")
    line = _faulty_line(path, name)
    command = _command("iconv -f latin1 -t utf-8 {file} > new.fasta", path, compression)
    return InputError(
        f"{name}{f', line {line}' if line else ''}: not text in UTF-8 ({error.reason}, "
        f"byte {error.object[error.start]:#x})",
        hint=f"If it is Latin-1: {command}",
    )


def _faulty_line(path: AnyPath, name: str) -> int | None:
    """Find the first line that is not UTF-8 by reading the file once more; None where that cannot be done."""
    if str(path) == "-" or not os.path.isfile(path):
        return None
    line = 1
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        source = _Source(file)
        unpacked = next((known for known in COMPRESSIONS if source.head.startswith(known.magic)), None)
        reader = _reader(source, unpacked, name, path)
        while chunk := reader.read(1 << 16):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].count(b"\n")
            line += chunk.count(b"\n")
    return None
