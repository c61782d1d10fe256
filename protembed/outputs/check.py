"""Checking a finished output against its input: every record there, in order, with the values that were written."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from protembed.errors import UsageError
from protembed.interrupts import check
from protembed.outputs.check_values import ValueChecker
from protembed.outputs.content import ContentDigest
from protembed.outputs.origin import Origin, read_listed, read_origin
from protembed.outputs.printing import printable
from protembed.outputs.safe_dataset import SafeDataset, Scalar
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.outputs.target import cell, failures_of
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.files import AnyPath
from protembed.sequences.records import Record, read_fasta
from protembed.sequences.shard import Shard
from protembed.sequences.survey import DuplicatePolicy, KeyKind, Survey, assign_keys, survey


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a user says of an output. The file says it itself, and the two must agree; older files do not say it."""

    key: KeyKind | None = None
    duplicates: DuplicatePolicy | None = None
    shard: Shard | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found in order: counts, and a sample of the records by their keys, spread over the file."""

    origin: Origin
    records: int
    failed: int
    left_out: int
    sample: Mapping[str, Record]

    def lines(self) -> list[str]:
        """Say what was found."""
        lines = [f"{self.records:,} records, complete, of {self.origin.text('model_name')}"]
        if not self.origin.sealed:
            lines.append("written by an older version, without checksums: a changed value is not noticed")
        noted = {
            f"listed without a result in {failures_of(self.origin.path)}": self.failed,
            "repeated records left out": self.left_out,
        }
        return lines + [f"{count:,} {what}" for what, count in noted.items() if count]


def check_output(output: Path, inputs: Sequence[AnyPath], told: Told | None = None, *, sample: int = 0) -> Checked:
    """Check an HDF5 output of embed, contacts or predict against the FASTA files it was made from.

    Every record of the input (of its shard) is in the file once and in order, or in its list of failures, or left out
    as a repeated one; its values have the shape, the checksum and the range that they should; the file as a whole is
    what was written. `sample` records are handed back, to be computed again. Memory does not grow with the file.

    Raises OutputError, or InputError for a file that is not safe to read, at the first record that is not in order.
    """
    with SafeFile(output) as file:
        return _Check(read_origin(output, file.attributes), file, told or Told(), sample).run(inputs)


class _Check:
    """One walk over an output and its input side by side."""

    def __init__(self, origin: Origin, file: SafeFile, told: Told, sample: int) -> None:
        self._origin, self._file = origin, file
        self._key: KeyKind = _agreed(origin, "key", told.key, "id")
        self._duplicates: DuplicatePolicy = _agreed(origin, "duplicates", told.duplicates, "error")
        self._shard = _agreed_shard(origin, told.shard)
        self._values = ValueChecker(origin)
        self._digest = ContentDigest()
        self._listed = deque(name for name, _ in read_listed(origin))
        self._failed = len(self._listed)
        self._chosen = _spread(len(file), sample)
        self._sample: dict[str, Record] = {}
        self._records = self._left_out = 0

    def run(self, inputs: Sequence[AnyPath]) -> Checked:
        read = partial(read_fasta, inputs, empty="skip")  # an empty record is one without a result
        found = survey(read, alphabet=PROTEMBED, unknown="x", key=self._key)
        same_input = self._origin.text("input_digest") in ("", found.digest)
        part = self._range(found, same_input=same_input)
        named = assign_keys(read(), found, kind=self._key, policy=self._duplicates)
        self._walk(islice(named, part.start, part.stop))
        if not same_input:
            raise self._origin.error(
                "was made from another input: the ids and lengths are the same, the residues or their order are not",
                hint="Name the FASTA files it was made from, in the same order.",
            )
        self._check_whole()
        return Checked(
            origin=self._origin,
            records=self._records,
            failed=self._failed,
            left_out=self._left_out,
            sample=self._sample,
        )

    def _range(self, found: Survey, *, same_input: bool) -> range:
        """Return which records of the input the file accounts for."""
        whole = self._shard.range(found.lengths)
        first = self._origin.number("first_record")
        if first is None:
            return whole
        own = range(first, first + self._origin.taken)
        if not same_input:
            # Begin where the file says it begins: the walk finds the first record that differs.
            return range(own.start, max(own.stop, found.records if self._shard.count == 1 else 0))
        if own != whole or self._origin.number("input_records") != found.records:
            raise self._origin.error(
                f"accounts for the records {own.start + 1} to {own.stop} of its input; shard {self._shard.number} of "
                f"{self._shard.count} has {whole.start + 1} to {whole.stop} of {found.records}"
            )
        return own

    def _walk(self, expected: Iterator[tuple[str | None, Record]]) -> None:
        datasets = self._file.datasets()
        dataset = next(datasets, None)
        for key, record in expected:
            check()
            if key is None:
                self._left_out += 1
            elif dataset is not None and dataset.name == key:
                self._look(dataset, record)
                dataset = next(datasets, None)
            elif self._listed and self._listed[0] == cell(record.id):
                self._listed.popleft()
            else:
                raise self._misplaced(key, record, dataset)
        if dataset is not None:
            raise self._origin.error(f"holds {printable(dataset.name)}, which the input has not, or not so often")
        if self._listed:
            raise self._origin.error(f"{self._list} names {self._listed[0]}, which is no record without a result")

    def _look(self, dataset: SafeDataset, record: Record) -> None:
        """Check one record: that the dataset is of this one, then its values."""
        if self._records in self._chosen:
            self._sample[dataset.name] = record
        self._records += 1
        wanted: dict[str, Scalar] = {
            "original_id": record.id,
            "description": record.description,
            "length": len(record.sequence),
        }
        for name, value in wanted.items():
            stored = dataset.attribute(name)
            if stored != value and (self._origin.sealed or stored is not None):
                shown = "nothing" if stored is None else repr(printable(str(stored)))
                raise self._origin.error(
                    f"{record}: {name} is {shown} in the file, {printable(str(value))!r} in the input",
                    hint="Is this the input it was made from?",
                )
        crc = self._values.look(dataset, str(record), len(record.sequence))
        self._digest.add(dataset.name, wanted, dataset.dtype.str, dataset.shape, crc)

    def _misplaced(self, key: str, record: Record, instead: SafeDataset | None) -> Exception:
        if instead is not None and key in self._file:
            return self._origin.error(f"{record}: {printable(instead.name)} stands in its place: the order is another")
        listed = self._origin.number("failed_records")
        hint = f"It is not in {self._list} either." if self._failed else "Was it added to the input later?"
        if listed and not self._failed:
            hint = f"{self._list}, which lists {listed:,} records without a result, is not there."
        return self._origin.error(f"{record} is missing", hint=hint)

    def _check_whole(self) -> None:
        """Compare the counts and the checksum of all datasets with what the file says."""
        counted = {"records": self._records, "failed_records": self._failed, "left_out_records": self._left_out}
        for name, count in counted.items():
            if self._origin.number(name) not in (None, count):
                raise self._origin.error(f"says {self._origin.number(name):,} {name.replace('_', ' ')}, has {count:,}")
        if self._origin.text("content_sha256") not in ("", self._digest.hexdigest()):
            raise self._origin.error(
                "the records as a whole are not those that were written", hint="Was it changed by another program?"
            )

    @property
    def _list(self) -> str:
        return printable(str(failures_of(self._origin.path)))


def _agreed(origin: Origin, name: str, told: str | None, default: str) -> Any:
    """Return what the file says, or else the user. Raises UsageError where they contradict each other."""
    said = origin.text(name)
    if said and told and said != told:
        raise UsageError(f"{origin.name} was written with {name} {said}, not {told}")
    return said or told or default


def _agreed_shard(origin: Origin, told: Shard | None) -> Shard:
    if told is not None and origin.shard is not None and told != origin.shard:
        raise UsageError(
            f"{origin.name} is shard {origin.shard.number} of {origin.shard.count}, not {told.number} of {told.count}"
        )
    return origin.shard or told or Shard()


def _spread(count: int, sample: int) -> frozenset[int]:
    """Choose so many of `count` places, evenly.

    >>> sorted(_spread(10, 2))
    [2, 7]
    """
    sample = min(sample, count)
    return frozenset((2 * number + 1) * count // (2 * sample) for number in range(sample))
