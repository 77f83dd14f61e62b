"""`confide doctor`: what this machine can do, and what to do about the rest. It changes nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from confide import config as configuration
from confide.cli import doctor_machine as machine
from confide.cli import doctor_state as state
from confide.cli.finding import Finding, ok, refused
from confide.cli.progress import reporting
from confide.config import Config
from confide.errors import ConfigError

if TYPE_CHECKING:
    from confide.engine.progress import Progress

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
PIPED_WIDTH = 1000  # columns; one line a check, for grep


def doctor(
    config: Path | None = typer.Option(None, "--config", help="Configuration file (TOML)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Check what this machine can do, and say what to mend. Exit status: 0 when nothing failed, 1 otherwise."""
    with reporting() as progress:
        findings = [*of_machine(), *of_configuration(config, progress)]
    if as_json:
        print(msgspec.json.encode(document(findings)).decode())
    else:
        show(findings)
    if failed(findings):
        raise typer.Exit(1)


def of_machine() -> Iterator[Finding]:
    """What does not depend on the configuration."""
    yield machine.python()
    yield machine.libc()
    yield machine.libgomp()
    yield machine.engine()
    yield machine.clock(time.time(), (time.monotonic(), time.monotonic()))


def of_configuration(path: Path | None, progress: "Progress") -> Iterator[Finding]:
    """What does; without one that loads there is nothing more to ask."""
    try:
        config, home = configuration.load(path), configuration.locate_home()
    except ConfigError as error:
        yield refused("configuration", error)
        return
    yield ok("configuration", f"serves {', '.join(model.id for model in config.model)}")
    yield machine.tee(config.attester.kind)
    yield machine.gpu(config.attester.gpu)
    yield from state.state_directory(home)
    yield from of_service(config, home, progress)


def of_service(config: Config, home: Path, progress: "Progress") -> Iterator[Finding]:
    """What the service would meet at its start, in that order."""
    from confide.cli import doctor_service as service  # the gateway; not needed to say that there is no configuration
    from confide.cli.doctor_upstreams import upstreams
    from confide.config import is_loopback

    host, url = config.server.host, config.store.url
    yield service.files(config, home)
    yield service.port(config, home)
    yield state.store(url, home)
    yield state.api_keys(url, home, host=host, is_loopback=is_loopback(host))
    for model in filter(config.is_embedded, config.model):
        yield service.weights(model, home, progress)
    yield from upstreams(config)
    yield service.cores(config.engine)
    yield from service.workers(config.server.workers)
    yield service.memory(config, home, service.available_memory())


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "fail"]


def document(findings: list[Finding]) -> dict[str, object]:
    """The findings as JSON: `status` is "fail" when one of them is, else "ok"."""
    return {"status": "fail" if failed(findings) else "ok", "checks": msgspec.to_builtins(findings)}


def show(findings: list[Finding]) -> None:
    """A table, plain when it is piped, and the verdict in words."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)
    drawn = Table("check", "status", "found", "what to do", box=None, header_style="bold")
    for column in drawn.columns:
        column.overflow = "fold"  # a path that is cut off is of no use
    for finding in findings:
        status = Text(finding.status, style=STYLES[finding.status])
        drawn.add_row(Text(finding.check), status, Text(finding.found), Text(finding.remedy or ""))
    console.print(drawn)
    number = len(failed(findings))
    console.print(f"\n{number} failed" if number else "\nnothing failed", style="bold")
