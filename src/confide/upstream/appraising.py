"""How an attested service is asked for its report, before it is sent prompts; each kind says what the report has shown.

The report is asked for with a fresh nonce over a connection whose key is noted, and judged by the same code as a client
would judge it (`verifier/`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from confide.evidence.result import Verification
from confide.upstream.documents import Document, Documents
from confide.upstream.sessions import Shown
from confide.upstream.verified import DoesNotHold
from confide.verifier.appraisal import UP_TO_DATE
from confide.verifier.collateral import HeldCollateral
from confide.verifier.policy import Policy

TCB = "tdx.tcb_status"


@dataclass(frozen=True)
class ReportAppraiser(ABC):
    """`now`: Unix seconds. `draw`: random bytes, for nonces. `collateral`: where to get what reports lack."""

    verifier_id: ClassVar[str]
    path: ClassVar[str]  # of the report, with `{nonce}` where the nonce belongs, in hex

    documents: Documents
    policy: Policy
    _: KW_ONLY
    now: Callable[[], int]
    draw: Callable[[int], bytes]
    collateral: HeldCollateral

    async def appraise(self) -> Shown:
        """See Appraiser.appraise."""
        nonce = self.draw(32)
        document = await self.documents.get(self.path.format(nonce=nonce.hex()))
        return await asyncio.to_thread(self.judge, document, nonce, self.now())

    @abstractmethod
    def judge(self, document: Document, nonce: bytes, now: int) -> Shown:
        """Blocks, where the report lacks something that a vendor has. Raises DoesNotHold."""


def require(verified: Verification) -> None:
    """Return when it holds. Raises DoesNotHold, naming the check that decided.

    Its reason stays here: a receipt is read by others, and reasons hold keys and names of the upstream.
    """
    if not verified.ok:
        raise DoesNotHold(f"{'a check' if verified.decisive is None else verified.decisive.name} did not pass")


def refuted(verified: Verification) -> Mapping[str, str]:
    """The claims of wire contract 7.8 that are shown not to hold, with the reason."""
    tcb = verified.facts.get(TCB)
    return {} if tcb in (None, UP_TO_DATE) else {"tcb_up_to_date": f"the platform's TCB status is {tcb}"}
