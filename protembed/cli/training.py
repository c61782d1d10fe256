"""protembed pretrain."""

from pathlib import Path
from typing import Annotated

import typer

from protembed.cli.app import app
from protembed.cli.options import Quiet
from protembed.console import Console


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
