"""Speed of pretraining: our packed step beside a padded step of transformers' EsmForMaskedLM.

Same shape (ESM-2), proteins, share of masks, optimizer (fused AdamW, clipping) and dtypes; weights are random. Ours
draws and packs proteins as `protembed pretrain` does, and its head sees masked residues only. Theirs is filled in the
order of the file, padded to its longest protein, labels -100 off the masks. A batch of either has room for the same
number of tokens, padding included. The contenders take turns step by step in one process (A B C D, A B C D, ...); the
clock runs from the host's arrays to the updated weights; on a CPU it counts the processor's seconds, which other work
on the machine disturbs less. Figures are residues a second, no padding and no special
tokens; medians over the rounds, ratios within a round. Needs `pip install protembed[bench]` and an idle machine:

    python benchmarks/speed/train_speed.py --fasta uniprot_sprot.fasta.gz --threads 2 --json train_speed.json
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import EsmConfig, EsmForMaskedLM

from protembed.cli.console import print_table
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED
from protembed.sequences.records import read_fasta
from protembed.training.corpus.packing import Cursor, Packing, TokenStore
from protembed.training.optimizer import build_optimizers
from protembed.training.pretrain.batches import Batch
from protembed.training.pretrain.config import MaskSection, ModelSection, TrainSection, make_card
from protembed.training.pretrain.masking import mask_tokens
from protembed.training.pretrain.objective import MaskedResidues

SEED = 0
MAX_RESIDUES = 1022
SIZES = {"tiny": (1, 40, 2), "8m": (6, 320, 20), "35m": (12, 480, 20), "150m": (30, 640, 20), "650m": (33, 1280, 20)}
"""Layers, width and heads of ESM-2's models; `tiny` is for a rehearsal."""

TRAIN = TrainSection(out="", steps=1, learning_rate=1e-4)
MASK = MaskSection()
SPECIALS = PROTEMBED.prefix + PROTEMBED.suffix

Tokens = npt.NDArray[np.int64]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch: how its loss is computed (forward pass included), and how many residues it has."""

    loss: Callable[[], Tensor]
    residues: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to train: its weights, its optimizer, and batches without end."""

    name: str
    precision: Precision
    module: nn.Module
    optimizers: Sequence[Optimizer]
    batches: Iterator[Work]

    def step(self, device: torch.device) -> float:
        """Update the weights once; return residues a second."""
        work = next(self.batches)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        began = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = work.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), TRAIN.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return work.residues / (clock() - began)


def packed(size: str, precision: Precision, store: TokenStore, budget: int, device: torch.device) -> Contender:
    """Train as `protembed pretrain` does."""
    layers, width, heads = SIZES[size]
    shape = ModelSection(name=size, d_model=width, n_layers=layers, n_heads=heads, d_ff=4 * width)
    model = ProteinModel(make_card(shape))
    model.initialise(SEED)
    module = MaskedResidues(model).to(device)
    packing = Packing(store=store, alphabet=PROTEMBED, batch_tokens=budget, max_residues=MAX_RESIDUES, seed=SEED)

    def batches() -> Iterator[Work]:
        rng = np.random.default_rng(SEED)
        for plan in packing.plan(Cursor()):
            proteins = packing.read(plan)
            question = mask_tokens(np.concatenate(proteins), PROTEMBED, MASK, rng)
            batch = Batch(lengths=[len(protein) for protein in proteins], question=question)
            residues = len(question.tokens) - SPECIALS * len(proteins)

            def loss(batch: Batch = batch) -> Tensor:
                return module(*batch.on(device)).mean()

            yield Work(loss=loss, residues=residues)

    return Contender(
        name=f"protembed-{precision}",
        precision=precision,
        module=module,
        optimizers=build_optimizers(module.named_parameters(), TRAIN),
        batches=batches(),
    )


def padded(size: str, precision: Precision, store: TokenStore, budget: int, device: torch.device) -> Contender:
    """Train as one would with transformers: the order of the file, padded rows, logits everywhere."""
    layers, width, heads = SIZES[size]
    config = EsmConfig(
        vocab_size=len(PROTEMBED),
        mask_token_id=PROTEMBED.mask_id,
        pad_token_id=PROTEMBED.ids[PROTEMBED.padding],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=MAX_RESIDUES + SPECIALS + 2,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        hidden_dropout_prob=0.0,  # as in the published configurations
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(SEED)
    module = EsmForMaskedLM(config).to(device).train()

    def batches() -> Iterator[Work]:
        rng = np.random.default_rng(SEED)
        for proteins in file_batches(store, budget):
            arrays = pad(proteins, rng)
            residues = sum(len(protein) - SPECIALS for protein in proteins)

            def loss(arrays: dict[str, Tokens] = arrays) -> Tensor:
                return module(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()}).loss

            yield Work(loss=loss, residues=residues)

    return Contender(
        name=f"transformers-{precision}",
        precision=precision,
        module=module,
        optimizers=[AdamW(module.parameters(), lr=TRAIN.learning_rate, betas=TRAIN.betas, fused=True)],
        batches=batches(),
    )


def file_batches(store: TokenStore, budget: int) -> Iterator[list[Tokens]]:
    """Yield proteins in the order of the file, again and again, as many as fit when padded to the longest."""
    batch: list[Tokens] = []
    for index in itertools.cycle(range(len(store))):
        protein = PROTEMBED.surround(store[index][:MAX_RESIDUES])
        longest = max(len(protein), *(len(other) for other in batch)) if batch else len(protein)
        if batch and (len(batch) + 1) * longest > budget:
            yield batch
            batch = []
        batch.append(protein)


def pad(proteins: Sequence[Tokens], rng: np.random.Generator) -> dict[str, Tokens]:
    """Hide residues and lay proteins in rows: input_ids, attention_mask and labels, each (B, L)."""
    shape = len(proteins), max(len(protein) for protein in proteins)
    tokens = np.full(shape, PROTEMBED.ids[PROTEMBED.padding])
    mask, labels = np.zeros(shape, np.int64), np.full(shape, -100)
    for row, protein in enumerate(proteins):
        question = mask_tokens(protein, PROTEMBED, MASK, rng)
        tokens[row, : len(protein)] = question.tokens
        mask[row, : len(protein)] = 1
        labels[row, question.places] = question.targets
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def read_store(fasta: Path, count: int) -> TokenStore:
    """Take the first proteins of a file."""
    sequences = (record.sequence for record in itertools.islice(read_fasta([fasta]), count))
    return TokenStore.of([PROTEMBED.encode(sequence)[1:-1].astype(np.uint8) for sequence in sequences])


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the timings depend on beside the data."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else model or platform.machine(),
        "cpus": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("protembed", "transformers", "torch", "numpy")},
    }


def summarise(rounds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the medians of every contender; ratios are to transformers in the same dtype, within single rounds."""
    rows = []
    for name, speeds in rounds.items():
        reference = rounds[f"transformers-{name.rpartition('-')[2]}"]
        ratio = statistics.median(own / other for own, other in zip(speeds, reference, strict=True))
        rows.append({"name": name, "residues_per_s": statistics.median(speeds), "times": ratio, "rounds": speeds})
    return rows


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, required=True, help="proteins; may be .gz or .xz")
    parser.add_argument("--proteins", type=int, default=2000, help="how many of them, from the first (%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="8m", help="of ESM-2 (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="room of a batch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every contender (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here, too")
    options = parser.parse_args()
    if min(options.rounds, options.threads, options.proteins) < 1 or options.batch_tokens < MAX_RESIDUES + SPECIALS:
        parser.error(f"counts must be at least 1, --batch-tokens at least {MAX_RESIDUES + SPECIALS}")
    return options


def main() -> None:
    """Read the proteins, let the contenders take turns, print the table."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    host, store = machine(device), read_store(options.fasta, options.proteins)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    contenders = [
        make(options.size, precision, store, options.batch_tokens, device)
        for precision in precisions
        for make in (packed, padded)
    ]
    rounds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-options.warmup, options.rounds):
        for contender in contenders:
            speed = contender.step(device)
            print(f"round {number + 1} of {options.rounds}, {contender.name}: {speed:,.0f} residues/s", file=sys.stderr)
            if number >= 0:
                rounds[contender.name].append(speed)
    rows = summarise(rounds)
    cells = [[row["name"], f"{row['residues_per_s']:,.0f}", f"{row['times']:.2f}"] for row in rows]
    title = f"ESM-2 {options.size.upper()}, {host['device']}, {options.threads} threads, {options.rounds} rounds"
    print_table(title, ["contender", "residues/s", "x transformers"], cells)
    if options.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        results = {"machine": host, "settings": settings | {"seed": SEED}, "contenders": rows}
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
