"""How much secondary structure is in the hidden states? A linear probe of 3 states, by layer.

A softmax regression from the hidden state of a residue to H, E or C is fitted on proteins of SET=train and tested on
CB513 (residues with mask 1). The layer is chosen on SET=val. Beside it stand the same regression on an encoder with
random weights, on the residue alone, and on the 15 residues around it (one-hot, as GOR: Garnier et al. 1978,
doi 10.1016/0022-2836(78)90297-8). DATA holds sequences.fasta.xz, labels3.fasta.xz and mask.fasta.xz: same ids, same
order, SET= in the header.

    python benchmarks/accuracy/probe.py --data secondary_structure --model weights/protembed-6m.safetensors
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from Bio.SeqIO.FastaIO import SimpleFastaParser
from regression import Features, fit

from protembed.backends.base import Backend
from protembed.backends.load import ModelOptions, open_model
from protembed.backends.torch_backend import TorchBackend
from protembed.cli.console import Console, print_table
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import STANDARD_RESIDUES
from protembed.sequences.batching import TokenBatch, pack
from protembed.sequences.records import Record, read_fasta

STATES = "HEC"
SETS = ("train", "val", "test_CB513")
WINDOW = 15
LAYER_BYTES = 2 << 30  # hidden states of as many layers as fit are taken in one pass


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A protein, the state of each residue (0, 1, 2), and which residues count."""

    record: Record
    states: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracies of one probe on validation and test; `iterations` of its fit, `layer` None where there is none."""

    name: str
    layer: int | None
    valid: float
    test: float
    iterations: int = 0


def read(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Read a file of label strings; not with `read_fasta`, whose business is residues."""
    import lzma

    with lzma.open(folder / name, "rt") as handle:
        yield from SimpleFastaParser(handle)  # type: ignore[no-untyped-call]


def load(folder: Path, limits: Mapping[str, int | None], longest: int | None) -> dict[str, list[Labelled]]:
    """Read the proteins of several SETs, drawn at random (seed 0) where there are more than the limit.

    Training proteins of more than `longest` residues are left out; there are few.
    """
    found: dict[str, list[Labelled]] = {name: [] for name in limits}
    rows = zip(
        read_fasta([folder / "sequences.fasta.xz"]),
        read(folder, "labels3.fasta.xz"),
        read(folder, "mask.fasta.xz"),
        strict=True,
    )
    for record, (title, labels), (_, mask) in rows:
        assert title.split()[0] == record.id
        assert len(labels) == len(mask) == len(record.sequence)
        belongs = re.search(r"SET=(\S+)", record.description)
        fits = longest is None or len(record.sequence) <= longest
        if belongs and belongs[1] in found and fits:
            states = np.array([STATES.find(letter) for letter in labels])
            counted = (np.array(list(mask)) == "1") & (states >= 0)
            found[belongs[1]].append(Labelled(record=record, states=states, counts=counted))
    return {name: draw(proteins, limits[name]) for name, proteins in found.items()}


def draw(proteins: list[Labelled], limit: int | None) -> list[Labelled]:
    """Return the proteins, or `limit` of them drawn with seed 0."""
    if limit is None or len(proteins) <= limit:
        return proteins
    chosen = np.random.default_rng(0).choice(len(proteins), limit, replace=False)
    return [proteins[index] for index in sorted(chosen)]


def hidden(backend: Backend, proteins: Sequence[Labelled], layers: Sequence[int]) -> dict[int, Features]:
    """Return the hidden states of all counted residues, (R, D) a layer, float16 to save room."""
    alphabet = backend.card.alphabet
    rows = sum(int(protein.counts.sum()) for protein in proteins)
    states = {layer: np.empty((rows, backend.card.encoder.d_model), dtype=np.float16) for layer in layers}
    filled = 0
    for group in pack(proteins, size=lambda protein: len(protein.record.sequence), budget=backend.budget()):
        batch = TokenBatch.of([alphabet.encode(protein.record.sequence) for protein in group])
        around = (np.zeros(alphabet.prefix, dtype=np.bool_), np.zeros(alphabet.suffix, dtype=np.bool_))
        kept = np.concatenate([np.concatenate((around[0], protein.counts, around[1])) for protein in group])
        outputs = backend.run(batch, [("residues", layer) for layer in layers])
        stop = filled + int(kept.sum())
        for layer in layers:
            states[layer][filled:stop] = outputs["residues", layer][kept]
        filled = stop
    return dict(states)


def one_hot(proteins: Sequence[Labelled], window: int) -> Features:
    """Return the residues of a window around every counted one; (R, window * 21), the 21st is any other letter."""
    half, kinds = window // 2, len(STANDARD_RESIDUES) + 1
    rows = []
    for protein in proteins:
        letters = [STANDARD_RESIDUES.find(letter) % kinds for letter in protein.record.sequence]
        padded = np.pad(np.array(letters), half, constant_values=kinds)  # beyond the ends: no letter at all
        seen = np.lib.stride_tricks.sliding_window_view(padded, window)[protein.counts]
        rows.append(np.eye(kinds + 1, kinds, dtype=np.bool_)[seen].reshape(len(seen), window * kinds))
    return np.concatenate(rows)


def assess(name: str, layer: int | None, inputs: Mapping[str, Features], y: Mapping[str, npt.NDArray[np.int64]]) -> Row:
    """Fit on the first set, score the two others."""
    probe = fit(inputs["train"], y["train"])
    valid, tested = (probe.accuracy(inputs[part], y[part]) for part in SETS[1:])
    return Row(name=name, layer=layer, valid=valid, test=tested, iterations=probe.iterations)


def assess_layers(
    model: ProteinModel,
    layers: Sequence[int],
    sets: Mapping[str, Sequence[Labelled]],
    y: Mapping[str, npt.NDArray[np.int64]],
) -> Iterator[Row]:
    """Probe the layers of a model, as many in one pass as fit into memory."""
    backend = TorchBackend(model)
    layer_bytes = 2 * sum(map(len, y.values())) * model.card.encoder.d_model
    at_once = max(1, LAYER_BYTES // layer_bytes)
    for start in range(0, len(layers), at_once):
        some = layers[start : start + at_once]
        states = {part: hidden(backend, proteins, some) for part, proteins in sets.items()}
        for layer in some:
            yield assess(model.card.name, layer, {part: states[part].pop(layer) for part in SETS}, y)


def measure(
    model: ProteinModel, folder: Path, *, proteins: int | None, layers: Sequence[int] | None = None
) -> Iterator[Row]:
    """Probe what needs no model, an encoder with random weights, and the model."""
    limits = {SETS[0]: proteins, SETS[1]: proteins and max(1, proteins // 5), SETS[2]: None}
    sets = load(folder, limits, model.card.max_residues)
    y = {part: np.concatenate([p.states[p.counts] for p in chosen]) for part, chosen in sets.items()}
    majority = np.bincount(y["train"]).argmax()
    shares = [float((y[part] == majority).mean()) for part in SETS[1:]]
    yield Row(name="most frequent state", layer=None, valid=shares[0], test=shares[1])
    for name, window in (("residue alone", 1), (f"{WINDOW} residues", WINDOW)):
        yield assess(name, None, {part: one_hot(chosen, window) for part, chosen in sets.items()}, y)
    random = ProteinModel(replace(model.card, name="random weights"))
    random.initialise(0)
    random.eval()
    wanted = list(range(model.card.encoder.n_layers + 1)) if layers is None else list(layers)
    for encoder in (random, model):
        yield from assess_layers(encoder, wanted, sets, y)


def best(rows: Iterable[Row], name: str) -> Row:
    """Return the row of a model's best layer on the validation set."""
    return max((row for row in rows if row.name == name), key=lambda row: row.valid)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and lines to print."""
    chosen = {(name, best(rows, name).layer) for name in {row.name for row in rows if row.layer is not None}}
    lines = [
        [
            row.name,
            "" if row.layer is None else f"{row.layer}{' (chosen)' if (row.name, row.layer) in chosen else ''}",
            f"{row.valid:.3f}",
            f"{row.test:.3f}",
        ]
        for row in rows
    ]
    return ["from", "layer", "validation", "CB513"], lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--proteins", type=int, default=2000, help="of the training set; a fifth as many to validate")
    parser.add_argument("--layers", type=int, nargs="*", default=None, help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    model = open_model(ModelOptions(model=options.model, device=options.device))
    rows, console = [], Console()
    for row in measure(model, options.data, proteins=options.proteins, layers=options.layers):
        rows.append(row)
        console.say(
            f"{row.name} {'' if row.layer is None else row.layer}: {row.test:.4f} ({row.iterations} iterations)"
        )
    print_table("3-state accuracy", *table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
