"""Training on a borrowed GPU without network: what goes there, what runs there, what comes back.

A borrowed machine takes files up to a size, runs for minutes at a time, and gives small files back. It needs Python
with numpy, torch, safetensors, typer and rich, and this repository (where it is not installed: export PYTHONPATH=. in
its root); no other data and no Biopython.

    here    protembed prepare uniclust50.fasta.xz uniclust90_rest.fasta.xz --valid valid.fasta.xz -o corpus
    here    python benchmarks/gpu_train.py pack corpus sent --limit 59
    there   python benchmarks/gpu_train.py unpack sent corpus
    there   python benchmarks/gpu_train.py train configs/protembed-bundled.toml --corpus corpus --minutes 9
    there   python benchmarks/gpu_train.py evaluate runs/bundled --corpus corpus
    there   python benchmarks/gpu_train.py shards runs/bundled back --limit 15
    here    python benchmarks/gpu_train.py join back model.safetensors

`train` may be called again and again: it goes on from the newest checkpoint, and tells the run to save and end when its
minutes are over. On another machine, later: `--set train.start_from=model.safetensors`.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import packed_corpus
import slices
import torch

from protembed.backends.torch_backend import choose_device
from protembed.checkpoints import native as checkpoint
from protembed.cli.console import Console, show_error
from protembed.errors import OutputError, ProtembedError, TrainingError
from protembed.sequences.alphabet import PROTEMBED
from protembed.training.checkpoints import list_checkpoints
from protembed.training.corpus.corpus import open_corpus
from protembed.training.pretrain.config import load_config
from protembed.training.pretrain.perplexity import perplexity, protein_losses

MEGABYTE = 1_000_000
MEBIBYTE = 1 << 20
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
GRACE = 90.0  # seconds that a run may take to save


def pack(corpus: Path, folder: Path, *, limit: int) -> list[Path]:
    """Pack a corpus into slices of at most `limit` bytes."""
    total = sum(
        store.residues for store in (open_corpus(corpus, PROTEMBED).train, open_corpus(corpus, PROTEMBED).valid)
    )
    with tempfile.TemporaryDirectory(dir=corpus.parent) as room, Console().meter(total, "residues") as meter:
        packed = Path(room, "corpus.xz")
        for written in packed_corpus.pack(corpus, packed, PROTEMBED):
            meter.update(written)
        return slices.cut(packed, folder, limit=limit)


def unpack(folder: Path, corpus: Path) -> str:
    """Make a corpus of its slices, and say what it holds."""
    corpus.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=corpus.parent) as room:
        packed = Path(room, "corpus.xz")
        slices.join(folder, packed)
        made = packed_corpus.unpack(packed, corpus, PROTEMBED)
    clusters = len(made.train.clusters) - 1
    return (
        f"{corpus}: {len(made.train):,} proteins in {clusters:,} clusters, {made.train.residues:,} residues; "
        f"{len(made.valid):,} to validate"
    )


def train(config: Path, corpus: Path, settings: Sequence[str], *, seconds: float) -> str:
    """Run `protembed pretrain` until it is done or the time is over; then it saves and ends.

    Raises TrainingError when the run failed, or did not end in time.
    """
    settings = [f"data.corpus={json.dumps(str(corpus))}", "data.train=[]", "data.valid=[]", *settings]
    words = [word for setting in settings for word in ("--set", setting)]
    run = Path(load_config(config, settings).train.out)
    process = subprocess.Popen([sys.executable, "-m", "protembed", "pretrain", "--config", str(config), *words])
    stopped = False
    try:
        status = process.wait(max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        stopped = True
        try:
            status = process.wait(GRACE)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise TrainingError(f"{run}: the run did not save within {GRACE:.0f} s, and was killed") from error
    found = list_checkpoints(run)
    if (status != 0 and not stopped) or not found:
        raise TrainingError(f"{run}: the run ended with status {status}")
    return f"{run}: {'stopped and saved' if stopped else 'done'}, {found[-1].name}"


def newest(run: Path) -> Path:
    """Return the weights of a run: its result, or its newest checkpoint, or the file itself."""
    if run.is_file():
        return run
    choices = [run / "model.safetensors", *(folder / "model.safetensors" for folder in list_checkpoints(run)[::-1])]
    for path in choices:
        if path.is_file():
            return path
    raise TrainingError(f"{run}: holds no weights", hint="Is it the folder that [train] out names?")


def evaluate(run: Path, corpus: Path, *, proteins: int | None, device: str) -> dict[str, float]:
    """Return the masked perplexity on the validation split, every residue hidden once, and how many there were."""
    model = checkpoint.load(newest(run), device=choose_device(device), dtype=torch.float32)
    valid = open_corpus(corpus, PROTEMBED).valid
    number = min(len(valid), proteins or len(valid))
    losses = list(protein_losses(model, [PROTEMBED.surround(valid[index][:1022]) for index in range(number)]))
    return {"perplexity": perplexity(losses), "proteins": number, "residues": sum(loss.count for loss in losses)}


def shards(run: Path, folder: Path, *, limit: int, dtype: torch.dtype) -> list[Path]:
    """Write the weights of a run in half precision as a native checkpoint, cut into slices."""
    with tempfile.TemporaryDirectory() as room:
        whole = Path(room, "model.safetensors")
        model = checkpoint.load(newest(run), device=torch.device("cpu"))
        checkpoint.save(model, whole, dtype=dtype)
        return slices.cut(whole, folder, limit=limit)


def join(folder: Path, target: Path) -> str:
    """Put shards together, and load the checkpoint to see that it is whole."""
    if target.suffix != ".safetensors":
        raise OutputError(f"{target}: a native checkpoint ends in .safetensors")
    temporary = target.with_name(f".joining-{target.name}")
    slices.join(folder, temporary)
    try:
        model = checkpoint.load(temporary, device=torch.device("cpu"))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{target}: {model.card.name}, {checkpoint.count_parameters(target):,} parameters, verified"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    paths = {
        "pack": ("corpus", "folder"),
        "unpack": ("folder", "corpus"),
        "train": ("config",),
        "evaluate": ("run",),
        "shards": ("run", "folder"),
        "join": ("folder", "target"),
    }
    made = {verb: verbs.add_parser(verb) for verb in paths}
    for verb, names in paths.items():
        for name in names:
            made[verb].add_argument(name, type=Path)
    made["pack"].add_argument("--limit", type=float, default=59, help="megabytes a slice")
    made["train"].add_argument("--minutes", type=float, default=9, help="from start to end, saving included")
    made["train"].add_argument("--set", dest="settings", action="append", default=[], help="section.key=value")
    made["evaluate"].add_argument("--proteins", type=int, default=None, help="only the first ones")
    made["evaluate"].add_argument("--device", default="auto")
    made["evaluate"].add_argument("--json", type=Path, default=None)
    made["shards"].add_argument("--limit", type=float, default=15, help="MiB a shard")
    made["shards"].add_argument("--dtype", choices=list(DTYPES), default="float16")
    for verb in ("train", "evaluate"):
        made[verb].add_argument("--corpus", type=Path, required=True)
    return parser.parse_args()


def carry_out(options: argparse.Namespace) -> str:
    """Do what the command line says, and return what was done."""
    match options.verb:
        case "pack":
            files = pack(options.corpus, options.folder, limit=int(options.limit * MEGABYTE))
        case "shards":
            limit = int(options.limit * MEBIBYTE)
            files = shards(options.run, options.folder, limit=limit, dtype=DTYPES[options.dtype])
        case "unpack":
            return unpack(options.folder, options.corpus)
        case "train":
            return train(options.config, options.corpus, options.settings, seconds=60 * options.minutes)
        case "evaluate":
            scored = evaluate(options.run, options.corpus, proteins=options.proteins, device=options.device)
            if options.json:
                options.json.write_text(json.dumps(scored, indent=1))
            return f"perplexity {scored['perplexity']:.4f} on {scored['residues']:,} residues"
        case _:
            return join(options.folder, options.target)
    return "\n".join(f"{path}: {path.stat().st_size:,} bytes" for path in files)


def main() -> None:
    options, began = parse(), time.monotonic()
    try:
        print(carry_out(options), flush=True)
    except ProtembedError as error:
        show_error(error)
        sys.exit(error.exit_status)
    Console().say(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
