"""A file of a run, and what must be true of it before anything is computed: a place, an owner, room."""

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protembed.errors import OutputError
from protembed.outputs.content import digest_of, run_digest
from protembed.outputs.files import write_errors
from protembed.outputs.journal import Facts, Scan, scan
from protembed.outputs.target import is_stream, same_file, work_folder_of
from protembed.outputs.writer import Form


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One file of a run: its name as it was given, its format, and about how many bytes it will have."""

    path: Path
    form: Form[Any]
    size: int

    @property
    def final(self) -> Path:
        """Where the file is, or will be."""
        return Path(os.path.realpath(self.path))

    @property
    def folder(self) -> Path:
        """Where its journal is, and the file itself until it gets its name."""
        return work_folder_of(self.path)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def built(self) -> Path:
        return self.folder / "final"

    def reported(self) -> AbstractContextManager[None]:
        """Turn what goes wrong while the file or its journal is written into OutputError."""
        return write_errors(
            self.path, hint="Check the folder and the free space. What is done is kept: resume the run then."
        )

    def clear(self) -> None:
        """Remove the work folder, the journal first: what is left of a folder without one is worth nothing."""
        if os.path.islink(self.folder):
            raise OutputError(f"{self.folder} is a link", hint="Remove it.")
        self.journal.unlink(missing_ok=True)
        if os.path.exists(self.folder):
            shutil.rmtree(self.folder)


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run is: `job` holds all that its content depends on but the shard; `attributes` stand in every file."""

    job: Facts
    shard: str
    attributes: Facts
    budget: int

    @property
    def facts(self) -> Facts:
        """What every file of the run says of it."""
        job = digest_of(self.job)
        return {**self.attributes, "shard": self.shard, "job_sha256": job, "run_sha256": run_digest(job, self.shard)}


def read_state(file: OutputFile) -> Scan:
    """Read what a run has done. Raises OutputError where anyone may have put it there."""
    with file.reported():
        everyone = os.stat(file.final.parent).st_mode & stat.S_IWOTH
        if everyone and os.path.exists(file.journal) and os.stat(file.journal).st_uid != os.geteuid():
            raise OutputError(
                f"{file.folder} belongs to another user, in a folder where everyone may write",
                hint="Choose another output. If you trust that run, copy its folder and name the copy's output.",
            )
        return scan(file.journal)


def require_places(files: Sequence[OutputFile]) -> None:
    """Raise OutputError for a file that cannot be one; touch nothing."""
    for number, file in enumerate(files):
        if is_stream(file.path):
            raise OutputError(f"{file.path} is not a file, and this output must be one", hint="Name a file.")
        if not os.path.isdir(file.final.parent):
            raise OutputError(f"{file.final.parent}: no such folder", hint=f"mkdir -p {file.final.parent}")
        if os.path.isdir(file.final):
            raise OutputError(f"{file.path} is a folder", hint="Name a file in it.")
        for other in files[:number]:
            if same_file(file.path, other.path):
                raise OutputError(f"{other.path} and {file.path} are the same file", hint="Name two files.")
        for other in files:
            if file.final.is_relative_to(other.folder):
                raise OutputError(f"{file.path} lies in the work folder of {other.path}", hint="Choose another folder.")


def require_room(files: Sequence[OutputFile], written: Sequence[int]) -> None:
    """Raise OutputError unless each file system has room for its files twice: the journals and what is made of them."""
    needed: dict[int, int] = {}
    for file, size in zip(files, written, strict=True):
        device = file.final.parent.stat().st_dev
        needed[device] = needed.get(device, 0) + 2 * file.size - size
    for file in files:
        folder = file.final.parent
        free, wanted = shutil.disk_usage(folder).free, needed[folder.stat().st_dev]
        if wanted > free:
            raise OutputError(
                f"{folder}: the output takes about {wanted / 1e9:.2g} GB until it is complete,"
                f" {free / 1e9:.2g} GB are free",
                hint="Choose another folder, write less, or split the work into shards.",
            )
