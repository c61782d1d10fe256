"""protembed predict and evaluate: task heads on FASTA, and what they are worth on labelled data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_data, print_table
from protembed.cli.options import (
    Backend,
    CheckpointVersion,
    Device,
    Dtype,
    Duplicates,
    Empty,
    Expect,
    Heads,
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
from protembed.errors import UsageError
from protembed.models.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from protembed.inference.evaluate import Evaluation

LongPolicy = Annotated[
    Literal["split", "error", "skip"], typer.Option(help="What happens past the model's limit; split: in windows.")
]
MaxTokens = Annotated[str, typer.Option(help="Token budget of a batch, or auto.")]


@app.command()
def predict(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="FASTA files (plain, gzip, xz, bzip2, zstd), - for standard input.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="Names or paths of heads, by commas: ss3,disorder; `list` shows them.")
    ] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write; - is standard output.")] = Path("-"),
    form: Annotated[
        Literal["tsv", "jsonl", "fasta", "h5"] | None,
        typer.Option("--format", help="Default: by the ending of the output, else tsv."),
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    plot: Annotated[Path | None, typer.Option(help="A folder for pictures (PNG), one a protein.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    max_tokens: MaxTokens = "auto",
    long: LongPolicy = "split",
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
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Turn FASTA into predictions of one or several tasks, computed in one pass.

    The table has a line a residue, a protein or a contact: id, task, position, residue, partner (contacts), label,
    value (a probability, or the value that is predicted).
    """
    from protembed.backends.load import ModelOptions, open_backend
    from protembed.inference.predict import PredictOptions, list_tasks
    from protembed.inference.predict_run import PredictionOutput, predict_run
    from protembed.inference.run import RunOptions, parse_budget
    from protembed.sequences.shard import parse_shard
    from protembed.sequences.spool import input_files

    if task == "list":
        print_table("tasks", *list_tasks(Path(model).stem))
        return
    if not inputs:
        raise UsageError("no input is named", hint="A FASTA file, or - for standard input.")
    names = tuple(name for name in task.split(",") if name)
    output = PredictionOutput(tasks=names, out=out, format=form, plots=plot)
    options = PredictOptions(max_tokens=parse_budget(max_tokens), long=long, max_length=max_length)
    loading = ModelOptions(
        model=model,
        device=device,
        dtype=dtype,
        backend=backend,
        threads=threads,
        offline=offline,
        **told(variant, checkpoint_version, n_heads),
    )
    running = RunOptions(
        unknown=unknown,
        expect=expect,
        empty=empty,
        duplicates=duplicates,
        key=key,
        shard=parse_shard(shard, out),
        resume=resume,
        overwrite=overwrite,
        reads=(model, *names),
    )
    with input_files(inputs, beside=out.parent) as paths:
        console = Console(quiet=quiet, data=str(out) == "-")
        carry_out(predict_run(paths, open_backend(loading), options, output, running), console)


@app.command()
def evaluate(
    task: Annotated[str, typer.Option(help="The name of a task, or the path of a head.")],
    data: Annotated[Path, typer.Option(help="Labelled proteins: a folder, FASTA, a table, TAPE's LMDB.")],
    split: Annotated[str | None, typer.Option(help="Which set; default: the task's test set.")] = None,
    head: Annotated[str | None, typer.Option(help="A head for the task that is not the bundled one.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only proteins with KEY=VALUE; may be repeated.")] = None,
    longest: Annotated[int | None, typer.Option(help="Only proteins up to so many residues.", min=1)] = None,
    tape_batch: Annotated[
        int | None, typer.Option(help="Contacts: also TAPE's own function, over batches of so many.", min=1)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    max_tokens: MaxTokens = "auto",
    long: LongPolicy = "split",
    offline: Offline = False,
    variant: Variant = None,
    checkpoint_version: CheckpointVersion = None,
    n_heads: Heads = None,
    quiet: Quiet = False,
) -> None:
    """Measure a head on labelled proteins: the task's metrics with 95 % intervals (bootstrap over proteins)."""
    from protembed.backends.load import ModelOptions, open_backend
    from protembed.inference.evaluate import EvaluateOptions, Evaluation
    from protembed.inference.predict import PredictOptions
    from protembed.inference.run import parse_budget

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
    filters = _filters(where or [])
    options = EvaluateOptions(
        task=task, data=data, head=head, split=split, where=filters, longest=longest, tape_batch=tape_batch
    )
    running = PredictOptions(max_tokens=parse_budget(max_tokens), long=long)
    run = Evaluation(open_backend(loading), options, running)
    with console.meter(run.residues, "residues") as meter:
        for progress in run.run():
            meter.update(progress.residues)
    _show(run, console, as_json=json)


def _show(run: "Evaluation", console: Console, *, as_json: bool) -> None:
    """Print the report: tables, or one JSON object."""
    report = run.report()
    for line in report.notes():
        console.say(line)
    if as_json:
        import json

        print_data(json.dumps(report.to_dict(), indent=1))
        return
    for title, (columns, rows) in (
        ("metrics", report.figures()),
        ("classes", report.classes()),
        ("confusion", report.confusions()),
    ):
        if rows:
            print_table(title, columns, rows)


def _filters(words: list[str]) -> dict[str, str]:
    """Read KEY=VALUE. Raises UsageError."""
    for word in words:
        if "=" not in word:
            raise UsageError(f"--where {word}: not of the form KEY=VALUE", hint="Example: --where TYPE=alpha")
    return {key: value for key, _, value in (word.partition("=") for word in words)}
