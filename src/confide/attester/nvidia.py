"""Evidence of the GPUs beside the CPU's: `nvidia_payload`, collected for the nonce of a request (tee-evidence 2.5).

Whatever the source was, the payload is read back before it is served: it must name our nonce, hold at least one device,
and each device's report must have been asked for with our nonce. A canned report, such as NVIDIA's tools give where
there is no GPU, fails that check. Signatures and certificates are for a verifier (`evidence.nvidia`).
"""

import os
from pathlib import Path

from confide import config
from confide.attester.base import MAX_WAITING, Attester
from confide.attester.gpu_sources import GpuFailed, Source, source_of
from confide.attester.one_thread import OneThread
from confide.errors import ConfigError, InternalError, NotReady
from confide.evidence.gpu_payload import PayloadError, decoded, parse_payload

DEADLINE_S = 60.0  # for one collection and those waiting before it
RETRY_AFTER_S = 10
NONCE_BYTES = 32

# The request in an SPDM 1.1 report (tee-evidence 6.5): GET_MEASUREMENTS with two parameters, then the nonce.
SPDM_REQUEST = b"\x11\xe0"
SPDM_NONCE = slice(4, 4 + NONCE_BYTES)


class GpuCollector:
    """Collects payloads one after the other; those who come meanwhile wait in a bounded queue."""

    def __init__(self, source: Source, *, deadline_s: float = DEADLINE_S, max_waiting: int = MAX_WAITING) -> None:
        """`source`: 32 bytes of nonce to JSON text, blocking. Raises GpuFailed. `max_waiting`: requests at a time."""
        self._source = source
        self._thread = OneThread("gpu-evidence", max_waiting=max_waiting, deadline_s=deadline_s)

    async def payload(self, nonce: bytes) -> str:
        """`nvidia_payload`: the JSON text of wire contract 6.4 over exactly 32 bytes, else ValueError.

        Raises NotReady when `max_waiting` requests wait already, after the deadline and while the source is away,
        InternalError when it fails or gives evidence for another nonce. A service that is set to show its GPUs never
        goes on without.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"{NONCE_BYTES} bytes of nonce expected, got {len(nonce)}")
        try:
            return await self._thread.call(lambda: self._collected(nonce), what="requests for GPU evidence")
        except GpuFailed as error:
            if error.temporary:
                raise NotReady("the GPUs give no evidence at present", retry_after_s=RETRY_AFTER_S) from error
            raise InternalError("the GPUs gave no evidence for this nonce") from error

    def _collected(self, nonce: bytes) -> str:
        text = self._source(nonce)
        require_for(text, nonce)
        return text


async def open_gpu(
    settings: config.Attester, home: Path, attester: Attester, *, max_waiting: int = MAX_WAITING
) -> GpuCollector | None:
    """The collector that `[attester] gpu` asks for, None for "none". It is tried once: ConfigError says what is wrong.

    The simulated GPU goes with a simulated attester alone. `max_waiting`: requests at a time.
    """
    if settings.gpu == "none":
        return None
    if settings.gpu == "simulated" and not attester.simulated:
        raise ConfigError(
            f'[attester] gpu = "simulated": the attester is {attester.kind}, on real hardware',
            remedy='Set gpu to "nvml" or another source of real evidence, or leave it out.',
        )
    try:
        collector = GpuCollector(source_of(settings, home), max_waiting=max_waiting)
        await collector.payload(os.urandom(NONCE_BYTES))
    except (GpuFailed, InternalError, NotReady) as error:
        cause = error.__cause__ if isinstance(error.__cause__, GpuFailed) else error
        raise ConfigError(
            f'[attester] gpu = "{settings.gpu}": {cause}',
            remedy="See that the GPUs are in confidential mode, and that this source gives evidence for any nonce.",
        ) from error
    return collector


def require_for(text: str, nonce: bytes) -> None:
    """Raise GpuFailed unless this is the payload of at least one device, asked with exactly this nonce."""
    try:
        payload = parse_payload(text)
        reports = [decoded(entry.evidence, PayloadError) for entry in payload.entries]
    except PayloadError as error:
        raise GpuFailed(f"what came is no payload: {error}") from error
    if payload.nonce.lower() != nonce.hex():
        raise GpuFailed("the payload is for another nonce")
    if not reports:
        raise GpuFailed("the payload holds the evidence of no device")
    for place, report in enumerate(reports):
        if report[:2] != SPDM_REQUEST or report[SPDM_NONCE] != nonce:
            raise GpuFailed(f"the report of device {place} was asked for with another nonce")
