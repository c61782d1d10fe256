"""protembed export: models for onnxruntime."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console
from protembed.cli.options import CheckpointVersion, Heads, Offline, Overwrite, Variant, told


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A name that `protembed models` lists, or a checkpoint.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="ONNX file; without it, the cache, where --backend looks.")
    ] = None,
    quantize: Annotated[Literal["int8"] | None, typer.Option(help="Twice as fast, at a cost that is measured.")] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the weights.")] = "float32",
    attention: Annotated[
        Literal["fused", "plain", "packed"],
        typer.Option(help="fused: for onnxruntime; plain: for every runtime; packed: for onnxruntime on CUDA."),
    ] = "fused",
    task: Annotated[str, typer.Option(help="Heads that become outputs, by commas: names, paths, or all.")] = "",
    offline: Offline = False,
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX, for protembed embed -m FILE.onnx: without torch, and faster on a CPU.

    The file says in itself how other programs run it: inputs, outputs, tokens, padding.
    """
    from protembed.backends.load import ModelOptions
    from protembed.backends.onnx.export import ExportOptions, export_model

    words = told(variant, checkpoint_version, n_heads)
    source = ModelOptions(model=model, device="cpu", dtype="float32", offline=offline, **words)
    tasks = tuple(name for name in task.split(",") if name)
    options = ExportOptions(out=out, attention=attention, weights=quantize or dtype, tasks=tasks, overwrite=overwrite)
    for line in export_model(source, options).describe():
        Console().say(line)
