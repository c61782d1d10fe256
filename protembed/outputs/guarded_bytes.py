"""The bytes of a file as HDF5 reads them: one regular file, each structure that could trap the reader looked at first.

libhdf5 2.0 never returns from a global heap (where texts are kept) in which an object has no size: zeros in the wrong
place would hang the process, and no signal could end it. Its reads pass through here, so the heap is checked before.
"""

import contextlib
import fcntl
import io
import os
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protembed.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HEAP: Final = b"GCOL"
_LARGEST_HEAP: Final = 16 * 2**20
_TIMES_ON_DISK: Final = 64
"""Floats never pack so well on a compressing file system: a file that claims more is sparse."""


class GuardedBytes(io.RawIOBase):
    """A file open for reading, in the form that h5py's file-object driver takes.

    `capacity` is what its content may take up: its size, or for a sparse file what the disk can hold of it.
    Raises InputError for what is no regular file, is empty, or is being written by another process.
    """

    def __init__(self, path: Path, place: str) -> None:
        super().__init__()
        self._descriptor = open_file(path, place)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        allocated = found.st_blocks * 512
        self._size, self._position = found.st_size, 0
        self.capacity = min(found.st_size, allocated * _TIMES_ON_DISK) if allocated else found.st_size

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = self._size + offset if whence == os.SEEK_END else offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer from the present place. Raises OSError for a heap that libhdf5 would never leave."""
        with memoryview(buffer).cast("B") as view:
            count = os.preadv(self._descriptor, [view], self._position)
            if bytes(view[:4]) == _HEAP:
                self._check_heap(self._position)
            return count

    def _check_heap(self, place: int) -> None:
        """Walk over the objects of a heap: index (2 bytes), references (2), 4 unused, size (8), then the object.

        Object 0 is the free space, whose size counts its own header; HDF5 File Format 3.0, III.E.
        """
        size = int.from_bytes(self._at(place + 8, 8), "little")
        if not 16 <= size <= self._size - place:
            raise OSError("a heap of texts does not lie within the file")
        if size > _LARGEST_HEAP:
            raise OSError(f"a heap of texts takes {size:,} bytes")
        heap = self._at(place, size)
        at = 16
        while at + 16 <= size:
            index = int.from_bytes(heap[at : at + 2], "little")
            length = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = 16 + (length + 7) // 8 * 8 if index else length
            if step < 16 or at + step > size:
                raise OSError("a heap of texts is damaged")
            at += step

    def _at(self, place: int, count: int) -> bytes:
        return os.pread(self._descriptor, count, place)


def open_file(path: Path, place: str, *, empty: bool = False) -> int:
    """Open a regular file for reading, never waiting for the other end of a pipe; return its descriptor.

    Raises InputError for what is no file, is empty (unless it may be), or is being written by another process.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{place}: cannot be read ({reason})", hint="Check the path.") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{place} is not a file", hint="HDF5 is not read from folders, pipes or devices.")
        if found.st_size == 0 and not empty:
            raise InputError(f"{place}: the file is empty", hint="Did its run finish?")
        with contextlib.suppress(OSError):  # a file system without locks
            _refuse_writer(descriptor, place)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_writer(descriptor: int, place: str) -> None:
    """HDF5 holds an exclusive lock on a file that it writes."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{place}: another process is writing it", hint="Wait until its run has finished.") from None
