"""The keysets of a service over time (wire contract 7.1; ADR 5).

Time is cut into periods of four fifths of a keyset's lifetime. The keyset of a period follows from the attester's keys
and the period's number alone: no state, so workers, restarts and a process that was killed all agree, and a keyset is
replaced a fifth of its lifetime before it expires. A receipt key serves one period; the TLS key stays.
"""

from dataclasses import dataclass

from confide.attester.keys import ReceiptSigner, WorkloadKeys
from confide.protocol.keyset import ED25519, Keyset, PublicKey, TlsKey

SHORTEST_LIFETIME_S = 10


@dataclass(frozen=True)
class Epoch:
    """One period: its keyset, the keyset's digest, and the key that signs. Times: Unix seconds, the end excluded."""

    number: int
    keyset: Keyset
    digest: str
    signer: ReceiptSigner
    begins_at: int
    ends_at: int


class KeysetEpochs:
    """Which keyset stands when. `lifetime_s`: from the beginning of a period to the keyset's expiry."""

    def __init__(
        self, keys: WorkloadKeys, *, lifetime_s: int, subject: str | None, tls_keys: tuple[TlsKey, ...]
    ) -> None:
        """Raises ValueError for a lifetime below 10 s."""
        if lifetime_s < SHORTEST_LIFETIME_S:
            raise ValueError(f"a keyset lives {SHORTEST_LIFETIME_S} s at least, got {lifetime_s}")
        self._keys = keys
        self._lifetime_s = lifetime_s
        self._period_s = lifetime_s * 4 // 5
        self._subject = subject
        self._tls_keys = tls_keys
        self._latest: Epoch | None = None

    def at(self, now: int) -> Epoch:
        """The epoch of this moment (Unix seconds); the same object while it lasts."""
        latest = self._latest
        if latest is not None and latest.begins_at <= now < latest.ends_at:
            return latest
        self._latest = epoch = self._epoch(now // self._period_s)
        return epoch

    def _epoch(self, number: int) -> Epoch:
        begins_at = number * self._period_s
        signer = self._keys.receipt(number)
        keyset = Keyset(
            subject=self._subject,
            not_after=begins_at + self._lifetime_s,
            receipt_signing_keys=(PublicKey(signer.key_id, ED25519, signer.public_key_hex),),
            e2ee_public_keys=(),
            tls_public_keys=self._tls_keys,
        )
        return Epoch(number, keyset, keyset.digest(), signer, begins_at, begins_at + self._period_s)
