"""`confide tls`: a certificate for the attested TLS key, from an authority of the operator's choice."""

import asyncio
import ipaddress
import re
import time
from typing import Annotated

import typer

from confide import config
from confide.attester.base import Attester
from confide.attester.selection import open_attester
from confide.attester.tsm import TsmAttester
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
    attester = asyncio.run(open_attester(kind, config.home(), now=lambda: int(time.time())))
    require_lasting(attester)
    typer.echo(attester.workload_keys.tls.request(names).decode(), nl=False)
    typer.echo('Name the chain that is issued for it in [server] tls_cert, with tls = "attested".', err=True)


def require_lasting(attester: Attester) -> None:
    """Raise ConfigError where the key ends with the process, so that no certificate could be used (ADR 11)."""
    if isinstance(attester, TsmAttester):
        raise ConfigError(
            '[attester] kind = "tsm": each start of the service makes its TLS key anew, so no certificate outlives one',
            remedy='Leave tls_cert out: with tls = "attested" clients pin the key that the report lists.',
        )


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
