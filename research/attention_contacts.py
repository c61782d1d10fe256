"""Does attention know which residues touch? Contact precision of a regression over all attention maps.

As Rao et al. 2020 (bioRxiv 2020.12.15.422761): every map is made symmetric and its average product is taken off
(APC); a logistic regression with an L1 penalty is fitted on 20 proteins of train.npz (pairs at least 6 apart), the
penalty chosen on 20 proteins of valid.npz by long-range precision at L. Beside it stand the same regression on an
encoder with random weights, and the frequency of contacts by separation alone, counted on 1,000 proteins. Maps are
scaled to equal variance first: the flat maps of random weights shall not lose by their scale. Contacts: CB-CB < 8 A.

Precision is of the L, L/2 and L/5 best pairs of a protein of L residues, averaged over proteins; `any, L/5` is TAPE's
figure, of pairs at least 6 apart, pooled over proteins (Rao et al. 2019, arXiv 1906.08230).
DATA holds train.npz, valid.npz and test.npz: ids, lengths, offsets, residues, coords (0.1 A).

    python research/attention_contacts.py --data contacts --model weights/protembed-6m.safetensors
    python research/attention_contacts.py --data contacts --model old.safetensors --write new.safetensors

--write adds the regression to a copy of the checkpoint: `protembed contacts -m new.safetensors` then works.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from l1_regression import L1Regression, fit

from protembed.backends.base import Backend
from protembed.backends.load import ModelOptions, open_model
from protembed.backends.torch_backend import TorchBackend
from protembed.checkpoints import native as checkpoint
from protembed.checkpoints.find import find_model
from protembed.checkpoints.tensor_file import SafetensorsFile
from protembed.cli.console import Console, print_table
from protembed.models.protein_model import ProteinModel
from protembed.tasks.metrics import RANGES, Separation, top_contacts

CONTACT = 8.0  # A
APART = 6
FITTED = 20
COUNTED = 1000
PENALTIES = (10.0, 100.0, 1000.0)
SHARES = {"L": 1, "L/2": 2, "L/5": 5}
SHOWN = ("short", "medium", "long")

Matrix = npt.NDArray[Any]
Scores = Callable[[str], Matrix]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A protein's residues, which pairs touch, and of which that is known; both (L, L)."""

    sequence: str
    contacts: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Precisions of one predictor by range and share, as `long, L/5`; `maps` is how many maps its regression uses."""

    name: str
    proteins: int
    precisions: Mapping[str, float]
    maps: int | None = None


def load(path: Path, limit: int | None, *, longest: int | None = None) -> list[Fold]:
    """Read the proteins of a file, or `limit` of them drawn with seed 0, of at most `longest` residues."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("lengths", "offsets", "residues", "coords")}
    fitting = np.flatnonzero(arrays["lengths"] <= (longest or arrays["lengths"].max()))
    if limit is not None and limit < len(fitting):
        fitting = np.sort(np.random.default_rng(0).choice(fitting, limit, replace=False))
    folds = []
    for index in fitting:
        place = slice(arrays["offsets"][index], arrays["offsets"][index + 1])
        xyz = arrays["coords"][place]
        there = ~(xyz == np.iinfo(np.int16).min).any(axis=1)
        angstrom = xyz.astype(np.float32) / 10
        squares = ((angstrom[:, None] - angstrom) ** 2).sum(axis=-1)
        known = there[:, None] & there
        sequence = arrays["residues"][place].tobytes().decode()
        folds.append(Fold(sequence=sequence, contacts=known & (squares < CONTACT**2), known=known))
    return folds


def corrected_maps(backend: Backend, sequence: str) -> npt.NDArray[np.float32]:
    """Return all attention maps, symmetric and with their average product taken off; (layers * heads, L, L)."""
    alphabet = backend.card.alphabet
    inside = slice(alphabet.prefix, alphabet.prefix + len(sequence))
    maps = backend.attentions(alphabet.encode(sequence))[:, :, inside, inside]
    maps = maps.reshape(-1, len(sequence), len(sequence))
    maps = maps + maps.transpose(0, 2, 1)
    rows = maps.sum(axis=-1, keepdims=True)  # (M, L, 1)
    corrected: npt.NDArray[np.float32] = maps - rows * rows.transpose(0, 2, 1) / rows.sum(axis=1, keepdims=True)
    return corrected


def pairs(fold: Fold) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the known pairs i < j that are far enough apart."""
    i, j = np.triu_indices(len(fold.sequence), k=APART)
    kept = fold.known[i, j]
    return i[kept], j[kept]


def fit_maps(backend: Backend, folds: Iterable[Fold], held_out: Sequence[Fold]) -> L1Regression:
    """Fit contacts from the maps of some proteins, with the penalty that does best on others."""
    inputs, targets = [], []
    for fold in folds:
        i, j = pairs(fold)
        inputs.append(corrected_maps(backend, fold.sequence)[:, i, j].T)
        targets.append(fold.contacts[i, j])
    x, y = np.concatenate(inputs), np.concatenate(targets)
    scale = np.maximum(x.std(axis=0, dtype=np.float64), 1e-12)
    x /= scale.astype(np.float32)
    scaled = [fit(x, y, penalty=penalty) for penalty in PENALTIES]
    found = [replace(regression, weights=regression.weights / scale) for regression in scaled]
    return max(found, key=lambda regression: precisions(_scorer(backend, regression), held_out)["long, L"])


def separation_scores(folds: Iterable[Fold]) -> Scores:
    """Score pairs by how often residues as far apart touch."""
    touching, seen = np.zeros(4096), np.zeros(4096)
    for fold in folds:
        i, j = pairs(fold)
        touching += np.bincount((j - i)[fold.contacts[i, j]], minlength=len(touching))
        seen += np.bincount(j - i, minlength=len(seen))
    shares = touching / np.maximum(seen, 1)

    def score(sequence: str) -> Matrix:
        places = np.arange(len(sequence))
        chosen: Matrix = shares[np.abs(places[:, None] - places)]
        return chosen

    return score


def precisions(score: Scores, folds: Sequence[Fold]) -> dict[str, float]:
    """Measure a predictor on proteins."""
    found: dict[str, list[tuple[int, int]]] = {}
    for fold in folds:
        scores, length = score(fold.sequence), len(fold.sequence)
        for name in SHOWN:
            for share, part in SHARES.items():
                hits = top_contacts(scores, fold.contacts, fold.known, top=length // part, apart=RANGES[name])
                found.setdefault(f"{name}, {share}", []).append(hits)
        hits = top_contacts(scores, fold.contacts, fold.known, top=length // 5, apart=Separation(low=APART))
        found.setdefault("any, L/5", []).append(hits)
    means = {key: float(np.mean([right / n for right, n in hits if n])) for key, hits in found.items()}
    pooled = np.sum(found["any, L/5"], axis=0)
    return {**means, "any, L/5": float(pooled[0] / pooled[1])}


def measure(model: ProteinModel, folder: Path, *, proteins: int | None = None) -> Iterator[tuple[Row, L1Regression]]:
    """Measure separation alone, an encoder with random weights, and the model; with the regression of each."""
    longest = model.card.max_residues
    few = load(folder / "train.npz", FITTED, longest=longest)
    held_out = load(folder / "valid.npz", FITTED, longest=longest)
    tested = load(folder / "test.npz", proteins, longest=longest)
    alone = separation_scores(load(folder / "train.npz", COUNTED))
    nothing = L1Regression(weights=np.zeros(0), bias=0.0, iterations=0)
    yield Row(name="separation alone", proteins=len(tested), precisions=precisions(alone, tested)), nothing
    random = ProteinModel(replace(model.card, name="random weights"))
    random.initialise(0)
    random.eval()
    for encoder in (random, model):
        backend = TorchBackend(encoder)
        regression = fit_maps(backend, few, held_out)
        yield (
            Row(
                name=encoder.card.name,
                proteins=len(tested),
                maps=int(np.count_nonzero(regression.weights)),
                precisions=precisions(_scorer(backend, regression), tested),
            ),
            regression,
        )


def _scorer(backend: Backend, regression: L1Regression) -> Scores:
    return lambda sequence: np.tensordot(regression.weights, corrected_maps(backend, sequence), axes=1)


def write(source: Path, regression: L1Regression, target: Path) -> None:
    """Write a native checkpoint with the regression in it, its other weights and their type as they are."""
    old = checkpoint.load(source, device=torch.device("cpu"))
    model = ProteinModel(replace(old.card, contact_head=True))
    assert model.contact_head is not None
    weights = {
        "contact_head.regression.weight": torch.from_numpy(regression.weights).float().unsqueeze(0),
        "contact_head.regression.bias": torch.tensor([regression.bias]),
    }
    model.load_state_dict({**old.state_dict(), **weights})
    checkpoint.save(model, target, dtype=checkpoint.widest(s.dtype for s in SafetensorsFile(source).specs.values()))


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and lines to print."""
    keys = list(rows[0].precisions)
    return ["from", *keys], [[row.name, *(f"{row.precisions[key]:.3f}" for key in keys)] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--proteins", type=int, default=None, help="to test on; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--write", type=Path, default=None, help="a copy of the checkpoint with the regression in it")
    options = parser.parse_args()
    model = open_model(ModelOptions(model=options.model, device=options.device))
    rows, regression = [], None
    for row, regression in measure(model, options.data, proteins=options.proteins):
        rows.append(row)
        Console().say(f"{row.name}: {row.maps} maps, {regression.iterations} iterations")
    print_table("contact precision", *table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.write and regression:
        write(find_model(options.model), regression, options.write)
        Console().say(f"{options.write}: ready for protembed contacts -m")


if __name__ == "__main__":
    main()
