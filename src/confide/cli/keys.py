"""`confide keys`: make, list and revoke API keys. A running server follows within about a second."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from confide import config
from confide.store import KeyRecord, KeyTable, open_keys

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(name: Annotated[str, typer.Argument(help="Who or what will use it.")], as_json: AsJson = False) -> None:
    """Create an API key and print it, once."""
    record, token = table().create_key(name)
    if as_json:
        print_json({**public(record), "token": token})
        return
    typer.echo(token)  # alone on standard output, so that a script can catch it
    typer.echo(f"Created {record.id}. The key above is not shown again: keep it now.", err=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the API keys, never their tokens."""
    records = table().list_keys()
    if as_json:
        print_json([public(record) for record in records])
    elif records:
        Console().print(drawn(records))
    else:
        typer.echo("No API keys. A service on a loopback address answers anyone.", err=True)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `confide keys list` shows it.")]) -> None:
    """Revoke an API key for good."""
    record = table().revoke_key(key_id)
    typer.echo(f"Revoked {record.id} ({record.name}). A running service refuses it within about a second.", err=True)


def table() -> KeyTable:
    """The keys of the configured store. Raises ConfigError."""
    return open_keys(config.load(None).store.url, config.home())


def public(record: KeyRecord) -> dict[str, object]:
    """A key as JSON: times in Unix seconds, no digest."""
    return {
        "id": record.id,
        "name": record.name,
        "created_at": record.created_at,
        "last_used_at": record.last_used_at,
        "revoked_at": record.revoked_at,
        "state": state(record),
    }


def state(record: KeyRecord) -> str:
    """Active or revoked."""
    return "active" if record.revoked_at is None else "revoked"


def print_json(value: object) -> None:
    """One JSON document, indented, on standard output."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def drawn(records: tuple[KeyRecord, ...]) -> Table:
    """The table. Names are shown as text, so that brackets in one are not taken for markup."""
    columns = Table("ID", "Name", "Created", "Last used", "State")
    columns.columns[0].no_wrap = True
    for record in records:
        columns.add_row(record.id, Text(record.name), when(record.created_at), when(record.last_used_at), state(record))
    return columns


def when(at: int | None) -> str:
    """Unix seconds as UTC, to the minute."""
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
