"""What a relying party remembers of a service: the keysets that it verified, and the receipts that have proven answers.

Keysets stay for a while, so that a stream which began before a rotation can be proven after it.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from confide.verifier.appraisal import ServiceVerification

REMEMBERED = 8  # keysets of one service
TAKEN_MOST = 16_384  # receipts of one service that have proven an answer
EXPIRY_MARGIN_S = 300


@dataclass
class KnownService:
    """One service as this relying party knows it. `root`: scheme, host, port and path before `/v1/`.

    `keysets`: what was verified, oldest first; replaced whole, never changed, as several threads read it. `taken`: the
    receipts that have proven an answer.
    """

    root: str
    host: str
    keysets: Mapping[str, ServiceVerification] = field(default_factory=dict)
    current: ServiceVerification | None = None
    renew_at: int = 0
    taken: dict[str, object] = field(default_factory=dict)

    @property
    def pins(self) -> frozenset[bytes]:
        """SPKI digests that a connection may show, from the verified keyset; none where it lists no TLS key."""
        if self.current is None or self.current.report is None:
            return frozenset()
        return self.current.report.keyset.tls_pins(self.host)

    @property
    def digest(self) -> str | None:
        """The digest of the keyset that was verified last."""
        report = None if self.current is None else self.current.report
        return None if report is None else report.keyset_digest

    def knows(self, digest: str) -> bool:
        """Whether this keyset was verified."""
        return digest in self.keysets

    def take(self, receipt_id: str) -> bool:
        """Whether this receipt proves an exchange for the first time; older ones than are remembered say when."""
        mine = object()
        is_first = self.taken.setdefault(receipt_id, mine) is mine
        if len(self.taken) > TAKEN_MOST:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread takes one just now
                self.taken.pop(next(iter(self.taken)), None)
        return is_first

    def standing(self, now: int) -> Mapping[str, ServiceVerification]:
        """The keysets that have not expired: at `not_after` a verifier stops accepting everything (7.1)."""
        return {digest: each for digest, each in self.keysets.items() if now < not_after_of(each)}

    def remember(self, verified: ServiceVerification, now: int) -> None:
        """`verified`: one that is ok. `now`: Unix seconds."""
        assert verified.report is not None
        not_after = not_after_of(verified)
        digest = verified.report.keyset_digest
        others = [(each, known) for each, known in self.keysets.items() if each != digest]
        self.keysets = dict([*others, (digest, verified)][-REMEMBERED:])
        self.current = verified
        # In good time before it expires; a keyset with a short life is not asked for all the time.
        self.renew_at = not_after - min(EXPIRY_MARGIN_S, (not_after - now) // 10)


def not_after_of(verified: ServiceVerification) -> int:
    """When its keyset expires, Unix seconds."""
    assert verified.report is not None
    return verified.report.keyset.not_after
