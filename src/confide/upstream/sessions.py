"""Attested sessions as an aggregator makes them: what was verified of one upstream, for one period (wire contract 7.8).

The document is immutable and its id is the hash of it; the evidence in it is kept once, however many receipts cite it.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from confide.protocol.canonical import canonical, digest_of
from confide.protocol.report import API_VERSION
from confide.protocol.session import TLS_KEY, session_id

CLAIMS = (
    "tee_attested",
    "gpu_attested",
    "tcb_up_to_date",
    "os_known_good",
    "serving_software_known_good",
    "model_weights_provenance",
)
REASON_MOST = 300
SIMULATED = "SIMULATED TEE, no hardware protection"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification that held has shown. `pins`: SPKI digests, 32 bytes each. `claims`: name to reason, those
    that hold. `refuted`: those that are shown not to. `facts`: texts, integers and booleans. `not_after`: Unix seconds,
    None where the evidence does not expire by itself. `evidence`: the bytes that were verified. `simulated`: no
    hardware stands behind it; the operator pinned a simulator's root.
    """

    pins: frozenset[bytes]
    claims: Mapping[str, str]
    evidence: bytes
    refuted: Mapping[str, str] = {}
    facts: Mapping[str, str | int | bool] = {}
    identity: Mapping[str, str] | None = None
    not_after: int | None = None
    simulated: bool = False


class AttestedSession(msgspec.Struct, frozen=True):
    """One session. `usable_until`: no prompt is sent in it from then on, so that an answer that was begun before ends
    within `expires_at`; `renew_at`: when to verify again. Unix seconds.
    """

    id: str
    upstream_name: str
    document: Mapping[str, Any]
    pins: frozenset[bytes]
    established_at: int
    usable_until: int
    renew_at: int
    expires_at: int

    def raw(self) -> bytes:
        """The document as it is kept and served: its canonical form."""
        return canonical(self.document)


def new_session(
    shown: Shown,
    *,
    upstream_name: str,
    origin: str,
    verifier_id: str,
    now: int,
    used_s: int,
    answer_s: int,
) -> AttestedSession:
    """The session of a verification just made. `used_s`: how long it may be used. `answer_s`: the longest answer.

    The evidence may expire earlier: then half of what is left is for answers that were begun.
    """
    expires_at = now + used_s + answer_s
    if shown.not_after is not None:
        expires_at = min(expires_at, shown.not_after)
    usable_until = min(now + used_s, expires_at - min(answer_s, (expires_at - now) // 2))
    document: dict[str, Any] = {
        "api_version": API_VERSION,
        "upstream_name": upstream_name,
        "endpoint": origin,
        "verifier_id": verifier_id,
        "established_at": now,
        "expires_at": expires_at,
        "channel_binding": [
            {"type": TLS_KEY, "origin": origin, "spki_sha256": pin.hex()} for pin in sorted(shown.pins)
        ],
        "claims": claims_of(shown),
        "evidence": {
            "digest": digest_of(shown.evidence),
            "data": "data:application/json;base64," + base64.b64encode(shown.evidence).decode(),
        },
    }
    if shown.identity is not None:
        document["identity"] = dict(shown.identity)
    return AttestedSession(
        id=session_id(document),
        upstream_name=upstream_name,
        document=document,
        pins=shown.pins,
        established_at=now,
        usable_until=usable_until,
        renew_at=now + max(1, (usable_until - now) * 4 // 5),
        expires_at=expires_at,
    )


def claims_of(shown: Shown) -> dict[str, object]:
    """All six claims. What was not looked at is unknown, never asserted."""
    claims: dict[str, object] = {}
    for name in CLAIMS:
        if name in shown.claims:
            claims[name] = claim("asserted", shown.claims[name], simulated=shown.simulated)
        elif name in shown.refuted:
            claims[name] = claim("refuted", shown.refuted[name], simulated=shown.simulated)
        else:
            claims[name] = {"status": "unknown"}
    facts = {"simulated": True, **shown.facts} if shown.simulated else dict(shown.facts)
    if facts:
        claims["extra"] = facts
    return claims


def claim(status: str, reason: str, *, simulated: bool) -> dict[str, str]:
    """What rests on a simulator's root is the operator's word: nobody else would take it for proven."""
    if simulated:
        return {"status": status, "source": "operator_asserted", "reason": f"{SIMULATED}: {reason}"[:REASON_MOST]}
    return {"status": status, "source": "hardware_proven", "reason": reason[:REASON_MOST]}


def plain_facts(facts: Mapping[str, object], names: Iterable[str]) -> dict[str, str | int | bool]:
    """Those of the named facts that a document can hold."""
    return {name: value for name in names if isinstance(value := facts.get(name), str | int | bool)}
