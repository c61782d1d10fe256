"""Masked perplexity of a model on held-out proteins, overall and by length, beside what needs no model.

Every standard residue is hidden once, in 7 groups a protein (about 15 % a pass), seed 0; a hidden residue becomes the
mask token. Proteins longer than --max-residues give their first residues. Count models score the same residues, and
they always see true neighbours, of which the model is shown 85 %:

    unigram     the residue's share in the training files
    3-gram      p(residue | the two before it)
    neighbours  p(residue | the two before it and the two after it)

Counts are of all residues of the training files; each context is interpolated with the next shorter one (MacKay and
Peto 1995, doi 10.1017/S1351324900000218), as strongly as is most likely when every count is left out once. The ends of
a protein and letters beyond the 20 are a 21st neighbour.

    python benchmarks/accuracy/perplexity.py --model weights/protembed-6m.safetensors \
        --valid corpus/valid.fasta.xz --train corpus/uniclust50.fasta.xz
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protembed.backends.load import ModelOptions, open_model
from protembed.cli.console import Console, print_table
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.sequences.batching import pack
from protembed.sequences.records import read_fasta
from protembed.training.pretrain.perplexity import ProteinLoss, perplexity, protein_losses

BOUNDS = (1, 128, 256, 512, 1023)
OTHER = len(STANDARD_RESIDUES)
LETTERS = OTHER + 1
MIDDLE = 2
CONTEXTS = {
    "unigram": ((),),
    "3-gram": ((), (1,), (0, 1)),
    "neighbours": ((), (1,), (1, 3), (0, 1, 3), (0, 1, 3, 4)),
}
"""The places of a window of five that a count model sees, from the shortest context to the longest."""
STRENGTHS = tuple(4.0**power for power in range(8))
CHUNK = 2_000_000  # residues counted at once

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Perplexities by the name of the predictor, over the proteins of `shortest` to `longest` residues."""

    shortest: int
    longest: int
    proteins: int
    residues: int
    perplexities: Mapping[str, float]


def windows(sequences: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Return every standard residue (0 to 19) in the middle of its two neighbours on either side; (R, 5)."""
    table = np.full(256, OTHER, dtype=np.uint8)
    table[np.frombuffer(STANDARD_RESIDUES.encode(), dtype=np.uint8)] = np.arange(OTHER)
    text = f"--{'--'.join(sequences)}--"
    found = np.lib.stride_tricks.sliding_window_view(table[np.frombuffer(text.encode(), dtype=np.uint8)], 5)
    chosen: npt.NDArray[np.uint8] = found[found[:, MIDDLE] != OTHER]
    return chosen


def count(sequences: Iterable[str]) -> npt.NDArray[np.int64]:
    """Count the windows of all standard residues; (21, 21, 20, 21, 21)."""
    counts = np.zeros(LETTERS**5, dtype=np.int64)
    for group in pack(sequences, size=len, budget=CHUNK):
        places = windows(group).T.astype(np.int32)
        counts += np.bincount(np.ravel_multi_index(tuple(places), (LETTERS,) * 5), minlength=len(counts))
    return counts.reshape((LETTERS,) * 5)[:, :, :OTHER]


def estimate(counts: npt.NDArray[np.int64], contexts: Sequence[tuple[int, ...]]) -> Probabilities:
    """Return the probability of the middle residue; five axes as in `count`, of size 1 where a place is not seen.

    p(x | context) = (n(context, x) + s p(x | shorter context)) / (n(context) + s); the shortest is interpolated with
    1 / 20. One strength s for all contexts of a length.
    """
    probabilities = np.full((1, 1, OTHER, 1, 1), 1 / OTHER)
    for context in contexts:
        unseen = tuple(place for place in range(5) if place != MIDDLE and place not in context)
        seen = counts.sum(axis=unseen, keepdims=True)
        total = seen.sum(axis=MIDDLE, keepdims=True)
        strength = max(STRENGTHS, key=lambda s: _left_out(seen, total, probabilities, s))
        probabilities = (seen + strength * probabilities) / (total + strength)
    return probabilities


def _left_out(
    seen: npt.NDArray[np.int64], total: npt.NDArray[np.int64], shorter: Probabilities, strength: float
) -> float:
    """Return the log likelihood of all residues seen, each under the counts of the others."""
    there = seen > 0
    n, p = (np.broadcast_to(values, seen.shape)[there] for values in (total, shorter))
    return float(seen[there] @ np.log((seen[there] - 1 + strength * p) / (n - 1 + strength)))


def count_losses(probabilities: Probabilities, sequences: Sequence[str]) -> list[ProteinLoss]:
    """Score every standard residue of the sequences with a count model."""
    shape = (LETTERS, LETTERS, OTHER, LETTERS, LETTERS)
    log = np.broadcast_to(np.log(probabilities), shape)
    losses = []
    for index, sequence in enumerate(sequences):
        scores = log[tuple(windows([sequence]).T)]
        losses.append(ProteinLoss(index=index, length=len(sequence), loss=-float(scores.sum()), count=len(scores)))
    return losses


def model_losses(model: ProteinModel, sequences: Sequence[str]) -> list[ProteinLoss]:
    """Score every standard residue of the sequences with a model, each hidden once."""
    losses, done = [], 0
    with Console().meter(sum(map(len, sequences)), "residues") as meter:
        for loss in protein_losses(model, [model.card.alphabet.encode(sequence) for sequence in sequences]):
            losses.append(loss)
            done += loss.count
            meter.update(done)
    return losses


def measure(model: ProteinModel, sequences: Sequence[str], training: Iterable[str]) -> list[Row]:
    """Score the sequences with the model and with count models of the training sequences, overall and by length."""
    counts = count(training)
    losses = {model.card.name: model_losses(model, sequences)}
    losses |= {name: count_losses(estimate(counts, contexts), sequences) for name, contexts in CONTEXTS.items()}
    lengths = np.array([len(sequence) for sequence in sequences])
    rows = []
    for low, high in [(BOUNDS[0], int(lengths.max()) + 1), *pairwise(BOUNDS)]:
        chosen = (lengths >= low) & (lengths < high)
        if not chosen.any():
            continue
        rows.append(
            Row(
                shortest=low,
                longest=high - 1,
                proteins=int(chosen.sum()),
                residues=int(lengths[chosen].sum()),
                perplexities={
                    name: perplexity(loss for loss in scored if chosen[loss.index]) for name, scored in losses.items()
                }
                | {"uniform": float(OTHER)},
            )
        )
    return rows


def read_sequences(paths: Iterable[Path], *, proteins: int | None = None, residues: int | None = None) -> list[str]:
    """Read the first proteins of FASTA files, and of each the first residues."""
    return [record.sequence[:residues] for record in islice(read_fasta(paths), proteins)]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and lines to print."""
    names = list(rows[0].perplexities)
    lines = [
        [
            "all" if number == 0 else f"{row.shortest} to {row.longest} residues",
            f"{row.proteins:,}",
            f"{row.residues:,}",
            *(f"{row.perplexities[name]:.2f}" for name in names),
        ]
        for number, row in enumerate(rows)
    ]
    return ["proteins of", "number", "residues", *names], lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="what the count models are counted on")
    parser.add_argument("--max-residues", type=int, default=1022)
    parser.add_argument("--proteins", type=int, default=None, help="only the first ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    model = open_model(ModelOptions(model=options.model, device=options.device))
    sequences = read_sequences([options.valid], proteins=options.proteins, residues=options.max_residues)
    rows = measure(model, sequences, (record.sequence for record in read_fasta(options.train)))
    print_table("masked perplexity", *table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
