"""Masked perplexity of a model on held-out proteins, overall and by length, beside what needs no model.

Every standard residue is hidden once, in 7 groups a protein (about 15 % a pass), seed 0; a hidden residue becomes the
mask token. Proteins longer than --max-residues give their first residues. The unigram is counted on the
training file, with the same residues scored.

    python benchmarks/perplexity.py --model weights/protembed-3m.safetensors \
        --valid corpus/valid.fasta.xz --train corpus/uniclust50.fasta.xz
"""

import argparse
import json
import math
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from protembed.alphabet import STANDARD_RESIDUES
from protembed.console import Console, print_table
from protembed.loading import ModelOptions, open_model
from protembed.records import read_fasta
from protembed.train.evaluation import ProteinLoss, perplexity, protein_losses

BOUNDS = (50, 128, 256, 512, 1023)


def unigram(train: Path, proteins: int) -> dict[str, float]:
    """Return the share of every standard residue in the first proteins of a file."""
    counts: Counter[str] = Counter()
    for record in islice(read_fasta([train]), proteins):
        counts.update(record.sequence)
    total = sum(counts[letter] for letter in STANDARD_RESIDUES)
    return {letter: counts[letter] / total for letter in STANDARD_RESIDUES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--max-residues", type=int, default=1022)
    parser.add_argument("--proteins", type=int, default=None, help="only the first ones")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    model = open_model(ModelOptions(model=options.model, device="cpu"))
    sequences = [r.sequence[: options.max_residues] for r in islice(read_fasta([options.valid]), options.proteins)]
    shares = unigram(options.train, 100_000)
    plain = [
        ProteinLoss(
            index=index,
            length=len(sequence),
            loss=-sum(math.log(shares[letter]) for letter in sequence if letter in shares),
            count=sum(letter in shares for letter in sequence),
        )
        for index, sequence in enumerate(sequences)
    ]
    scored = []
    with Console().meter(sum(map(len, sequences)), "residues") as meter:
        done = 0
        for loss in protein_losses(model, [model.card.alphabet.encode(sequence) for sequence in sequences]):
            scored.append(loss)
            done += loss.count
            meter.update(done)
    rows = []
    for low, high in [(0, BOUNDS[-1]), *pairwise(BOUNDS)]:
        chosen = [i for i, sequence in enumerate(sequences) if low <= len(sequence) < high]
        ours = perplexity(loss for loss in scored if loss.index in set(chosen))
        base = perplexity(plain[i] for i in chosen)
        residues = int(np.sum([len(sequences[i]) for i in chosen]))
        name = "all" if low == 0 else f"{low} to {high - 1} residues"
        rows.append([name, f"{len(chosen):,}", f"{residues:,}", f"{ours:.2f}", f"{base:.2f}", "20.00"])
    columns = ["proteins of", "number", "residues", model.card.name, "unigram", "uniform"]
    print_table("masked perplexity", columns, rows)
    if options.json:
        options.json.write_text(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1))


if __name__ == "__main__":
    main()
