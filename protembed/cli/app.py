"""The application that commands join, and how it starts and ends."""

import contextlib
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from protembed import __version__, interrupts
from protembed.cli.console import Console, print_data, show, show_problem
from protembed.cli.process import end_if_reader_left, prepare_streams, report
from protembed.errors import OutputError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Protein sequences to embeddings and predictions with a pretrained Transformer.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print_data(f"protembed {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line, and end the process.

    Exit status: that of the error (2 for most), 1 and a traceback for a bug, 130 when told to stop. When the reader of
    standard output has left, it ends by SIGPIPE, as other filters do.
    """
    interrupts.install()
    try:
        prepare_streams()
        warnings.showwarning = lambda message, *_: Console().warn(str(message))
        status = run(sys.argv[1:])
        interrupts.over(status)
    except KeyboardInterrupt as error:  # told to stop while the end was reported
        status = report(error)
        interrupts.over(status)
    sys.exit(status)


def run(words: list[str]) -> int:
    """Carry out a command and return the exit status; print why it ended early."""
    try:
        status = _carry_out(words)
        sys.stdout.flush()  # while an error can still be told
    except SystemExit as end:  # rich ends the process where its reader has left, completion of a shell when it is done
        status = int(end.code or 0)
    except BaseException as error:
        end_if_reader_left()
        status = report(error)
        with contextlib.suppress(OutputError, BrokenPipeError):  # one error is told, and Python's own flush succeeds
            sys.stdout.flush()
    end_if_reader_left()
    return status


def _carry_out(words: list[str]) -> int:
    """Do what `app()` does, but leave every exception as it is; errors in the words are printed as ours are."""
    if os.environ.get("_PROTEMBED_COMPLETE"):  # a shell asks for completions
        app(prog_name="protembed")
    _refuse_empty(words)
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context("protembed", words) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        # Errors in the words are exceptions of click, which newer typers have a copy of.
        if not hasattr(error, "format_message"):
            raise
        return _report_words(error)
    return 0


def _refuse_empty(words: list[str]) -> None:
    """Raise UsageError for an empty word, which no command takes: `-o "$OUT"`, where OUT is not set."""
    for before, word in zip(["protembed", *words], words, strict=False):
        option = word.removesuffix("=") if word.startswith("--") and word.endswith("=") else before
        if not word or option is not before:
            what = "the value is empty" if option.startswith("-") else "an empty argument"
            raise UsageError(f"{option}: {what}", hint="Is a variable of the shell not set?")


def _report_words(error: Any) -> int:
    """Print what is wrong with the words of the command line."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help, unless it was printed
        for line in message.splitlines():
            show(line)
    else:
        path = error.ctx.command_path if getattr(error, "ctx", None) else "protembed"
        show_problem(" ".join(message.split()), f"{path} --help lists the options.")
    return int(error.exit_code)
