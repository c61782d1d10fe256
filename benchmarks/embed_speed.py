"""Speed of the whole program, FASTA to embeddings on disk, beside fair-esm and transformers on a CPU.

Every contender is a fresh process; they take turns (A B C D E, A B C D E, ...) on one FASTA with the same random ESM-2
weights. What is measured is the process as the system accounts for it, start-up included: CPU-seconds (user and
system), wall time, peak memory. Medians over the rounds; ratios are taken within a round. Needs `pip install
protembed[bench]` and an otherwise idle machine:

    python benchmarks/embed_speed.py --fasta uniprot_sprot.fasta.gz --size 150m --json embed_speed.json
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import protembed
from protembed.records import Record, read_fasta

PEERS = Path(__file__).parent / "peers"
SEED = 0
LENGTHS = range(30, 2001)
"""Proteins of these lengths are drawn: no contender truncates or cuts them."""

LETTERS = frozenset("ACDEFGHIKLMNPQRSTVWYXBZUO")
"""What every contender's alphabet holds."""

SIZES = {
    "8m": ("esm2_t6_8M_UR50D", 6, 320),
    "35m": ("esm2_t12_35M_UR50D", 12, 480),
    "150m": ("esm2_t30_150M_UR50D", 30, 640),
    "650m": ("esm2_t33_650M_UR50D", 33, 1280),
}
"""Name, layers and width of the published models."""

YARDSTICK = "fair-esm"
NAMES = ("protembed-float32", "protembed-bfloat16", YARDSTICK, "transformers-sorted", "transformers-file-order")

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program: its command line, what it writes, and how that is read: path, ids -> (N, D)."""

    name: str
    command: list[str]
    output: Path
    read: Callable[[Path, Sequence[str]], Array]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one process took."""

    cpu_s: float
    wall_s: float
    peak_mb: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far embeddings are from the yardstick's, at the worst protein."""

    largest_difference: float
    smallest_cosine: float


def draw(fasta: Path, count: int) -> list[Record]:
    """Draw `count` records with a fixed seed among those that all contenders take whole, in the order of the file.

    Reservoir sampling, for a small parent: the peak memory of a child is never below its parent's at its start.
    """
    chance = random.Random(SEED)
    kept: list[tuple[int, Record]] = []
    fit = (record for record in read_fasta([fasta]) if len(record.sequence) in LENGTHS)
    for seen, record in enumerate(record for record in fit if LETTERS.issuperset(record.sequence)):
        if seen < count:
            kept.append((seen, record))
        elif (place := chance.randrange(seen + 1)) < count:
            kept[place] = (seen, record)
    if len(kept) < count:
        raise SystemExit(f"{fasta.name} has {len(kept)} proteins of {LENGTHS[0]} to {LENGTHS[-1]:,} residues")
    records = [record for _, record in sorted(kept, key=lambda item: item[0])]
    if len({record.id for record in records}) < count:
        raise SystemExit(f"{fasta.name} has records with the same id")
    return records


def describe(records: Sequence[Record]) -> dict[str, Any]:
    """Return the statistics of a sample, and a digest that tells whether another run had the same one."""
    lengths = [len(record.sequence) for record in records]
    return {
        "proteins": len(lengths),
        "residues": sum(lengths),
        "shortest": min(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "longest": max(lengths),
        "sha256": hashlib.sha256("\n".join(record.sequence for record in records).encode()).hexdigest(),
    }


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


def contenders(weights: Path, name: str, fasta: Path, runs: Path, threads: int) -> Iterator[Contender]:
    """Yield every contender, in the order of their turns."""
    folder, file, common = str(weights / name), str(weights / f"{name}.pt"), ["--threads", str(threads)]
    program = str(Path(sysconfig.get_path("scripts"), "protembed"))
    for dtype in ("float32", "bfloat16"):
        output = runs / f"{dtype}.h5"
        options = ["-m", folder, "-o", str(output), "--dtype", dtype, "--device", "cpu", *common]
        command = [program, "embed", str(fasta), *options]
        yield Contender(name=f"protembed-{dtype}", command=command, output=output, read=read_store)
    output = runs / "fair-esm"
    command = [sys.executable, str(PEERS / "fair_esm.py"), file, str(fasta), str(output), *common]
    yield Contender(name=YARDSTICK, command=command, output=output, read=read_folder)
    for order, title in (("sorted", "transformers-sorted"), ("file", "transformers-file-order")):
        output = runs / f"{order}.npz"
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


def measure(contender: Contender, threads: int) -> Usage:
    """Run a contender in a fresh process, without its earlier output; raise SystemExit with its last words."""
    shutil.rmtree(contender.output, ignore_errors=True)
    if contender.output.exists():
        contender.output.unlink()
    count = str(threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    log = contender.output.with_suffix(".log")
    with log.open("wb") as words:
        began = time.perf_counter()
        process = subprocess.Popen(contender.command, env=environment, stdout=words, stderr=words)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise SystemExit(f"{contender.name} failed with status {process.returncode}:\n{last}")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return Usage(cpu_s=usage.ru_utime + usage.ru_stime, wall_s=wall, peak_mb=usage.ru_maxrss * unit / 1e6)


def compare(own: Array, reference: Array) -> Agreement:
    """Compare (N, D) embeddings; cosines are taken from the reference's mean protein, else all would be near 1."""
    centre = reference.mean(axis=0)
    x, y = own.astype(np.float64) - centre, reference.astype(np.float64) - centre
    cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return Agreement(largest_difference=float(np.abs(x - y).max()), smallest_cosine=float(cosines.min()))


def machine() -> dict[str, Any]:
    """Return what the timings depend on beside the sample."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    packages = ("protembed", "fair-esm", "transformers", "torch", "numpy")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def summarise(name: str, rounds: dict[str, list[Usage]], residues: int, agreement: Agreement) -> dict[str, Any]:
    """Return the medians of a contender; its ratios to the yardstick are those of single rounds."""
    own, reference = rounds[name], rounds[YARDSTICK]
    wall = statistics.median(usage.wall_s for usage in own)
    return {
        "name": name,
        "cpu_s": statistics.median(usage.cpu_s for usage in own),
        "wall_s": wall,
        "residues_per_s": residues / wall,
        "times_cpu": statistics.median(b.cpu_s / a.cpu_s for a, b in zip(own, reference, strict=True)),
        "times_wall": statistics.median(b.wall_s / a.wall_s for a, b in zip(own, reference, strict=True)),
        "peak_mb": statistics.median(usage.peak_mb for usage in own),
        **asdict(agreement),
        "rounds": [asdict(usage) for usage in own],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the results in Markdown."""
    head = "| contender | CPU-s | wall-s | residues/s | x fair-esm (CPU) | peak MB | max abs diff | 1 - min cosine |"
    lines = [head, "|---|" + "---:|" * 7]
    for row in rows:
        apart = ["-", "-"]
        if row["name"] != YARDSTICK:
            apart = [f"{row['largest_difference']:.1e}", f"{abs(1 - row['smallest_cosine']):.1e}"]
        cells = [
            row["name"],
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            f"{row['residues_per_s']:,.0f}",
            f"{row['times_cpu']:.2f}",
            f"{row['peak_mb']:,.0f}",
            *apart,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, required=True, help="where proteins are drawn from; may be .gz or .xz")
    parser.add_argument("--proteins", type=int, default=512, help="how many are drawn (%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="8m", help="of ESM-2 (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of every contender (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    others = [name for name in NAMES if name != YARDSTICK]
    parser.add_argument("--peers", nargs="+", choices=others, default=others, help=f"beside {YARDSTICK} (all)")
    default = Path(tempfile.gettempdir(), "protembed-embed-speed")
    parser.add_argument("--work", type=Path, default=default, help="weights stay here for the next run (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here, too")
    options = parser.parse_args()
    if min(options.threads, options.rounds, options.proteins - 1) < 1:
        parser.error("--threads and --rounds must be at least 1, --proteins at least 2")
    return options


def main() -> None:
    """Draw the sample, let the contenders take turns, print the table."""
    options = parse_options()
    host, records = machine(), draw(options.fasta, options.proteins)
    sample, ids = describe(records), [record.id for record in records]
    weights = make_weights(options.work, options.size)
    rounds: dict[str, list[Usage]] = {}
    with tempfile.TemporaryDirectory(prefix="runs-", dir=options.work) as folder:
        fasta = Path(folder, "sample.fasta")
        fasta.write_text("".join(f">{record.id}\n{record.sequence}\n" for record in records))
        everyone = contenders(weights, SIZES[options.size][0], fasta, Path(folder), options.threads)
        chosen = [contender for contender in everyone if contender.name in {YARDSTICK, *options.peers}]
        for number in range(options.rounds):
            for contender in chosen:
                usage = measure(contender, options.threads)
                rounds.setdefault(contender.name, []).append(usage)
                progress = f"{usage.cpu_s:.2f} CPU-s, {usage.wall_s:.2f} s, {usage.peak_mb:,.0f} MB"
                print(f"round {number + 1} of {options.rounds}, {contender.name}: {progress}", file=sys.stderr)
        vectors = {contender.name: contender.read(contender.output, ids) for contender in chosen}
    rows = [summarise(name, rounds, sample["residues"], compare(vectors[name], vectors[YARDSTICK])) for name in vectors]
    settings = {"size": options.size, "threads": options.threads, "rounds": options.rounds, "seed": SEED}
    print("{proteins} proteins, {residues:,} residues; lengths {shortest} to {longest:,}, ".format(**sample), end="")
    print("median {median:.0f}, mean {mean:.0f} (all of Swiss-Prot: 294 and 361)".format(**sample))
    print(
        f"ESM-2 {options.size.upper()} with random weights, {options.threads} threads, {options.rounds} rounds; ",
        end="",
    )
    print(f"{host['cpu']}, load {host['load_at_start']} before")
    print(", ".join(f"{name} {number}" for name, number in host["versions"].items()), end="\n\n")
    print(table(rows))
    if options.json:
        results = {"machine": host, "settings": settings, "sample": sample, "contenders": rows}
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
