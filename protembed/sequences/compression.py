"""Compressed streams: gzip, xz, bzip2, zstd, unpacked a bounded piece at a time, with nothing behind them ignored."""

import bz2
import importlib
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from protembed.errors import DependencyError, InputError

LARGE = 1 << 28
"""What unpacks to more bytes than this (256 MiB), and ..."""
RATIO = 500
"""... to more than so many times its size, is refused.

Real sets stay far below: FASTA unpacks to 4 to 6 times its size, a million variants of one protein to 60 times, a
million equal proteins of 400 residues to 115 (gzip) or 470 (xz) times.
"""

_CHUNK = 1 << 17
_MEMORY_OF_XZ = 1 << 30


class _Decoder(Protocol):
    """One compressed stream; as bz2.BZ2Decompressor."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Readable(Protocol):
    """A source of compressed bytes; `count` are those read so far."""

    count: int

    def read(self, size: int) -> bytes: ...


class _Gzip:
    """zlib's decoder of one gzip stream, with the methods of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Zstandard:
    """The decoder of the package zstandard, which knows no `max_length`: it is fed little at a time."""

    _STEP = 4096  # unpacks to 128 MiB at most

    def __init__(self, module: Any) -> None:
        self._decoder = module.ZstdDecompressor().decompressobj()
        self._input = self._output = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof) and not self._output

    @property
    def needs_input(self) -> bool:
        return not (self._input or self._output)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decoder.unused_data) + self._input

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._input += data
        while self._input and not self._output and not self._decoder.eof:
            self._output = self._decoder.decompress(self._input[: self._STEP])
            self._input = self._input[self._STEP :]
        result, self._output = self._output[:max_length], self._output[max_length:]
        return result


def _zstd() -> _Decoder:
    """Return a zstd decoder: Python's own (3.14), its backport, or that of zstandard."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            decoder: _Decoder = importlib.import_module(name).ZstdDecompressor()
        except ImportError:
            continue
        return decoder
    return _Zstandard(importlib.import_module("zstandard"))


@dataclass(frozen=True)
class Compression:
    """A form of compression: the bytes that a stream begins with, a fresh decoder, the command that unpacks a file."""

    name: str
    magic: tuple[bytes, ...]
    decoder: Callable[[], _Decoder]
    command: str


COMPRESSIONS = (
    Compression("gzip", (b"\x1f\x8b",), _Gzip, "gzip -dc"),
    Compression("xz", (b"\xfd7zXZ\0",), lambda: lzma.LZMADecompressor(memlimit=_MEMORY_OF_XZ), "xz -dc"),
    Compression("bzip2", (b"BZh",), bz2.BZ2Decompressor, "bzip2 -dc"),
    Compression("zstd", (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"), _zstd, "zstd -dc"),  # the latter: pzstd's
)


class Unpacked(io.RawIOBase):
    """What a compressed source holds: one stream, or several end to end, and nothing else.

    Raises InputError for damage, for rubbish behind the streams, and for what grows beyond all measure when unpacked;
    DependencyError for zstd where nothing here can unpack it.
    """

    def __init__(self, source: Readable, compression: Compression, name: str) -> None:
        self._source, self._compression, self._name = source, compression, name
        self._count = 0
        try:
            self._decoder = compression.decoder()
        except ImportError as error:
            raise DependencyError(
                f"{name}: is compressed by zstd, which takes the package zstandard",
                hint="pip install 'protembed[zstd]', or unpack it first: zstd -dc FILE > new.fasta",
            ) from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._read(len(buffer))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # each library has exceptions of its own; the source's OSError has an errno
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(
                f"{self._name}: the compressed file is damaged or cut short ({error})",
                hint="Copy or download it again.",
            ) from error
        self._count += len(data)
        if self._count > LARGE and self._count > RATIO * self._source.count:
            raise InputError(
                f"{self._name}: its first {self._source.count:,} bytes unpack to {self._count:,}, as proteins never do",
                hint="If it is a set of proteins all the same, unpack it first.",
            )
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end of the last stream."""
        data = b""
        while not data:
            if self._decoder.eof:
                rest = self._next_stream()
                if not rest:
                    return b""
                data = self._decoder.decompress(rest, size)
            elif self._decoder.needs_input:
                rest = self._source.read(_CHUNK)
                data = self._decoder.decompress(rest, size)
                if not (rest or data or self._decoder.eof):
                    raise EOFError("it ends in the middle")
            else:
                data = self._decoder.decompress(b"", size)
        return data

    def _next_stream(self) -> bytes:
        """Begin the stream behind the one that has ended; return its first bytes, none where there is no other."""
        rest = self._decoder.unused_data.lstrip(b"\0")  # streams may be padded with zeros
        while len(rest) < 6 and (more := self._source.read(_CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        if not rest:
            return b""
        if not rest.startswith(self._compression.magic):
            raise InputError(
                f"{self._name}: something else follows the {self._compression.name} stream",
                hint="Copy or download it again.",
            )
        self._decoder = self._compression.decoder()
        return rest
