"""`confide serve`: run the service."""

import base64
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from confide import config as configuration
from confide.config import Config, Model
from confide.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from confide.engine.catalogue import Weights
    from confide.gateway.service import Service

MASK = "********"
SECRET = re.compile(r"(^|_)(token|key|password)$")
PATHS = {"tls_key"}  # names that sound secret and hold the path of a file
USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]+@")


def serve(
    config: Path | None = typer.Option(None, "--config", help="Configuration file (TOML)."),
    host: str | None = typer.Option(None, "--host", help="Address to listen on; other than loopback needs an API key."),
    port: int | None = typer.Option(None, "--port", help="Port to listen on."),
    workers: int | None = typer.Option(None, "--workers", help="Processes that serve, with the same keys and engine."),
    print_config: bool = typer.Option(False, "--print-config", help="Show the effective configuration and exit."),
) -> None:
    """Run the service: the embedded model and a simulated TEE unless the configuration says otherwise."""
    options = {"host": host, "port": port, "workers": workers}
    given = {name: value for name, value in options.items() if value is not None}

    def read() -> Config:
        return configuration.load(config, overrides={"server": given})

    effective = read()
    if print_config:
        typer.echo(as_toml(effective).encode())  # TOML is UTF-8, whatever the terminal's encoding
        return
    configuration.check_files(effective)
    check_tls(effective)
    home = configuration.home()
    check_writable(home)
    pull_missing(effective, home)
    run(effective, home, read)


def run(config: Config, home: Path, reread: Callable[[], Config]) -> None:
    """Serve until a signal. `reread`: the configuration anew. Raises as gateway.service.serve does."""
    import uvloop  # these cost half a second, which a refusal and --print-config should not pay

    from confide.engine import catalogue
    from confide.engine.gguf import GgufError
    from confide.gateway import service

    try:
        if config.server.workers > 1:
            from confide.gateway import workers

            workers.serve(config, home, announce=announce, reread=reread)
        else:
            uvloop.run(service.serve(config, home, announce=announce, reread=reread))
    except GgufError:
        for model in filter(config.is_embedded, config.model):
            # A header that cannot be read: most likely these are not the recorded bytes.
            catalogue.verify_weights(catalogue.find(home, model.weights))
        raise


def check_tls(config: Config) -> None:
    """That certificate and key are PEM, belong together, and need no password. Raises ConfigError.

    Whether a chain is for the attested key shows once there is an attester.
    """
    server = config.server
    if server.tls_cert is None or server.tls == "attested":
        return
    try:
        # Asked for a password, OpenSSL would stop at the terminal; an empty one is refused instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.tls_cert, server.tls_key, password="")
    except ssl.SSLError as error:
        reason = (error.reason or "not PEM").replace("_", " ").lower()
        raise ConfigError(
            f"[server] tls_cert {server.tls_cert} and tls_key {server.tls_key} cannot be used: {reason}",
            remedy="Name a PEM certificate chain, leaf first, and its private key without a password.",
        ) from error


def check_writable(home: Path) -> None:
    """Before anything is fetched or opened. Raises ConfigError."""
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"the state directory {home} cannot be written by this user", remedy=configuration.HOME_REMEDY
        )


def pull_missing(config: Config, home: Path) -> None:
    """Fetch the weights that the configuration names and this machine lacks, with a progress bar."""
    from confide.engine import catalogue

    for model in filter(config.is_embedded, config.model):
        try:
            catalogue.find(home, model.weights)
        except catalogue.NotInstalled as missing:
            fetch(missing.weights, config, home)


def fetch(weights: "Weights", config: Config, home: Path) -> None:
    """Have one set of weights here, unless the service could not start anyway: then nothing is fetched."""
    from confide.attester.selection import usable
    from confide.cli.progress import reporting
    from confide.engine import pull
    from confide.gateway.listening import bound_socket
    from confide.store import lock_state

    usable(config.attester.kind)
    with lock_state(home), reporting() as progress:
        with bound_socket(config):
            pass  # a taken port is found now; the service binds it again after the transfer
        pull.install(home, weights, progress)


def announce(service: "Service") -> None:
    """What the service is, to standard error; the ready line, and nothing else, to standard output."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(banner(service))
    model = first_asked(service)
    console.print(f"\n{curl_line(service, model)}\n\n{python_snippet(service, model)}\n", markup=False, soft_wrap=True)
    print(f"confide: ready on {service.url}", flush=True)


def first_asked(service: "Service") -> Model:
    """The model of the examples: one to chat with, if there is one."""
    models = service.config.model
    return next((model for model in models if model.kind == "chat"), models[0])


def banner(service: "Service") -> "Table":
    """Model, TEE, store, access and address, the TEE in colour."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    names = ", ".join(f"{served.id} ({served.description})" for served in service.models)
    table.add_row("model", names)
    if service.platform.simulated:
        table.add_row("TEE", "[bold yellow]SIMULATED TEE: no hardware protection[/]")
    else:
        table.add_row("TEE", f"[bold green]{service.platform.tee_type}[/] ({service.platform.kind})")
    table.add_row("store", service.store_path)
    table.add_row("access", "open: no API key was created, this machine only" if service.is_open else "API key")
    if service.config.server.workers > 1:
        table.add_row("workers", str(service.config.server.workers))
    table.add_row("address", service.url)
    table.add_row("docs", f"{service.url}/docs")
    table.add_row("keyset", service.keyset_digest)
    table.add_row("channel", Text(channel(service)))
    return table


def channel(service: "Service") -> str:
    """Whether a client can know that its connection ends here."""
    if service.config.server.tls == "attested":
        return "TLS with the attested key: clients pin it"
    return 'unbound: no TLS key in the keyset; [server] tls = "attested" makes one'


def curl_line(service: "Service", model: Model) -> str:
    """A request ready to paste; an attested key is pinned, so that no authority has to know it."""
    key = "" if service.is_open else ' -H "Authorization: Bearer $CONFIDE_API_KEY"'
    insecure = " --insecure" if service.url.startswith("https") else ""
    if service.config.server.tls == "attested":
        pin = base64.b64encode(service.platform.tls_spki_sha256).decode()
        insecure += f" --pinnedpubkey sha256//{pin}"
    path, members = "chat/completions", '"messages": [{"role": "user", "content": "Say hello."}]'
    if model.kind == "embeddings":
        path, members = "embeddings", '"input": "Say hello."'
    return (
        f"curl{insecure} {service.url}/v1/{path} -H 'Content-Type: application/json'{key} \\\n"
        f'  -d \'{{"model": "{model.id}", {members}}}\''
    )


def python_snippet(service: "Service", model: Model) -> str:
    """The same with the official SDK; where TLS ends in the TEE, through the client that pins the attested key."""
    key = '"none"' if service.is_open else 'os.environ["CONFIDE_API_KEY"]'
    verified = service.config.server.tls == "attested"
    root = f'trust_roots=("{service.simulated_root}",)' if service.simulated_root is not None else ""
    http_client = f", http_client=confide.Client(confide.Policy({root}))" if verified else ""
    asked = f'chat.completions.create(model="{model.id}", messages=[{{"role": "user", "content": "Say hello."}}])'
    if model.kind == "embeddings":
        asked = f'embeddings.create(model="{model.id}", input="Say hello.")'
    return (
        "from openai import OpenAI\n"
        f"{'import confide' + chr(10) if verified else ''}"
        f'client = OpenAI(base_url="{service.url}/v1", api_key={key}{http_client})\n'
        f"print(client.{asked})"
    )


def as_toml(config: Config) -> str:
    """The configuration as a file that would give it again, but for masked secrets. Unset keys are left out."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    lines: list[str] = []
    for section, values in tree.items():
        tables = values if isinstance(values, list | tuple) else [values]
        for table in tables:
            lines.append(f"[[{section}]]" if tables is values else f"[{section}]")
            lines += [
                f"{key} = {toml_literal(masked(key, value))}" for key, value in table.items() if value is not None
            ]
            lines.append("")
    return "\n".join(lines).rstrip()


def masked(key: str, value: object) -> object:
    """The value, or stars for a secret: what is named like one, and the user and password of a URL."""
    if isinstance(value, str) and key not in PATHS:
        return MASK if SECRET.search(key) else USERINFO.sub(rf"\g<1>{MASK}@", value)
    if isinstance(value, dict):
        return {name: masked(name, member) for name, member in value.items()}
    return [masked(key, member) for member in value] if isinstance(value, list | tuple) else value


def toml_literal(value: object) -> str:
    """A TOML value. JSON strings are TOML strings but for DEL, which TOML wants escaped."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{key} = {toml_literal(member)}" for key, member in value.items() if member is not None)
            + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_literal(member) for member in value) + "]"
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
