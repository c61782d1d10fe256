"""Looking over finished outputs: is every record there, and putting shards together."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from protembed.errors import InputError, OutputError
from protembed.outputs.hdf5 import merge_files
from protembed.sequences.files import AnyPath
from protembed.sequences.records import read_fasta
from protembed.sequences.survey import KeyKind, key_of

_SHARD = re.compile(r"\.shard-(\d+)-of-(\d+)$")


def check_output(output: Path, inputs: Sequence[AnyPath], kind: KeyKind = "id") -> int:
    """Check an output against its input: every record there, once, finite, of its length. Return their number.

    Raises OutputError that names the first record which is not as it should be.
    """
    try:
        file = h5py.File(output, "r")
    except OSError as error:
        raise OutputError(f"{output}: cannot be read as HDF5 ({error})", hint="Is the run finished?") from error
    with file:
        if not file.attrs.get("complete", False):
            raise OutputError(f"{output} is not complete", hint="Its run did not finish: go on with --resume.")
        content, long = file.attrs.get("content"), file.attrs.get("long_proteins")
        rows = content in ("per-residue", "contacts") and long != "truncate"
        keys = set()
        for record in read_fasta(inputs):
            key = key_of(record, kind)
            if key not in file:
                raise OutputError(f"{output}: {record} is missing", hint=f"{output.stem}.failed.tsv may say why.")
            values = file[key][()]
            if rows and len(values) != len(record.sequence):
                raise OutputError(f"{output}: {record} has {len(values)} rows for {len(record.sequence)} residues")
            if not np.isfinite(values).all():
                raise OutputError(f"{output}: {record} has values that are not finite")
            keys.add(key)
        if len(file) != len(keys):
            raise OutputError(f"{output}: holds {len(file)} records, the input {len(keys)}")
    return len(keys)


def merge_shards(out: Path, shards: Sequence[Path], *, overwrite: bool = False) -> int:
    """Write the records of all shards of one run into one file, in the order of the input. Return their number.

    Raises OutputError when a shard is missing, incomplete, or of another run than the others.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists", hint="--overwrite replaces it.")
    ordered = _in_order(shards)
    attributes = _common_attributes(ordered)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        merge_files(ordered, temporary, attributes)
        with h5py.File(temporary, "r") as file:
            count = len(file)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _in_order(shards: Sequence[Path]) -> list[Path]:
    """Sort shards by the number in their names; all of them must be there."""
    found: dict[int, Path] = {}
    counts = set()
    for path in shards:
        match = _SHARD.search(path.stem)
        if not match:
            raise InputError(f"{path}: not named as a shard", hint="embed --shard names them OUT.shard-I-of-N.h5.")
        found[int(match[1])] = path
        counts.add(int(match[2]))
    if len(counts) != 1:
        raise InputError(f"the shards are of different runs: of {', '.join(map(str, sorted(counts)))} parts")
    if missing := sorted(set(range(1, counts.pop() + 1)) - set(found)):
        raise InputError(f"shard {missing[0]} is missing", hint="Name the files of all shards.")
    return [found[number] for number in sorted(found)]


def _common_attributes(shards: Sequence[Path]) -> dict[str, str | int | bool]:
    """Return the root attributes, the same in all shards but for where they were computed."""
    first: dict[str, str | int | bool] = {}
    for path in shards:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
        if not attributes.get("complete", False):
            raise InputError(f"{path} is not complete", hint="Its run did not finish: go on with --resume.")
        first = first or attributes
        for name in ("weights_sha256", "layer", "pooling", "content", "dtype"):
            if attributes.get(name) != first.get(name):
                raise InputError(f"{path}: {name} is {attributes.get(name)}, in {shards[0]} {first.get(name)}")
    return first
