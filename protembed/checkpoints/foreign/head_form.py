"""What tells the heads of fine-tuned models of other programs apart, and how ours are made of their tensors."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from protembed.checkpoints.foreign.checkpoint import Source
from protembed.checkpoints.foreign.conversion import Combine, Rule, join
from protembed.models.head_config import Design, Kind, Reads

LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""What stands for the classes of residues whose names are longer than a letter."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a head predicts: its kind, a name for the task, and names for the outputs; `facts` go into its card."""

    kind: Kind
    task: str
    labels: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of head.

    `first` and `last` are the native tensors whose shapes tell the widths of input, inner layer and output; None: one
    output. `meaning` reads off the checkpoint what so many outputs stand for.
    """

    matches: Callable[[Source], bool]
    design: Design
    reads: Reads
    rules: Callable[[], Sequence[Rule]]
    meaning: Callable[[Source, int], Meaning]
    first: str
    last: str | None
    dropout: float = 0.1


def one(native: str, *sources: str, combine: Combine = join) -> Rule:
    """Write the rule of one tensor."""
    return Rule(native=native, sources=sources, combine=combine)


def numbered(outputs: int) -> tuple[str, ...]:
    """Name classes of residues by a character each.

    >>> numbered(12)[-3:]
    ('9', 'A', 'B')
    """
    return tuple(LETTERS[:outputs])
