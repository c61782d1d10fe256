"""A file for HDF5 that never fails, so that no error of the disk is lost and none ends the process."""

import os
from pathlib import Path
from types import TracebackType


class Disk:
    """A file for HDF5 that never fails: what cannot be written is kept in memory, and `check` raises the error.

    So HDF5 closes in good order, which after an error of its own it does not. It is asked for nothing new then, and
    what it has still to write are its few megabytes of buffers.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._place = 0
        self._error: BaseException | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the first error that there was."""
        if self._error is not None:
            raise self._error

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            place += self._place
        elif whence == os.SEEK_END:
            place += max([os.fstat(self._descriptor).st_size, *(start + len(data) for start, data in self._kept)])
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def write(self, data: memoryview) -> int:
        try:
            done = 0
            while self._error is None and done < len(data):
                done += os.pwrite(self._descriptor, data[done:], self._place + done)
        except BaseException as error:
            self._error = error
        if self._error is not None:
            self._kept.append((self._place, bytes(data)))
        return len(data)

    def readinto(self, data: memoryview) -> int:
        data[:] = bytes(len(data))
        os.preadv(self._descriptor, [data], self._place)
        for start, kept in self._kept:
            low, high = max(start, self._place), min(start + len(kept), self._place + len(data))
            if low < high:
                data[low - self._place : high - self._place] = kept[low - start : high - start]
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """What h5py looks for to tell a file from a path; it calls `readinto`."""
        data = bytearray(max(size, 0))
        self.readinto(memoryview(data))
        return bytes(data)

    def truncate(self, size: int) -> int:
        try:
            if self._error is None:
                os.ftruncate(self._descriptor, size)
        except BaseException as error:
            self._error = error
        return size

    def flush(self) -> None: ...

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
