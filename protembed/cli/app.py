"""The application that commands join, and how it starts."""

import signal
import sys
import warnings
from typing import Annotated

import typer

from protembed import __version__
from protembed.cli.console import Console, show_error
from protembed.errors import ProtembedError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Protein sequences to embeddings and predictions with a pretrained Transformer.",
)


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


def main() -> None:
    """Run the command line: our errors in two lines and exit status 2, bugs with their traceback and 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's warning: keep what is done
    warnings.showwarning = lambda message, *_: Console().warn(str(message))
    try:
        app()
    except ProtembedError as error:
        show_error(error)
        sys.exit(error.exit_status)
