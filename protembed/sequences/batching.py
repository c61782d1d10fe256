"""Batches under a token budget, in input order, without padding."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protembed.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Token ids of N sequences end to end, special tokens included: tokens (T,), lengths (N,)."""

    tokens: npt.NDArray[np.int64]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[npt.NDArray[np.int64]]) -> "TokenBatch":
        """Lay sequences of token ids end to end."""
        return cls(tokens=np.concatenate(sequences), lengths=tuple(len(tokens) for tokens in sequences))


def pack(items: Iterable[Item], *, size: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Group items in order so that the sizes of a group add up to at most `budget`.

    An item larger than the budget makes a group of its own: nothing is left out, nothing changes place.

    >>> list(pack("a bb ccc d".split(), size=len, budget=3))
    [['a', 'bb'], ['ccc'], ['d']]
    """
    if budget < 1:
        raise UsageError(f"a token budget of {budget} is too small", hint="Give --max-tokens a positive number.")
    group: list[Item] = []
    room = budget
    for item in items:
        needed = size(item)
        if group and needed > room:
            yield group
            group, room = [], budget
        group.append(item)
        room -= needed
    if group:
        yield group
