"""What a run has done so far: a file that only grows, and that says of every entry whether it is whole.

An entry is a header (magic, two sizes), JSON, raw bytes, and a CRC-32 over all of it. The first entry says what run it
is. Records follow in the order of the input; after every batch stands a mark: the number of records that are done. A
run that was killed, a full disk or a power cut leave at worst an end that is incomplete, zero or wrong: the journal is
cut off at the last mark that all journals of the run have. So the entries never depend on when a run was stopped or how
often, and neither does the file that is made of them.
"""

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from protembed.interrupts import check

SYNC_SECONDS = 5.0
_HEADER = struct.Struct("<4sIQ")
_CRC = struct.Struct("<I")
_MAGIC = b"PEJ2"
_LARGEST_FACTS = 64 * 2**20
_BLOCK = 2**20

Facts = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What JSON holds of an entry, its bytes and their CRC-32, and where it ends in the file."""

    facts: Facts
    data: bytes
    crc: int
    stop: int

    @property
    def mark(self) -> int | None:
        """The number of input records that are done here, if this is a mark."""
        mark = self.facts.get("mark")
        return mark if isinstance(mark, int) else None


def _pack(facts: Mapping[str, Any], data: bytes) -> tuple[bytes, bytes, int]:
    """Return what stands before and behind the bytes of an entry, and their own CRC-32."""
    text = json.dumps(facts).encode()
    head = _HEADER.pack(_MAGIC, len(text), len(data)) + text
    crc = zlib.crc32(data)
    return head, _CRC.pack(zlib.crc32(head, crc)), crc


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a journal from its beginning, as far as they are whole."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while entry := _read_entry(file, size):
            yield entry
            check()


def _read_entry(file: IO[bytes], size: int) -> Entry | None:
    """Read the next entry; None where the file ends or what follows is not an entry that was written whole."""
    start = file.tell()
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return None
    magic, facts_size, data_size = _HEADER.unpack(head)
    stop = start + _HEADER.size + facts_size + data_size + _CRC.size
    if magic != _MAGIC or facts_size > _LARGEST_FACTS or stop > size:
        return None
    text, data, tail = file.read(facts_size), file.read(data_size), file.read(_CRC.size)
    crc = zlib.crc32(data)
    if tail != _CRC.pack(zlib.crc32(head + text, crc)):
        return None
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):  # planted: what we write is whole or fails its checksum
        return None
    return Entry(facts, data, crc, stop) if isinstance(facts, dict) else None


@dataclass
class Scan:
    """What a journal holds: what run it is of, None if it is no journal, and by mark where its entry ends."""

    run: Facts | None = None
    marks: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many input records are done."""
        return max(self.marks, default=0)


def scan(path: Path) -> Scan:
    """Read a journal through and verify it; a file that is not there or no journal is an empty one."""
    found = Scan()
    with suppress(FileNotFoundError):
        for entry in read_entries(path):
            if found.run is None:
                found.run = entry.facts
                found.marks[0] = entry.stop
            elif entry.mark is not None:
                found.marks[entry.mark] = entry.stop
    return found


class Journal:
    """A journal that is being written. What is added reaches the file with the next mark.

    Every few seconds the file is synced, by a thread, so that a power cut costs no more than that; what the disk
    answers is raised by the next call. Raises OSError.
    """

    def __init__(self, path: Path, *, at: int) -> None:
        """Open the journal at `path` and cut it off at byte `at`; 0 makes a new one."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags | (0 if at else os.O_EXCL), 0o666)
        os.ftruncate(self._descriptor, at)
        os.lseek(self._descriptor, at, os.SEEK_SET)
        self._waiting: list[bytes] = []
        self._size = 0
        self._sync: _Sync | None = None
        self._synced = time.monotonic()

    def add(self, facts: Mapping[str, Any], data: bytes = b"") -> None:
        """Add an entry."""
        head, tail, _ = _pack(facts, data)
        self._waiting += (head, data, tail)
        self._size += len(head) + len(data)
        if self._size >= _BLOCK:
            self._write()

    def mark(self, done: int) -> None:
        """Note that the first `done` records of the input are done: a later run goes on from here."""
        self.add({"mark": done})
        self._write()
        if time.monotonic() - self._synced >= SYNC_SECONDS and not (self._sync and self._sync.is_alive()):
            self._finish_sync()
            self._begin_sync()
            self._synced = time.monotonic()

    def sync(self) -> None:
        """Wait until all that was marked is on the disk."""
        self._finish_sync()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; what was added after the last mark is dropped."""
        if self._descriptor >= 0:
            try:
                self._finish_sync()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _begin_sync(self) -> None:
        self._sync = _Sync(self._descriptor)
        try:
            self._sync.start()
        except RuntimeError:  # there is no memory for a thread
            self._sync = None
            os.fsync(self._descriptor)

    def _finish_sync(self) -> None:
        running, self._sync = self._sync, None
        if running:
            running.join()
            if running.error:
                raise running.error

    def _write(self) -> None:
        rest = memoryview(b"".join(self._waiting))
        self._waiting, self._size = [], 0
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


class _Sync(threading.Thread):
    """Syncs a file and keeps what the disk says against it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.error = error
