"""A SIMULATED machine that runs, and whose fault may be changed meanwhile.

guest_app     for a unix socket: what the guest itself talks to
vendors_app   for loopback: the vendors' services, `/gpus/{nonce}`, and `/fault`: GET says what is wrong, PUT sets it,
              an empty body makes the machine honest again
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from confide.simulator.fault_names import GPU_FAULTS, GPU_SOURCE_FAULTS, TDX_FAULTS
from confide.simulator.gpu_source import PATH as GPUS
from confide.simulator.gpu_source import SimulatedGpuSource
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform, TdxFault

CLOCK_SKEW_S = 60 * 60  # collateral is issued an hour back, for verifiers whose clocks run behind ours
FAULT = "/fault"
MAX_NAME_BYTES = 256

# Files to pin, by whose root it stands in for.
INTEL_ROOT, AMD_ROOT = "intel-root.pem", "amd-root.pem"


class SimulatedParts(Protocol):
    """A machine with one fault or none. `roots`: PEM by file name, what a verifier pins."""

    @property
    def guest_app(self) -> ASGIApp: ...

    @property
    def pccs_app(self) -> ASGIApp: ...

    @property
    def gpu_app(self) -> ASGIApp: ...

    @property
    def roots(self) -> Mapping[str, str]: ...

    def follow(self, now: int) -> None:
        """Date collateral as of `now`, Unix seconds."""


class SimulatedMachine:
    """The machine as others see it: the same sockets and roots, whatever is wrong with it at the moment."""

    def __init__(self, make: Callable[[str | None], SimulatedParts], fault: str | None = None) -> None:
        """`make`: a machine with this fault, ValueError for one that it does not know. Raises what it raises."""
        self._make = make
        self._fault = fault
        self._parts = make(fault)
        self._control = Starlette(routes=[Route(FAULT, self._asked, methods=["GET", "PUT"])])

    @property
    def roots(self) -> Mapping[str, str]:
        """PEM by file name."""
        return self._parts.roots

    def follow(self, now: int) -> None:
        """Date collateral as of `now`, Unix seconds."""
        self._parts.follow(now)

    async def guest_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._parts.guest_app(scope, receive, send)

    async def vendors_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        parts = self._parts
        app = self._control if path == FAULT else parts.gpu_app if path.startswith(GPUS) else parts.pccs_app
        await app(scope, receive, send)

    async def _asked(self, request: Request) -> Response:
        if request.method == "PUT":
            name = (await request.body())[:MAX_NAME_BYTES].decode("ascii", "replace").strip() or None
            try:
                # What is under way fails, as it would where a machine is taken away.
                self._parts = self._make(name)
            except ValueError as error:
                return PlainTextResponse(f"{error}\n", status_code=400)
            self._fault = name
        return PlainTextResponse(f"{self._fault or 'none'}\n")


def tdx_platform(seed: bytes, *, now: int, fault: str, form: QuoteForm) -> SimulatedTdxPlatform:
    """The platform of a machine with this fault, "" for none: one that is not the platform's leaves it honest."""
    tdx = TDX_FAULTS.get(fault)
    return SimulatedTdxPlatform(
        seed,
        now=now,
        debug=fault == "debug",
        tcb_status="OutOfDate" if fault == "outdated" else "UpToDate",
        revoked=fault == "revoked",
        form=QuoteForm.V5_REPORT_15 if tdx is TdxFault.SERVICE_TD else form,  # no other can say so
        fault=tdx,
    )


def gpu_source(seed: bytes, number: int, fault: str) -> SimulatedGpuSource:
    """The GPUs of a machine with this fault, likewise."""
    return SimulatedGpuSource(seed, number, fault=GPU_SOURCE_FAULTS.get(fault), last_fault=GPU_FAULTS.get(fault))
