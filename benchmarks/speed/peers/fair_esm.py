"""Mean embeddings as fair-esm's scripts/extract.py makes them: batches sorted by length, one .pt a protein."""

import argparse
from argparse import Namespace
from pathlib import Path

import torch
from esm import FastaBatchedDataset, pretrained

TOKENS_PER_BATCH = 4096
"""The default of extract.py; it counts padding."""


@torch.inference_mode()
def extract(model_path: Path, fasta: Path, folder: Path, device: str) -> None:
    """Write one file a protein into `folder`; nothing is truncated (extract.py: 1,022 residues)."""
    torch.serialization.add_safe_globals([Namespace])  # torch.load has refused it since 2.6
    model, alphabet = pretrained.load_model_and_alphabet_local(model_path)
    model = model.eval().to(device)
    dataset = FastaBatchedDataset.from_file(fasta)
    loader = torch.utils.data.DataLoader(
        dataset,
        collate_fn=alphabet.get_batch_converter(),
        batch_sampler=dataset.get_batch_indices(TOKENS_PER_BATCH, extra_toks_per_seq=1),
    )
    layer = model.num_layers
    for labels, sequences, tokens in loader:
        hidden = model(tokens.to(device), repr_layers=[layer])["representations"][layer].cpu()  # (B, L, D)
        for label, sequence, row in zip(labels, sequences, hidden, strict=True):
            path = folder / f"{label}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            mean = row[1 : len(sequence) + 1].mean(0).clone()  # (D,)
            torch.save({"label": label, "mean_representations": {layer: mean}}, path)


def main() -> None:
    """Read the command line and extract."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help=".pt file")
    parser.add_argument("fasta", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    extract(options.model, options.fasta, options.folder, options.device)


if __name__ == "__main__":
    main()
