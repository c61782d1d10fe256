"""One run over FASTA files, whatever is computed: survey, keys, shard, resume, progress, failures, summary.

A command says what it computes (`Work`: embed_run, contacts and predict_run have one each); everything else is here.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol

import numpy as np
import numpy.typing as npt

from protembed import interrupts
from protembed.backends.base import Backend
from protembed.errors import InputError, OutOfMemoryError, UsageError
from protembed.inference.assembly import Cutting
from protembed.models.cost import Estimate, estimate
from protembed.outputs.file_writer import FileWriter
from protembed.outputs.output_file import OutputFile, RunIdentity
from protembed.outputs.stream import StreamWriter
from protembed.outputs.target import failures_of, refuse_same, require_own_list
from protembed.outputs.writer import Item, Writer
from protembed.sequences.composition import ExpectPolicy, UnknownPolicy
from protembed.sequences.files import AnyPath
from protembed.sequences.reading import Reading
from protembed.sequences.records import EmptyPolicy, Record, read_fasta
from protembed.sequences.shard import Shard
from protembed.sequences.survey import DuplicatePolicy, KeyKind, Survey, assign_keys, survey
from protembed.sequences.windows import Failure


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run treats its input and its outputs; `reads` names files beside the input that no output may replace."""

    unknown: UnknownPolicy = "x"
    expect: ExpectPolicy = "warn"
    empty: EmptyPolicy = "error"
    duplicates: DuplicatePolicy = "error"
    key: KeyKind = "id"
    shard: Shard = field(default_factory=Shard)
    resume: bool = False
    overwrite: bool = False
    reads: tuple[AnyPath, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; both counts include what an earlier run did."""

    records: int
    residues: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a run is to do: the lengths of its records; `long`: some record, of whatever shard, is over the limit."""

    lengths: npt.NDArray[np.int32]
    long: bool

    @property
    def residues(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


class Work(Protocol[Item]):
    """What a run computes, and where it goes."""

    @property
    def backend(self) -> Backend: ...

    @property
    def cutting(self) -> Cutting: ...

    @property
    def max_tokens(self) -> int | None: ...

    @property
    def outputs(self) -> Sequence[Path]:
        """The files as they were named, or as a shard's are."""

    @property
    def title(self) -> str:
        """What is computed, for the summary; empty where the output says it."""

    @property
    def content(self) -> dict[str, Any]:
        """The options that the content depends on."""

    def files(self, part: Part) -> list[OutputFile]:
        """Describe the files to write."""

    def compute(self, records: Iterable[Record], budget: int) -> Iterator[list[Item | Failure]]:
        """Compute records in batches, in their order."""


def parse_budget(text: str) -> int | None:
    """Read a token budget; None stands for auto."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise UsageError(f"--max-tokens {text}: not a positive number", hint="Example: --max-tokens 4096, or auto.")
    return int(text)


class Run(Generic[Item]):
    """Does a work over FASTA files.

    Making it reads the input once and touches nothing; `run` computes. `stream` makes the writer of an output that is
    no file, for batches of so many tokens. Raises InputError, OutputError, UsageError.
    """

    def __init__(
        self,
        paths: Sequence[AnyPath],
        work: Work[Item],
        options: RunOptions,
        stream: Callable[[int], StreamWriter[Item]] | None = None,
    ) -> None:
        self._work, self._options, self._stream = work, options, stream
        self._require_outputs(paths)
        read = partial(read_fasta, paths, empty=options.empty)
        self.survey: Survey = survey(
            read,
            alphabet=work.backend.card.alphabet,
            unknown=options.unknown,
            key=options.key,
            expect=options.expect,
            files=paths,
        )
        self._reading = Reading(read, self.survey)
        if options.duplicates == "error" and self.survey.repeated:
            deque(assign_keys(read(), self.survey, kind=options.key, policy="error"), maxlen=0)
        self.range = options.shard.range(self.survey.lengths)
        self.failed = self.left_out = self._kept = 0
        self._require_length()

    @property
    def residues(self) -> int:
        """Residues of this shard."""
        return self._part.residues

    @property
    def kept(self) -> str:
        """What a run that was stopped has kept, for people."""
        if self._stream or not self._kept:
            return ""
        return f"{self._kept:,} of {len(self._part.lengths):,} records are kept: resume the run to go on"

    def estimate(self) -> Estimate:
        """Estimate the needs of the run from lengths and configuration."""
        files = [] if self._stream else self._work.files(self._part)
        return estimate(
            self._work.backend.card.encoder,
            self._part.lengths,
            value_bytes=sum(file.size for file in files),
            datasets=0,
            budget=self._budget(),
        )

    def plan(self) -> list[list[str]]:
        """Describe the run before it is done, for --dry-run."""
        backend, needs, lengths = self._work.backend, self.estimate(), self._part.lengths
        quantiles = np.quantile(lengths, (0, 0.5, 1)) if len(lengths) else [0, 0, 0]
        seconds = needs.operations / backend.operations_per_second()
        return [
            ["model", f"{backend.card.name} ({backend.description})"],
            ["records", f"{len(lengths):,}"],
            ["residues", f"{self.residues:,}"],
            ["shortest, median, longest", ", ".join(f"{length:,.0f}" for length in quantiles)],
            ["longer than the model's limit", f"{self._over_limit(lengths):,}"],
            ["letters outside the alphabet", f"{self.survey.unknown:,}"],
            ["look like something else than proteins", f"{sum(self.survey.others.values()):,}"],
            ["output", f"about {needs.output_bytes / 1e6:,.1f} MB, and twice that until it is complete"],
            ["memory", f"about {needs.memory_bytes / 1e6:,.0f} MB beside the runtime's own"],
            ["time", f"about {seconds:,.0f} s"],
        ]

    def summary(self) -> list[str]:
        """Say what was done, and whatever was not plain about the input."""
        work, lengths = self._work, self._part.lengths
        files = ", ".join("standard output" if str(path) == "-" else str(path) for path in work.outputs)
        title = f": {work.title}" if work.title else ""
        lines = [f"{len(lengths):,} records, {self.residues:,} residues{title} -> {files}"]
        listed = "named above" if self._stream else f"listed in {failures_of(work.outputs[0])}"
        noted = {
            **self.survey.notes(work.backend.card.alphabet.unknown),
            f"proteins longer than the model's limit (--long {work.cutting.long})": self._over_limit(lengths),
            "repeated records left out (--duplicates first)": self.left_out,
            f"records without a result, {listed}": self.failed,
        }
        return lines + [f"{count:,} {what}" for what, count in noted.items() if count]

    def run(self) -> Iterator[Progress]:
        """Compute and write everything; yield after every batch. `failed` then counts records without a result.

        A signal takes effect between two batches, and what is done is kept.
        """
        with ExitStack() as stack:
            writer = stack.enter_context(self._writer())
            if not self._stream:  # what goes into a stream is gone: there is nothing to keep
                stack.enter_context(interrupts.deferred())
            if writer.complete:
                yield Progress(records=len(self._part.lengths), residues=self.residues)
            else:
                yield from self._compute(writer)
            self.failed, self.left_out = writer.failed, writer.left_out

    def _compute(self, writer: Writer[Item]) -> Iterator[Progress]:
        records = self._records()
        residues = sum(len(record.sequence) for record in islice(records, writer.done))
        done = self._kept = writer.done
        yield Progress(records=done, residues=residues)
        # Left to the backend, the budget may follow the memory that is free: what is resumed keeps that of its start.
        budget = writer.budget if self._work.max_tokens is None else self._work.max_tokens
        try:
            for batch in self._work.compute(records, budget):
                for item in batch:
                    if isinstance(item, Failure):
                        writer.fail(item)
                    else:
                        writer.write(item)
                    residues += len(item.record.sequence)
                writer.batch_done()
                done = self._kept = done + len(batch)
                interrupts.check()
                yield Progress(records=done, residues=residues)
            self._reading.finish()
            writer.finish(left_out=self.left_out)
        except MemoryError as error:
            raise OutOfMemoryError(
                "there is not enough memory", hint="Free some, or choose a smaller token budget; then resume the run."
            ) from error

    def _records(self) -> Iterator[Record]:
        """Read this shard's records that are to be computed, each with its key; count the others."""
        options, self.left_out = self._options, 0
        named = assign_keys(self._reading, self.survey, kind=options.key, policy=options.duplicates)
        for key, record in islice(named, self.range.start, self.range.stop):
            if key is None:
                self.left_out += 1
            else:
                yield replace(record, key=key)

    @property
    def _part(self) -> Part:
        lengths = self.survey.lengths[self.range.start : self.range.stop]
        return Part(lengths=lengths, long=self._over_limit(self.survey.lengths) > 0)

    def _over_limit(self, lengths: npt.NDArray[np.int32]) -> int:
        """Count proteins that are longer than the model takes in one piece."""
        limit = self._work.cutting.limit(self._work.backend)
        return 0 if limit is None else int((lengths > limit).sum())

    def _budget(self) -> int:
        return self._work.backend.budget() if self._work.max_tokens is None else self._work.max_tokens

    def _writer(self) -> Writer[Item]:
        options, work = self._options, self._work
        if self._stream:
            return self._stream(self._budget())
        files = work.files(self._part)
        return FileWriter(files, self._identity(files), resume=options.resume, overwrite=options.overwrite)

    def _identity(self, files: Sequence[OutputFile]) -> RunIdentity:
        options, work = self._options, self._work
        naming = {"key": options.key, "duplicates": options.duplicates, "unknown": options.unknown}
        attributes = [file.form.attributes for file in files]
        return RunIdentity(
            job={"input": self.survey.digest, "options": work.content, "naming": naming, "attributes": attributes},
            shard=f"{options.shard.number}/{options.shard.count}",
            attributes={
                **naming,
                "input_digest": self.survey.digest,
                "input_records": self.survey.records,
                "first_record": self.range.start,
                "long_policy": work.cutting.long,
                "residue_limit": work.cutting.limit(work.backend) or 0,
                "options": json.dumps(work.content, sort_keys=True),
            },
            budget=self._budget(),
        )

    def _require_outputs(self, paths: Sequence[AnyPath]) -> None:
        """Refuse outputs that would replace what is read, before anything is read."""
        outputs = self._work.outputs
        if self._stream:
            if self._options.resume or self._options.shard.count > 1:
                raise UsageError(f"{outputs[0]}: cannot be resumed, nor be a shard", hint="Name a file to write to.")
            return
        refuse_same([*outputs, *map(failures_of, outputs)], paths)
        refuse_same(outputs, [name for name in self._options.reads if os.path.exists(name)], what="read by this run")
        for path in outputs:
            require_own_list(path, paths)

    def _require_length(self) -> None:
        """Where long proteins are an error, refuse one before any computing."""
        if self._work.cutting.long == "error" and (count := self._over_limit(self._part.lengths)):
            limit = self._work.cutting.limit(self._work.backend)
            raise InputError(
                f"{count} proteins have more than {limit} residues, the longest {self._part.lengths.max()}",
                hint="--long split (windows, averaged), truncate or skip.",
            )
