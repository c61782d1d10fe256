"""Profiles that a model predicts from one sequence, against those of the homologs of held-out proteins.

Cross entropy (nats per residue) and correlation with the targets that training has (own residue, homologs, background),
on the validation proteins of a prepared corpus that have homologs, at the residues that have some. Beside the model:

    background  the composition of the corpus, at every residue
    BLOSUM62    p(b | a) in proportion to f(b) 2^(s(a, b) / 2), a the residue itself
    residue     the mean target of all training residues a: the best that can be said from the residue alone
    targets     the targets themselves: no predictor is below their entropy

    protembed prepare corpus/*.fasta.xz --valid valid.fasta.xz --homologs hits.tsv --homologs valid_hits.tsv -o corpus
    python benchmarks/accuracy/profiles.py --model runs/bundled-profile/model.safetensors --corpus corpus
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from Bio.Align import substitution_matrices

import protembed
from protembed.cli.console import print_table
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.training.corpus.corpus import Corpus, open_corpus
from protembed.training.corpus.packing import TokenStore
from protembed.training.pretrain.profile import profile_targets

Rows = npt.NDArray[np.float64]
LEAST = 1e-6  # of a predicted probability: none says never


def targets_of(store: TokenStore, index: int, background: npt.NDArray[np.float32], longest: int) -> tuple[Rows, Rows]:
    """Return the targets (L, 20) of a protein, and how much of them the homologs are (L,), in residues."""
    counts = store.counts(index)[:longest]
    targets = profile_targets(store[index][:longest].astype(np.int64), counts, PROTEMBED, background)
    return targets.astype(np.float64), counts.sum(axis=1).astype(np.float64)


def blosum62(background: Rows) -> Rows:
    """Return p(b | a), rows a; (20, 20)."""
    matrix = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    scores = np.array([[matrix[a][b] for b in STANDARD_RESIDUES] for a in STANDARD_RESIDUES], dtype=np.float64)
    rows = background * 2.0 ** (scores / 2)
    result: Rows = rows / rows.sum(axis=1, keepdims=True)
    return result


def mean_targets(corpus: Corpus, proteins: int, longest: int) -> Rows:
    """Return the mean target of each residue over training proteins that have homologs; (20, 20)."""
    sums = np.full((20, 20), 1e-3)
    rng = np.random.default_rng(0)
    for index in rng.permutation(len(corpus.train))[:proteins].tolist():
        targets, depth = targets_of(corpus.train, index, corpus.background, longest)
        columns = columns_of(corpus.train, index, longest)
        chosen = (depth > 0) & (columns >= 0)
        np.add.at(sums, columns[chosen], targets[chosen])
    result: Rows = sums / sums.sum(axis=1, keepdims=True)
    return result


def columns_of(store: TokenStore, index: int, longest: int) -> npt.NDArray[np.int64]:
    """Return the column of every residue, -1 for letters that are none of the 20; (L,)."""
    table = np.full(256, -1, dtype=np.int64)
    table[PROTEMBED.standard_ids] = np.arange(20)
    return table[store[index][:longest]]


def scores_of(predicted: Rows, targets: Rows) -> dict[str, float]:
    """Return the mean cross entropy (nats) and the correlation over all cells."""
    entropy = -(targets * np.log(np.maximum(predicted, LEAST))).sum(axis=1).mean()
    flat = (predicted.ravel(), targets.ravel())
    spread = min(float(np.std(values)) for values in flat)
    return {
        "cross entropy": float(entropy),
        "correlation": float(np.corrcoef(*flat)[0, 1]) if spread > 0 else 0.0,
    }


def compare(model: protembed.Model, corpus: Corpus, *, longest: int, training_proteins: int) -> Mapping[str, object]:
    """Score every predictor on the validation proteins that have homologs."""
    store, rows = corpus.valid, {"background": np.tile(corpus.background.astype(np.float64), (20, 1))}
    rows["BLOSUM62"] = blosum62(corpus.background.astype(np.float64))
    rows["residue"] = mean_targets(corpus, training_proteins, longest)
    found: dict[str, list[Rows]] = {name: [] for name in (*rows, "model", "targets")}
    proteins = [index for index in range(len(store)) if store.counts(index)[:longest].any()]
    for index in proteins:
        targets, depth = targets_of(store, index, corpus.background, longest)
        columns = columns_of(store, index, longest)
        chosen = (depth > 0) & (columns >= 0)
        (profile,) = model.profile([PROTEMBED.decode(store[index][:longest].astype(np.int64))])
        found["model"].append(profile[chosen].astype(np.float64))
        found["targets"].append(targets[chosen])
        for name, table in rows.items():
            found[name].append(table[columns[chosen]])
    if not proteins:
        raise SystemExit("no validation protein has homologs: search them, too, and give the hits to protembed prepare")
    together = {name: np.concatenate(parts) for name, parts in found.items()}
    return {
        "proteins": len(proteins),
        "residues": len(together["targets"]),
        "scores": {name: scores_of(predicted, together["targets"]) for name, predicted in together.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--max-residues", type=int, default=1022)
    parser.add_argument("--training-proteins", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    corpus = open_corpus(words.corpus, PROTEMBED)
    model = protembed.load(words.model, device="cpu")
    result = compare(model, corpus, longest=words.max_residues, training_proteins=words.training_proteins)
    scores = result["scores"]
    assert isinstance(scores, dict)
    rows = [[name, *(f"{value:.3f}" for value in values.values())] for name, values in scores.items()]
    title = f"{result['proteins']} proteins, {result['residues']:,} residues"
    print_table(title, ["predictor", "cross entropy (nats)", "correlation"], rows)
    if words.json:
        words.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
