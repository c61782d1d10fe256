"""One run of `protembed embed`: survey the input, go on where an earlier run stopped, embed, write, sum up."""

import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Backend
from protembed.errors import InputError, OutputError, UsageError
from protembed.inference.embed import EmbedOptions, embed_batches
from protembed.models.cost import Estimate, estimate
from protembed.outputs.hdf5 import Attributes, HDF5Writer, describe_origin
from protembed.outputs.target import Target
from protembed.sequences.records import Record, read_fasta
from protembed.sequences.shard import Shard
from protembed.sequences.survey import DuplicatePolicy, KeyKind, Survey, UnknownPolicy, assign_keys, survey
from protembed.sequences.windows import residue_limit


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a run is told beside the model and `EmbedOptions`."""

    target: Target
    unknown: UnknownPolicy = "x"
    duplicates: DuplicatePolicy = "error"
    key: KeyKind = "id"
    store_dtype: Literal["float32", "float16"] | None = None
    shard: Shard = field(default_factory=Shard)
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; both counts include what an earlier run did."""

    records: int
    residues: int


def parse_budget(text: str) -> int | None:
    """Read a token budget; None stands for auto."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--max-tokens {text}: not a positive number", hint="Example: --max-tokens 4096, or auto.")
    return int(text)


class EmbedJob:
    """Embeds FASTA files into HDF5.

    Making it reads the input once and touches nothing; `run` computes. Raises InputError, OutputError, UsageError.
    """

    def __init__(self, paths: Sequence[str], backend: Backend, options: EmbedOptions, job: JobOptions) -> None:
        self._backend, self._options, self._job = backend, options, job
        self._read = partial(read_fasta, paths)
        self.survey: Survey = survey(self._read, alphabet=backend.card.alphabet, unknown=job.unknown, key=job.key)
        if job.duplicates == "error" and self.survey.repeated:
            deque(assign_keys(self._read(), self.survey, kind=job.key, policy="error"), maxlen=0)
        self.range = job.shard.range(self.survey.lengths)
        self.left_out = self.failed = 0
        self._check_long()

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Residues of every record of this shard."""
        return self.survey.lengths[self.range.start : self.range.stop]

    @property
    def residues(self) -> int:
        """Residues of this shard."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def over_limit(self) -> int:
        """How many proteins are longer than the model takes in one piece."""
        limit = residue_limit(self._backend.card.max_residues, self._options.max_length)
        return 0 if limit is None else int((self.lengths > limit).sum())

    def estimate(self) -> Estimate:
        """Estimate the needs of the run from lengths and configuration."""
        config = self._backend.card.encoder
        width = 2 * config.d_model if self._options.pool == "mean+max" else config.d_model
        rows = {"proteins": len(self.lengths) * width, "residues": self.residues * config.d_model}
        kinds = self._job.target.files
        return estimate(
            config,
            self.lengths,
            value_bytes=sum(rows[kind] * np.dtype(self._dtype(kind)).itemsize for kind in kinds),
            datasets=len(self.lengths) * len(kinds),
            budget=self._options.max_tokens or self._backend.budget(),
        )

    def plan(self) -> list[list[str]]:
        """Describe the run before it is done, for --dry-run."""
        needs, lengths = self.estimate(), self.lengths
        quantiles = np.quantile(lengths, (0, 0.5, 1)) if len(lengths) else [0, 0, 0]
        seconds = needs.operations / self._backend.operations_per_second()
        return [
            ["model", f"{self._backend.card.name} ({self._backend.description})"],
            ["records", f"{len(lengths):,}"],
            ["residues", f"{self.residues:,}"],
            ["shortest, median, longest", ", ".join(f"{length:,.0f}" for length in quantiles)],
            ["longer than the model's limit", f"{self.over_limit:,}"],
            ["letters outside the alphabet", f"{self.survey.unknown:,}"],
            ["output", f"about {needs.output_bytes / 1e6:,.1f} MB"],
            ["memory", f"about {needs.memory_bytes / 1e6:,.0f} MB beside the runtime's own"],
            ["time", f"about {seconds:,.0f} s"],
        ]

    def summary(self) -> list[str]:
        """Say what was done, and whatever was not plain about the input."""
        files = ", ".join(str(path) for path in self._job.target.files.values())
        lines = [f"{len(self.lengths):,} records, {self.residues:,} residues -> {files}"]
        noted = {
            f"letters outside the alphabet, read as {self._backend.card.alphabet.unknown}": self.survey.unknown,
            "gaps removed": self.survey.gaps,
            f"proteins longer than the model's limit (--long {self._options.long})": self.over_limit,
            "repeated records left out (--duplicates first)": self.left_out,
            f"records without a result, listed in {self._job.target.failures}": self.failed,
        }
        return lines + [f"{count:,} {what}" for what, count in noted.items() if count]

    def run(self) -> Iterator[Progress]:
        """Compute and write everything; yield after every batch. `failed` then counts records without a result."""
        smaller = "Choose another folder, leave out --residues, or split the work with --shard."
        check_space(self._job.target.main.parent, self.estimate().output_bytes, hint=smaller)
        kinds = self._job.target.files
        writer = HDF5Writer(
            self._job.target,
            {kind: self._attributes(kind) for kind in kinds},
            fingerprint=self._fingerprint(),
            store_dtypes={kind: self._dtype(kind) for kind in kinds},
            resume=self._job.resume,
            overwrite=self._job.overwrite,
        )
        if writer.complete:
            self.failed = self._job.target.count_failures()
            yield Progress(records=len(self.lengths), residues=self.residues)
            return
        with writer:
            yield from self._compute(writer)
            self.failed = writer.finish()

    def _compute(self, writer: HDF5Writer) -> Iterator[Progress]:
        residues = int(self.lengths[: writer.done].sum(dtype=np.int64))
        yield Progress(records=writer.done, residues=residues)
        under_way: deque[tuple[int, str]] = deque()
        for batch in embed_batches(self._records(writer.done, under_way), self._backend, self._options):
            position = 0
            for item in batch:
                index, key = under_way.popleft()
                writer.add(key, item)
                residues += len(item.record.sequence)
                position = index + 1
            writer.batch_done(position)
            yield Progress(records=position, residues=residues)

    def _records(self, done: int, under_way: deque[tuple[int, str]]) -> Iterator[Record]:
        """Read this shard's records from `done` on; note index and key of each that is handed out."""
        named = assign_keys(self._read(), self.survey, kind=self._job.key, policy=self._job.duplicates)
        chosen = itertools.islice(named, self.range.start + done, self.range.stop)
        for index, (key, record) in enumerate(chosen, start=done):
            if key is None:
                self.left_out += 1
                continue
            under_way.append((index, key))
            yield record

    def _dtype(self, kind: str) -> str:
        return self._job.store_dtype or ("float16" if kind == "residues" else "float32")

    def _attributes(self, kind: str) -> Attributes:
        card = self._backend.card
        return {
            **describe_origin(self._backend.card, self._backend.computed_with),
            "content": "per-residue" if kind == "residues" else "per-protein",
            "pooling": "none" if kind == "residues" else str(self._options.pool),
            "layer": card.encoder.layer(self._options.layer),
            "dtype": self._dtype(kind),
            "special_tokens_excluded": self._options.pool != "cls" or kind == "residues",
            "long_proteins": self._options.long if self.over_limit else "none",
        }

    def _fingerprint(self) -> dict[str, object]:
        """All that the content of the output depends on."""
        options = {key: value for key, value in asdict(self._options).items() if key != "max_tokens"}
        job = self._job
        naming = {"unknown": job.unknown, "duplicates": job.duplicates, "key": job.key, "shard": asdict(job.shard)}
        attributes = {kind: dict(self._attributes(kind)) for kind in job.target.files}
        return {"input": self.survey.digest, "options": options, "naming": naming, "attributes": attributes}

    def _check_long(self) -> None:
        """Under `--long error`, refuse a long protein before any computing."""
        if self._options.long == "error" and self.over_limit:
            limit = residue_limit(self._backend.card.max_residues, self._options.max_length)
            raise InputError(
                f"{self.over_limit} proteins have more than {limit} residues, the longest {self.lengths.max()}",
                hint="--long split (windows, averaged), truncate or skip.",
            )


def check_space(folder: Path, needed: int, *, hint: str) -> None:
    """Raise OutputError unless the folder is there, can be written to, and has room for so many bytes."""
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder}: cannot be written to", hint="Choose another folder with -o.")
    if needed > (free := shutil.disk_usage(folder).free):
        raise OutputError(
            f"{folder}: the output takes about {needed / 1e9:.2g} GB, {free / 1e9:.2g} GB are free", hint=hint
        )
