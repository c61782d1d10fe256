"""A backend that computes at once what depends on every token, and on the batch: its bytes show how it was called."""

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protembed.backends.base import Output, Outputs
from protembed.inference.embed import Embedding, EmbedOptions
from protembed.inference.embed_run import EmbedOutput, embed_run
from protembed.inference.run import Run, RunOptions
from protembed.models.config import EncoderConfig, ModelCard
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.batching import TokenBatch

WIDTH = 8
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class FakeBackend:
    """Rows are functions of their token, and a little of the whole batch, as they are in a real model.

    Residues that are `huge` get values that float16 cannot hold.
    """

    description = "fake, cpu, float32"
    computed_with = "fake, cpu, float32"

    def __init__(self, *, budget: int = 60, huge: str = "") -> None:
        config = EncoderConfig(vocab_size=len(PROTEMBED), d_model=WIDTH, n_layers=1, n_heads=2, d_ff=16, mask_id=1)
        self.card = ModelCard(name="fake", encoder=config, alphabet=PROTEMBED, contact_head=True, sha256="0" * 64)
        self.batches = 0
        self._budget = budget
        self._huge = PROTEMBED.encode(huge)[PROTEMBED.prefix : -PROTEMBED.suffix] if huge else []

    def budget(self) -> int:
        return self._budget

    def operations_per_second(self) -> float:
        return 1e9

    def run(self, batch: TokenBatch, wanted: Collection[Output]) -> Outputs:
        self.batches += 1
        shift = np.float32(zlib.crc32(batch.tokens.tobytes()) % 1000) * np.float32(1e-4)
        rows = np.outer(batch.tokens, np.arange(1, WIDTH + 1)).astype(np.float32) / 7 + shift
        rows[np.isin(batch.tokens, self._huge)] = 70_000.0
        parts = np.split(rows, np.cumsum(batch.lengths)[:-1])
        pooled = {
            "mean": lambda: np.stack([part[1:-1].mean(axis=0) for part in parts]),
            "max": lambda: np.stack([part[1:-1].max(axis=0) for part in parts]),
            "cls": lambda: np.stack([part[0] for part in parts]),
            "residues": lambda: rows,
        }
        return {name: pooled[name[0]]() for name in wanted}

    def contacts(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        inner = tokens[1:-1].astype(np.float32)
        return np.outer(inner, inner) / np.float32(4096)

    def attentions(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        raise NotImplementedError


def proteins(folder: Path, count: int = 12) -> Path:
    """Write a FASTA file of `count` proteins of 3 to 40 residues."""
    path = folder / "in.fasta"
    with path.open("w") as file:
        for number in range(count):
            residues = "".join(LETTERS[(number * 7 + k * (number + 3)) % 20] for k in range(3 + (number * 11) % 38))
            file.write(f">sp|P{number:03d}|X protein {number}\n{residues}\n")
    return path


def prepare(fasta: Path, out: Path | None, residues: Path | None = None, **words: Any) -> Run[Embedding]:
    """Prepare a run of the fake backend; `backend`, `options` and `store_dtype` are its own, other words the run's."""
    backend = words.pop("backend", None) or FakeBackend()
    output = EmbedOutput(proteins=out, residues=residues, store_dtype=words.pop("store_dtype", None))
    options = words.pop("options", None) or EmbedOptions(pool="mean" if out else None, residues=residues is not None)
    return embed_run([str(fasta)], backend, options, output, RunOptions(**words))


def finish(run: Run[Any]) -> Run[Any]:
    """Carry a run out."""
    for _ in run.run():
        pass
    return run
