"""Options that several commands share, and what they have in common."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protembed.cli.console import Console
from protembed.interrupts import Interrupted

if TYPE_CHECKING:
    from protembed.inference.run import Run

Inputs = Annotated[list[str], typer.Argument(help="FASTA files (plain, gzip, xz, bzip2, zstd), - for standard input.")]
Unknown = Annotated[Literal["x", "error"], typer.Option(help="Letters that the model does not know, and inner stops.")]
Expect = Annotated[
    Literal["warn", "protein", "error"],
    typer.Option(help="DNA, RNA, three-letter codes: warn and count; protein (or error): refuse them."),
]
Empty = Annotated[Literal["error", "skip"], typer.Option(help="Records without residues; skip lists them as failed.")]
ModelName = Annotated[str, typer.Option("-m", "--model", help="A name that `protembed models` lists, or a path.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not download a model that is not there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Arithmetic.")]
Backend = Annotated[Literal["auto", "torch", "onnx"], typer.Option(help="Runtime.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1)]
Variant = Annotated[Literal["trained", "tape-port"] | None, typer.Option(help="Which function of a ProteinLM file.")]
CheckpointVersion = Annotated[float | None, typer.Option(help="Version of a Megatron file that does not say it.")]
Heads = Annotated[int | None, typer.Option("--n-heads", help="Attention heads of a file that does not say it.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output.")]
Duplicates = Annotated[Literal["error", "suffix", "first"], typer.Option(help="Two records with one id.")]
Key = Annotated[Literal["id", "md5", "biotrainer"], typer.Option(help="Names in the output.")]
ShardOf = Annotated[str, typer.Option("--shard", help="Do part I of N (I/N), or this array task's (slurm/N).")]
Resume = Annotated[bool, typer.Option(help="Go on with an output that is not complete.")]


def carry_out(run: "Run[Any]", console: Console) -> None:
    """Do a run, show how far it is, sum up; exit status 3 when records failed.

    Told to stop, it says on the way out what is kept and how to resume.
    """
    try:
        with console.meter(run.residues, "residues") as meter:
            for progress in run.run():
                meter.update(progress.residues)
    except Interrupted as stop:
        stop.kept = stop.kept or (f"{run.kept} (the same command with --resume)" if run.kept else "")
        raise
    for line in run.summary():
        console.say(line)
    raise typer.Exit(3 if run.failed else 0)


def told(variant: str | None, checkpoint_version: float | None, n_heads: int | None) -> dict[str, Any]:
    """Name what a user tells about a file that does not say it itself."""
    return {"variant": variant, "checkpoint_version": checkpoint_version, "n_heads": n_heads}
