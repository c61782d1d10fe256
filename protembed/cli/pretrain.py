"""protembed pretrain."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from protembed.cli.app import app
from protembed.cli.console import Console, print_table, show_error
from protembed.cli.options import Quiet
from protembed.errors import ProtembedError, UsageError

if TYPE_CHECKING:
    from protembed.training.parallel import World
    from protembed.training.pretrain.config import PretrainConfig
    from protembed.training.pretrain.pretrain import Trainer


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
    """Train a model to predict masked residues and, if asked, profiles of homologs; alone, under torchrun or srun.

    A second start resumes where the first one stopped, with any number of processes.
    """
    from protembed.training.launch import end_with_launcher, find_launch
    from protembed.training.pretrain.config import load_config

    launch = find_launch(os.environ)
    told = load_config(config, settings or [])
    if dry_run:
        _forecast(told, processes or launch.size)
        return
    if processes:
        raise UsageError("--processes belongs to --dry-run", hint=f"torchrun --nproc-per-node {processes} ...")
    signal.signal(signal.SIGUSR1, signal.default_int_handler)  # as SIGTERM; once training began, both save the run
    from protembed.training.parallel import join
    from protembed.training.pretrain.pretrain import Trainer, own

    end_with_launcher(launch)
    with join(launch, told.train.device) as world:
        try:
            with own(Path(told.train.out), world):
                _carry_out(Trainer(told, world), Console(quiet=quiet or not world.is_main))
        except BaseException as error:
            if world.size == 1:
                raise
            _leave(world, error)


def _forecast(config: "PretrainConfig", ranks: int) -> None:
    """Print what a run will take."""
    from protembed.training.pretrain.forecast import forecast

    rows = forecast(config, ranks=ranks, peak_flops=config.train.peak_tflops * 1e12 or None)
    print_table("dry run", ["what", "value"], rows)


def _leave(world: "World", error: BaseException) -> NoReturn:
    """End one of several processes at once: threads may wait for others that are gone, and others for this one."""
    status = 130 if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, ProtembedError):
        status = error.exit_status
        if world.speaks(error):
            show_error(error)
    elif status == 1:
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(status)


def _carry_out(trainer: "Trainer", console: Console) -> None:
    """Train, show how far it is, and draw the curve; when the run is told to end, say that it was saved."""
    from protembed.training.curve import draw_curve
    from protembed.training.signals import Stopped

    console.say(trainer.introduce())
    try:
        with console.meter(trainer.config.train.steps, "steps") as meter:
            meter.update(trainer.progress.step)
            for report in trainer.run():
                meter.update(report.step, str(report))
                if report.valid_perplexity is not None or report.warning:
                    console.say(str(report))
    except Stopped:
        console.say(f"told to end: saved at step {trainer.progress.step:,}; start again to go on")
        raise
    if trainer.world.is_main:
        console.say(f"{trainer.result}: ready for protembed embed -m")
        console.say(draw_curve(trainer.run_folder))
