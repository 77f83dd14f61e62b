"""`confide simulate`: SIMULATED platforms and vendors for rehearsals; they protect nothing, and say so everywhere."""

import contextlib
import logging
import secrets
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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
from confide.simulator.gpu_source import PATH as GPUS_PATH
from confide.simulator.kms import SimulatedKms
from confide.simulator.machine import FAULT as FAULT_PATH
from confide.simulator.machine import SimulatedMachine, SimulatedParts
from confide.simulator.nras import SimulatedNras
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.serving import serving, serving_tcp
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform
from confide.simulator.tsm import SNP_GUEST_FAULTS, TDX_GUEST_FAULTS, SimulatedTsm

app = typer.Typer(help="Simulated TEEs and vendors, to rehearse with.", no_args_is_help=True)

READY = "confide: simulated {what} ready on {where}"
LABEL = "SIMULATED: no hardware protection"
FOLLOW_S = 60.0  # how often collateral is dated anew
ISSUED_BACK_S = 60 * 60
MOST_GPUS = 64


class Form(StrEnum):
    """Layouts of a TDX quote, as the command line calls them."""

    V4 = "v4"
    V5 = "v5"
    V5_TD15 = "v5-td15"


class Tee(StrEnum):
    """What a bare guest can run on."""

    TDX = "tdx"
    SNP = "snp"


FORMS = {Form.V4: QuoteForm.V4, Form.V5: QuoteForm.V5_REPORT_10, Form.V5_TD15: QuoteForm.V5_REPORT_15}
GUEST_FAULTS = {Tee.TDX: TDX_GUEST_FAULTS, Tee.SNP: SNP_GUEST_FAULTS}

State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Where the seed and the roots are; default: under CONFIDE_HOME."),
]
Port = Annotated[
    int,
    typer.Option(
        "--pccs-port", metavar="PORT", min=0, max=65535, help="Port of the vendors' services; default: a free one."
    ),
]
Out = Annotated[Path, typer.Argument(metavar="DIR", help="A directory for the files; made where it is missing.")]
QuoteLayout = Annotated[
    Form,
    typer.Option("--quote", help="TDX quotes of version 4, or of version 5 with a TD report 1.0 or 1.5."),
]
Gpus = Annotated[
    int, typer.Option("--gpus", metavar="N", min=0, max=MOST_GPUS, help="So many SIMULATED GPUs; default: none.")
]
Fault = Annotated[
    str | None,
    typer.Option(
        "--fault",
        metavar="NAME",
        help="One thing that is wrong, such as debug, revoked, report-data, pccs-failing, gpu-signature; an unknown "
        "name shows them all.",
    ),
]


@app.command()
def dstack(
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where the guest agent listens.")],
    form: QuoteLayout = Form.V4,
    gpus: Gpus = 0,
    pccs_port: Port = 0,
    state: State = None,
    fault: Fault = None,
) -> None:
    """Run a SIMULATED dstack guest agent on a unix socket, and the PCCS of its platform on loopback, until SIGTERM.

    Standard output says what to export, how to change what is wrong, and what to verify with.
    Quotes, keys and collateral protect nothing.
    """
    directory = state_directory(state)
    seed = load_seed(directory)
    require_fault(fault, FAULTS)

    def make(wrong: str | None) -> SimulatedParts:
        return SimulatedDstack(seed, now=int(time.time()), fault=wrong, form=FORMS[form], gpus=gpus)

    rehearse(
        SimulatedMachine(make, fault),
        Place(what="dstack", socket=socket, port=pccs_port, roots=directory),
        exports={"DSTACK_SIMULATOR_ENDPOINT": "{socket}", "CONFIDE_ATTESTER_KIND": "dstack"}
        | vendors("pccs", gpus=gpus),
        options=["--kms-root", SimulatedKms(seed).root_public_key, *demanded(gpus)],
    )


@app.command()
def tsm(
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where configfs-tsm is served.")],
    tee: Annotated[Tee, typer.Option("--tee", help="What the guest runs on.")] = Tee.TDX,
    form: QuoteLayout = Form.V4,
    gpus: Gpus = 0,
    pccs_port: Port = 0,
    state: State = None,
    fault: Fault = None,
) -> None:
    """Run the SIMULATED configfs-tsm of a bare TDX or SEV-SNP guest on a unix socket, and its vendors' services on
    loopback, until SIGTERM.

    A service whose environment names the socket makes its reports there, by the kernel's rules.
    Standard output says what to export, how to change what is wrong, and what to verify with.
    Reports, certificates and collateral protect nothing.
    """
    directory = state_directory(state)
    seed = load_seed(directory)
    require_fault(fault, GUEST_FAULTS[tee])
    if tee is Tee.SNP and form is not Form.V4:
        raise typer.BadParameter("SEV-SNP has reports, and no TDX quotes", param_hint="--quote")

    def make(wrong: str | None) -> SimulatedParts:
        now = int(time.time())
        if tee is Tee.SNP:
            return SimulatedTsm.snp(seed, now=now, fault=wrong, gpus=gpus)
        return SimulatedTsm.tdx(seed, now=now, fault=wrong, form=FORMS[form], gpus=gpus)

    rehearse(
        SimulatedMachine(make, fault),
        Place(what="tsm", socket=socket, port=pccs_port, roots=directory),
        exports={"TSM_SIMULATOR_ENDPOINT": "{socket}", "CONFIDE_ATTESTER_KIND": "tsm"}
        | vendors("kds" if tee is Tee.SNP else "pccs", gpus=gpus),
        options=demanded(gpus),
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a machine is: its socket, the port of its vendors, and the directory of its roots. `what`: its name."""

    what: str
    socket: Path
    port: int
    roots: Path


def vendors(service: str, *, gpus: int) -> dict[str, str]:
    """The settings that lead to the vendors' services. `service`: "pccs" or "kds"."""
    settings = {f"CONFIDE_ATTESTER_{service.upper()}_URL": "{vendors}"}
    if gpus:
        settings |= {"CONFIDE_ATTESTER_GPU": "url", "CONFIDE_ATTESTER_GPU_URL": f"{{vendors}}{GPUS_PATH}{config.NONCE}"}
    return settings


def demanded(gpus: int) -> list[str]:
    """What a verifier asks besides: as many GPUs as there are."""
    return ["--require-gpus", str(gpus)] if gpus else []


def require_fault(name: str | None, faults: tuple[str, ...]) -> None:
    """Raise typer.BadParameter for a fault that the machine cannot have."""
    if name is not None and name not in faults:
        raise typer.BadParameter(f"expected one of {', '.join(faults)}", param_hint="--fault")


def rehearse(machine: SimulatedMachine, place: Place, *, exports: Mapping[str, str], options: Sequence[str]) -> None:
    """Serve the machine until a signal. `exports`: variables for a service, in which {socket} and {vendors} are put.
    `options`: for a verifier, besides the roots. Raises ConfigError.
    """
    pinned = []
    for name, pem in machine.roots.items():
        write_root(place.roots / name, pem)
        pinned += ["--trust-root", str(place.roots / name)]
    with contextlib.ExitStack() as closing, stopping() as stop:
        try:
            path = closing.enter_context(serving(machine.guest_app, place.socket.absolute()))
        except OSError as error:
            raise ConfigError(
                f"--socket {place.socket}: cannot be made: {error.strerror or error}",
                remedy="Name a path of at most 100 characters in a directory of yours at which nothing is yet.",
            ) from error
        url = closing.enter_context(on_port(machine.vendors_app, place.port))
        say(READY.format(what=place.what, where=path), LABEL)
        for name, value in exports.items():
            given = value.replace("{socket}", str(path)).replace("{vendors}", url)
            say(f"export {name}={shlex.quote(given)}")
        say(f"change what is wrong: curl -X PUT --data NAME {url}{FAULT_PATH}")
        say(f"verify with: {shlex.join([*pinned, *options])}")
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
