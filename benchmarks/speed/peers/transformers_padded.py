"""Mean embeddings with transformers, in the two ways people write: sorted under a token budget, or eight at a time."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from Bio.SeqIO.FastaIO import SimpleFastaParser
from transformers import AutoTokenizer, EsmModel, logging

TOKENS_PER_BATCH = 4096
"""Of `--order sorted`; counts padding, as fair-esm does."""

PROTEINS_PER_BATCH = 8
"""Of `--order file`."""


def sorted_batches(sequences: list[str]) -> Iterator[list[int]]:
    """Yield batches of indices, short proteins first, with at most TOKENS_PER_BATCH tokens (one protein at least)."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        if batch and (len(batch) + 1) * (len(sequences[index]) + 2) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def file_batches(sequences: list[str]) -> Iterator[list[int]]:
    """Yield batches of indices in the order of the file."""
    for start in range(0, len(sequences), PROTEINS_PER_BATCH):
        yield list(range(start, min(start + PROTEINS_PER_BATCH, len(sequences))))


@torch.inference_mode()
def embed(folder: Path, sequences: list[str], batches: Iterator[list[int]], device: str) -> npt.NDArray[Any]:
    """Return the mean over residues of the last hidden state, (N, D), in the order of `sequences`.

    In float32 on a CPU, in bfloat16 on a GPU.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (
        EsmModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=dtype)
        .to(device)
        .eval()
    )
    means = np.empty((len(sequences), model.config.hidden_size), dtype=np.float32)
    for batch in batches:
        inputs = tokenizer([sequences[index] for index in batch], padding=True, return_tensors="pt").to(device)
        hidden = model(**inputs).last_hidden_state.float().cpu()  # (B, L, D)
        for index, row in zip(batch, hidden, strict=True):
            means[index] = row[1 : len(sequences[index]) + 1].mean(0).numpy()
    return means


def main() -> None:
    """Read the command line, embed, write one .npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a transformers model")
    parser.add_argument("fasta", type=Path)
    parser.add_argument("out", type=Path, help=".npz file")
    parser.add_argument("--order", choices=["sorted", "file"], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with options.fasta.open() as handle:
        ids, sequences = zip(*SimpleFastaParser(handle), strict=True)
    batches = {"sorted": sorted_batches, "file": file_batches}[options.order]
    means = embed(options.model, list(sequences), batches(list(sequences)), options.device)
    np.savez(options.out, ids=np.array(ids), embeddings=means)


if __name__ == "__main__":
    main()
