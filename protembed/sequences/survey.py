"""One look at the whole input before any computing: counts, lengths, letters, and records that share a name."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from protembed.errors import InputError
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.composition import ExpectPolicy, LetterCount, UnknownPolicy
from protembed.sequences.records import Record

KeyKind = Literal["id", "md5", "biotrainer"]
DuplicatePolicy = Literal["error", "suffix", "first"]

_DUPLICATES = "--duplicates suffix keeps both (name, name_2), --duplicates first keeps the first."


def id_key(name: str) -> str:
    """Turn an id into a name for HDF5, where `/` would open a group and `.` is the group itself.

    >>> id_key("a/b")
    'a_b'
    """
    return "_" if name == "." else name.replace("/", "_")


def key_of(record: Record, kind: KeyKind) -> str:
    """Return the name of a record in an HDF5 file.

    `md5` is bio_embeddings' key (of the sequence), `biotrainer` that of biotrainer (sha256 of sequence_length).

    >>> key_of(Record("a/b", "MK"), "id")
    'a_b'
    """
    match kind:
        case "id":
            return id_key(record.id)
        case "md5":
            return hashlib.md5(record.sequence.encode(), usedforsecurity=False).hexdigest()
        case "biotrainer":
            return hashlib.sha256(f"{record.sequence}_{len(record.sequence)}".encode()).hexdigest()


def _short(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def content_of(record: Record) -> bytes:
    """Return 16 bytes that identify a record's id, header and residues."""
    text = f"{record.id}\t{record.description}\t{record.sequence}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def short_content(content: bytes) -> int:
    """Return the 64 bits of `content_of` that a survey keeps."""
    return int.from_bytes(content[:8], "big")


@dataclass(frozen=True)
class FileState:
    """An input file and what the file system says of it: size, times and inode; None where it is not there."""

    path: str | os.PathLike[str]
    state: tuple[int, ...] | None

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "FileState":
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return cls(path, None)
        return cls(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))

    @property
    def changed(self) -> bool:
        """Whether the file system says something else now."""
        return FileState.of(self.path).state != self.state


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is in the input; 20 bytes a record, whatever its length.

    `names` are 64-bit digests of all keys, sorted; `repeated` those that stand more than once; `contents` are 64-bit
    digests of the records, in order; `digest` identifies the whole input; `files` are the states of its files before
    they were read; `unknown`, `stops` and `gaps` count letters outside the alphabet, `*` inside sequences, and gaps
    removed; `others` counts records that look like something else than proteins, by what they look like.
    """

    lengths: npt.NDArray[np.int32]
    names: npt.NDArray[np.uint64]
    contents: npt.NDArray[np.uint64]
    files: tuple[FileState, ...] = ()
    repeated: frozenset[int]
    unknown: int
    stops: int
    gaps: int
    others: Mapping[str, int] = field(default_factory=dict)
    digest: str

    @property
    def records(self) -> int:
        return len(self.lengths)

    @property
    def residues(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def notes(self, unknown: str) -> dict[str, int]:
        """Return what is not plain about the input, for people, with counts; `unknown` is the alphabet's letter."""
        return {
            f"letters outside the alphabet, read as {unknown}": self.unknown,
            "of them stops (*) inside sequences": self.stops,
            "gaps removed": self.gaps,
            **{f"records that look like {what}": count for what, count in self.others.items()},
        }

    def has(self, key: str) -> bool:
        """Tell whether a key is (but for a chance of 1 in 2**64 a record) among the input's."""
        short = np.uint64(_short(key))
        place = int(np.searchsorted(self.names, short))
        return place < len(self.names) and bool(self.names[place] == short)


def survey(
    read: Callable[[], Iterable[Record]],
    *,
    alphabet: Alphabet,
    unknown: UnknownPolicy,
    key: KeyKind,
    expect: ExpectPolicy = "warn",
    files: Iterable[str | os.PathLike[str]] = (),
) -> Survey:
    """Read the input once; `files` are the paths that `read` reads, to be watched until the end of the run.

    Warns of records that are DNA or the like. Raises InputError for them when proteins are expected, for what is not a
    sequence at all, and for unknown letters and stops when refused.
    """
    states = tuple(FileState.of(path) for path in files)
    lengths, names, contents, state = array("i"), array("Q"), array("Q"), hashlib.blake2b(digest_size=16)
    letters = LetterCount(alphabet, unknown, expect)
    for record in read():
        lengths.append(len(record.sequence))
        if record.sequence or key == "id":  # empty records have no result that would need a name of its own
            names.append(_short(key_of(record, key)))
        state.update(content := content_of(record))
        contents.append(short_content(content))
        letters.add(record)
    if not lengths:
        raise InputError("the input holds no records", hint="It should hold FASTA records.")
    letters.warn()
    unique, counts = np.unique(np.array(names, dtype=np.uint64), return_counts=True)
    return Survey(
        lengths=np.array(lengths, dtype=np.int32),
        names=unique,
        contents=np.array(contents, dtype=np.uint64),
        files=states,
        repeated=frozenset(unique[counts > 1].tolist()),
        unknown=letters.unknown,
        stops=letters.stops,
        gaps=letters.gaps,
        others=letters.others,
        digest=state.hexdigest(),
    )


def assign_keys(
    records: Iterable[Record], found: Survey, *, kind: KeyKind, policy: DuplicatePolicy
) -> Iterator[tuple[str | None, Record]]:
    """Give every record its key, in order; None marks a later record of the same key under the policy `first`.

    Under `suffix` later ones become key_2, key_3, ... Under `error` the second one raises InputError naming both.
    """
    seen: dict[str, Record] = {}
    given: set[str] = set()
    for record in records:
        key = key_of(record, kind)
        if (not record.sequence and kind != "id") or not found.repeated or _short(key) not in found.repeated:
            yield key, record
        elif key not in seen:
            seen[key] = record
            yield key, record
        elif policy == "first":
            yield None, record
        elif policy == "suffix":
            number = 2
            while (name := f"{key}_{number}") in given or found.has(name):
                number += 1
            given.add(name)
            yield name, record
        else:
            raise InputError(
                f"{record} has the {_noun(kind)} of {seen[key]}",
                hint=_DUPLICATES,
            )


def _noun(kind: KeyKind) -> str:
    return "same id (with / written as _)" if kind == "id" else "same sequence"
