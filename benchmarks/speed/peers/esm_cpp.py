"""Mean embeddings with esm-cpp, a C++ engine for ESM-2 on CPUs, and the conversion of weights to its own format.

Run as `python -P`, because this folder would otherwise hide the package, which has the same name. Needs nothing but
esm-cpp and its numpy, so that it can run in an environment of its own: esm-cpp 0.2 asks for numpy below 2.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import esm_cpp
import numpy as np
import numpy.typing as npt
from esm_cpp.quantize import calibrate

ALPHA = 0.5
"""Of SmoothQuant; the default of esm-cpp-quantize."""

CALIBRATION_PROTEINS = 8
"""They set how weights are scaled, not how fast they run; esm-cpp-quantize takes a whole file."""


def read_fasta(path: Path) -> tuple[list[str], list[str]]:
    """Return ids (first words of the headers) and sequences."""
    ids: list[str] = []
    sequences: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith(">"):
            ids.append(line[1:].split()[0])
            sequences.append("")
        else:
            sequences[-1] += line.strip()
    return ids, sequences


def convert(source: Path, target: Path, calibration: Path | None) -> None:
    """Write a transformers model.safetensors as GGUF: float32, or with calibration proteins int8.

    What esm-cpp-convert and esm-cpp-quantize do; the latter finds nothing but published models in the hub's cache.
    """
    model = esm_cpp.Model.load_from_safetensors(str(source))
    if calibration:
        _, sequences = read_fasta(calibration)
        statistics = calibrate(model, esm_cpp.Tokenizer(), sequences[:CALIBRATION_PROTEINS])
        model.apply_smoothquant(statistics, ALPHA)
        model.quantize_weights()
    model.save_to_gguf(str(target))


def embed(path: Path, sequences: list[str]) -> npt.NDArray[Any]:
    """Return the mean over residues of the last hidden state, (N, D), in the order of `sequences`.

    One protein a call: what esm-cpp packs (`forward_scheduled`) comes back as logits only. On one thread both take the
    same time.
    """
    model, tokenizer = esm_cpp.Model.load_from_gguf(str(path)), esm_cpp.Tokenizer()
    means = np.empty((len(sequences), model.config.hidden_size), dtype=np.float32)
    for index, sequence in enumerate(sequences):
        tokens = np.asarray(tokenizer.encode(sequence, truncate=False), dtype=np.int32)
        _, hidden = model.forward_with_hidden_states(tokens)  # of every layer: (L, D)
        means[index] = hidden[-1][1:-1].mean(0)
    return means


def main() -> None:
    """Read the command line; convert, or embed and write one .npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert", help="once for each model")
    converting.add_argument("source", type=Path, help="model.safetensors of a transformers folder")
    converting.add_argument("target", type=Path, help=".gguf file")
    converting.add_argument("--calibration", type=Path, help="FASTA file; makes it int8")
    embedding = commands.add_parser("embed")
    embedding.add_argument("model", type=Path, help=".gguf file")
    embedding.add_argument("fasta", type=Path)
    embedding.add_argument("out", type=Path, help=".npz file")
    for command in (converting, embedding):
        command.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["ESM_NUM_THREADS"] = str(options.threads)  # read once, when the first model is loaded
    if options.command == "convert":
        convert(options.source, options.target, options.calibration)
        return
    ids, sequences = read_fasta(options.fasta)
    np.savez(options.out, ids=np.array(ids), embeddings=embed(options.model, sequences))


if __name__ == "__main__":
    main()
