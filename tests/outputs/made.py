"""Outputs made with h5py alone, as the format says: so that what reads them is not tested against its own writer."""

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.records import Record, read_fasta
from protembed.sequences.shard import Shard
from protembed.sequences.survey import KeyKind, key_of, survey

WIDTH = 8
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
Change = Callable[[h5py.File], None]


def write_proteins(path: Path, count: int = 6, *, seed: int = 0) -> Path:
    """Write FASTA records P0, P1, ... of random residues."""
    random = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        sequence = "".join(random.choice(list(LETTERS), size=3 + int(random.integers(8))))
        lines.append(f">P{number} protein {number}\n{sequence}\n")
    path.write_text("".join(lines))
    return path


def values_of(record: Record, content: str = "per-protein") -> np.ndarray[Any, Any]:
    """Return values as a model could compute them, from the record alone."""
    random = np.random.default_rng(zlib.crc32(f"{record.id} {record.sequence}".encode()))
    length = len(record.sequence)
    match content:
        case "per-protein":
            return random.normal(size=WIDTH).astype("<f4")
        case "per-residue":
            return random.normal(size=(length, WIDTH)).astype("<f2")
        case "contacts":
            return random.random((length, length)).astype("<f2")
        case "residue_classes":
            return random.dirichlet(np.ones(3), length).astype("<f4")
        case "residue_flags":
            return random.random((length, 3)).astype("<f4")
        case "residue_values":
            return random.normal(size=length).astype("<f4")
        case "sequence_class":
            return random.dirichlet(np.ones(3)).astype("<f4")
        case "sequence_value":
            return np.asarray(random.normal(), dtype="<f4")
    raise ValueError(content)


def write_output(
    path: Path,
    fasta: Path,
    *,
    content: str = "per-protein",
    keys: Sequence[str | None] | None = None,
    failed: Sequence[str] = (),
    values: Callable[[Record], np.ndarray[Any, Any]] | None = None,
    shard: str = "1/1",
    **attributes: Any,
) -> Path:
    """Write the output of a run over a FASTA file, or of one shard of it, and its list of failures.

    `keys` are those of all records, None for one that is left out; `failed` are ids.
    """
    kind: KeyKind = attributes.get("key", "id")
    records = list(read_fasta([fasta]))
    found = survey(lambda: iter(records), alphabet=PROTEMBED, unknown="x", key=kind)
    part = Shard(*map(int, shard.split("/"))).range(found.lengths)
    named = list(zip(keys or [key_of(record, kind) for record in records], records, strict=True))
    chosen = [named[index] for index in part]
    state, count = hashlib.sha256(), 0
    with h5py.File(path, "w", track_order=True) as file:
        for key, record in chosen:
            if key is None or record.id in failed:
                continue
            data = (values or (lambda record: values_of(record, content)))(record)
            crc = add(file, key, record, data)
            facts = (key, record.id, record.description, len(record.sequence), data.dtype.str, data.shape)
            state.update(("\0".join(map(str, facts)) + f"\0{crc:08x}\n").encode())
            count += 1
        left_out = sum(key is None for key, _ in chosen)
        lost = [record.id for key, record in chosen if key is not None and record.id in failed]
        file.attrs.update(
            {
                "model_name": "tiny",
                "weights_sha256": "0" * 64,
                "tool": "protembed",
                "tool_version": "0.1.0",
                "computed_with": "torch, cpu, float32",
                "content": content,
                "key": kind,
                "duplicates": "error",
                "unknown": "x",
                "shard": shard,
                "input_digest": found.digest,
                "input_records": len(records),
                "first_record": part.start,
                "records": count,
                "failed_records": len(lost),
                "left_out_records": left_out,
                "options": "{}",
                "long_policy": "split",
                "residue_limit": 0,
                "job_sha256": "1" * 64,
                "run_sha256": hashlib.sha256(f"{'1' * 64} {shard}".encode()).hexdigest(),
                "content_sha256": state.hexdigest(),
                "format_version": 2,
                "complete": True,
                **({"labels": "H\tE\tC", "task": "ss3"} if "_" in content else {}),
                **attributes,
            }
        )
        seal(file)
    path.with_suffix(".failed.tsv").unlink(missing_ok=True)
    if lost:
        lines = "".join(f"{name}\ttoo long\n" for name in lost)
        path.with_suffix(".failed.tsv").write_text(f"id\treason\n{lines}")
    return path


def write_old_output(path: Path, fasta: Path, **attributes: Any) -> Path:
    """Write an output as the first format had it: without checksums, and without a word on its input."""
    with h5py.File(path, "w", track_order=True) as file:
        for record in read_fasta([fasta]):
            add(file, key_of(record, "id"), record, values_of(record))
            del file[key_of(record, "id")].attrs["crc32"]
        said = {"model_name": "tiny", "weights_sha256": "0" * 64, "content": "per-protein", "complete": True}
        file.attrs.update({**said, "dtype": "float32", "long_proteins": "none", **attributes})
    return path


def add(file: h5py.File, key: str, record: Record, data: np.ndarray[Any, Any], **how: Any) -> int:
    """Add one record to a file; return its checksum."""
    crc = zlib.crc32(np.ascontiguousarray(data).tobytes())
    dataset = file.create_dataset(key, data=data, **how)
    dataset.attrs["original_id"] = record.id
    dataset.attrs["description"] = record.description
    dataset.attrs["length"] = len(record.sequence)
    dataset.attrs["crc32"] = np.uint32(crc)
    return crc


def seal(file: h5py.File) -> None:
    """Give a file the checksum of its attributes."""
    plain = {name: getattr(value, "item", lambda value=value: value)() for name, value in file.attrs.items()}
    plain.pop("attributes_sha256", None)
    file.attrs["attributes_sha256"] = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def changed(path: Path, change: Change, *, sealed: bool = True) -> Path:
    """Change a finished file; `sealed`: as somebody would who knows the checksum of its attributes."""
    with h5py.File(path, "r+") as file:
        change(file)
        if sealed:
            seal(file)
    return path


def replace_values(file: h5py.File, key: str, data: Any, *, checksum: bool) -> None:
    """Put other values under a name, at its place in the order if shape and dtype are the same; `checksum`: theirs."""
    data = np.asarray(data)
    if data.shape == file[key].shape and data.dtype == file[key].dtype:
        file[key][...] = data
    else:
        attributes = dict(file[key].attrs)
        names = list(file)
        later = [(name, file[name][()], dict(file[name].attrs)) for name in names[names.index(key) + 1 :]]
        for name in names[names.index(key) :]:
            del file[name]
        file.create_dataset(key, data=data).attrs.update(attributes)
        for name, values, found in later:
            file.create_dataset(name, data=values).attrs.update(found)
    if checksum:
        file[key].attrs["crc32"] = np.uint32(zlib.crc32(np.ascontiguousarray(data).tobytes()))
