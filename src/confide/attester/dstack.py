"""The dstack attester: quotes and keys from the guest agent of a dstack machine (tee-evidence 2, 2.1; ADR 9).

The keys are not made here. The KMS releases a secret for each path to every instance of the same app, so they are the
same after a restart, and on all replicas; each purpose has a path of its own, and no secret serves two.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Self

from confide.attester.base import MAX_WAITING, Evidence, KeyCustody, app_compose_of
from confide.attester.dstack_agent import AgentFailed, GuestAgent, Quoted, ReleasedKey
from confide.attester.keys import LegacyKeys, WorkloadKeys
from confide.attester.own_collateral import OwnCollateral
from confide.attester.own_output import REPORT_DATA_BYTES, require_same, tdx_report_data
from confide.errors import ConfigError, InternalError, NotReady
from confide.protocol.canonical import DocumentError, parse_document

DEADLINE_S = 60.0  # for a quote and those waiting before it
RETRY_AFTER_S = 10
START_REMEDY = "See that dstack's guest agent runs and that its socket is mounted into this container."

SIGNATURE = re.compile(r"[0-9a-f]{130}")


@dataclass(frozen=True)
class KmsKey:
    """A path of the KMS and the purpose that its key is asked for (wire contract 7.3)."""

    path: str
    purpose: str


RECEIPT = KmsKey("aci/receipt-ed25519/v1", "aci.receipt.ed25519.v1")
LEGACY_ED25519 = KmsKey("aci/legacy-ed25519/v1", "aci.legacy.ed25519.v1")
# Ours: the contract's table has no path for these. The reference deployment signs legacy texts with its E2EE key.
LEGACY_ECDSA = KmsKey("aci/legacy-ecdsa/v1", "aci.legacy.ecdsa.v1")
RECORD_SEAL = KmsKey("aci/record-seal/v1", "aci.record-seal.v1")
TLS = KmsKey("aci/tls-p256/v1", "aci.tls.p256.v1")
KEYS = (RECEIPT, LEGACY_ED25519, LEGACY_ECDSA, RECORD_SEAL, TLS)


class DstackAttester:
    """Quotes one after the other; those who come meanwhile wait in a bounded queue. Made by `open`."""

    kind = "dstack"
    tee_type = "tdx"

    def __init__(
        self,
        agent: GuestAgent,
        keys: LegacyKeys,
        workload_keys: WorkloadKeys,
        *,
        info: dict[str, object],
        key_custody: KeyCustody | None,
        collateral: OwnCollateral | None = None,
        deadline_s: float = DEADLINE_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.keys = keys
        self.workload_keys = workload_keys
        self.simulated = agent.endpoint.simulated
        self._agent = agent
        self._info = info
        self._key_custody = key_custody
        self._collateral = collateral
        self._deadline_s = deadline_s
        self._max_waiting = max_waiting
        self._quoting = asyncio.Lock()
        self._waiting = 0

    @classmethod
    async def open(
        cls,
        agent: GuestAgent,
        *,
        collateral: OwnCollateral | None = None,
        deadline_s: float = DEADLINE_S,
        max_waiting: int = MAX_WAITING,
    ) -> Self:
        """Fetch the keys, and quote once to see that this platform is one whose evidence we can serve.

        `collateral`: what travels with the quotes; None leaves it to verifiers. `deadline_s`: for each quote, waiting
        included. `max_waiting`: quotes asked for at a time. Raises ConfigError, which says what is missing.
        """
        try:
            info = await agent.info()
            released = {key: await agent.key(key.path, key.purpose) for key in KEYS}
            require_quotes(await agent.quote(bytes(REPORT_DATA_BYTES)))
        except AgentFailed as error:
            raise ConfigError(f'[attester] kind = "dstack": {error}', remedy=START_REMEDY) from error
        try:
            app_compose_of(info)  # now, rather than at the first report
        except ValueError as error:
            raise ConfigError(f'[attester] kind = "dstack": {error}', remedy=START_REMEDY) from error
        require_distinct(released)
        return cls(
            agent,
            LegacyKeys.released(
                ecdsa=released[LEGACY_ECDSA].secret,
                ed25519=released[LEGACY_ED25519].secret,
                seal=released[RECORD_SEAL].secret,
            ),
            WorkloadKeys.released(receipt=released[RECEIPT].secret, tls=released[TLS].secret),
            info=info,
            key_custody=key_custody(RECEIPT, released[RECEIPT], info),
            collateral=collateral,
            deadline_s=deadline_s,
            max_waiting=max_waiting,
        )

    @property
    def app_id(self) -> str | None:
        """See Attester.app_id."""
        stated = self._info.get("app_id")
        return stated if isinstance(stated, str) and stated else None

    async def attest(self, report_data: bytes) -> Evidence:
        """Fresh evidence over exactly 64 bytes, else ValueError.

        Raises NotReady when `max_waiting` requests wait already, after the deadline and while the agent is away,
        InternalError when it refuses or its quote holds other data.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        if self._waiting >= self._max_waiting:
            raise NotReady("too many attestation requests are waiting", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s), self._quoting:
                answer = await self._agent.quote(report_data)
        except TimeoutError as error:
            raise NotReady(f"no evidence within {self._deadline_s:g} s", retry_after_s=RETRY_AFTER_S) from error
        except AgentFailed as error:
            if error.temporary:
                raise NotReady("the platform gives no evidence at present", retry_after_s=RETRY_AFTER_S) from error
            raise InternalError("the platform gave no evidence") from error
        finally:
            self._waiting -= 1
        require_report_data(answer, report_data)
        return Evidence(
            tee_type=self.tee_type,
            quote=answer.quote,
            report_data=report_data,  # the same bytes as in the quote, as was just required
            event_log=answer.event_log,
            vm_config=answer.vm_config,
            info=dict(self._info),
            collateral=None if self._collateral is None else await self._collateral.for_quote(answer.quote),
            simulated=self.simulated,
            key_custody=self._key_custody,
        )


def require_quotes(answer: Quoted) -> None:
    """Raise ConfigError where the agent gives evidence of another kind, as it does on SNP."""
    if not answer.quote:
        raise ConfigError(
            '[attester] kind = "dstack": the agent gives no TDX quote on this platform, and its own format is not '
            "supported",
            remedy='On AMD SEV-SNP use [attester] kind = "tsm", which reads the report from configfs.',
        )
    try:
        require_report_data(answer, bytes(REPORT_DATA_BYTES))
    except InternalError as error:
        raise ConfigError(f'[attester] kind = "dstack": {error.message}', remedy=START_REMEDY) from error


def require_distinct(released: dict[KmsKey, ReleasedKey]) -> None:
    """Raise ConfigError when two paths gave one secret: then one key would have two roles."""
    if len({key.secret.kms_public_key_hex for key in released.values()}) != len(released):
        raise ConfigError(
            '[attester] kind = "dstack": the agent released one secret for two paths, expected one for each',
            remedy="Update dstack's guest agent, or the simulator that stands in for it.",
        )


def require_report_data(answer: Quoted, report_data: bytes) -> None:
    """InternalError unless quote and agent agree that exactly the bytes were quoted that were asked for."""
    require_same(tdx_report_data(answer.quote), report_data)
    require_same(answer.report_data or report_data, report_data)


def key_custody(asked: KmsKey, released: ReleasedKey, info: dict[str, object]) -> KeyCustody | None:
    """What to publish about a secret; None where no KMS released it, so that there is nothing to show."""
    chain = released.signature_chain
    if len(chain) != 2 or not all(SIGNATURE.fullmatch(signature) for signature in chain):
        return None
    if provider_name(info) != "kms":
        return None
    return KeyCustody(asked.path, asked.purpose, released.secret.kms_public_key_hex, (chain[0], chain[1]))


def provider_name(info: dict[str, object]) -> object:
    """`name` in `Info`'s `key_provider_info`, which is JSON text."""
    stated = info.get("key_provider_info")
    if not isinstance(stated, str):
        return None
    try:
        return parse_document(stated.encode(), what="key_provider_info").get("name")
    except DocumentError:
        return None
