"""`confide simulate`: SIMULATED platforms and vendors for rehearsals; they protect nothing, and say so everywhere."""

import contextlib
import logging
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from starlette.types import ASGIApp

from confide import config
from confide.attester.seed import load_seed
from confide.attester.simulated import write_root
from confide.errors import ConfigError
from confide.simulator.dstack import FAULTS, SimulatedDstack
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from confide.simulator.nras import SimulatedNras
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.serving import serving, serving_tcp
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform

app = typer.Typer(help="Simulated TEEs and vendors, to rehearse with.", no_args_is_help=True)

READY = "confide: simulated {what} ready on {where}"
LABEL = "SIMULATED: no hardware protection"
FOLLOW_S = 60.0  # how often collateral is dated anew
ISSUED_BACK_S = 60 * 60


def known_fault(text: str) -> str:
    """A fault by its name."""
    if text not in FAULTS:
        raise typer.BadParameter(f"expected one of {', '.join(FAULTS)}")
    return text


State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Where the seed and the roots are; default: under CONFIDE_HOME."),
]
Port = Annotated[
    int, typer.Option("--pccs-port", metavar="PORT", min=0, max=65535, help="Port of the PCCS; default: a free one.")
]
Out = Annotated[Path, typer.Argument(metavar="DIR", help="A directory for the files; made where it is missing.")]


@app.command()
def dstack(
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where the guest agent listens.")],
    pccs_port: Port = 0,
    state: State = None,
    fault: Annotated[
        str | None,
        typer.Option(
            "--fault",
            metavar="NAME",
            parser=known_fault,
            help="One thing that is wrong, such as debug, revoked, outdated, report-data, custody, pccs-failing.",
        ),
    ] = None,
) -> None:
    """Run a SIMULATED dstack guest agent on a unix socket, and the PCCS of its platform on loopback, until SIGTERM.

    Standard output says what to export, and what to verify with. Quotes, keys and collateral protect nothing.
    """
    directory = state_directory(state)
    machine = SimulatedDstack(load_seed(directory), now=int(time.time()), fault=fault)
    root = directory / "intel-root.pem"
    write_root(root, machine.root_pem)
    with contextlib.ExitStack() as closing, stopping() as stop:
        try:
            path = closing.enter_context(serving(machine.agent_app, socket.absolute()))
        except OSError as error:
            raise ConfigError(
                f"--socket {socket}: cannot be made: {error.strerror or error}",
                remedy="Name a path of at most 100 characters in a directory of yours at which nothing is yet.",
            ) from error
        pccs = closing.enter_context(on_port(machine.pccs_app, pccs_port))
        say(READY.format(what="dstack", where=path), LABEL)
        say(
            f"export DSTACK_SIMULATOR_ENDPOINT={path}",
            "export CONFIDE_ATTESTER_KIND=dstack",
            f"export CONFIDE_ATTESTER_PCCS_URL={pccs}",
            f"verify with: --trust-root {root} --kms-root {machine.kms_root}",
        )
        while not stop.wait(FOLLOW_S):
            machine.follow(int(time.time()))


@app.command()
def pccs(port: Port = 0, state: State = None) -> None:
    """Run the services of SIMULATED vendors on loopback until SIGTERM: Intel's, AMD's, and NVIDIA's key set."""
    seed = load_seed(state_directory(state))
    now = int(time.time())
    platform, snp = SimulatedTdxPlatform(seed, now=now), SimulatedSnpPlatform(seed, now=now)
    vendors = SimulatedPccs(platform, now=now - ISSUED_BACK_S, snp=snp, nras=SimulatedNras(seed))
    with stopping() as stop, on_port(vendors.app, port) as url:
        say(READY.format(what="pccs", where=url), LABEL)
        while not stop.wait(FOLLOW_S):
            vendors.now = int(time.time()) - ISSUED_BACK_S


@app.command()
def quote(out: Out, state: State = None) -> None:
    """Write a SIMULATED TDX quote, its collateral and its root."""
    now = int(time.time())
    platform = SimulatedTdxPlatform(load_seed(state_directory(state)), now=now)
    collateral = msgspec.json.encode(platform.collateral(now - ISSUED_BACK_S))
    write(
        out,
        {
            "quote.bin": platform.quote(secrets.token_bytes(64)),
            "collateral.json": collateral,
            "root.pem": platform.root_pem.encode(),
        },
        "quote.bin",
        "--collateral collateral.json",
    )


@app.command()
def snp(out: Out, state: State = None) -> None:
    """Write a SIMULATED SEV-SNP report, its certificates and its root."""
    platform = SimulatedSnpPlatform(load_seed(state_directory(state)), now=int(time.time()))
    certificates = platform.vcek_pem + platform.chain_pem
    write(
        out,
        {
            "report.bin": platform.report(secrets.token_bytes(64)),
            "certificates.pem": certificates.encode(),
            "root.pem": platform.root_pem.encode(),
        },
        "report.bin",
        "--collateral certificates.pem",
    )


@app.command()
def gpu(out: Out, state: State = None) -> None:
    """Write the payload of a SIMULATED NVIDIA GPU and its root."""
    device = SimulatedGpu(load_seed(state_directory(state)))
    payload = gpu_payload([device], secrets.token_bytes(32))
    write(out, {"payload.json": payload.encode(), "root.pem": device.root_pem.encode()}, "payload.json")


def state_directory(named: Path | None) -> Path:
    """Where the seed is: the same roots each time. Another one than that of a service, which has its own simulator."""
    return config.home() / "simulated-machines" if named is None else named


def write(out: Path, files: dict[str, bytes], evidence: str, *options: str) -> None:
    """All files, and how to verify them. Raises ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written to: {error.strerror}", remedy="Name a directory that this user may write."
        ) from error
    given = " ".join(option.replace(" ", f" {out}/") for option in (*options, "--root root.pem"))
    say(LABEL, f"verify with: confide evidence verify {out / evidence} {given}")


@contextlib.contextmanager
def on_port(application: ASGIApp, port: int) -> Iterator[str]:
    """The vendors' services on a port of loopback. Raises ConfigError where it is taken."""
    with contextlib.ExitStack() as closing:
        try:
            url = closing.enter_context(serving_tcp(application, port))
        except OSError as error:
            raise ConfigError(
                f"--pccs-port {port}: cannot be used: {error.strerror}", remedy="Choose another, or 0 for a free one."
            ) from error
        yield url


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set while the block runs: the end of a rehearsal is no failure."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # answers that hang on purpose are cancelled then
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(*lines: str) -> None:
    """Lines on standard output, at once: a script waits for the first one."""
    for line in lines:
        print(line, flush=True)
