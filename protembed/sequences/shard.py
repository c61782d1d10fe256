"""Shards: which slice of the input a process does when several share the work."""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protembed.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` (from 1) of the input: a contiguous slice, so that merging is putting end to end."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(
                f"shard {self.number}/{self.count} does not exist",
                hint=f"Shards are 1/{self.count} to {self.count}/{self.count}.",
            )

    def range(self, lengths: npt.NDArray[np.int32]) -> range:
        """Return the indices of this shard's records: all shards together have every record once, residues balanced.

        >>> [Shard(n, 2).range(np.array([5, 1, 1, 3], np.int32)) for n in (1, 2)]
        [range(0, 1), range(1, 4)]
        """
        middle = np.cumsum(lengths, dtype=np.int64) - lengths / 2
        bounds = np.searchsorted(middle, np.arange(self.count + 1) * (lengths.sum(dtype=np.int64) / self.count))
        return range(
            int(bounds[self.number - 1]), int(bounds[self.number]) if self.number < self.count else len(lengths)
        )


def parse_shard(text: str) -> Shard:
    """Read `I/N`, or `slurm`: this task of a SLURM job array (its tasks need not count from 1)."""
    if text == "slurm":
        try:
            task, first, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "COUNT"))
        except (KeyError, ValueError) as error:
            raise UsageError("--shard slurm: not in a SLURM job array", hint="sbatch --array=1-8 ...") from error
        return Shard(task - first + 1, count)
    number, slash, count_text = text.partition("/")
    if not (slash and number.isdigit() and count_text.isdigit()):
        raise UsageError(f"--shard {text}: not of the form I/N", hint="Example: --shard 1/8, or --shard slurm.")
    return Shard(int(number), int(count_text))
