"""The programs that embed_speed.py compares, all with one set of random ESM-2 weights, and how outputs are read."""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import protembed

PEERS = Path(__file__).parent / "peers"
PROGRAM = str(Path(sysconfig.get_path("scripts"), "protembed"))
SEED = 0

SIZES = {
    "8m": ("esm2_t6_8M_UR50D", 6, 320),
    "35m": ("esm2_t12_35M_UR50D", 12, 480),
    "150m": ("esm2_t30_150M_UR50D", 30, 640),
    "650m": ("esm2_t33_650M_UR50D", 33, 1280),
}
"""Name, layers and width of the published models."""

YARDSTICK = "fair-esm"
TORCH = ("float32", "bfloat16")
ONNX = {"float32": [], "int8": ["--quantize", "int8"]}
"""Of protembed: arithmetic under torch; that of ONNX files, and how they are exported."""

NAMES = (
    *(f"protembed-onnx-{kind}" for kind in ONNX),
    *(f"protembed-torch-{dtype}" for dtype in TORCH),
    YARDSTICK,
    "transformers-sorted",
    "transformers-file-order",
)

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program: its command line, what it writes, and how that is read: path, ids -> (N, D)."""

    name: str
    command: list[str]
    output: Path
    read: Callable[[Path, Sequence[str]], Array]


def make_weights(work: Path, size: str) -> Path:
    """Return the folder that holds both forms of the weights of a size; they are made once."""
    name, layers, width = SIZES[size]
    maker = PEERS / "make_weights.py"
    folder = work / f"{name}-seed{SEED}-{hashlib.sha256(maker.read_bytes()).hexdigest()[:8]}"
    if not folder.is_dir():
        print(f"making random weights of {name}", file=sys.stderr)
        half = folder.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        shape = ["--name", name, "--layers", str(layers), "--width", str(width), "--seed", str(SEED)]
        subprocess.run([sys.executable, str(maker), str(half), *shape], check=True)
        half.rename(folder)
    return folder


def export_weights(folder: Path, runs: Path) -> None:
    """Write the ONNX files of a model; anew for every benchmark, because they depend on the program."""
    for kind, options in ONNX.items():
        subprocess.run([PROGRAM, "export", str(folder), "-o", str(runs / f"{kind}.onnx"), *options], check=True)


def contenders(weights: Path, name: str, fasta: Path, runs: Path, threads: int) -> Iterator[Contender]:
    """Yield every contender, in the order of their turns; ONNX files are looked for in `runs`."""
    folder, file, common = str(weights / name), str(weights / f"{name}.pt"), ["--threads", str(threads)]
    models = {f"onnx-{kind}": ["-m", str(runs / f"{kind}.onnx"), "--backend", "onnx"] for kind in ONNX}
    models |= {f"torch-{dtype}": ["-m", folder, "--backend", "torch", "--dtype", dtype] for dtype in TORCH}
    for title, options in models.items():
        output = runs / f"{fasta.stem}-{title}.h5"
        command = [PROGRAM, "embed", str(fasta), "-o", str(output), *options, "--device", "cpu", *common]
        yield Contender(name=f"protembed-{title}", command=command, output=output, read=read_store)
    output = runs / f"{fasta.stem}-fair-esm"
    command = [sys.executable, str(PEERS / "fair_esm.py"), file, str(fasta), str(output), *common]
    yield Contender(name=YARDSTICK, command=command, output=output, read=read_folder)
    for order, title in (("sorted", "transformers-sorted"), ("file", "transformers-file-order")):
        output = runs / f"{fasta.stem}-{order}.npz"
        command = [sys.executable, str(PEERS / "transformers_padded.py"), folder, str(fasta), str(output)]
        yield Contender(name=title, command=[*command, "--order", order, *common], output=output, read=read_npz)


def read_store(path: Path, ids: Sequence[str]) -> Array:
    """Read what protembed wrote."""
    with protembed.open(path) as store:
        return np.stack([store[name] for name in ids])


def read_folder(path: Path, ids: Sequence[str]) -> Array:
    """Read what fair-esm wrote."""
    import torch

    means = [torch.load(path / f"{name}.pt")["mean_representations"] for name in ids]
    return np.stack([next(iter(layers.values())).numpy() for layers in means])


def read_npz(path: Path, ids: Sequence[str]) -> Array:
    """Read what transformers_padded.py wrote."""
    with np.load(path) as file:
        vectors = dict(zip(file["ids"].tolist(), file["embeddings"], strict=True))
    return np.stack([vectors[name] for name in ids])
