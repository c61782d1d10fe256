"""Peak memory while models are loaded, as a multiple of their weights, and a protein embedded with 3e9 weights.

Every row is a fresh process. Its peak is what the system counted (ru_maxrss of wait4, file maps included), less that
of a process that only imports torch. The checkpoints have random weights (see random_weights.py); 650m takes 8 GB of
disk while it runs, 3b 12 GB of disk and 6 GB of memory:

    python benchmarks/memory/memory.py --size 650m
    python benchmarks/memory/memory.py --size 3b
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MAKER = Path(__file__).parent / "random_weights.py"
GB = 1e9

LOAD = """
import sys
from protembed.backends.load import ModelOptions, open_model
model = open_model(ModelOptions(model=sys.argv[1], device="cpu", dtype=sys.argv[2], threads=1))
print(sum(tensor.nbytes for tensor in model.state_dict().values()))
"""

EMBED = """
import sys, time
import protembed
model = protembed.load(sys.argv[1], device="cpu", dtype=sys.argv[2], threads=1)
began = time.perf_counter()
rows = model.embed_residues([("MKTAYIAKQR" * 10)])[0]
assert len(rows) == 100
print(time.perf_counter() - began)
"""

CASES = {
    "650m": [
        ("hugging_face", "Hugging Face, float32", ("float32", "bfloat16")),
        ("fair.pt", "fair-esm .pt, float32", ("float32", "bfloat16")),
        ("native.safetensors", "native, float32", ("float32", "bfloat16")),
    ],
    "3b": [
        ("megatron", "Megatron .pt, float16", ("bfloat16",)),
        ("native.safetensors", "native, bfloat16", ("bfloat16",)),
    ],
}
"""Of every size: file, its form, and what it is loaded in; the native file is made of the first one."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process took, and what it printed."""

    peak: int
    seconds: float
    said: str


def measure(*words: str) -> Usage:
    """Run Python in a fresh process. This one stays small: a child's peak is never below its parent's at its start."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode()
    if process.returncode:
        raise SystemExit(f"{words[0]} failed with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return Usage(peak=usage.ru_maxrss * unit, seconds=time.perf_counter() - began, said=said)


def measure_loading(folder: Path, size: str, base: int) -> tuple[list[list[str]], int]:
    """Load every file of a size; return the rows of the table, and the bytes of the last one's weights."""
    rows, weights = [], 0
    for name, form, dtypes in CASES[size]:
        for dtype in dtypes:
            usage = measure("-c", LOAD, str(folder / name), dtype)
            peak, weights = usage.peak - base, int(usage.said)
            figures = [f"{weights / GB:.2f}", f"{peak / GB:.2f}", f"{peak / weights:.3f}", f"{usage.seconds:.0f}"]
            rows.append([form, dtype, *figures])
            print("\t".join(rows[-1]), file=sys.stderr)
    return rows, weights


def measure_embedding(folder: Path, base: int, weights: int) -> list[str]:
    """Embed one protein of 100 residues in bfloat16, loading included."""
    usage = measure("-c", EMBED, str(folder / "native.safetensors"), "bfloat16")
    peak = usage.peak - base
    form = f"native, and 100 residues in {float(usage.said):.1f} s"
    figures = [f"{weights / GB:.2f}", f"{peak / GB:.2f}", f"{peak / weights:.3f}", f"{usage.seconds:.0f}"]
    return [form, "bfloat16", *figures]


def table(rows: list[list[str]]) -> str:
    """Draw the results in Markdown."""
    lines = ["| file | loaded in | weights GB | peak GB | peak / weights | seconds |", "|---|---|" + "---:|" * 4]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    """Make the checkpoints, load them, print the table; nothing of them stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CASES, required=True, help="ESM-2 650M, or ProteinLM of 3e9 weights")
    parser.add_argument("--work", type=Path, default=None, help="where the checkpoints are kept meanwhile")
    options = parser.parse_args()
    base = measure("-c", "import torch").peak
    with tempfile.TemporaryDirectory(prefix="protembed-memory-", dir=options.work) as name:
        folder = Path(name)
        measure(str(MAKER), name, "--size", options.size)
        first, _, dtypes = CASES[options.size][0]
        native = str(folder / "native.safetensors")
        convert = ["-m", "protembed", "convert", str(folder / first), "-o", native, "--dtype", dtypes[0]]
        converted = measure(*convert)
        rows, weights = measure_loading(folder, options.size, base)
        if options.size == "3b":
            rows.append(measure_embedding(folder, base, weights))
    print(f"a process that only imports torch: {base / GB:.2f} GB, taken off every peak")
    print(f"converting to native: peak {(converted.peak - base) / GB:.2f} GB, {converted.seconds:.0f} s", end="\n\n")
    print(table(rows))


if __name__ == "__main__":
    main()
