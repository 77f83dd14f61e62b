"""`confide serve`: run the service."""

from pathlib import Path
from typing import Any

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from confide import config as configuration
from confide.cli.progress import reporting
from confide.config import Config
from confide.engine import catalogue, pull
from confide.gateway.service import Service
from confide.gateway.service import serve as run


def serve(
    config: Path | None = typer.Option(None, "--config", help="Configuration file (TOML)."),
    host: str | None = typer.Option(None, "--host", help="Address to listen on; other than loopback needs an API key."),
    port: int | None = typer.Option(None, "--port", help="Port to listen on."),
    print_config: bool = typer.Option(False, "--print-config", help="Show the effective configuration and exit."),
) -> None:
    """Run the service: the embedded model and a simulated TEE unless the configuration says otherwise."""
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    effective = configuration.load(config, overrides={"server": given})
    if print_config:
        print(as_toml(effective))
        return
    home = configuration.home()
    pull_missing(effective, home)
    uvloop.run(run(effective, home, announce=announce))


def pull_missing(config: Config, home: Path) -> None:
    """Fetch the weights that the configuration names and this machine lacks, with a progress bar."""
    for model in config.model:
        try:
            catalogue.find(home, model.upstream_model)
        except catalogue.NotInstalled as missing:
            with reporting() as progress:
                pull.install(home, missing.weights, progress)


def announce(service: Service) -> None:
    """What the service is, to standard error; the ready line, and nothing else, to standard output."""
    console = Console(stderr=True, highlight=False)
    console.print(banner(service))
    model = service.models[0].model.id
    console.print(f"\n{curl_line(service, model)}\n\n{python_snippet(service, model)}\n", markup=False, soft_wrap=True)
    print(f"confide: ready on {service.url}", flush=True)


def banner(service: Service) -> Table:
    """Model, TEE, store, access and address, the TEE in colour."""
    table = Table.grid(padding=(0, 2))
    names = ", ".join(f"{served.model.id} ({served.upstream.description})" for served in service.models)
    table.add_row("model", names)
    if service.attester.simulated:
        table.add_row("TEE", "[bold yellow]SIMULATED TEE: no hardware protection[/]")
    else:
        table.add_row("TEE", f"[bold green]{service.attester.tee_type}[/] ({service.attester.kind})")
    table.add_row("store", service.store_path)
    table.add_row("access", "open: no API key was created, this machine only" if service.is_open else "API key")
    table.add_row("address", service.url)
    return table


def curl_line(service: Service, model: str) -> str:
    """A request ready to paste."""
    key = "" if service.is_open else ' -H "Authorization: Bearer $CONFIDE_API_KEY"'
    insecure = " --insecure" if service.url.startswith("https") else ""
    return (
        f"curl{insecure} {service.url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Say hello."}}]}}\''
    )


def python_snippet(service: Service, model: str) -> str:
    """The same with the official SDK."""
    key = '"none"' if service.is_open else 'os.environ["CONFIDE_API_KEY"]'
    return (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{service.url}/v1", api_key={key})\n'
        f'print(client.chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "Say hello."}]))'
    )


def as_toml(config: Config) -> str:
    """The configuration as a file that would give it again. Unset keys are left out."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    lines: list[str] = []
    for section, values in tree.items():
        tables = values if isinstance(values, list | tuple) else [values]
        for table in tables:
            lines.append(f"[[{section}]]" if tables is values else f"[{section}]")
            lines += [f"{key} = {toml_literal(value)}" for key, value in table.items() if value is not None]
            lines.append("")
    return "\n".join(lines).rstrip()


def toml_literal(value: object) -> str:
    """A TOML value; JSON strings are TOML strings."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_literal(member)}" for key, member in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_literal(member) for member in value) + "]"
    return msgspec.json.encode(value).decode()
