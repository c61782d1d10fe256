"""protembed models, pull and convert: checkpoints and their names."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table
from protembed.cli.options import CheckpointVersion, Heads, Offline, Overwrite, Variant, told

models = typer.Typer(help="Models by name: list (the default), info, pull.")
app.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_all()


@models.command("list")
def list_all() -> None:
    """List the models that are shipped, in the cache of the Hugging Face hub, or known by name."""
    from protembed.backends.catalog import list_models

    print_table("models", *list_models())


@models.command()
def info(name: Annotated[str, typer.Argument(help="The name or path of a model.")]) -> None:
    """Show one model: its size, limit, licence, source and place."""
    from protembed.backends.catalog import describe_model

    print_table(name, ["what", "value"], describe_model(name))


@models.command()
@app.command()
def pull(name: Annotated[str, typer.Argument(help="A known name or an id of the Hugging Face hub.")]) -> None:
    """Download a model into the cache of the Hugging Face hub, check it, and say what to copy elsewhere."""
    from protembed.backends.catalog import pull_model

    for line in pull_model(name):
        Console().say(line)


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
    from protembed.backends.load import ModelOptions, convert_model

    words = told(variant, checkpoint_version, n_heads)
    options = ModelOptions(model=source, device="cpu", dtype=dtype, offline=offline, **words)
    card = convert_model(options, out, overwrite=overwrite)
    Console().say(f"{out}: {card.name}, sha256 {card.sha256[:16]}...")
