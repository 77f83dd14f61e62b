"""`confide models`: the catalogue of weights, and bringing them here."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from confide import config
from confide.cli.progress import megabytes, reporting
from confide.engine import catalogue, gguf, local
from confide.engine.catalogue import Entry, Installed

app = typer.Typer(help="List, fetch, add and remove model weights.", no_args_is_help=True)

PIPED_WIDTH = 1000  # columns; a source that is cut off is of no use to grep

Id = Annotated[str | None, typer.Option("--id", help="Name to install it under; default: made from the file's name.")]
Licence = Annotated[str | None, typer.Option(help="Licence to record, such as Apache-2.0.")]


@app.command("list")
def list_weights(json: Annotated[bool, typer.Option("--json", help="One JSON array, sizes in bytes.")] = False) -> None:
    """Show what can be served, and what is installed."""
    entries = list(catalogue.entries(config.home()))
    if json:
        print(msgspec.json.encode([row(entry) for entry in entries]).decode())
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=PIPED_WIDTH)
        console.print(table(entries))


def row(entry: Entry) -> dict[str, Any]:
    """An entry as a JSON object; what a damaged record hides is null."""
    weights = entry.weights
    known = ("kind", "size", "sha256", "licence", "context_length", "source")
    facts = {name: getattr(weights, name, None) for name in known}
    return {"id": entry.id, "installed": entry.state == "installed", "state": entry.state, **facts}


def table(entries: list[Entry]) -> Table:
    drawn = Table("id", "installed", "for", "size", "licence", "context", "source", box=None, header_style="bold")
    for entry in entries:
        weights = entry.weights
        state = {"installed": "yes", "available": "no"}.get(entry.state, entry.state)
        facts = (
            (
                weights.kind,
                megabytes(weights.size),
                weights.licence or "-",
                str(weights.context_length or "-"),
                weights.source,
            )
            if weights
            else ("-", "-", "-", "-", "-")
        )
        drawn.add_row(entry.id, state, *facts)
    return drawn


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="ID|hf:OWNER/REPO/FILE@REVISION", help="What to fetch.")],
    id: Id = None,
    licence: Licence = None,
) -> None:
    """Fetch weights, check their SHA-256 and install them. An interrupted pull continues where it stopped."""
    from confide.engine import pull as pulling  # the HTTP client costs 0.2 s, which no other command should pay

    with reporting() as progress:
        installed = pulling.pull(config.home(), name, progress, id=id, licence=licence)
    say_installed(installed)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A GGUF file.")],
    id: Id = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep a copy; without it the file is used where it is.")] = False,
    licence: Licence = None,
) -> None:
    """Add a GGUF file. Its SHA-256 is recorded now and checked at every start."""
    with reporting() as progress:
        installed = local.add(config.home(), path, id=id, licence=licence, copy=copy, progress=progress)
    say_installed(installed)


@app.command()
def remove(id: Annotated[str, typer.Argument(help="An installed id.")]) -> None:
    """Forget weights and delete our copy. A file that was added in place stays where it is."""
    original = catalogue.remove(config.home(), id)
    print(f"removed {id}" + (f"; {original} was left alone" if original else ""))


def say_installed(installed: Installed) -> None:
    weights, metadata = installed.weights, gguf.read_metadata(installed.path)
    context = f", context {weights.context_length}" if weights.context_length else ""
    made = f", vectors of {metadata.embedding_length} numbers" if metadata.makes_vectors else ""
    print(f"{weights.id} is installed: {metadata.architecture}{made}{context}, sha256 {weights.sha256}")
    if not (metadata.chat_template or weights.template or metadata.makes_vectors):
        typer.echo(f"note: {installed.path.name} has no chat template; chats may read poorly", err=True)
