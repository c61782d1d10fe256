"""Speed of the whole program, FASTA to embeddings on disk, beside fair-esm, transformers and esm-cpp on a CPU.

Every contender is a fresh process; they take turns (A B C D E, A B C D E, ...) on one FASTA with the same random ESM-2
weights. What is measured is the process as the system accounts for it, start-up included: CPU-seconds (user and
system), wall time, peak memory. A cold start is the wall time of a process that embeds one protein of 100 residues.
Medians over the rounds; ratios are taken within a round. Needs `pip install protembed[bench]` and an otherwise idle
machine:

    python benchmarks/speed/embed_speed.py --fasta uniprot_sprot.fasta.gz --size 150m --json embed_speed.json

`--device cuda` puts torch with fused attention over packed proteins beside onnxruntime's, fair-esm and transformers on
a GPU; the ratios are then of wall time.

esm-cpp asks for numpy below 2 and so lives in an environment of its own; without one it is left out:

    python3 -m venv esm-cpp && esm-cpp/bin/pip install "esm-cpp>=0.2"
    python benchmarks/speed/embed_speed.py --fasta uniprot_sprot.fasta.gz --esm-cpp-python esm-cpp/bin/python
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
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    ESM_CPP,
    SEED,
    SIZES,
    YARDSTICK,
    Array,
    Contender,
    admit_esm_cpp,
    contenders,
    export_weights,
    make_weights,
    names,
    usual_peers,
)

from protembed.sequences.records import Record, read_fasta

LENGTHS = range(30, 2001)
"""Proteins of these lengths are drawn: no contender truncates or cuts them."""

LETTERS = frozenset("ACDEFGHIKLMNPQRSTVWYXBZUO")
"""What every contender's alphabet holds."""

COLD = 100
"""Residues of the protein of a cold start."""


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


def measure(contender: Contender, threads: int, device: str) -> Usage:
    """Run a contender in a fresh process, without its earlier output; raise SystemExit with its last words."""
    shutil.rmtree(contender.output, ignore_errors=True)
    if contender.output.exists():
        contender.output.unlink()
    count = str(threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1",
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
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
    packages = ("protembed", "fair-esm", "transformers", "torch", "onnxruntime", "numpy")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def write_fasta(path: Path, records: Sequence[Record]) -> Path:
    """Write records in two lines each; return the path."""
    path.write_text("".join(f">{record.id}\n{record.sequence}\n" for record in records))
    return path


def take_turns(everyone: Sequence[Contender], n_rounds: int, threads: int, device: str) -> dict[str, list[Usage]]:
    """Run every contender once a round; return what each took, round by round."""
    rounds: dict[str, list[Usage]] = {}
    for number in range(n_rounds):
        for contender in everyone:
            usage = measure(contender, threads, device)
            rounds.setdefault(contender.name, []).append(usage)
            progress = f"{usage.cpu_s:.2f} CPU-s, {usage.wall_s:.2f} s, {usage.peak_mb:,.0f} MB"
            print(f"round {number + 1} of {n_rounds}, {contender.name}: {progress}", file=sys.stderr)
    return rounds


def summarise(
    name: str, rounds: dict[str, list[Usage]], cold: dict[str, list[Usage]], residues: int, agreement: Agreement
) -> dict[str, Any]:
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
        "cold_start_s": statistics.median(usage.wall_s for usage in cold[name]),
        **asdict(agreement),
        "rounds": [asdict(usage) for usage in own],
        "cold_rounds": [asdict(usage) for usage in cold[name]],
    }


def table(rows: Sequence[dict[str, Any]], device: str) -> str:
    """Draw the results in Markdown; ratios are of CPU-seconds, or of wall time where a GPU computes."""
    clock = "CPU" if device == "cpu" else "wall"
    columns = ("CPU-s", "wall-s", "residues/s", f"x fair-esm ({clock})", "peak MB", "cold start s")
    head = f"| contender | {' | '.join(columns)} | max abs diff | 1 - min cosine |"
    lines = [head, "|---|" + "---:|" * 8]
    for row in rows:
        apart = ["-", "-"]
        if row["name"] != YARDSTICK:
            apart = [f"{row['largest_difference']:.1e}", f"{abs(1 - row['smallest_cosine']):.1e}"]
        cells = [
            row["name"],
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            f"{row['residues_per_s']:,.0f}",
            f"{row[f'times_{clock.lower()}']:.2f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['cold_start_s']:.2f}",
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    others = [name for name in dict.fromkeys(names("cpu") + names("cuda")) if name != YARDSTICK]
    peers = f"beside {YARDSTICK} (all; esm-cpp in the arithmetic that its authors ship for the size)"
    parser.add_argument("--peers", nargs="+", choices=others, help=peers)
    python = "interpreter of an environment with esm-cpp (this one)"
    parser.add_argument("--esm-cpp-python", default=sys.executable, help=python)
    default = Path(tempfile.gettempdir(), "protembed-embed-speed")
    parser.add_argument("--work", type=Path, default=default, help="weights stay here for the next run (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every number here, too")
    options = parser.parse_args()
    if min(options.threads, options.rounds, options.proteins - 1) < 1:
        parser.error("--threads and --rounds must be at least 1, --proteins at least 2")
    if not shutil.which(options.esm_cpp_python):
        parser.error(f"--esm-cpp-python: {options.esm_cpp_python} is no program")
    options.peers = options.peers or usual_peers(options.size, options.device)
    if absent := set(options.peers) - set(names(options.device)):
        parser.error(f"--peers: not on {options.device}: {', '.join(sorted(absent))}")
    return options


def _length(record: Record) -> int:
    return len(record.sequence)


def main() -> None:
    """Draw the sample, let the contenders take turns, print the table."""
    options = parse_options()
    host, records = machine(), draw(options.fasta, options.proteins)
    sample, ids = describe(records), [record.id for record in records]
    weights = make_weights(options.work, options.size)
    name, work = SIZES[options.size][0], tempfile.TemporaryDirectory(prefix="runs-", dir=options.work)
    with work as folder:
        runs, chosen = Path(folder), {YARDSTICK, *options.peers}
        export_weights(weights / name, runs, options.device)
        proteins = {"sample": records, "one": [Record("one", max(records, key=_length).sequence[:COLD])]}
        fastas = {title: write_fasta(runs / f"{title}.fasta", drawn) for title, drawn in proteins.items()}
        python, kinds = options.esm_cpp_python, [kind for kind in ESM_CPP if f"esm-cpp-{kind}" in chosen]
        host["versions"] |= admit_esm_cpp(python, weights / name, runs, kinds, fastas["sample"], options.threads)
        usages, vectors = {}, {}
        for title, fasta in fastas.items():
            present = contenders(weights, name, fasta, runs, options.threads, python, options.device)
            everyone = [one for one in present if one.name in chosen]
            usages[title] = take_turns(everyone, options.rounds, options.threads, options.device)
            if title == "sample":
                vectors = {one.name: one.read(one.output, ids) for one in everyone}
    rows = [
        summarise(name, usages["sample"], usages["one"], sample["residues"], compare(own, vectors[YARDSTICK]))
        for name, own in vectors.items()
    ]
    told = {name: getattr(options, name) for name in ("size", "threads", "device", "rounds")}
    settings = {**told, "seed": SEED}
    print("{proteins} proteins, {residues:,} residues; lengths {shortest} to {longest:,}, ".format(**sample), end="")
    print("median {median:.0f}, mean {mean:.0f} (all of Swiss-Prot: 294 and 361)".format(**sample))
    print(
        f"ESM-2 {options.size.upper()} with random weights, {options.threads} threads, {options.rounds} rounds; ",
        end="",
    )
    print(f"{host['cpu']}, load {host['load_at_start']} before")
    print(", ".join(f"{name} {number}" for name, number in host["versions"].items()), end="\n\n")
    print(table(rows, options.device))
    if options.json:
        results = {"machine": host, "settings": settings, "sample": sample, "contenders": rows}
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
