"""Which attester a service starts with (tee-evidence 2).

"auto" takes the guest agent of dstack when its socket is there, else configfs-tsm when its directory may be written. A
machine that shows a TEE of which neither works is refused: whoever rents such a machine expects its protection, and
must not get the simulated one in silence. What the environment names in place of either is taken, and counts as
simulated.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from confide.attester import simulated_tsm
from confide.attester.base import MAX_WAITING, Attester
from confide.attester.dstack import DstackAttester
from confide.attester.dstack_agent import ENDPOINT_VARIABLE, SOCKETS, GuestAgent, find_agent
from confide.attester.keys import DrawnSeed
from confide.attester.own_collateral import OwnCollateral
from confide.attester.simulated import SimulatedAttester
from confide.attester.simulated_tsm import SimulatedTsmFiles, find_simulated_tsm
from confide.attester.tsm import TsmAttester
from confide.attester.tsm_report import TsmReader
from confide.errors import ConfigError

Kind = Literal["auto", "dstack", "tsm", "simulated"]
Chosen = Literal["dstack", "tsm", "simulated"]

TDX_DEVICES = ("dev/tdx_guest", "dev/tdx-guest")
SNP_DEVICES = ("dev/sev-guest",)
TSM = "sys/kernel/config/tsm/report"
# What a machine shows when it is a confidential guest, or offers a guest agent (tee-evidence 2.1, 2.2).
DEVICES = (*TDX_DEVICES, *SNP_DEVICES, TSM, *SOCKETS)
NO_PROTECTION = '[attester] kind = "simulated" starts the service here, but gives no protection.'

MayWrite = Callable[[Path], bool]


@dataclass(frozen=True)
class Lack:
    """Why a sign of a TEE is of no use here, and what makes it useful."""

    reason: str
    remedy: str


def may_write(directory: Path) -> bool:
    """Whether this user may make files there; False on a read-only mount and where there is nothing."""
    return os.access(directory, os.W_OK | os.X_OK)


def find_tee_device(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> str | None:
    """The first sign of a TEE on this machine: a path, the name of a simulator's variable, or None."""
    for variable in (ENDPOINT_VARIABLE, simulated_tsm.ENDPOINT_VARIABLE):
        if environ.get(variable):
            return variable
    return next((str(root / device) for device in DEVICES if os.path.lexists(root / device)), None)


def choose(
    root: Path = Path("/"), environ: Mapping[str, str] = os.environ, *, may_write: MayWrite = may_write
) -> Chosen:
    """What "auto" takes on this machine. Raises ConfigError where there is a TEE that cannot be used."""
    if find_agent(environ, root) is not None:
        return "dstack"
    if find_simulated_tsm(environ) is not None or may_write(root / TSM):
        return "tsm"
    device = find_tee_device(root, environ)
    if device is None:
        return "simulated"
    found = lacks(root, may_write=may_write)
    reasons = "; ".join(lack.reason for lack in found.values())
    raise ConfigError(
        f'[attester] kind = "auto": this machine shows a TEE ({device}) that cannot be used: {reasons}',
        remedy=" ".join((*dict.fromkeys(lack.remedy for lack in found.values()), NO_PROTECTION)),
    )


def lacks(root: Path = Path("/"), *, may_write: MayWrite = may_write) -> dict[str, Lack]:
    """What the machine's signs of a TEE lack, by path below `root`; nothing for those that are of use, or not there."""
    found = {}
    for socket in SOCKETS:
        if os.path.lexists(root / socket) and not (root / socket).is_socket():
            found[socket] = Lack(f"{root / socket} is no socket", "Start dstack's guest agent and mount its socket.")
    directory = root / TSM
    for device in (*TDX_DEVICES, *SNP_DEVICES):
        if os.path.lexists(root / device) and not directory.is_dir():
            module = "tdx_guest" if device in TDX_DEVICES else "sev-guest"
            found[device] = Lack(
                f"{root / device} is there, and {directory} is not",
                f"Use Linux 6.7 or newer with CONFIG_TSM_REPORTS, load the module {module}, and mount configfs at "
                "/sys/kernel/config.",
            )
    if os.path.lexists(directory) and not may_write(directory):
        found[TSM] = Lack(
            f"this user may not write {directory}",
            "Run as root or give this user the directory (chown), and mount it into the container without :ro.",
        )
    return found


def usable(
    kind: Kind,
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    *,
    may_write: MayWrite = may_write,
) -> Chosen:
    """What `[attester] kind` takes on this machine, as far as can be told without asking for evidence.

    Raises ConfigError, which says what is lacking.
    """
    if kind == "auto":
        return choose(root, environ, may_write=may_write)
    if kind == "dstack" and find_agent(environ, root) is None:
        found = [lack for path, lack in lacks(root, may_write=may_write).items() if path in SOCKETS]
        reason = found[0].reason if found else f"there is no guest agent at {root / SOCKETS[0]}"
        raise ConfigError(
            f'[attester] kind = "dstack": {reason}',
            remedy="Start on a dstack machine with the agent's socket mounted into this container.",
        )
    if kind == "tsm" and find_simulated_tsm(environ) is None and not may_write(root / TSM):
        found = [lack for path, lack in lacks(root, may_write=may_write).items() if path not in SOCKETS]
        reason = "; ".join(lack.reason for lack in found) or f"there is no {root / TSM}"
        remedy = " ".join(dict.fromkeys(lack.remedy for lack in found)) or "Start in a TDX or SEV-SNP guest."
        raise ConfigError(f'[attester] kind = "tsm": {reason}', remedy=remedy)
    return kind


async def open_attester(
    kind: Kind,
    home: Path,
    *,
    now: Callable[[], int],
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
    may_write: MayWrite = may_write,
    collateral: OwnCollateral | None = None,
    seed: DrawnSeed | None = None,
    max_waiting: int = MAX_WAITING,
) -> Attester:
    """The attester that `[attester] kind` asks for, tried once. `home`: the state directory. `now`: Unix seconds.
    `collateral`: what travels with the evidence of hardware; the simulated TEE makes its own.
    `seed`: what keys follow from that neither platform nor disk gives; None draws one.
    `max_waiting`: requests for evidence that it takes at a time.

    Raises ConfigError for one that does not work; there is no falling back.
    """
    chosen = usable(kind, root, environ, may_write=may_write)
    endpoint = find_agent(environ, root)
    if chosen == "dstack" and endpoint is not None:
        return await DstackAttester.open(GuestAgent(endpoint), collateral=collateral, max_waiting=max_waiting)
    if chosen == "tsm":
        socket = find_simulated_tsm(environ)
        reader = TsmReader(directory=root / TSM) if socket is None else TsmReader(SimulatedTsmFiles(socket), socket)
        return await TsmAttester.open(
            reader, collateral=collateral, simulated=socket is not None, seed=seed, max_waiting=max_waiting
        )
    if chosen == "simulated":
        return SimulatedAttester(home, now, max_waiting=max_waiting)
    raise ConfigError(
        "the socket of dstack's guest agent went away", remedy="See that the agent runs, and start again."
    )
