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
TORCH = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16")}
ONNX = {
    "cpu": {"float32": [], "int8": ["--quantize", "int8"]},
    "cuda": {"float16": ["--dtype", "float16", "--attention", "packed"]},
}
"""Of protembed, by device: arithmetic under torch; that of ONNX files, and how they are exported."""

ESM_CPP = {"float32": ("8m", "35m"), "int8": ("150m", "650m")}
"""Of esm-cpp: arithmetic, and the sizes its authors ship it for; elsewhere it runs when it is asked for."""


def names(device: str) -> list[str]:
    """Return who can take part on a device, the yardstick, too."""
    own = [f"protembed-onnx-{kind}" for kind in ONNX[device]] + [f"protembed-torch-{kind}" for kind in TORCH[device]]
    return [*own, YARDSTICK, "transformers-sorted", "transformers-file-order", *_esm_cpp(device)]


def _esm_cpp(device: str) -> list[str]:
    return [f"esm-cpp-{kind}" for kind in ESM_CPP] if device == "cpu" else []


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


def export_weights(folder: Path, runs: Path, device: str) -> None:
    """Write the ONNX files of a model; anew for every benchmark, because they depend on the program."""
    for kind, options in ONNX[device].items():
        subprocess.run([PROGRAM, "export", str(folder), "-o", str(runs / f"{kind}.onnx"), *options], check=True)


def usual_peers(size: str, device: str) -> list[str]:
    """Return who runs beside the yardstick at a size unless somebody else is asked for."""
    unusual = {f"esm-cpp-{kind}" for kind, sizes in ESM_CPP.items() if size not in sizes}
    return [name for name in names(device) if name != YARDSTICK and name not in unusual]


def admit_esm_cpp(
    python: str, folder: Path, runs: Path, kinds: Sequence[str], calibration: Path, threads: int
) -> dict[str, str]:
    """Write esm-cpp's files of a model; the first proteins of a FASTA file calibrate int8.

    Return its version and its kernels, {"esm-cpp": "0.2.1 (amx)"}: it has kernels for AVX-512 and ARM, and scalar code
    for everything else. Where the interpreter does not have it, say so on stderr and return nothing.
    """
    if not kinds:
        return {}
    question = "import esm_cpp; print(f'{esm_cpp.__version__} ({esm_cpp.current_isa()})')"
    answer = subprocess.run([python, "-P", "-c", question], capture_output=True, text=True)
    if answer.returncode:
        reason = answer.stderr.strip().rpartition("\n")[2]
        print(f"esm-cpp is left out: {python}: {reason} (see --esm-cpp-python)", file=sys.stderr)
        return {}
    for kind in kinds:
        files = [str(folder / "model.safetensors"), str(runs / f"esm-cpp-{kind}.gguf"), "--threads", str(threads)]
        options = {"float32": [], "int8": ["--calibration", str(calibration)]}[kind]
        subprocess.run([python, "-P", str(PEERS / "esm_cpp.py"), "convert", *files, *options], check=True)
    return {"esm-cpp": answer.stdout.strip()}


def contenders(
    weights: Path, name: str, fasta: Path, runs: Path, threads: int, esm_cpp_python: str, device: str
) -> Iterator[Contender]:
    """Yield every contender, in the order of their turns; ONNX files are looked for in `runs`.

    On a GPU fair-esm computes in float32, as extract.py does, and transformers in bfloat16.

    esm-cpp takes part with the files that admit_esm_cpp left there.
    """
    folder, file = str(weights / name), str(weights / f"{name}.pt")
    common, where = ["--threads", str(threads)], ["--device", device]
    models = {f"onnx-{kind}": ["-m", str(runs / f"{kind}.onnx"), "--backend", "onnx"] for kind in ONNX[device]}
    models |= {f"torch-{dtype}": ["-m", folder, "--backend", "torch", "--dtype", dtype] for dtype in TORCH[device]}
    for title, options in models.items():
        output = runs / f"{fasta.stem}-{title}.h5"
        command = [PROGRAM, "embed", str(fasta), "-o", str(output), *options, *where, *common]
        yield Contender(name=f"protembed-{title}", command=command, output=output, read=read_store)
    output = runs / f"{fasta.stem}-fair-esm"
    command = [sys.executable, str(PEERS / "fair_esm.py"), file, str(fasta), str(output), *where, *common]
    yield Contender(name=YARDSTICK, command=command, output=output, read=read_folder)
    for order, title in (("sorted", "transformers-sorted"), ("file", "transformers-file-order")):
        output = runs / f"{fasta.stem}-{order}.npz"
        command = [sys.executable, str(PEERS / "transformers_padded.py"), folder, str(fasta), str(output)]
        yield Contender(name=title, command=[*command, "--order", order, *where, *common], output=output, read=read_npz)
    for model in (runs / f"esm-cpp-{kind}.gguf" for kind in ESM_CPP):
        output = runs / f"{fasta.stem}-{model.stem}.npz"
        command = [esm_cpp_python, "-P", str(PEERS / "esm_cpp.py"), "embed", str(model), str(fasta), str(output)]
        if model.exists():
            yield Contender(name=model.stem, command=[*command, *common], output=output, read=read_npz)


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
    """Read what transformers_padded.py or esm_cpp.py wrote."""
    with np.load(path) as file:
        vectors = dict(zip(file["ids"].tolist(), file["embeddings"], strict=True))
    return np.stack([vectors[name] for name in ids])
