"""protembed train."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table
from protembed.cli.options import Quiet
from protembed.cli.pretrain import pretrain
from protembed.errors import UsageError

if TYPE_CHECKING:
    from protembed.training.finetune.trainer import HeadTrainer


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="A TOML file; configs/tasks/ has one for every task.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override: section.key=value; may be repeated.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a task head on labelled proteins: on a frozen encoder, with LoRA, or with all weights.

    A configuration without a task is one of pretraining, and is carried out as such.
    """
    from protembed.training.config import read_toml
    from protembed.training.finetune.config import load_task_config
    from protembed.training.finetune.trainer import HeadTrainer

    if "task" not in (values := read_toml(config)) and "model" in values:
        pretrain(config, settings, quiet=quiet)
        return
    _require_one_process()
    _carry_out(HeadTrainer(load_task_config(config, settings or [])), Console(quiet=quiet))


def _require_one_process() -> None:
    """Raise UsageError under a launcher of several: each would train the same head into the same folder."""
    from protembed.training.launch import find_launch

    launch = find_launch(os.environ)
    if launch.size > 1:
        raise UsageError(
            f"a head is trained by one process, and {launch.by} started {launch.size}",
            hint="Start it without torchrun, or with srun -n 1. Only pretraining is divided among processes.",
        )


def _carry_out(trainer: "HeadTrainer", console: Console) -> None:
    """Train, show how far it is, and say what came of it, also when the run was told to end."""
    from protembed.training.finetune.curve import draw_curve

    for line in trainer.introduce():
        console.say(line)
    try:
        for report in trainer.run():
            console.say(str(report))
    except KeyboardInterrupt:
        if trainer.results:
            console.say(f"told to end: {trainer.result} holds the best head so far")
        raise
    print_table(trainer.task.name, ["what", "value"], [[name, f"{v:g}"] for name, v in trainer.results.items()])
    console.say(f"{trainer.result}: ready for protembed predict {trainer.usage()}")
    console.say(draw_curve(trainer.run_folder))
