"""protembed embed and contacts: FASTA to HDF5."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table
from protembed.cli.options import (
    Backend,
    CheckpointVersion,
    Device,
    Dtype,
    Duplicates,
    Empty,
    Expect,
    Heads,
    Inputs,
    Key,
    ModelName,
    Offline,
    Overwrite,
    Quiet,
    Resume,
    ShardOf,
    Threads,
    Unknown,
    Variant,
    carry_out,
    told,
)
from protembed.models.config import DEFAULT_MODEL


@app.command()
def embed(
    inputs: Inputs,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="HDF5 file, one vector a protein.")] = None,
    residues: Annotated[Path | None, typer.Option(help="HDF5 file, one vector a residue.")] = None,
    model: ModelName = DEFAULT_MODEL,
    pool: Annotated[
        Literal["mean", "max", "cls", "mean+max"], typer.Option(help="From residues to a protein.")
    ] = "mean",
    layer: Annotated[int, typer.Option(help="Hidden state to read: -1 the last, 0 the embedding layer.")] = -1,
    dtype: Dtype = "auto",
    store_dtype: Annotated[
        Literal["float32", "float16"] | None, typer.Option(help="What is written (residues: float16).")
    ] = None,
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    max_tokens: Annotated[str, typer.Option(help="Token budget of a batch, or auto.")] = "auto",
    long: Annotated[
        Literal["split", "truncate", "error", "skip"], typer.Option(help="What happens past the model's limit.")
    ] = "split",
    max_length: Annotated[int | None, typer.Option(help="Set or lower that limit (residues).")] = None,
    unknown: Unknown = "x",
    expect: Expect = "warn",
    empty: Empty = "error",
    duplicates: Duplicates = "error",
    key: Key = "id",
    shard: ShardOf = "1/1",
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; compute nothing.")] = False,
    offline: Offline = False,
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Turn FASTA into embeddings, written to HDF5."""
    from protembed.backends.load import ModelOptions, open_backend
    from protembed.inference.embed import EmbedOptions
    from protembed.inference.embed_run import EmbedOutput, embed_run
    from protembed.inference.run import RunOptions, parse_budget
    from protembed.sequences.shard import parse_shard
    from protembed.sequences.spool import input_files

    console = Console(quiet=quiet)
    loading = ModelOptions(
        model=model,
        device=device,
        dtype=dtype,
        backend=backend,
        threads=threads,
        offline=offline,
        **told(variant, checkpoint_version, n_heads),
    )
    options = EmbedOptions(
        pool=pool if out else None,
        residues=residues is not None,
        layer=layer,
        max_tokens=parse_budget(max_tokens),
        long=long,
        max_length=max_length,
    )
    output = EmbedOutput(proteins=out, residues=residues, store_dtype=store_dtype)
    running = RunOptions(
        unknown=unknown,
        expect=expect,
        empty=empty,
        duplicates=duplicates,
        key=key,
        shard=parse_shard(shard, out or residues),
        resume=resume,
        overwrite=overwrite,
        reads=(model,),
    )
    with input_files(inputs, beside=(out or residues or Path()).parent) as paths:
        run = embed_run(paths, open_backend(loading), options, output, running)
        if dry_run:
            print_table("dry run", ["what", "value"], run.plan())
            return
        carry_out(run, console)


@app.command()
def contacts(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file, one map (L, L) a protein.")],
    model: ModelName = DEFAULT_MODEL,
    plot: Annotated[Path | None, typer.Option(help="A folder for one picture (PNG) a protein.")] = None,
    dtype: Dtype = "auto",
    store_dtype: Annotated[Literal["float32", "float16"], typer.Option(help="What is written.")] = "float16",
    device: Device = "auto",
    threads: Threads = None,
    long: Annotated[
        Literal["skip", "error"], typer.Option(help="What happens past the model's limit: a map needs all at once.")
    ] = "skip",
    max_length: Annotated[int | None, typer.Option(help="Set or lower that limit (residues).")] = None,
    unknown: Unknown = "x",
    expect: Expect = "warn",
    empty: Empty = "error",
    duplicates: Duplicates = "error",
    key: Key = "id",
    shard: ShardOf = "1/1",
    resume: Resume = False,
    overwrite: Overwrite = False,
    offline: Offline = False,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Turn FASTA into probabilities of contact between residues; the model must have a contact regression (ESM-2)."""
    from protembed.backends.load import ModelOptions, open_backend
    from protembed.inference.contacts import ContactOptions, contact_run
    from protembed.inference.run import RunOptions
    from protembed.sequences.shard import parse_shard
    from protembed.sequences.spool import input_files

    console = Console(quiet=quiet)
    loading = ModelOptions(
        model=model, device=device, dtype=dtype, backend="torch", threads=threads, offline=offline, n_heads=n_heads
    )
    options = ContactOptions(out=out, plots=plot, store_dtype=store_dtype, long=long, max_length=max_length)
    running = RunOptions(
        unknown=unknown,
        expect=expect,
        empty=empty,
        duplicates=duplicates,
        key=key,
        shard=parse_shard(shard, out),
        resume=resume,
        overwrite=overwrite,
        reads=(model,),
    )
    with input_files(inputs, beside=out.parent) as paths:
        carry_out(contact_run(paths, open_backend(loading), options, running), console)
