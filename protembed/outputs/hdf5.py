"""Results into HDF5: flat files that other tools read, whole or not there at all.

While a run goes on, `OUT.h5.partial/` beside the target holds finished segments, each a complete HDF5 file of the
records [start, stop) of the input. A killed run loses at most the segment it was in; `--resume` goes on after the last.
At the end the segments become one file, which gets its final name when it is complete.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h5py
import numpy as np

from protembed import __version__
from protembed.errors import OutputError
from protembed.models.config import ModelCard
from protembed.outputs.target import Target
from protembed.sequences.records import Record
from protembed.sequences.windows import Array, Failure

SEGMENT_SECONDS = 10.0
_RUN = "run_sha256"
Attributes = Mapping[str, str | int | bool]


class Result(Protocol):
    """What was computed from one record: arrays by the kind of file they belong to."""

    @property
    def record(self) -> Record: ...

    @property
    def arrays(self) -> Mapping[str, Array | None]: ...


@dataclass(frozen=True)
class _Segment:
    """Records [start, stop) of the input."""

    start: int
    stop: int

    def path(self, folder: Path, kind: str, suffix: str = ".h5") -> Path:
        return folder / f"{self.start:010d}-{self.stop:010d}.{kind}{suffix}"


class HDF5Writer:
    """Writes the results of one run in order, segment by segment; see the module's docstring.

    `fingerprint` tells everything the content depends on; a partial output with another one is not gone on with.
    `done` is the number of input records that are safely written when the writer opens; `complete` tells that an
    earlier run has finished already: there is nothing to add. `resumable`: the command has --resume, errors name it.
    """

    def __init__(
        self,
        target: Target,
        attributes: Mapping[str, Attributes],
        *,
        fingerprint: Mapping[str, Any],
        store_dtypes: Mapping[str, str],
        resume: bool = False,
        overwrite: bool = False,
        resumable: bool = True,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self._target = target
        self._attributes = attributes
        self._fingerprint = json.dumps(fingerprint, sort_keys=True)
        self._digest = hashlib.sha256(self._fingerprint.encode()).hexdigest()
        self.complete = False
        self._dtypes = {kind: np.dtype(name) for kind, name in store_dtypes.items()}
        self._seconds = segment_seconds
        self._resumable = resumable
        self._files: dict[str, h5py.File] = {}
        self._failures: list[str] = []
        with self._reported():
            self._open_folder(resume=resume, overwrite=overwrite)
            self._segments = [] if self.complete else self._finished_segments()
        self.done = self._position = self._segments[-1].stop if self._segments else 0
        self._between_batches = True
        self._opened = time.monotonic()

    def add(self, key: str, item: Result | Failure) -> None:
        """Write one record; a Failure goes into the list of failures."""
        self._between_batches = False
        if isinstance(item, Failure):
            self._failures.append(f"{item.record.id}\t{item.reason}\n")
            return
        with self._reported():
            for kind, values in item.arrays.items():
                if kind in self._target.files and values is not None:
                    self._write(kind, key, item.record, values)

    def batch_done(self, position: int) -> None:
        """Note that all records before `position` have been added; now and then this closes a segment."""
        self._position = position
        self._between_batches = True
        if time.monotonic() - self._opened >= self._seconds:
            self.close_segment()

    def close_segment(self) -> None:
        """Make everything added so far permanent."""
        segment = _Segment(self._segments[-1].stop if self._segments else 0, self._position)
        if segment.start == segment.stop:
            return
        folder = self._target.partial
        with self._reported():
            for kind in self._target.files:
                file = self._files.pop(kind, None) or self._create(kind)
                file.close()
                os.replace(folder / f"{kind}.tmp", segment.path(folder, kind))
            # The list of failures comes last: where it stands, the segment is complete.
            temporary = folder / "failed.tmp"
            temporary.write_text("".join(self._failures), encoding="utf-8")
            os.replace(temporary, segment.path(folder, "failed", ".tsv"))
        self._segments.append(segment)
        self._failures = []
        self._opened = time.monotonic()

    def finish(self) -> int:
        """Put the segments together under the final names; return the number of failed records."""
        self.close_segment()
        folder = self._target.partial
        with self._reported():
            for kind, path in self._target.files.items():
                merged = folder / f"{kind}.merged"
                parts = [segment.path(folder, kind) for segment in self._segments]
                merge_files(parts, merged, {**self._attributes[kind], _RUN: self._digest, "complete": True})
                os.replace(merged, path)
            failed = "".join(s.path(folder, "failed", ".tsv").read_text(encoding="utf-8") for s in self._segments)
            self._target.failures.unlink(missing_ok=True)
            if failed:
                self._target.failures.write_text(f"id\treason\n{failed}", encoding="utf-8")
            shutil.rmtree(folder)
        return failed.count("\n")

    def __enter__(self) -> "HDF5Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of open files. A run that is stopped keeps what is complete, but for the batch it was adding."""
        try:
            if isinstance(error, KeyboardInterrupt | GeneratorExit) and self._between_batches:
                self.close_segment()
        finally:
            self._close()

    def _close(self) -> None:
        """Let go of open files without finishing; what is in closed segments stays."""
        for file in self._files.values():
            with contextlib.suppress(OSError, RuntimeError):
                file.close()
        self._files = {}

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what the file system and HDF5 can say into OutputError."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # h5py raises RuntimeError where closing a file fails; the reason is in the text.
            full, told = "No space left" in str(error), getattr(error, "strerror", None) or str(error)
            kept = "; what is done is kept, and --resume goes on" if self._resumable else ""
            raise OutputError(
                f"{self._target.main}: cannot be written ({'the disk is full' if full else told})",
                hint=f"Check the folder and the free space{kept}.",
            ) from error

    def _open_folder(self, *, resume: bool, overwrite: bool) -> None:
        folder = self._target.partial
        state = folder / "run.json"
        found = [path for path in self._target.files.values() if path.exists()]
        if resume and found and all(_fingerprint_of(path) == self._digest for path in found):
            # Finished, or stopped between giving the first file its final name and the second.
            self.complete = not state.exists() and len(found) == len(self._target.files)
            if self.complete:
                return
        elif found and (not overwrite or any(path.is_dir() for path in found)):
            raise OutputError(f"{found[0]} exists", hint="--overwrite replaces it; or choose another name.")
        if state.exists() and resume:
            if state.read_text() != self._fingerprint:
                raise OutputError(
                    f"{folder} is from a run with other input, model or options",
                    hint="--resume with the same ones, or --overwrite to begin anew.",
                )
            return
        if folder.exists() and not (resume or overwrite):
            going_on = "--resume goes on with it, " if self._resumable else ""
            raise OutputError(
                f"{folder} is left from a run that did not finish", hint=f"{going_on}--overwrite begins anew."
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        temporary = folder / "run.tmp"
        temporary.write_text(self._fingerprint)
        os.replace(temporary, state)

    def _finished_segments(self) -> list[_Segment]:
        """Return the complete segments of an earlier run, from the first record on without a hole."""
        found = {}
        for path in self._target.partial.glob("*.failed.tsv"):
            start, stop = map(int, path.name.removesuffix(".failed.tsv").split("-"))
            found[start] = _Segment(start, stop)
        segments: list[_Segment] = []
        while (start := segments[-1].stop if segments else 0) in found:
            segments.append(found[start])
        return segments

    def _create(self, kind: str) -> h5py.File:
        return h5py.File(self._target.partial / f"{kind}.tmp", "w", track_order=True)

    def _write(self, kind: str, key: str, record: Record, values: Array) -> None:
        if kind not in self._files:
            self._files[kind] = self._create(kind)
        stored = values.astype(self._dtypes[kind], copy=False)
        if not np.isfinite(stored).all():
            raise OutputError(f"{record}: values do not fit into float16", hint="--store-dtype float32")
        dataset = self._files[kind].create_dataset(key, data=stored)
        dataset.attrs["original_id"] = record.id
        dataset.attrs["description"] = record.description
        dataset.attrs["length"] = len(record.sequence)


def describe_origin(card: ModelCard, computed_with: str) -> Attributes:
    """Return what every output says of the model and the program that made it."""
    return {
        "model_name": card.name,
        "model_license": card.license,
        "weights_sha256": card.sha256,
        "tool": "protembed",
        "tool_version": __version__,
        "computed_with": computed_with,
    }


def _fingerprint_of(path: Path) -> str:
    """Return which run wrote a finished file; empty for whatever else it may be."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get(_RUN, ""))
    except OSError:
        return ""


def merge_files(parts: Sequence[Path], out: Path, attributes: Attributes) -> None:
    """Put the datasets of several files into a new one, in order; raises OutputError on a name that comes twice."""
    if len(parts) == 1:
        shutil.copyfile(parts[0], out)
    with h5py.File(out, "a" if len(parts) == 1 else "w", track_order=True) as merged:
        for part in parts if len(parts) > 1 else []:
            with h5py.File(part, "r") as file:
                for key in file:
                    if key in merged:
                        raise OutputError(f"{part}: {key} is in an earlier file, too")
                    file.copy(key, merged)
        merged.attrs.update(attributes)
