"""The writer that makes files of the results of a run: whole, of one owner, and resumable.

While a run lasts, each of its files has a work folder `NAME.partial/` beside it with a journal of what is done. At the
end every file is built from its journal, in the order of the input, and only when all are whole do they get their
names. Nothing but the journals decides what is in them: a run that was stopped and resumed gives the same bytes.
It takes twice the space of the outputs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType

from protembed.errors import OutputError
from protembed.outputs.files import create, give_name, lock, sync
from protembed.outputs.journal import Entry, Facts, Journal, Scan, read_entries
from protembed.outputs.output_file import OutputFile, RunIdentity, read_state, require_places, require_room
from protembed.outputs.target import write_failures
from protembed.outputs.writer import Result, UnstorableError
from protembed.sequences.windows import Failure


class FileWriter:
    """Writes files that are whole, and can be resumed; see the module's docstring, and Writer.

    Opening it checks and locks every file before anything is computed, and touches nothing if that fails. Raises
    OutputError for an output that is there already, that another run is working on, or that has no room.
    """

    def __init__(self, files: Sequence[OutputFile], run: RunIdentity, *, resume: bool, overwrite: bool) -> None:
        self._files, self._run, self._facts = files, run, run.facts
        self._resume, self._overwrite = resume, overwrite
        self._journals: list[Journal] = []
        self._locks = ExitStack()
        self._taken = 0
        self._replace: set[Path] = set()
        self.done, self.budget = 0, run.budget
        self.complete = False
        self.failed = self.left_out = 0

    def __enter__(self) -> "FileWriter":
        require_places(self._files)
        with ExitStack() as stack:
            for file in self._files:
                stack.enter_context(lock(file.path))
            self._begin()
            self._locks = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of everything. What is marked in the journals stays; a folder in which nothing is done does not."""
        with self._locks, suppress(OSError, OutputError):
            self._close()
            if not (self.done or self.complete):
                self._clear()

    def write(self, item: Result) -> None:
        try:
            encoded = [file.form.encode(item) for file in self._files]
        except UnstorableError as error:
            self.fail(Failure(record=item.record, reason=str(error)))
            return
        for file, journal, (facts, data) in zip(self._files, self._journals, encoded, strict=True):
            with file.reported():
                journal.add(facts, data)
        self._taken += 1

    def fail(self, failure: Failure) -> None:
        for file, journal in zip(self._files, self._journals, strict=True):
            with file.reported():
                journal.add({"failed": failure.record.id, "reason": failure.reason})
        self._taken += 1

    def batch_done(self) -> None:
        for file, journal in zip(self._files, self._journals, strict=True):
            with file.reported():
                journal.mark(self._taken)
        self.done = self._taken

    def finish(self, *, left_out: int) -> None:
        self.left_out = left_out
        for file, journal in zip(self._files, self._journals, strict=True):
            with file.reported():
                journal.mark(self._taken)
                journal.sync()
        self.done = self._taken
        self._close()
        built = [self._build(file) for file in self._files]
        for file, (attributes, failures) in zip(self._files, built, strict=True):
            write_failures(file.path, failures, folder=file.folder)
            with file.reported():
                file.form.name(file.final, attributes, file.folder)
                give_name(file.built, file.final, overwrite=file.path in self._replace)
                sync(file.final.parent)
        self.complete = True
        self._clear()
        for file in self._files:
            file.form.named(file.final, keep=self._resume or self._run.shard != "1/1")

    def _begin(self) -> None:
        """Find out what is there, and open the journals."""
        states = [read_state(file) if self._resume else Scan() for file in self._files]
        there = {file.path: self._facts_of(file) for file in self._files if os.path.exists(file.final)}
        own = {path for path, facts in there.items() if facts.get("run_sha256") == self._facts["run_sha256"]}
        if self._resume and len(own) == len(self._files):
            self._find_complete(there[self._files[0].path])
            return
        going_on = all(self._is_same_run(state) for state in states)
        replaced = self._overwrite or (going_on and all((state.run or {}).get("overwrite") for state in states))
        self._replace = {file.path for file in self._files if replaced or (self._resume and file.path in own)}
        for path in there:
            if path not in self._replace:
                raise OutputError(f"{path} exists", hint="--overwrite replaces it; or choose another name.")
        self._require_no_other_run(states)
        common = set.intersection(*(set(state.marks) for state in states)) if going_on else set()
        self.done = self._taken = max(common, default=0)
        self._open_journals(states if common else None)

    def _facts_of(self, file: OutputFile) -> Facts:
        """Return what a finished file says of its run, where that is asked for."""
        return file.form.describe(file.final) if self._resume else {}

    def _find_complete(self, facts: Facts) -> None:
        """An earlier run has done all of it; it may have been stopped while it cleared its folders."""
        self.complete = True
        self.failed, self.left_out = int(facts.get("failed_records", 0)), int(facts.get("left_out_records", 0))
        self._clear()

    def _is_same_run(self, state: Scan) -> bool:
        return state.run is not None and state.run.get("run_sha256") == self._facts["run_sha256"]

    def _require_no_other_run(self, states: Sequence[Scan]) -> None:
        """Refuse to lose what another run has done."""
        for file, state in zip(self._files, states, strict=True):
            if self._resume and state.done and not self._is_same_run(state):
                raise OutputError(
                    f"{file.folder} is from a run with other input, model or options",
                    hint="--resume with the same ones, or --overwrite to begin again.",
                )
            if os.path.lexists(file.folder) and not (self._resume or self._overwrite):
                raise OutputError(
                    f"{file.folder} is left from a run that did not finish",
                    hint="--resume goes on with it, --overwrite begins again.",
                )

    def _open_journals(self, states: Sequence[Scan] | None) -> None:
        """Open the journals where the last batch ended that all of them have, or new ones."""
        if states is None:
            self._clear()
        places = [state.marks[self.done] for state in states] if states else [0] * len(self._files)
        require_room(self._files, places)
        try:
            for file, place in zip(self._files, places, strict=True):
                with file.reported():
                    self._journals.append(_open_journal(file, place, self._head()))
        except BaseException:
            if states is None:
                with suppress(OSError, OutputError):
                    self._close()
                    self._clear()
            raise
        if states and states[0].run:
            self.budget = int(states[0].run.get("budget", self.budget))

    def _head(self) -> Facts:
        """What a journal says of the run it is of."""
        return {**self._facts, "job": self._run.job, "budget": self.budget, "overwrite": self._overwrite}

    def _build(self, file: OutputFile) -> tuple[Facts, list[tuple[str, str]]]:
        """Make a file from its journal; return its attributes, and its failures as (id, reason)."""
        failures: list[tuple[str, str]] = []
        count = 0

        def entries() -> Iterator[Entry]:
            nonlocal count
            for entry in islice(read_entries(file.journal), 1, None):
                if "failed" in entry.facts:
                    failures.append((str(entry.facts["failed"]), str(entry.facts["reason"])))
                elif entry.mark is None:
                    count += 1
                    yield entry

        def attributes() -> Facts:
            if count + len(failures) != self._taken:
                raise OutputError(f"{file.journal} is damaged", hint="Resume the run: what is lost is computed again.")
            self.failed = len(failures)
            return {**self._facts, "failed_records": self.failed, "left_out_records": self.left_out}

        try:
            with file.reported():
                file.built.unlink(missing_ok=True)
                create(file.built)
                return file.form.build(file.built, entries(), attributes), failures
        except BaseException:
            with suppress(OSError):
                file.built.unlink(missing_ok=True)
            raise

    def _close(self) -> None:
        for journal in self._journals:
            with suppress(OSError):
                journal.sync()
            with suppress(OSError):
                journal.close()
        self._journals = []

    def _clear(self) -> None:
        for file in self._files:
            with file.reported():
                file.clear()


def _open_journal(file: OutputFile, place: int, head: Facts) -> Journal:
    if place:
        return Journal(file.journal, at=place)
    file.folder.mkdir()
    journal = Journal(file.journal, at=0)
    journal.add(head)
    journal.mark(0)
    sync(file.folder)
    sync(file.folder.parent)
    return journal
