"""Which attester a service starts with (tee-evidence 2)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from confide.attester.base import Attester
from confide.attester.simulated import SimulatedAttester
from confide.errors import ConfigError

# What a machine shows when it is a confidential guest, or offers a guest agent (tee-evidence 2.1, 2.2).
DEVICES = (
    "dev/tdx_guest",
    "dev/tdx-guest",
    "dev/sev-guest",
    "sys/kernel/config/tsm/report",
    "var/run/dstack.sock",
    "run/dstack.sock",
    "var/run/dstack/dstack.sock",
)
AGENT_VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"


def find_tee_device(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> str | None:
    """The first sign of a TEE on this machine: a path, the name of the agent's variable, or None."""
    if environ.get(AGENT_VARIABLE):
        return AGENT_VARIABLE
    return next((str(root / device) for device in DEVICES if os.path.lexists(root / device)), None)


def open_attester(
    kind: Literal["auto", "simulated"],
    home: Path,
    *,
    now: Callable[[], int],
    probe: Callable[[], str | None] = find_tee_device,
) -> Attester:
    """The attester that `[attester] kind` asks for. `home`: the state directory. `now`: Unix seconds.

    "auto" on a machine with a TEE raises ConfigError: whoever rents such a machine expects its protection, and must
    not get the simulated one in silence.
    """
    device = probe() if kind == "auto" else None
    if device is not None:
        raise ConfigError(
            f'[attester] kind = "auto": this machine shows a TEE ({device}), and this build has no hardware attester',
            remedy='[attester] kind = "simulated" starts the service here, but gives no protection.',
        )
    return SimulatedAttester(home, now)
