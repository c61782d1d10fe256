"""protembed check and merge: HDF5 files that embed wrote."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console
from protembed.cli.options import Overwrite


@app.command()
def check(
    output: Annotated[Path, typer.Argument(help="An HDF5 file that embed wrote.")],
    inputs: Annotated[list[str], typer.Option("--input", help="The FASTA files it was made from, in order.")],
    key: Annotated[Literal["id", "md5", "biotrainer"], typer.Option(help="Names in the HDF5 file.")] = "id",
) -> None:
    """Check that every record is in an output, once, finite and of the right length."""
    from protembed.outputs.verify import check_output
    from protembed.sequences.spool import input_files

    with input_files(inputs) as paths:
        found = check_output(output, paths, key)
    Console().say(f"{output}: {found:,} records, complete")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="The HDF5 file to write.")],
    shards: Annotated[list[Path], typer.Argument(help="The files of all shards, in any order.")],
    overwrite: Overwrite = False,
) -> None:
    """Put the outputs of --shard runs together, in the order of the input."""
    from protembed.outputs.verify import merge_shards

    found = merge_shards(out, shards, overwrite=overwrite)
    Console().say(f"{out}: {found:,} records from {len(shards)} files")
