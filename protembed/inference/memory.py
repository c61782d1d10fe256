"""How much memory this process can still have: of the machine, of its container or batch job, of its own limit."""

import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(place: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that can be had without swapping, or None where the system does not say (Linux does).

    A process that asks for more than its machine or its control group (a container, a job of SLURM) has is killed
    rather than told.
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", place.read_text(), re.MULTILINE)
    except OSError:
        return None
    if not found:
        return None
    limits = [room for room in (_room_in_group(), _room_in_limit()) if room is not None]
    return min([1024 * int(found[1]), *limits])


def _room_in_limit() -> int | None:
    """Return what `ulimit -v` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        return max(0, limit - used)
    return None


def _room_in_group(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return what the limits of this process's control groups leave; files in the page cache give way."""
    rooms = []
    for folder, limit, usage, cached in _groups(root, membership):
        with suppress(OSError, ValueError):
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            found = re.search(rf"^{cached} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            rooms.append(max(0, most - used + (int(found[1]) if found else 0)))
    return min(rooms, default=None)


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield the folders of this process's groups and all above them, with the names of limit, usage and cache."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        while folder.is_relative_to(top):
            yield folder, *names
            folder = folder.parent
