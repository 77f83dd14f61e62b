"""`confide tls`: a certificate for the attested TLS key, from an authority of the operator's choice."""

import ipaddress
import re
import time
from typing import Annotated

import typer

from confide import config
from confide.attester.selection import open_attester
from confide.errors import ConfigError

app = typer.Typer(help="Ask for a certificate for the attested TLS key.", no_args_is_help=True)


@app.callback()
def tls() -> None:
    """Ask for a certificate for the attested TLS key."""


@app.command()
def csr(
    name: Annotated[
        list[str], typer.Option("--name", metavar="HOST", help="A host or address it is for; may be given again.")
    ],
) -> None:
    """Print a certificate signing request (PEM) for the attested TLS key of this state directory."""
    names = [checked(each) for each in name]
    kind = config.load(None).attester.kind
    attester = open_attester(kind, config.home(), now=lambda: int(time.time()))
    typer.echo(attester.workload_keys.tls.request(names).decode(), nl=False)
    typer.echo('Name the chain that is issued for it in [server] tls_cert, with tls = "attested".', err=True)


def checked(name: str) -> str:
    """A host name in lower case, perhaps with `*.` before it, or an address. Raises ConfigError."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        lowered = name.lower()
    if re.match(config.DOMAIN, lowered.removeprefix("*.")) is None:
        raise ConfigError(
            f"--name {name}: not a host name or an address", remedy="Name hosts as clients do, without port or scheme."
        )
    return lowered
