"""Files that are written whole or not at all, and work that has one owner."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from protembed.errors import OutputError

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


@contextlib.contextmanager
def write_errors(path: Path, *, hint: str = "") -> Iterator[None]:
    """Turn what the file system and HDF5 can say while `path` is written into OutputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # h5py raises RuntimeError, or OSError without a number, where closing fails; the reason is in its text.
        number = getattr(error, "errno", None)
        known = next((said for code, said in _FULL.items() if number == code or os.strerror(code) in str(error)), None)
        reason = known or getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason})", hint=hint or "Check the folder and the free space."
        ) from error


@contextlib.contextmanager
def atomic(path: Path, *, overwrite: bool = True, folder: Path | None = None) -> Iterator[Path]:
    """Yield the name of a new, empty file beside `path`; when the block ends without an error, it becomes `path`.

    It lies in `folder` instead, of the same file system, where that is cleared anyway: a kill leaves it there.

    The file has a random name and is created exclusively, so that nothing planted there is followed or replaced; its
    mode follows the umask. It is synced before it is renamed: after a power cut `path` is the old file or the new one.
    A symbolic link at `path` keeps pointing where it does; its target is replaced. Without `overwrite` a file that
    has appeared at `path` meanwhile is kept, and OutputError raised.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.txt")
    >>> with atomic(path) as new:
    ...     _ = new.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    final = Path(os.path.realpath(path))
    new = (folder or final.parent) / f".{final.name[:100]}.{secrets.token_hex(6)}.tmp"
    with write_errors(path):
        create(new)
    try:
        yield new
        with write_errors(path):
            sync(new)
            give_name(new, final, overwrite=overwrite)
            sync(final.parent)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def create(path: Path) -> None:
    """Make an empty file; its mode follows the umask. Raises OSError for a name that is taken, by a link, too."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o666))


def give_name(new: Path, final: Path, *, overwrite: bool) -> None:
    """Rename `new` to `final`; without `overwrite` refuse, rather than replace, a file that is there by now."""
    if overwrite:
        os.replace(new, final)
        return
    try:
        os.link(new, final)  # unlike rename, fails where a file has the name
    except FileExistsError:
        raise OutputError(f"{final} exists", hint="Another process wrote it meanwhile; choose another name.") from None
    except OSError:  # a file system without hard links
        if final.exists():
            raise OutputError(f"{final} exists", hint="Another process wrote it meanwhile.") from None
        os.replace(new, final)
        return
    os.unlink(new)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that syncs no folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, *, what: str = "output") -> Iterator[None]:
    """Be the one process that works on `path` (a file or a folder to be) while the block runs.

    The lock is on a file `.NAME.lock` beside it. The kernel holds it, over NFS too, and releases it when its owner
    ends, however it ends. It does not depend on HDF5's own locks, which clusters switch off. Where a file system has
    no locks, the file itself is the lock: it names host and process, and is taken over only if that process ran on
    this host and has ended.

    Raises OutputError, naming the owner, when another run has it.
    """
    final = Path(os.path.realpath(path))
    place = final.with_name(f".{final.name[:200]}.lock")
    with write_errors(path):
        try:
            descriptor = _lock_in_kernel(place, path, what)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            place = place.with_suffix(".owner")
            descriptor = _lock_by_existence(place, path, what)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _owner().encode())
    try:
        yield
    finally:
        # Removed while it is still held: whoever opened it meanwhile notices that its name is gone.
        with contextlib.suppress(OSError):
            place.unlink()
        os.close(descriptor)


def _lock_in_kernel(place: Path, path: Path, what: str) -> int:
    while True:
        descriptor = os.open(place, os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(place, path, what) from None
        except OSError:
            os.close(descriptor)
            place.unlink(missing_ok=True)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(place)):
                return descriptor
        os.close(descriptor)  # its last owner removed it between our opening and our lock


def _lock_by_existence(place: Path, path: Path, what: str) -> int:
    while True:
        try:
            return os.open(place, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o666)
        except FileExistsError:
            host, _, process = _read_owner(place).partition(" ")
            if host != socket.gethostname() or process == _process(int(process.split()[0])):
                raise _in_use(place, path, what) from None
            place.unlink(missing_ok=True)


def _owner() -> str:
    return f"{socket.gethostname()} {_process(os.getpid())}"


def _process(number: int) -> str:
    """Return a process's number and start time, since numbers come round again; only the number if it is gone."""
    try:
        return f"{number} {Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return str(number)


def _read_owner(place: Path) -> str:
    """Return what the owner wrote; an unknown owner counts as one of another host."""
    try:
        words = place.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        words = []
    return " ".join(words[:3]) if len(words) > 1 and words[1].isdecimal() else "? 0"


def _in_use(place: Path, path: Path, what: str) -> OutputError:
    host, number = _read_owner(place).split()[:2]
    return OutputError(
        f"{path}: another run is working on this {what} (process {number} on {host})",
        hint=f"Wait for it to end, or stop it. If it is surely gone, remove {place}.",
    )
