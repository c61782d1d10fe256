"""Whether a file may have been put where it is by somebody else."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

_MOST_LINKS = 40  # as the kernel has it


def find_distrust(path: Path, *, owners: set[int] | None = None) -> str:
    """Return why a file is not to be trusted, or nothing.

    The file and its folder belong to this user, to root, or to one of `owners`. Nobody else may write to the file, or
    to any folder on the way to it, links followed; in one with the sticky bit, as /tmp, others may write, but not
    replace what is not theirs. A group counts as nobody else when it is root's, or the user's own (`umask 0002`).
    Raises OSError for a file that is not there.
    """
    trusted = {0, os.geteuid(), *(owners or ())}
    steps = list(_steps(path))
    for left, (place, state, folder) in enumerate(reversed(steps)):
        if state.st_uid not in trusted and (left < 2 or _others_may_write(folder)):
            return f"{place} belongs to another user ({state.st_uid})"
        sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
        if _others_may_write(state) and not sticky and not stat.S_ISLNK(state.st_mode):
            return f"others may write to {place} (mode {stat.S_IMODE(state.st_mode):o})"
    return ""


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result, os.stat_result]]:
    """Yield every folder, link and at last the file that the system passes on the way to a path, and its folder."""
    here, links = Path("/"), 0
    rest = list(path.absolute().parts[:0:-1])
    while rest:
        part = rest.pop()
        if part == "..":
            here = here.parent
            continue
        place = here / part
        state = place.lstat()
        yield place, state, here.lstat()
        if not stat.S_ISLNK(state.st_mode):
            here = place
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(f"{path}: too many links")
        target = Path(os.readlink(place))
        here = Path("/") if target.is_absolute() else here
        rest += [part for part in target.parts[::-1] if part != "/"]


def _others_may_write(state: os.stat_result) -> bool:
    if state.st_mode & stat.S_IWOTH:
        return True
    return bool(state.st_mode & stat.S_IWGRP) and not _is_own_group(state.st_gid, state.st_uid)


def _is_own_group(group: int, user: int) -> bool:
    """Tell whether nobody but a user and root is in a group: it is named as the user is, and lists no other members."""
    if group == 0:
        return True
    try:
        name, entry = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:  # without names: the convention is that of the numbers
        return group == user
    return entry.gr_name == name and set(entry.gr_mem) <= {name}
