"""Training data: FASTA turned once into a memory-mapped token file, and batches drawn from it."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protembed.alphabet import Alphabet
from protembed.errors import TrainingError
from protembed.records import read_fasta

Tokens = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """Proteins as one row of residue tokens, no special ones: protein i is tokens[offsets[i]:offsets[i + 1]]."""

    tokens: Tokens
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def prepare(sources: Sequence[str], folder: Path, alphabet: Alphabet) -> TokenStore:
    """Turn FASTA files into a token store in `folder`, or open the one that is there.

    A store made from other files, or from files that changed since, is made anew. Files: `tokens.bin` (uint8),
    `offsets.npy` (int64), `index.json` (sources and counts, written last).
    """
    index = folder / "index.json"
    wanted = {"sources": [_stamp(source) for source in sources], "alphabet": list(alphabet.tokens)}
    if not (index.exists() and {**json.loads(index.read_text()), "counts": None} == {**wanted, "counts": None}):
        folder.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        counts = _write(sources, folder, alphabet)
        temporary = folder / "index.json.tmp"
        temporary.write_text(json.dumps({**wanted, "counts": counts}, indent=1))
        os.replace(temporary, index)
    offsets = np.load(folder / "offsets.npy")
    return TokenStore(tokens=np.memmap(folder / "tokens.bin", dtype=np.uint8, mode="r"), offsets=offsets)


def _stamp(source: str) -> list[str | int]:
    path = Path(source)
    if not path.is_file():
        raise TrainingError(f"{source}: no such file", hint="Paths in the configuration are relative to where you run.")
    return [path.name, path.stat().st_size]


def _write(sources: Sequence[str], folder: Path, alphabet: Alphabet) -> dict[str, int]:
    offsets = [0]
    with (folder / "tokens.bin").open("wb") as file:
        for record in read_fasta(sources):
            tokens = alphabet.encode(record.sequence)[alphabet.prefix : len(record.sequence) + alphabet.prefix]
            file.write(tokens.astype(np.uint8).tobytes())
            offsets.append(offsets[-1] + len(tokens))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    return {"proteins": len(offsets) - 1, "residues": offsets[-1]}


@dataclass(frozen=True)
class Cursor:
    """A place in the stream of batches: the epoch, and how many proteins of it are used up."""

    epoch: int = 0
    used: int = 0


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Draw batches of whole proteins, packed end to end, from a store.

    Every epoch is a new permutation; a protein longer than `max_residues` gives a random window. Both depend on seed,
    epoch and protein alone, so that a cursor is all it takes to go on. With several ranks each one takes
    every `ranks`-th protein.
    """

    store: TokenStore
    alphabet: Alphabet
    batch_tokens: int
    max_residues: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[npt.NDArray[np.int64]], Cursor]]:
        """Yield batches without end, each the tokens of its proteins and the cursor behind it."""
        specials = self.alphabet.prefix + self.alphabet.suffix
        batch: list[npt.NDArray[np.int64]] = []
        room = self.batch_tokens
        epoch, used = cursor.epoch, cursor.used
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.store))[self.rank :: self.ranks]
            for place in range(used, len(order)):
                index = int(order[place])
                size = min(int(self.store.offsets[index + 1] - self.store.offsets[index]), self.max_residues) + specials
                if batch and size > room:
                    yield batch, Cursor(epoch, place)
                    batch, room = [], self.batch_tokens
                batch.append(self._protein(index, epoch))
                room -= size
            epoch, used = epoch + 1, 0

    def _protein(self, index: int, epoch: int) -> npt.NDArray[np.int64]:
        residues = self.store[index]
        if len(residues) > self.max_residues:
            rng = np.random.default_rng((self.seed, epoch, index))
            start = int(rng.integers(len(residues) - self.max_residues + 1))
            residues = residues[start : start + self.max_residues]
        return self.alphabet.surround(residues)
