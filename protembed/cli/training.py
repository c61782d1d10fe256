"""protembed pretrain."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protembed.cli.app import app
from protembed.cli.options import Quiet
from protembed.console import Console, print_table, show_error
from protembed.errors import ProtembedError

if TYPE_CHECKING:
    from protembed.train.trainer import Trainer


@app.command()
def pretrain(
    config: Annotated[Path, typer.Option(help="A TOML file; configs/ has examples.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override: section.key=value; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what the run will take; train nothing.")] = False,
    processes: Annotated[
        int | None, typer.Option(help="For --dry-run: how many there will be (default: as launched).", min=1)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model with the masked-language-model objective, alone or under torchrun or srun.

    A second start goes on where the first one stopped, with any number of processes.
    """
    from protembed.train.config import load_config
    from protembed.train.launch import find_launch

    launch = find_launch(os.environ)
    told = load_config(config, settings or [])
    if dry_run:
        from protembed.train.forecast import forecast

        rows = forecast(told, ranks=processes or launch.size, peak_flops=told.train.peak_tflops * 1e12 or None)
        print_table("dry run", ["what", "value"], rows)
        return
    from protembed.train.parallel import join
    from protembed.train.trainer import Trainer

    with join(launch, told.train.device) as world:
        try:
            _carry_out(Trainer(told, world), Console(quiet=quiet or not world.is_main))
        except ProtembedError as error:
            if world.size == 1:
                raise
            if world.speaks(error):
                show_error(error)
            sys.stderr.flush()
            os._exit(error.exit_status)  # not sys.exit: threads may wait for a process that is gone


def _carry_out(trainer: "Trainer", console: Console) -> None:
    """Train, show how far it is, and draw the curve; when the run is told to end, say that it was saved."""
    from protembed.train.curve import draw_curve

    console.say(trainer.introduce())
    try:
        with console.meter(trainer.config.train.steps, "steps") as meter:
            meter.update(trainer.progress.step)
            for report in trainer.run():
                meter.update(report.step, str(report))
                if report.valid_perplexity is not None or report.warning:
                    console.say(str(report))
    except KeyboardInterrupt:
        console.say(f"told to end: saved at step {trainer.progress.step:,}; start again to go on")
        raise
    if trainer.world.is_main:
        console.say(f"{trainer.result}: ready for protembed embed -m")
        console.say(draw_curve(trainer.run_folder))
