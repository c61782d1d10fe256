"""Where a run writes: the final files, and what lies beside them."""

from dataclasses import dataclass
from pathlib import Path

from protembed.errors import UsageError
from protembed.sequences.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run writes: per-protein vectors, per-residue rows, or contact maps; failed records go to `failures`."""

    proteins: Path | None = None
    residues: Path | None = None
    contacts: Path | None = None

    @classmethod
    def of(cls, proteins: Path | None, residues: Path | None, shard: Shard) -> "Target":
        """Name the files of a run; a shard's are called OUT.shard-I-of-N.h5, so that all can get the same command."""
        if proteins is None and residues is None:
            raise UsageError("no output is named", hint="-o OUT.h5 (a vector a protein), --residues FILE, or both.")
        if proteins == residues:
            raise UsageError("-o and --residues name the same file", hint="Other tools expect one kind a file.")

        def named(path: Path | None) -> Path | None:
            if path is None or shard.count == 1:
                return path
            return path.with_name(f"{path.stem}.shard-{shard.number}-of-{shard.count}{path.suffix}")

        return cls(proteins=named(proteins), residues=named(residues))

    @property
    def main(self) -> Path:
        """The file that names the run."""
        return next(iter(self.files.values()))

    @property
    def files(self) -> dict[str, Path]:
        """Final files by kind."""
        named = {"proteins": self.proteins, "residues": self.residues, "contacts": self.contacts}
        return {kind: path for kind, path in named.items() if path is not None}

    @property
    def partial(self) -> Path:
        return self.main.with_name(self.main.name + ".partial")

    @property
    def failures(self) -> Path:
        return self.main.with_suffix(".failed.tsv")

    def count_failures(self) -> int:
        """Return how many records a finished run has listed as failed."""
        return self.failures.read_text(encoding="utf-8").count("\n") - 1 if self.failures.exists() else 0
