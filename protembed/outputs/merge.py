"""Putting the shards of a run together: one output, as the run without shards would have written it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protembed.errors import InputError, OutputError, UsageError
from protembed.interrupts import check
from protembed.outputs.check_values import ValueChecker, identity_of
from protembed.outputs.content import ContentDigest
from protembed.outputs.files import atomic, lock
from protembed.outputs.hdf5 import Dataset, write_file
from protembed.outputs.merge_text import append_text, is_text, read_text_origin
from protembed.outputs.origin import Origin, read_origin
from protembed.outputs.printing import printable
from protembed.outputs.safe_hdf5 import SafeFile
from protembed.outputs.shards import in_order, listed_failures, merged_attributes
from protembed.outputs.target import failures_of, format_of, refuse_same, require_own_list, write_failures


@dataclass(frozen=True, kw_only=True)
class Merged:
    """How many records the whole has, and how many are in its list of failures."""

    records: int
    failed: int


def merge_shards(out: Path, shards: Sequence[Path], *, overwrite: bool = False) -> Merged:
    """Write the records of all shards of a run into one file, in the order of the input, with their failures beside it.

    Every record is compared with its checksum on the way. The file appears under its name when it is whole; nothing is
    left where anything is wrong. Memory does not grow with the shards.

    Raises InputError for shards that are missing, given twice, damaged or not of one run; OutputError for an output
    that exists, is one of the shards, is worked on by another run, or cannot be written.
    """
    if not shards:
        raise UsageError("no shards are named", hint="Name the files of all shards.")
    refuse_same([out, failures_of(out)], [*shards, *(failures_of(path) for path in shards)], what="one of the shards")
    require_own_list(out, shards)
    with lock(out):
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists", hint="--overwrite replaces it.")
        ordered = in_order([_read_origin(path) for path in shards])
        failures = listed_failures(ordered)
        with atomic(out, overwrite=overwrite) as new:
            records = _write(new, out, ordered)
            write_failures(out, failures)
        return Merged(records=records, failed=len(failures))


def _read_origin(path: Path) -> Origin:
    if is_text(path):
        return read_text_origin(path)
    with SafeFile(path) as file:
        return read_origin(path, file.attributes)


def _write(new: Path, out: Path, ordered: Sequence[Origin]) -> int:
    text = [is_text(origin.path) for origin in ordered]
    form = format_of(out)
    if any(text) != all(text) or (form is not None and (form == "h5") == text[0]):
        raise UsageError(
            f"{printable(str(out))} and the shards are not of one format", hint="HDF5 or text, all of them."
        )
    if text[0]:
        return append_text(new, out, ordered)
    return write_file(new, _datasets(ordered), merged_attributes(ordered), name=out)


def _datasets(ordered: Sequence[Origin]) -> Iterator[Dataset]:
    """Yield the records of all shards, each as it was written. Raises OutputError or InputError where one is not."""
    for origin in ordered:
        digest, count = ContentDigest(), 0
        values = ValueChecker(origin)
        with SafeFile(origin.path) as file:
            for dataset in file.datasets():
                check()
                attributes = identity_of(dataset)
                what = f"record '{printable(str(attributes['original_id']))}'"
                data = dataset.read()
                crc = values.look(dataset, what, int(attributes["length"]), data)
                digest.add(dataset.name, attributes, dataset.dtype.str, dataset.shape, crc)
                count += 1
                yield Dataset(dataset.name, attributes, data.tobytes(), dataset.dtype.str, dataset.shape, crc)
        if origin.number("records") not in (None, count):
            raise InputError(f"{origin.name}: has {count:,} of {origin.number('records'):,} records")
        if origin.text("content_sha256") not in ("", digest.hexdigest()):
            raise origin.error(
                "the records as a whole are not those that were written", hint="Compute the shard again."
            )
