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
from protembed.outputs.target import (
    failures_of,
    format_of,
    is_stream,
    refuse_same,
    require_ending,
    require_own_list,
    run_file_of,
    write_failures,
)


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
    text = _require_one_format(out, shards)
    refuse_same([out, failures_of(out)], [*shards, *(failures_of(path) for path in shards)], what="one of the shards")
    require_own_list(out, shards)
    with lock(out):
        if out.exists() and (out.is_dir() or not overwrite):
            raise OutputError(f"{printable(str(out))} exists", hint="--overwrite replaces a file.")
        ordered = in_order([_read_origin(path) for path in shards])
        failures = listed_failures(ordered)
        with atomic(out, overwrite=overwrite) as new:
            if text:
                records = append_text(new, out, ordered)
            else:
                records = write_file(new, _datasets(ordered), merged_attributes(ordered), name=out)
            write_failures(out, failures)
        if text:  # an earlier run may have left one, which is not of this text
            run_file_of(out).unlink(missing_ok=True)
        return Merged(records=records, failed=len(failures))


def _read_origin(path: Path) -> Origin:
    if is_text(path):
        return read_text_origin(path)
    with SafeFile(path) as file:
        return read_origin(path, file.attributes)


def _require_one_format(out: Path, shards: Sequence[Path]) -> bool:
    """Tell whether the shards are text. Raises UsageError where the names say several formats, or no file."""
    if is_stream(out):
        raise UsageError(f"{printable(str(out))} is not a file", hint="Name a file.")
    text = [is_text(path) for path in shards]
    form = format_of(out)
    if any(text) != all(text) or (form is not None and (form == "h5") == text[0]):
        names = ", ".join(sorted({path.suffix or "none" for path in (out, *shards)}))
        raise UsageError(
            f"the output and the shards are of several formats: {names}", hint="HDF5 or text, all of them."
        )
    if not text[0]:
        require_ending(out, "h5")
    return text[0]


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
