"""Every figure of a bundled model's card, by one command: perplexity and secondary structure.

CORPUS holds valid.fasta.xz and uniclust50.fasta.xz; the other folder is that of probe.py, which says what is
measured. Prints Markdown, ready for the card. Contacts from attention maps: research/attention_contacts.py.

    python benchmarks/accuracy/model_card.py --model weights/protembed-6m.safetensors --corpus corpus \
        --secondary-structure secondary_structure --json figures.json

--quick takes fewer proteins of everything: minutes, for a first look.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import perplexity
import probe

from protembed.backends.load import ModelOptions, open_model
from protembed.checkpoints.find import find_model
from protembed.checkpoints.native import count_parameters
from protembed.cli.console import Console
from protembed.models.protein_model import ProteinModel
from protembed.sequences.records import read_fasta

LONGEST = 1022  # residues of a protein that count for the perplexity


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many proteins are taken; None: all of them."""

    perplexity: int | None = None
    counted: int | None = None
    probe: int = 2000


QUICK = Sizes(perplexity=100, counted=20_000, probe=300)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the card, and its rows as data."""

    title: str
    columns: list[str]
    lines: list[list[str]]
    rows: list[dict[str, Any]]

    def markdown(self) -> str:
        """Return the table under its title; what stands in the first column is text, the rest is flush right.

        >>> print(Section(title="T", columns=["a", "b"], lines=[["x", "1"]], rows=[]).markdown())
        ## T
        <BLANKLINE>
        | a | b |
        |---|---:|
        | x | 1 |
        """
        rule = "|---|" + "---:|" * (len(self.columns) - 1)
        body = ["| " + " | ".join(line) + " |" for line in (self.columns, *self.lines)]
        return "\n".join([f"## {self.title}", "", body[0], rule, *body[1:]])


def score_perplexity(model: ProteinModel, corpus: Path, train: Sequence[Path], sizes: Sizes) -> Section:
    """Measure masked perplexity beside count models."""
    valid = perplexity.read_sequences([corpus / "valid.fasta.xz"], proteins=sizes.perplexity, residues=LONGEST)
    files = train or [corpus / "uniclust50.fasta.xz"]
    if sizes.counted is None:
        training: Iterable[str] = (record.sequence for record in read_fasta(files))
    else:
        training = perplexity.read_sequences(files, proteins=sizes.counted)
    rows = perplexity.measure(model, valid, training)
    columns, lines = perplexity.table(rows)
    return Section(title="Masked perplexity", columns=columns, lines=lines, rows=[asdict(row) for row in rows])


def score_probe(model: ProteinModel, folder: Path, sizes: Sizes) -> Section:
    """Probe the hidden states for secondary structure."""
    rows = list(probe.measure(model, folder, proteins=sizes.probe))
    columns, lines = probe.table(rows)
    title = "Secondary structure in the hidden states"
    return Section(title=title, columns=columns, lines=lines, rows=[asdict(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--corpus", type=Path, default=None)
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="what the count models are counted on")
    parser.add_argument("--secondary-structure", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="fewer proteins of everything")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    model = open_model(ModelOptions(model=options.model, device=options.device))
    sizes = QUICK if options.quick else Sizes()
    wanted: list[tuple[Path | None, Callable[[Path], Section]]] = [
        (options.corpus, lambda folder: score_perplexity(model, folder, options.train, sizes)),
        (options.secondary_structure, lambda folder: score_probe(model, folder, sizes)),
    ]
    figures: dict[str, Any] = {
        "model": model.card.name,
        "sha256": model.card.sha256,
        "parameters": count_parameters(find_model(options.model)),
        "sizes": asdict(sizes),
        "sections": {},
    }
    for folder, score in wanted:
        if folder is None:
            continue
        section = score(folder)
        print(f"{section.markdown()}\n", flush=True)
        figures["sections"][section.title] = section.rows
        if options.json:  # what is done is kept, should the next take too long
            options.json.write_text(json.dumps(figures, indent=1))
    Console().say(f"{model.card.name}: {figures['parameters']:,} parameters")


if __name__ == "__main__":
    main()
