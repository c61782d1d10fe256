"""How much memory this machine has to give."""

import re
from pathlib import Path


def available_memory(place: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that can be had without swapping, or None where the system does not say (Linux does).

    A process that asks for more is killed rather than told.
    """
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", place.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
