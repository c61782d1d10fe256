"""protembed check and merge: outputs of embed, contacts and predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console
from protembed.cli.options import CheckpointVersion, Device, Heads, Offline, Overwrite, Quiet, Threads, Variant, told

if TYPE_CHECKING:
    from protembed.backends.load import ModelOptions
    from protembed.outputs.check import Checked


@app.command()
def check(
    output: Annotated[Path, typer.Argument(help="An HDF5 file that embed, contacts or predict wrote.")],
    inputs: Annotated[list[str], typer.Option("--input", help="The FASTA files it was made from, in order.")],
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Check that it was made with this model, by name or path.")
    ] = None,
    recompute: Annotated[
        int, typer.Option(help="Compute so many records again, spread over the file, and compare.", min=0)
    ] = 0,
    head: Annotated[
        str | None, typer.Option(help="The head of a prediction to compute again, if it is not a bundled one.")
    ] = None,
    key: Annotated[
        Literal["id", "md5", "biotrainer"] | None, typer.Option(help="Names in the HDF5 file, if it does not say so.")
    ] = None,
    duplicates: Annotated[
        Literal["error", "suffix", "first"] | None,
        typer.Option(help="What was done with two records of one id, if the file does not say so."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Which part of the input (I/N), if the file does not say so.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    offline: Offline = False,
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Check an output: every record of the input, in order, with the values that were written.

    Exit status 0 if all is well, else 2 and the first record that is not.
    """
    from protembed.backends.load import ModelOptions
    from protembed.outputs.check import Told, check_output
    from protembed.sequences.shard import parse_shard
    from protembed.sequences.spool import input_files

    console = Console(quiet=quiet)
    part = parse_shard(shard) if shard else None
    with input_files(inputs) as paths:
        found = check_output(output, paths, Told(key=key, duplicates=duplicates, shard=part), sample=recompute)
    for line in found.lines():
        console.say(f"{output}: {line}")
    if recompute or model:
        hints = told(variant, checkpoint_version, n_heads)
        loading = ModelOptions(model=model or "", device=device, threads=threads, offline=offline, **hints)
        console.say(f"{output}: {_compare(found, loading, head)}")


def _compare(found: "Checked", loading: "ModelOptions", head: str | None) -> str:
    """Compare a checked file with the model that is named, or that it names; say what was found."""
    from dataclasses import replace

    from protembed.backends.load import open_backend
    from protembed.inference.recompute import loading_of, recompute

    name, dtype, backend = loading_of(found.origin)
    options = replace(loading, model=loading.model or name, dtype=dtype, backend=backend)
    result = recompute(found.origin, found.sample, open_backend(options), head=head)
    if not result.records:
        return f"made with {options.model}"
    return f"{result.records:,} records computed again are the same, to {result.difference:.1e} of their largest value"


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    shards: Annotated[list[Path], typer.Argument(help="The files of all shards, in any order.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Put the outputs of --shard runs together, in the order of the input, and their lists of failures.

    Exit status 3 when records failed, as it was for their shards.
    """
    from protembed.outputs.merge import merge_shards
    from protembed.outputs.target import failures_of

    found = merge_shards(out, shards, overwrite=overwrite)
    console = Console(quiet=quiet)
    console.say(f"{out}: {found.records:,} records from {len(shards)} files")
    if found.failed:
        console.say(f"{found.failed:,} records without a result, listed in {failures_of(out)}")
        raise typer.Exit(3)
