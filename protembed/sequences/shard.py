"""Shards: which slice of the input a process does when several share the work."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

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
        share = lengths.sum(dtype=np.int64) / self.count
        start, stop = np.searchsorted(middle, np.array([self.number - 1, self.number]) * share).tolist()
        return range(start, stop if self.number < self.count else len(lengths))


def parse_shard(text: str, out: Path | None = None) -> Shard:
    """Read `I/N`, or this task of a SLURM job array: `slurm/N`, and `slurm` for an array that is submitted once.

    `slurm/N` is part SLURM_ARRAY_TASK_ID of N, whichever tasks of 1 to N the present submission has. `slurm` takes N
    from the submission, which must be the whole array. Both refuse a division other than that of the shards that lie
    beside `out` already. Raises UsageError.
    """
    number, slash, count = text.partition("/")
    if number == "slurm":
        shard = _part_of_array(_count(text, count)) if slash else _part_of_whole_array()
        if out is not None:
            _refuse_other_division(shard, out)
        return shard
    if not slash:
        raise _not_a_shard(text)
    return Shard(_count(text, number), _count(text, count))


def _count(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise _not_a_shard(text)
    return int(digits)


def _not_a_shard(text: str) -> UsageError:
    return UsageError(f"--shard {text}: not of the form I/N", hint="Example: --shard 1/8, or --shard slurm/8.")


def _array() -> dict[str, int]:
    """Return what SLURM says of this task and of the array that was submitted: ID, MIN, MAX, COUNT."""
    found = {}
    for name in ("ID", "MIN", "MAX", "COUNT"):
        value = os.environ.get(f"SLURM_ARRAY_TASK_{name}", "")
        if value.isascii() and value.isdigit() and len(value) < 10:
            found[name] = int(value)
    if "ID" not in found:
        raise UsageError("--shard slurm: not in a SLURM job array", hint="sbatch --array=1-8 ...")
    return found


def _part_of_array(count: int) -> Shard:
    """Return part ID of `count`, whichever other tasks were submitted: some can be submitted again."""
    array = _array()
    if array.get("MIN", array["ID"]) == 0 or array["ID"] == 0:
        raise UsageError(
            f"--shard slurm/{count}: the tasks of this array count from 0, shards from 1",
            hint=f"sbatch --array=1-{count} ..., or --shard $((SLURM_ARRAY_TASK_ID + 1))/{count}.",
        )
    if (largest := max(array["ID"], array.get("MAX", 0))) > count:
        raise UsageError(
            f"--shard slurm/{count}: there is a task {largest} in this array of {count} shards",
            hint=f"sbatch --array=1-{count} ...",
        )
    return Shard(array["ID"], count)


def _part_of_whole_array() -> Shard:
    """Return this task's part of an array without gaps; others may be some tasks of a larger one, submitted again."""
    array = _array()
    first, count = array.get("MIN"), array.get("COUNT")
    if first is None or count is None:
        raise UsageError("--shard slurm: not in a SLURM job array", hint="sbatch --array=1-8 ...")
    last = array.get("MAX", first + count - 1)
    if count < 2 or last - first + 1 != count or not first <= array["ID"] <= last:
        raise UsageError(
            f"--shard slurm: {count} of the tasks {first} to {last} are no whole array: how many shards are there?",
            hint="Say it: --shard slurm/8 for the tasks 1 to 8. Then some of them can be submitted again, too.",
        )
    return Shard(array["ID"] - first + 1, count)


def _refuse_other_division(shard: Shard, out: Path) -> None:
    """Raise UsageError when shards of another count of the same output lie beside it."""
    beside = re.compile(rf"{re.escape(out.stem)}\.shard-\d+-of-(\d+){re.escape(out.suffix)}")
    names = sorted(os.listdir(out.parent)) if out.parent.is_dir() else []
    for name in names:
        if (match := beside.match(name)) and int(match[1]) != shard.count:
            raise UsageError(
                f"this is shard {shard.number} of {shard.count}, and {out.parent / name} is one of {match[1]}",
                hint=f"For some tasks of that array again: --shard slurm/{match[1]}. For another division: remove it.",
            )
