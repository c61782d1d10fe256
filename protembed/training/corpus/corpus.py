"""A corpus: many files of proteins as one folder of memory-mapped tokens, with a training and a validation split."""

import io
import json
import shutil
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.errors import OutputError, TrainingError, UsageError
from protembed.outputs.files import atomic, lock
from protembed.sequences.alphabet import STANDARD_RESIDUES, Alphabet
from protembed.training.corpus.arrays import sum_of
from protembed.training.corpus.counts import HomologPart
from protembed.training.corpus.directory import Directory
from protembed.training.corpus.homologs import SUFFIX as HOMOLOGS
from protembed.training.corpus.homologs import HomologPlan, plan_homologs, write_homologs
from protembed.training.corpus.packing import TokenStore
from protembed.training.corpus.parts import FORMAT, SUFFIX, Part, PartPlan, plan_parts, write_parts
from protembed.training.corpus.splits import SplitRules, make_splits
from protembed.training.corpus.statistics import Statistics, gather

_ARRAYS = {"starts": "<i8", "lengths": "<i4", "clusters": "<i8"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a folder of prepared proteins holds."""

    folder: Path
    train: TokenStore
    valid: TokenStore
    statistics: Statistics
    background: npt.NDArray[np.float32]
    """Shares of the 20 standard residues among all that was read, (20,)."""


@dataclass(frozen=True)
class Prepared:
    """How far a corpus is: bytes of its sources that are complete; residues and lines of homologs of this process."""

    size: int
    residues: int
    homologs: int = 0


def open_corpus(folder: Path, alphabet: Alphabet) -> Corpus:
    """Map a prepared corpus into memory.

    Raises TrainingError when it is absent or incomplete, of another alphabet or version, or when a source has changed.
    """
    index = _read_index(folder)
    if index is None:
        state = "was not finished" if (folder / "parts").is_dir() else "holds no corpus"
        raise TrainingError(f"{folder}: {state}", hint=f"protembed prepare INPUT... -o {folder}")
    if index["job"].get("format") != FORMAT or index["job"].get("alphabet") != alphabet.to_dict():
        again = f"protembed prepare INPUT... -o {folder} --overwrite"
        raise TrainingError(f"{folder}: was made for another alphabet or version of protembed", hint=again)
    again = f"protembed prepare {' '.join(path for path, _ in index['paths'])} -o {folder} --overwrite"
    for path, size in index["paths"]:
        if Path(path).is_file() and Path(path).stat().st_size != size:
            raise TrainingError(f"{folder}: {path} has changed since", hint=again)
    tokens = [Part(folder / "parts" / name).tokens for name in index["parts"]]
    homologs = [HomologPart(folder / "homologs" / name).open() for name in index["homologs"]]
    stores = {}
    for split in ("train", "valid"):
        try:
            arrays = _load_split(folder, split, index)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{folder}: the index of {split} is damaged ({error})", hint=again) from error
        stores[split] = TokenStore(parts=tokens, homologs=homologs, **arrays)
    statistics = Statistics.from_dict(index["statistics"])
    shares = np.array([statistics.letters.get(letter, 0.0) for letter in STANDARD_RESIDUES], dtype=np.float64)
    background = (shares / max(shares.sum(), 1e-9)).astype(np.float32)
    return Corpus(folder=folder, statistics=statistics, background=background, **stores)


def prepare_corpus(
    sources: Sequence[str],
    folder: Path,
    alphabet: Alphabet,
    *,
    valid: Sequence[str] = (),
    valid_share: float = 0.0,
    min_residues: int = 1,
    workers: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    homologs: Sequence[str] = (),
) -> Corpus:
    """Turn files of proteins into a corpus in `folder`, or open the one made from the same files in the same way.

    Files are told apart by name and size. `homologs` are hits of MMseqs2 or alignments in a3m (homologs.py). Raises
    TrainingError when `folder` holds another corpus and `overwrite` is not set; InputError for what cannot be read.

    >>> import tempfile
    >>> from protembed.sequences.alphabet import PROTEMBED
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.fasta").write_text(">P1\\nMKTAY\\n>P2\\nMKV\\n>copy\\nMKTAY\\n")
    >>> corpus = prepare_corpus([str(folder / "a.fasta")], folder / "corpus", PROTEMBED)
    >>> len(corpus.train), corpus.train.residues, corpus.statistics.copies
    (2, 8, 1)
    """
    job = CorpusJob(
        sources=tuple(sources),
        folder=folder,
        alphabet=alphabet,
        valid=tuple(valid),
        valid_share=valid_share,
        min_residues=min_residues,
        workers=workers,
        seed=seed,
        overwrite=overwrite,
        homologs=tuple(homologs),
    )
    deque(job.run(), maxlen=0)
    return open_corpus(folder, alphabet)


@dataclass(frozen=True, kw_only=True)
class CorpusJob:
    """The making of a corpus. A part that is complete is never made again, whatever ended the process."""

    sources: tuple[str, ...]
    folder: Path
    alphabet: Alphabet
    valid: tuple[str, ...] = ()
    valid_share: float = 0.0
    min_residues: int = 1
    workers: int = 1
    seed: int = 0
    overwrite: bool = False
    homologs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.valid_share < 1:
            raise UsageError(f"a validation share of {self.valid_share}: not between 0 and 1")
        if self.valid and self.valid_share:
            raise UsageError("validation files and a validation share contradict each other", hint="Give one of them.")

    @cached_property
    def plans(self) -> list[PartPlan]:
        """The parts, those of validation files last."""
        return plan_parts(
            [Path(source) for source in (*self.sources, *self.valid)], self.folder / "parts", self.alphabet
        )

    @cached_property
    def homolog_plans(self) -> list[HomologPlan]:
        """The files of homologs; what they become depends on all proteins and on which are for validation."""
        return plan_homologs([Path(path) for path in self.homologs], self.folder / "homologs", self._proteins)

    @property
    def size(self) -> int:
        """Bytes of all sources."""
        return sum(plan.size for plan in self.plans) + sum(plan.size for plan in self.homolog_plans)

    def run(self) -> Iterator[Prepared]:
        """Do what is not done yet, and yield how far it is. Raises OutputError when the folder cannot be written."""
        if self._is_done():
            return
        with _written(self.folder), _alone(self.folder):
            (self.folder / "index.json").unlink(missing_ok=True)
            todo = [plan for plan in self.plans if not plan.folder.exists()]
            folding = [plan for plan in self.homolog_plans if not plan.folder.exists()]
            done, residues = self.size - sum(plan.size for plan in todo), 0
            done -= sum(plan.size for plan in folding)
            yield Prepared(done, residues)
            for plan, written in write_parts(todo, self.alphabet, self.workers):
                residues += written
                done += plan.size * plan.folder.exists()
                yield Prepared(done, residues)
            directory = Directory([Part(plan.folder) for plan in self.plans], self._rules, self.alphabet)
            for homolog_plan in folding:
                for lines in write_homologs(homolog_plan, directory):
                    yield Prepared(done, residues, lines)
                done += homolog_plan.size
                yield Prepared(done, residues, lines)
            self._finish()

    @property
    def _rules(self) -> SplitRules:
        return SplitRules(
            valid_from=len(self.sources), valid_share=self.valid_share, min_residues=self.min_residues, seed=self.seed
        )

    @property
    def _identity(self) -> dict[str, Any]:
        """What makes a corpus the same as another."""
        return {**self._proteins, "homologs": [plan.stamp for plan in self.homolog_plans]}

    @property
    def _proteins(self) -> dict[str, Any]:
        """What makes the proteins of a corpus and their splits the same as another's."""
        stamps = [plan.stamp for plan in self.plans]
        return {
            "format": FORMAT,
            "alphabet": self.alphabet.to_dict(),
            "sources": stamps[: len(self.sources)],
            "valid": stamps[len(self.sources) :],
            "valid_share": self.valid_share,
            "min_residues": self.min_residues,
            "seed": self.seed,
        }

    def _is_done(self) -> bool:
        index = _read_index(self.folder)
        if index is None:
            return False
        wanted = json.loads(json.dumps(self._identity))
        if index["job"] != wanted and not self.overwrite:
            other = ", ".join(key for key in wanted if wanted[key] != index["job"].get(key))
            raise TrainingError(
                f"{self.folder}: holds another corpus ({other} differ)",
                hint="Choose another folder, or replace it: protembed prepare ... --overwrite",
            )
        return bool(index["job"] == wanted)

    def _finish(self) -> None:
        """Write the index over the parts, and delete parts of other sources; `index.json` comes last."""
        parts = [Part(plan.folder) for plan in self.plans]
        homologs = [HomologPart(plan.folder).totals for plan in self.homolog_plans]
        splits = make_splits(parts, self._rules)
        sums = {}
        for split, arrays in (("train", splits.train), ("valid", splits.valid)):
            for name in _ARRAYS:
                path = self.folder / f"{split}.{name}.npy"
                sums[path.name] = _save(path, getattr(arrays, name))
        index = {
            "job": self._identity,
            "paths": [[str(plan.source), plan.size] for plan in self.plans],
            "parts": [plan.folder.name for plan in self.plans],
            "homologs": [plan.folder.name for plan in self.homolog_plans],
            "sums": sums,
            "statistics": gather(parts, splits, self.alphabet, homologs).to_dict(),
        }
        used = {*(plan.folder for plan in self.plans), *(plan.folder for plan in self.homolog_plans)}
        for folder, suffix in (("parts", SUFFIX), ("homologs", HOMOLOGS)):
            for stale in set((self.folder / folder).glob(f"*{suffix}*")) - used:
                shutil.rmtree(stale)
        _write_index(self.folder, index)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Make the folder, and turn what can go wrong with writing into OutputError."""
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder}: cannot be written ({reason})", hint="Check path and free space.") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however that ends."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(folder, what="corpus"))
        except OutputError as error:
            if "another run" not in str(error):
                raise
            raise TrainingError(f"{folder}: another process is preparing it ({error})", hint=error.hint) from error
        yield


def _save(path: Path, values: npt.NDArray[Any]) -> int:
    """Write an array beside its place and move it there: whoever has the old one mapped keeps it. Return its CRC-32."""
    with atomic(path) as new, new.open("wb") as file:
        np.save(file, values)
    return zlib.crc32(values.tobytes())


def _load_split(folder: Path, split: str, index: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Map the arrays of a split. Raises OSError or ValueError when one is not what was written."""
    counts, arrays = index["statistics"][split], {}
    for name, dtype in _ARRAYS.items():
        path = folder / f"{split}.{name}.npy"
        count = counts["clusters"] + 1 if name == "clusters" else counts["proteins"]
        arrays[name] = _load(path, dtype, count, index["sums"][path.name])
    return arrays


def _load(path: Path, dtype: npt.DTypeLike, count: int, wanted: int) -> npt.NDArray[Any]:
    """Map an array (`count`,) that `_save` wrote. Raises ValueError when it is another than the one of that CRC-32."""
    header = io.BytesIO()
    shape = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with path.open("rb") as file:
        # numpy's reader would run into anything in a header that is damaged.
        right = file.read(header.tell()) == header.getvalue()
    if not right or path.stat().st_size != header.tell() + count * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} is of another length or type")
    values = np.memmap(path, dtype, "r", header.tell(), (count,)) if count else np.empty(0, dtype)
    if zlib.crc32(values.data) != wanted:
        raise ValueError(f"{path.name} is not what was written")
    return values


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    with atomic(folder / "index.json") as new:
        new.write_text(json.dumps({**index, "sum": sum_of(index)}, indent=1))


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Read the index of a corpus: of another version as it is (its job is a dictionary), of this one checked."""
    place = f"{folder}/index.json"
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{place}: is damaged", hint="Delete it and run protembed prepare.") from error
    if not isinstance(index, dict) or not isinstance(index.get("job"), dict):
        raise TrainingError(f"{folder}: was made by an older protembed", hint=f"Delete {folder} and prepare it again.")
    if index["job"].get("format") == FORMAT and index.pop("sum", 0) != sum_of(index):
        raise TrainingError(f"{place}: is damaged (its checksum)", hint="Delete it and run protembed prepare.")
    return index
