"""What a corpus holds, in figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from protembed.sequences.alphabet import STANDARD_RESIDUES, Alphabet
from protembed.training.corpus.counts import HomologCounts
from protembed.training.corpus.parts import Part
from protembed.training.corpus.splits import Split, Splits

_BORDERS = (1, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """The size of a split; `lengths` are the numbers of proteins from each length on to the next."""

    proteins: int
    residues: int
    clusters: int
    longest: int
    lengths: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What became of all that was read.

    proteins = train + valid + short + copies. `gaps` are characters removed from within sequences; `letters` are shares
    of all residues read; `unknown` are residues whose letter has no token and that became the unknown one. `shared` and
    `related` are training proteins that validation files hold, too, or whose cluster they do. `homologs` stand where
    files of homologs were given.
    """

    proteins: int
    residues: int
    short: int
    copies: int
    shared: int
    related: int
    gaps: int
    unknown: int
    letters: dict[str, float]
    train: SplitCounts
    valid: SplitCounts
    homologs: HomologCounts | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Statistics":
        """Read what `to_dict` wrote."""
        splits = {name: SplitCounts(**values[name]) for name in ("train", "valid")}
        homologs = values.get("homologs")
        return cls(**{**values, **splits, "homologs": HomologCounts(**homologs) if homologs else None})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows for people: counts, lengths, letters."""
        rows = [
            ["read", f"{self.proteins:,}", f"{self.residues:,}", "", ""],
            *(
                [name, f"{split.proteins:,}", f"{split.residues:,}", f"{split.clusters:,}", f"{split.longest:,}"]
                for name, split in (("train", self.train), ("valid", self.valid))
            ),
            ["dropped: copies", f"{self.copies:,}", "", "", ""],
            ["dropped: too short", f"{self.short:,}", "", "", ""],
            ["train proteins also in valid", f"{self.shared:,}", "", "", ""],
            ["train proteins of a cluster in valid", f"{self.related:,}", "", "", ""],
            ["gaps removed", "", f"{self.gaps:,}", "", ""],
            ["letters without a token", "", f"{self.unknown:,}", "", ""],
            *(_homolog_rows(self.homologs) if self.homologs else []),
        ]
        for name, count in self.train.lengths.items():
            rows.append([f"train, {name} residues", f"{count:,}", "", "", ""])
        for letter, share in self.letters.items():
            rows.append([letter, "", f"{100 * share:.2g} %" if share < 0.001 else f"{100 * share:.2f} %", "", ""])
        return ["what", "proteins", "residues", "clusters", "longest"], rows


def _homolog_rows(homologs: HomologCounts) -> list[list[str]]:
    counts = {
        "with homologs": homologs.proteins,
        "homologs": homologs.used,
        "homologs left out: the protein itself": homologs.own,
        "homologs left out: validation clusters": homologs.held_out,
        "homologs left out: second alignments": homologs.repeated,
    }
    return [[name, f"{count:,}", "", "", ""] for name, count in counts.items()]


def gather(
    parts: Sequence[Part], splits: Splits, alphabet: Alphabet, homologs: Sequence[HomologCounts] = ()
) -> Statistics:
    """Sum up what was read and what became of it."""
    letters: Counter[str] = Counter()
    for part in parts:
        letters.update(part.counts.letters)
    total = letters.total()
    order = STANDARD_RESIDUES + "".join(sorted(set(letters) - set(STANDARD_RESIDUES)))
    return Statistics(
        proteins=sum(part.counts.proteins for part in parts),
        residues=total,
        short=splits.short,
        copies=splits.copies,
        shared=splits.shared,
        related=splits.related,
        gaps=sum(part.counts.gaps for part in parts),
        unknown=sum(count for letter, count in letters.items() if letter not in alphabet.letters),
        letters={letter: letters[letter] / total for letter in order if letters[letter]},
        train=_count(splits.train),
        valid=_count(splits.valid),
        homologs=_together(homologs) if homologs else None,
    )


def _together(counts: Sequence[HomologCounts]) -> HomologCounts:
    """Add up files of homologs; a protein that has some in two of them counts twice."""
    return HomologCounts(**{name: sum(getattr(one, name) for one in counts) for name in asdict(counts[0])})


def _count(split: Split) -> SplitCounts:
    names = [*(f"{low} to {high - 1}" for low, high in pairwise(_BORDERS)), f"{_BORDERS[-1]} on"]
    counts = np.bincount(np.digitize(split.lengths, _BORDERS) - 1, minlength=len(names))
    return SplitCounts(
        proteins=len(split.lengths),
        residues=int(split.lengths.sum(dtype=np.int64)),
        clusters=len(split.clusters) - 1,
        longest=int(split.lengths.max(initial=0)),
        lengths={name: int(count) for name, count in zip(names, counts, strict=True)},
    )
