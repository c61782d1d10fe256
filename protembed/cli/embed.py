"""protembed embed and contacts: FASTA to HDF5."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table
from protembed.cli.options import (
    CheckpointVersion,
    Device,
    Dtype,
    Heads,
    Inputs,
    ModelName,
    Offline,
    Overwrite,
    Quiet,
    Threads,
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
    backend: Annotated[Literal["auto", "torch", "onnx"], typer.Option(help="Runtime.")] = "auto",
    threads: Threads = None,
    max_tokens: Annotated[str, typer.Option(help="Token budget of a batch, or auto.")] = "auto",
    long: Annotated[
        Literal["split", "truncate", "error", "skip"], typer.Option(help="What happens past the model's limit.")
    ] = "split",
    max_length: Annotated[int | None, typer.Option(help="Set or lower that limit (residues).")] = None,
    unknown: Annotated[Literal["x", "error"], typer.Option(help="Letters that the model does not know.")] = "x",
    duplicates: Annotated[Literal["error", "suffix", "first"], typer.Option(help="Two records with one id.")] = "error",
    key: Annotated[Literal["id", "md5", "biotrainer"], typer.Option(help="Names in the HDF5 file.")] = "id",
    shard: Annotated[str, typer.Option(help="Do part I of N (I/N), or the SLURM array's (slurm).")] = "1/1",
    resume: Annotated[bool, typer.Option(help="Go on with an output that is not complete.")] = False,
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
    from protembed.inference.run import EmbedJob, JobOptions, parse_budget
    from protembed.outputs.target import Target
    from protembed.sequences.records import input_files
    from protembed.sequences.shard import parse_shard

    console = Console(quiet=quiet)
    part, budget = parse_shard(shard), parse_budget(max_tokens)
    target = Target.of(out, residues, part)
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
        max_tokens=budget,
        long=long,
        max_length=max_length,
    )
    job = JobOptions(
        target=target,
        unknown=unknown,
        duplicates=duplicates,
        key=key,
        store_dtype=store_dtype,
        shard=part,
        resume=resume,
        overwrite=overwrite,
    )
    with input_files(inputs) as paths:
        run = EmbedJob(paths, open_backend(loading), options, job)
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
    unknown: Annotated[Literal["x", "error"], typer.Option(help="Letters that the model does not know.")] = "x",
    key: Annotated[Literal["id", "md5", "biotrainer"], typer.Option(help="Names in the HDF5 file.")] = "id",
    resume: Annotated[bool, typer.Option(help="Go on with an output that is not complete.")] = False,
    overwrite: Overwrite = False,
    offline: Offline = False,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Turn FASTA into probabilities of contact between residues; the model must have a contact regression (ESM-2)."""
    from protembed.backends.load import ModelOptions, open_backend
    from protembed.inference.contacts import ContactJob, ContactOptions
    from protembed.sequences.records import input_files

    console = Console(quiet=quiet)
    loading = ModelOptions(
        model=model, device=device, dtype=dtype, backend="torch", threads=threads, offline=offline, n_heads=n_heads
    )
    options = ContactOptions(
        out=out, plots=plot, store_dtype=store_dtype, unknown=unknown, key=key, resume=resume, overwrite=overwrite
    )
    with input_files(inputs) as paths:
        run = ContactJob(paths, open_backend(loading), options)
        carry_out(run, console)
