"""NVIDIA's remote attestation service (NRAS): its verdict about GPU evidence (tee-evidence 3.4, 4.3).

An answer is for one nonce and good for an hour, so nothing is kept. What it is worth `evidence.nras` says.
"""

from confide.collateral.fetch import Fetcher, require_base
from confide.errors import CannotTell
from confide.evidence.nras import MAX_ANSWER_BYTES

NVIDIA_NRAS = "https://nras.attestation.nvidia.com"
WHAT = "the verdict of NVIDIA's remote service"


class NrasSource:
    """The service at one address. Threads may share it. `fetcher`: None when offline."""

    def __init__(self, fetcher: Fetcher | None, *, base: str = NVIDIA_NRAS) -> None:
        """`base`: the service's address without a path. Raises ConfigError unless it is https, or loopback."""
        self._url = f"{require_base(base, WHAT)}/v3/attest/gpu"
        self._fetcher = fetcher

    def verdict(self, payload: str) -> bytes:
        """The answer about an `nvidia_payload` (JSON text, wire contract 6.4), as it came. Raises CannotTell."""
        if self._fetcher is None:
            raise CannotTell(f"{WHAT}: offline it cannot be asked", remedy="Use one that travels with the proof.")
        return self._fetcher.post(self._url, payload.encode(), what=WHAT, limit=MAX_ANSWER_BYTES).body
