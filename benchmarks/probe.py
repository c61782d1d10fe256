"""How much secondary structure is in the hidden states? A linear probe of 3 states by layer.

A softmax regression from the hidden state of a residue to H, E or C is fitted on proteins of SET=train and tested on
CB513 (residues with mask 1). Beside it stand the same probe on an encoder with random weights and on the residue alone.
DATA holds sequences.fasta.xz, labels3.fasta.xz and mask.fasta.xz: same ids, same order, SET= in the header.

    python benchmarks/probe.py --data secondary_structure --model weights/protembed-3m.safetensors
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from Bio.SeqIO.FastaIO import SimpleFastaParser

from protembed.alphabet import STANDARD_RESIDUES
from protembed.console import Console, print_table
from protembed.embed import Embedding, EmbedOptions, embed
from protembed.loading import ModelOptions, open_model
from protembed.model import ProteinModel
from protembed.records import Record, read_fasta
from protembed.torch_backend import TorchBackend

STATES = "HEC"
EPOCHS = 12
BATCH = 4096


@dataclass(frozen=True)
class Labelled:
    """A protein, the state of each residue (0, 1, 2), and which residues count."""

    record: Record
    states: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]


def read(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Read a file of label strings; not with `read_fasta`, whose business is residues."""
    import lzma

    with lzma.open(folder / name, "rt") as handle:
        yield from SimpleFastaParser(handle)


def load(folder: Path, wanted: str, limit: int | None) -> list[Labelled]:
    """Read the proteins of one SET, drawn at random (seed 0) when there are more than `limit`."""
    rows = zip(
        read_fasta([folder / "sequences.fasta.xz"]),
        read(folder, "labels3.fasta.xz"),
        read(folder, "mask.fasta.xz"),
        strict=True,
    )
    found = []
    for record, (title, labels), (_, mask) in rows:
        assert title.split()[0] == record.id
        assert len(labels) == len(mask) == len(record.sequence)
        if re.search(rf"SET={wanted}\b", record.description):
            states = np.array([STATES.find(letter) for letter in labels])
            found.append(Labelled(record, states, (np.array(list(mask)) == "1") & (states >= 0)))
    if limit is None or len(found) <= limit:
        return found
    chosen = np.random.default_rng(0).choice(len(found), limit, replace=False)
    return [found[index] for index in sorted(chosen)]


def hidden(model: ProteinModel, proteins: list[Labelled], layer: int) -> npt.NDArray[np.float32]:
    """Return the hidden states of all counted residues, one row each."""
    options = EmbedOptions(pool=None, residues=True, layer=layer)
    rows = []
    for item, protein in zip(embed([p.record for p in proteins], TorchBackend(model), options), proteins, strict=True):
        assert isinstance(item, Embedding)
        assert item.residues is not None
        rows.append(item.residues[protein.counts].astype(np.float32))
    return np.concatenate(rows)


def one_hot(proteins: list[Labelled]) -> npt.NDArray[np.float32]:
    """Return the residue itself, one row each."""
    rows = []
    for protein in proteins:
        letters = np.array([STANDARD_RESIDUES.find(letter) for letter in protein.record.sequence])
        rows.append(np.eye(21, dtype=np.float32)[letters][protein.counts])
    return np.concatenate(rows)


def fit(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> torch.nn.Sequential:
    """Fit a softmax regression on standardised columns."""
    torch.manual_seed(0)
    scale = torch.nn.BatchNorm1d(x.shape[1], affine=False)
    probe = torch.nn.Sequential(scale, torch.nn.Linear(x.shape[1], len(STATES)))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):  # type: ignore[no-untyped-call]
            loss = torch.nn.functional.cross_entropy(probe(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return probe.eval()


def accuracy(
    train: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    test: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> float:
    """Fit on the first, return the share of right residues in the second."""
    probe = fit(*train)
    with torch.inference_mode():
        return float((probe(torch.from_numpy(test[0])).argmax(dim=1).numpy() == test[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=ModelOptions().model)
    parser.add_argument("--proteins", type=int, default=2000, help="of the training set")
    parser.add_argument("--layers", type=int, nargs="*", default=None, help="default: all")
    options = parser.parse_args()
    train = load(options.data, "train", options.proteins)
    test = load(options.data, "test_CB513", None)
    targets = [np.concatenate([p.states[p.counts] for p in proteins]) for proteins in (train, test)]
    model = open_model(ModelOptions(model=options.model, device="cpu"))
    random = ProteinModel(replace(model.card, name="random weights"))
    random.initialise(0)
    random.eval()
    console = Console()
    console.say(f"{len(train)} proteins to fit, {len(targets[0]):,} residues; CB513: {len(targets[1]):,} residues")
    majority = np.bincount(targets[0]).argmax()
    rows = [["most frequent state", "", f"{(targets[1] == majority).mean():.4f}"]]
    rows.append(["residue alone", "", f"{accuracy((one_hot(train), targets[0]), (one_hot(test), targets[1])):.4f}"])
    last = model.card.encoder.n_layers
    for name, encoder, layers in (
        ("random weights", random, [last]),
        (model.card.name, model, options.layers if options.layers is not None else range(last + 1)),
    ):
        for layer in layers:
            sets = [(hidden(encoder, proteins, layer), y) for proteins, y in zip((train, test), targets, strict=True)]
            rows.append([name, str(layer), f"{accuracy(sets[0], sets[1]):.4f}"])
            console.say("  ".join(rows[-1]))
    print_table("3-state accuracy on CB513", ["from", "layer", "accuracy"], rows)


if __name__ == "__main__":
    main()
