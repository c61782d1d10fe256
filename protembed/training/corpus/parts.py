"""One source of proteins as a part of a corpus: a folder of tokens and arrays, complete or not there at all."""

import json
import os
import re
import shutil
import signal
import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import TrainingError
from protembed.sequences.alphabet import Alphabet
from protembed.sequences.readers import read_proteins
from protembed.sequences.records import Record
from protembed.training.corpus.arrays import MappedArray, SumWriter, map_array, read_totals, write_array, write_totals

FORMAT = 2
SUFFIX = ".part"
_BUFFER = 1 << 22
_CLUSTER = re.compile(r"\scluster=(\S+)")


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """A source, and the folder that it becomes."""

    source: Path
    size: int
    folder: Path

    @property
    def stamp(self) -> list[str | int]:
        """What tells one source from another: its name and size, wherever it lies."""
        return [self.source.name, self.size]


@dataclass(frozen=True, kw_only=True)
class PartCounts:
    """What a source held: proteins, residues, gaps that were removed, and how often each letter."""

    proteins: int
    residues: int
    gaps: int
    letters: dict[str, int]


@dataclass(frozen=True)
class Part:
    """A complete part: `tokens` (R,), mapped, and one entry per protein in `lengths`, `digests`, `clusters`, `names`.

    A digest is 64 bits of a protein's tokens, a name 64 bits of its id; a cluster is 64 bits of the `cluster=` of its
    header, or its digest. Raises TrainingError when a file is not as long as it was, or its checksum is another.
    """

    folder: Path

    @cached_property
    def counts(self) -> PartCounts:
        return read_totals(self.folder / "part.json", PartCounts)

    @cached_property
    def tokens(self) -> MappedArray:
        return map_array(self.folder / "tokens.bin", np.uint8, self.counts.residues)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return self._map("lengths", np.int32, self.counts.proteins)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        return self._map("digests", np.uint64, self.counts.proteins)

    @property
    def clusters(self) -> npt.NDArray[np.uint64]:
        return self._map("clusters", np.uint64, self.counts.proteins)

    @property
    def names(self) -> npt.NDArray[np.uint64]:
        return self._map("names", np.uint64, self.counts.proteins)

    def _map(self, name: str, kind: type[np.generic], count: int) -> npt.NDArray[Any]:
        return map_array(self.folder / f"{name}.bin", kind, count).whole()


def plan_parts(sources: list[Path], folder: Path, alphabet: Alphabet) -> list[PartPlan]:
    """Name the part of each source after what it is made of, so that a changed source becomes another part.

    Raises TrainingError when a source is not there.
    """
    seen: Counter[str] = Counter()
    plans = []
    for source in sources:
        size = _size(source)
        key = json.dumps([FORMAT, source.name, size, alphabet.to_dict()])
        seen[key] += 1  # two folders may hold files of one name and size
        name = f"{source.name}-{digest(f'{key} {seen[key]}'.encode()):016x}{SUFFIX}"
        plans.append(PartPlan(source=source, size=size, folder=folder / name))
    return plans


def write_part(plan: PartPlan, alphabet: Alphabet) -> Iterator[int]:
    """Write a part under a temporary name and rename it when complete; yield how many residues are written each time.

    Memory holds 28 bytes per protein. Raises InputError for a record that cannot be read.
    """
    temporary = plan.folder.with_name(f".{plan.folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    writer = _PartWriter(alphabet)
    with SumWriter(temporary / "tokens.bin") as file:
        for record in read_proteins([plan.source]):
            group = _CLUSTER.search(record.description)
            writer.add(record, group[1] if group else None)
            if len(writer.buffer) >= _BUFFER:
                yield file.write(writer.flush())
        last = file.write(writer.flush())
    for name in ("lengths", "digests", "clusters", "names"):
        write_array(temporary / f"{name}.bin", np.asarray(getattr(writer, name)))
    write_totals(temporary / "part.json", writer.counts())
    os.replace(temporary, plan.folder)
    yield last


def write_parts(plans: list[PartPlan], alphabet: Alphabet, workers: int) -> Iterator[tuple[PartPlan, int]]:
    """Write parts, several at once; yield a part and how many more of its residues are written."""
    if workers == 1 or len(plans) < 2:
        for plan in plans:
            for written in write_part(plan, alphabet):
                yield plan, written
        return
    # The largest first: the last one to end is then a small one.
    queue = sorted(plans, key=lambda plan: -plan.size)
    context = get_context("spawn")
    leash, held = context.Pipe(duplex=False)
    with held, ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(leash,)) as pool:
        futures = {pool.submit(_write_whole, plan, alphabet): plan for plan in queue}
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker was killed, perhaps for want of memory",
                hint="Go on with the same command and fewer --workers.",
            ) from error
        except Exception:
            pool.shutdown(wait=False, cancel_futures=True)  # parts that are being written will be complete
            raise
        except BaseException:
            held.close()  # told to end: a part may take hours
            raise


def _write_whole(plan: PartPlan, alphabet: Alphabet) -> int:
    return sum(write_part(plan, alphabet))


def _end_with_parent(leash: Connection) -> None:
    """End a worker when its parent lets go or was killed: it would write on beside the next run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides

    def watch() -> None:
        with suppress(EOFError, OSError):
            leash.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def digest(data: bytes) -> int:
    """Return 64 bits of data.

    >>> digest(b"MKTAYIAKQR") == digest(b"MKTAYIAKQR"), digest(b"MKTAYIAKQR") == digest(b"MKTAYIAKQK")
    (True, False)
    """
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class _PartWriter:
    """Gathers what is written of the proteins of one source."""

    def __init__(self, alphabet: Alphabet) -> None:
        rows = alphabet.encode(ascii_uppercase)[alphabet.prefix :][: len(ascii_uppercase)]
        self._table = bytes.maketrans(ascii_uppercase.encode(), rows.astype(np.uint8).tobytes())
        self.buffer = bytearray()
        self.residues = 0
        self.lengths, self.digests, self.clusters, self.names = array("i"), array("Q"), array("Q"), array("Q")
        self._letters = np.zeros(256, dtype=np.int64)
        self._gaps = 0

    def add(self, record: Record, cluster: str | None) -> None:
        letters = record.sequence.encode("ascii")
        self.buffer += letters
        self.lengths.append(len(letters))
        self.digests.append(digest(letters.translate(self._table)))
        self.clusters.append(self.digests[-1] if cluster is None else digest(cluster.encode()))
        self.names.append(digest(record.id.encode()))
        self._gaps += record.gaps

    def flush(self) -> bytes:
        """Count the letters gathered since the last time, and return their tokens."""
        self._letters += np.bincount(np.frombuffer(self.buffer, np.uint8), minlength=256)
        self.residues += len(self.buffer)
        tokens = bytes(self.buffer.translate(self._table))
        self.buffer = bytearray()
        return tokens

    def counts(self) -> PartCounts:
        letters = {letter: int(self._letters[ord(letter)]) for letter in ascii_uppercase}
        return PartCounts(proteins=len(self.lengths), residues=self.residues, gaps=self._gaps, letters=letters)


def _size(source: Path) -> int:
    file = source / "data.mdb" if source.is_dir() else source
    if not file.is_file():
        raise TrainingError(f"{source}: no such file", hint="A relative path counts from where you run.")
    return file.stat().st_size
