"""Who released the service's keys? The key chain of dstack's KMS (tee-evidence 3.6, wire contract 7.3).

On entry: the keyset that a VERIFIED quote binds, and the app id that its event log MEASURED. What must be shown of each
key that a role has in the keyset:

1. an entry of `key_custody` names it, with the algorithm and the fixed purpose of its role
2. `signature_chain[0]` over that purpose and the entry's KMS key recovers the key of the app
3. `signature_chain[1]` over the measured app id and that app key recovers a root that the caller pinned

On exit: the KMS behind a pinned root released the named KMS key to this app, for this purpose. NOT shown: that an
Ed25519 or X25519 key comes of the same secret as the KMS key beside it (a secp256k1 key). That rests on the measured
code; the chain over the Ed25519 key itself, where an entry has one, shows it (`custody.<role>.direct`). Nor that the
KMS is honest, which is what pinning its root says.

A signature with a high s is taken like its low twin: both name the same signer, and nothing here counts signatures.
"""

from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass
from typing import Annotated

import msgspec
from coincurve import PublicKey as CurvePoint

from confide.evidence.result import Check, failed, passed, quoted, skipped
from confide.protocol.canonical import DocumentError, check_readable, typed
from confide.protocol.keyset import ED25519, Keyset, PublicKey
from confide.protocol.signature import V_OFFSET, keccak256

PROVIDER = "dstack-kms"
ISSUED = b"dstack-kms-issued:"
APP_ID_BYTES = 20
COMPRESSED_BYTES = 33
SIGNATURE_BYTES = 65
MAX_KEYS = 64

Hex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-fA-F]{2})+\Z", max_length=2 * SIGNATURE_BYTES)]
Chain = Annotated[tuple[Hex, ...], msgspec.Meta(min_length=2, max_length=2)]


class CustodyError(ValueError):
    """An entry or a chain does not show what it should. The text is for people."""


@dataclass(frozen=True)
class Role:
    """A role of the keyset (wire contract 7.3), and where the keyset has its keys."""

    name: str
    purpose: str
    algo: str
    keys: Callable[[Keyset], tuple[PublicKey, ...]]


ROLES = (
    Role("receipt", "aci.receipt.ed25519.v1", ED25519, lambda keyset: keyset.receipt_signing_keys),
    Role(
        "e2ee-x25519",
        "aci.e2ee.x25519.v1",
        "x25519-aes-256-gcm-hkdf-sha256",
        lambda keyset: keyset.e2ee_public_keys,
    ),
    Role(
        "e2ee-secp256k1",
        "aci.e2ee.v1",
        "secp256k1-aes-256-gcm-hkdf-sha256",
        lambda keyset: keyset.e2ee_public_keys,
    ),
)
SECP256K1_ROLE = "e2ee-secp256k1"


class Entry(msgspec.Struct, frozen=True):
    """One key. Hex throughout; `kms_public_key`: the secp256k1 key of the released secret, compressed."""

    role: str
    purpose: str
    algo: str
    public_key: Hex
    kms_public_key: Hex
    signature_chain: Chain
    direct_signature_chain: Chain | None = None


class Document(msgspec.Struct, frozen=True):
    """`evidence.key_custody`."""

    provider: str
    keys: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_KEYS)]


def verify_custody(
    key_custody: object, *, keyset: Keyset, app_id: bytes | None, kms_roots: Set[str]
) -> tuple[Check, ...]:
    """A check `custody.<role>` for each role that has a key in the keyset, and `custody.<role>.direct` where an entry
    of it has a direct chain. Offline, 0.4 ms a key; never raises on bad evidence.

    `key_custody`: the member as parsed, None when absent. `app_id`: 20 bytes, measured; None when nothing was.
    `kms_roots`: compressed secp256k1 keys, 66 lower-case hex digits each; there is no built-in one.
    """
    roles = [role for role in ROLES if listed(role, keyset)]
    names = [name_of(role) for role in roles]
    if key_custody is None:
        return tuple(
            skipped(name, "the report has no key_custody: nothing shows who released the key") for name in names
        )
    try:
        check_readable(key_custody, "key_custody")
        document = typed(key_custody, Document, what="key_custody")
    except DocumentError as error:
        return tuple(failed(name, quoted(error)) for name in names)
    missing = why_not(document, app_id, kms_roots)
    if missing is not None:
        return tuple(skipped(name, missing) for name in names)
    assert app_id is not None
    checks: list[Check] = []
    for role in roles:
        entries = [entry for entry in document.keys if entry.role == role.name]
        checks += check_role(role, listed(role, keyset), entries, app_id, kms_roots)
    return tuple(checks)


def name_of(role: Role) -> str:
    return f"custody.{role.name}"


def listed(role: Role, keyset: Keyset) -> frozenset[str]:
    """The role's keys in the keyset, lower-case hex."""
    return frozenset(key.public_key.lower() for key in role.keys(keyset) if key.algo == role.algo)


def why_not(document: Document, app_id: bytes | None, kms_roots: Collection[str]) -> str | None:
    """What a check of any chain lacks, or None."""
    if document.provider != PROVIDER:
        return f"got the key provider {quoted(document.provider)}, and only {PROVIDER} is known here"
    if app_id is None:
        return "no app id was measured, and one that is merely stated would prove nothing"
    if not kms_roots:
        return "no KMS root is pinned, and one that the peer brings along proves nothing"
    return None


def check_role(role: Role, keys: Set[str], entries: list[Entry], app_id: bytes, kms_roots: Set[str]) -> Iterator[Check]:
    """A bad entry fails the role; a key without an entry leaves it open."""
    name = name_of(role)
    try:
        for entry in entries:
            check_entry(role, entry, keys)
            check_chain(role.purpose, compressed(entry.kms_public_key), entry.signature_chain, app_id, kms_roots)
    except CustodyError as error:
        yield failed(name, str(error))
        return
    bare = keys - {entry.public_key.lower() for entry in entries}
    if bare:
        yield skipped(name, f"nothing shows who released {len(bare)} of {len(keys)} keys")
    else:
        yield passed(name, f"released by a pinned KMS root to the app {app_id.hex()} for {role.purpose}")
    direct = [entry for entry in entries if entry.direct_signature_chain is not None]
    if direct:
        yield check_direct(role, direct, app_id, kms_roots)


def check_entry(role: Role, entry: Entry, keys: Set[str]) -> None:
    """(1) Another purpose would let any key that the KMS ever gave this app stand in. Raises CustodyError."""
    if entry.public_key.lower() not in keys:
        raise CustodyError(f"the {role.name} key {entry.public_key} is not in the keyset")
    if (entry.purpose, entry.algo) != (role.purpose, role.algo):
        got = f"got purpose {quoted(entry.purpose)} and algo {quoted(entry.algo)}"
        raise CustodyError(f"{got}, expected {role.purpose} and {role.algo}")
    if role.name == SECP256K1_ROLE and compressed(entry.public_key) != compressed(entry.kms_public_key):
        raise CustodyError("public_key and kms_public_key are two keys, and should be one in two spellings")


def check_direct(role: Role, entries: list[Entry], app_id: bytes, kms_roots: Set[str]) -> Check:
    """The same chain over the role's own key rather than over its secp256k1 counterpart."""
    name = f"{name_of(role)}.direct"
    try:
        for entry in entries:
            assert entry.direct_signature_chain is not None
            key = bytes.fromhex(entry.public_key)
            check_chain(role.purpose, key, entry.direct_signature_chain, app_id, kms_roots)
    except CustodyError as error:
        return failed(name, str(error))
    return passed(name, f"a pinned KMS root released the {role.algo} key itself")


def check_chain(purpose: str, key: bytes, chain: tuple[str, ...], app_id: bytes, kms_roots: Set[str]) -> None:
    """(2, 3) Raises CustodyError unless the chain leads from the key to a pinned root."""
    app_key = recovered(f"{purpose}:{key.hex()}".encode(), chain[0])
    root = recovered(ISSUED + app_id + app_key, chain[1])
    if root.hex() not in kms_roots:
        raise CustodyError(f"the chain for {purpose} leads to the KMS root {root.hex()}, which is not pinned")


def recovered(message: bytes, signature_hex: str) -> bytes:
    """The compressed key that signed keccak256(message): r, s and a recovery byte 0 to 3 or 27 to 30, 65 bytes.

    Another message or signature recovers another key, so what comes out is to be compared. Raises CustodyError.
    """
    signature = bytes.fromhex(signature_hex)
    if len(signature) != SIGNATURE_BYTES:
        raise CustodyError(f"a signature of {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    recovery = signature[-1] - V_OFFSET if signature[-1] >= V_OFFSET else signature[-1]
    if recovery > 3:
        raise CustodyError(f"a recovery byte {signature[-1]}, expected 0 to 3 or 27 to 30")
    try:
        point = CurvePoint.from_signature_and_message(
            signature[:-1] + bytes((recovery,)), keccak256(message), hasher=None
        )
    except ValueError:
        raise CustodyError("a signature that no key can have made") from None
    key: bytes = point.format(compressed=True)
    return key


def compressed(public_key_hex: str) -> bytes:
    """A secp256k1 key in its compressed form, 33 bytes. Raises CustodyError."""
    try:
        key: bytes = CurvePoint(bytes.fromhex(public_key_hex)).format(compressed=True)
    except ValueError:
        raise CustodyError("kms_public_key is no point of secp256k1") from None
    return key
