"""The command line: each command reads its options, calls the library, and says what was done."""

import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protembed import __version__
from protembed.card import DEFAULT_MODEL
from protembed.console import Console, print_table, show_error
from protembed.errors import ProtembedError

if TYPE_CHECKING:
    from protembed.contacts import ContactJob
    from protembed.job import EmbedJob

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Protein sequences to embeddings and predictions with a pretrained Transformer.",
)
models = typer.Typer(help="Models by name: list (the default), info, pull.")
app.add_typer(models, name="models")

Inputs = Annotated[list[str], typer.Argument(help="FASTA files (plain, gzip, xz, bzip2), - for standard input.")]
ModelName = Annotated[str, typer.Option("-m", "--model", help="A name that `protembed models` lists, or a path.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not download a model that is not there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Arithmetic.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1)]
Variant = Annotated[Literal["trained", "tape-port"] | None, typer.Option(help="Which function of a ProteinLM file.")]
CheckpointVersion = Annotated[float | None, typer.Option(help="Version of a Megatron file that does not say it.")]
Heads = Annotated[int | None, typer.Option("--n-heads", help="Attention heads of a file that does not say it.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an existing output.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"protembed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


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
    backend: Annotated[Literal["auto", "torch"], typer.Option(help="Runtime.")] = "auto",
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
    from protembed.embed import EmbedOptions
    from protembed.job import EmbedJob, JobOptions, parse_budget
    from protembed.loading import ModelOptions, open_backend
    from protembed.records import input_files
    from protembed.shard import parse_shard
    from protembed.target import Target

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
        **_told(variant, checkpoint_version, n_heads),
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
        _carry_out(run, console)


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
    from protembed.contacts import ContactJob, ContactOptions
    from protembed.loading import ModelOptions, open_backend
    from protembed.records import input_files

    console = Console(quiet=quiet)
    loading = ModelOptions(model=model, device=device, dtype=dtype, threads=threads, offline=offline, n_heads=n_heads)
    options = ContactOptions(
        out=out, plots=plot, store_dtype=store_dtype, unknown=unknown, key=key, resume=resume, overwrite=overwrite
    )
    with input_files(inputs) as paths:
        run = ContactJob(paths, open_backend(loading), options)
        _carry_out(run, console)


@app.command()
def check(
    output: Annotated[Path, typer.Argument(help="An HDF5 file that embed wrote.")],
    inputs: Annotated[list[str], typer.Option("--input", help="The FASTA files it was made from, in order.")],
    key: Annotated[Literal["id", "md5", "biotrainer"], typer.Option(help="Names in the HDF5 file.")] = "id",
) -> None:
    """Check that every record is in an output, once, finite and of the right length."""
    from protembed.outputs import check_output

    found = check_output(output, inputs, key)
    Console().say(f"{output}: {found:,} records, complete")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="The HDF5 file to write.")],
    shards: Annotated[list[Path], typer.Argument(help="The files of all shards, in any order.")],
    overwrite: Overwrite = False,
) -> None:
    """Put the outputs of --shard runs together, in the order of the input."""
    from protembed.outputs import merge_shards

    found = merge_shards(out, shards, overwrite=overwrite)
    Console().say(f"{out}: {found:,} records from {len(shards)} files")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="The name of a model, or a checkpoint of any supported form.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The native checkpoint to write (.safetensors).")],
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")] = "float32",
    offline: Offline = False,
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint into a native one: a .safetensors file that says everything about itself."""
    from protembed.loading import ModelOptions, convert_model

    told = _told(variant, checkpoint_version, n_heads)
    options = ModelOptions(model=source, device="cpu", dtype=dtype, offline=offline, **told)
    card = convert_model(options, out, overwrite=overwrite)
    Console().say(f"{out}: {card.name}, sha256 {card.sha256[:16]}...")


@models.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_all()


@models.command("list")
def list_all() -> None:
    """List the models that are shipped, in the cache of the Hugging Face hub, or known by name."""
    from protembed.names import list_models

    print_table("models", *list_models())


@models.command()
def info(name: Annotated[str, typer.Argument(help="The name or path of a model.")]) -> None:
    """Show one model: its size, limit, licence, source and place."""
    from protembed.names import describe_model

    print_table(name, ["what", "value"], describe_model(name))


@models.command()
@app.command()
def pull(name: Annotated[str, typer.Argument(help="A known name or an id of the Hugging Face hub.")]) -> None:
    """Download a model into the cache of the Hugging Face hub, check it, and say what to copy elsewhere."""
    from protembed.names import pull_model

    for line in pull_model(name):
        Console().say(line)


@app.command()
def pretrain(
    config: Annotated[Path, typer.Option(help="A TOML file; configs/ has examples.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override: section.key=value; may be repeated.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model with the masked-language-model objective; a second start goes on where the first one stopped."""
    from protembed.train.config import load_config
    from protembed.train.curve import draw_curve
    from protembed.train.trainer import Trainer

    console = Console(quiet=quiet)
    trainer = Trainer(load_config(config, settings or []))
    console.say(trainer.introduce())
    with console.meter(trainer.config.train.steps, "steps") as meter:
        meter.update(trainer.progress.step)
        for report in trainer.run():
            meter.update(report.step, str(report))
            if report.valid_perplexity is not None:
                console.say(str(report))
    console.say(f"{trainer.result}: ready for protembed embed -m")
    console.say(draw_curve(trainer.run_folder))


def _carry_out(run: "EmbedJob | ContactJob", console: Console) -> None:
    """Do a job, show how far it is, sum up; exit status 3 when records failed."""
    with console.meter(run.residues, "residues") as meter:
        for progress in run.run():
            meter.update(progress.residues)
    for line in run.summary():
        console.say(line)
    raise typer.Exit(3 if run.failed else 0)


def _told(variant: str | None, checkpoint_version: float | None, n_heads: int | None) -> dict[str, Any]:
    """Name what a user tells about a file that does not say it itself."""
    return {"variant": variant, "checkpoint_version": checkpoint_version, "n_heads": n_heads}


def main() -> None:
    """Run the command line: our errors in two lines and exit status 2, bugs with their traceback and 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's warning: keep what is done
    warnings.showwarning = lambda message, *_: Console().warn(str(message))
    try:
        app()
    except ProtembedError as error:
        show_error(error)
        sys.exit(2)
