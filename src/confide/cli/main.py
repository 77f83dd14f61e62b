"""`confide`: one file a command. Errors become a sentence, a remedy and an exit status (architecture 5)."""

import sys

import typer
from rich.console import Console

from confide import __version__
from confide.cli import keys, models
from confide.cli.serve import serve
from confide.errors import ConfideError

app = typer.Typer(
    name="confide",
    help="An OpenAI-compatible inference service that proves what it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"confide {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=print_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit status: 0 verified or done, 1 not verified, 2 wrong usage or start refused, 3 could not find out."""


def main() -> None:
    """Entry point of the program."""
    try:
        app()
    except ConfideError as error:
        show(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


def show(error: ConfideError) -> None:
    """`error: …` and what to do next, on standard error."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(error.message, markup=False)
    if error.remedy:
        console.print(error.remedy, markup=False)
