"""The SIMULATED source of GPU evidence: the payload of some devices for any nonce, over HTTP (tee-evidence 2.5, 5.5).

GET /gpus/{nonce}   `nvidia_payload` (wire contract 6.4); nonce: 64 hex digits
"""

import asyncio
from enum import StrEnum

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from confide.simulator.gpu import GpuFault, SimulatedGpu, gpu_payload

PATH = "/gpus/"
ROOT = "gpu-root.pem"
NONCE_BYTES = 32


class GpuSourceFault(StrEnum):
    """What is wrong with every answer. In the comments: what it looks like to whoever asks."""

    HUNG = "hung"  # nothing comes
    FAILING = "failing"  # status 500
    MALFORMED = "malformed"  # no JSON
    NONE = "none"  # a payload without a device
    MISSING = "missing"  # one device fewer than there are


class SimulatedGpuSource:
    """Devices that do not exist, all of one seed. `roots`: what they end in, PEM by file name; none without devices."""

    def __init__(
        self,
        seed: bytes,
        number: int,
        *,
        fault: GpuSourceFault | None = None,
        last_fault: GpuFault | None = None,
    ) -> None:
        """`seed`: 32 bytes. `number`: of devices. `last_fault`: of the last one; the others are as they should be."""
        self._fault = fault
        self._devices = [
            SimulatedGpu(seed, number=each, fault=last_fault if each == number - 1 else None) for each in range(number)
        ]
        self.roots = {ROOT: SimulatedGpu(seed).root_pem} if number else {}

    @property
    def app(self) -> Starlette:
        """The ASGI application; without devices there is nothing at its path."""
        return Starlette(routes=[Route(f"{PATH}{{nonce}}", self.payload)] if self._devices else [])

    async def payload(self, request: Request) -> Response:
        """The evidence of the devices."""
        fault = self._fault
        if fault is GpuSourceFault.HUNG:
            await asyncio.Event().wait()
        if fault is GpuSourceFault.FAILING:
            return Response(status_code=500)
        try:
            nonce = bytes.fromhex(request.path_params["nonce"])
        except ValueError:
            nonce = b""
        if len(nonce) != NONCE_BYTES:
            return PlainTextResponse("expected a nonce of 64 hex digits\n", status_code=400)
        missing = {GpuSourceFault.NONE: len(self._devices), GpuSourceFault.MISSING: 1}.get(fault, 0) if fault else 0
        text = gpu_payload(self._devices[: len(self._devices) - missing], nonce)
        return Response(text[1:] if fault is GpuSourceFault.MALFORMED else text, media_type="application/json")
