"""The KMS key chain: released by a pinned root, to the measured app, for the role's own purpose, and for no other."""

from typing import Any

import pytest
from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.evidence.custody import CustodyError, recovered, verify_custody
from confide.evidence.result import Check, Status
from confide.protocol.keyset import ED25519, Keyset, PublicKey
from confide.simulator.kms import SimulatedKms

APP_ID = bytes(range(20))
KMS = SimulatedKms(b"\x11" * 32)
APP = KMS.app_keys(APP_ID)
ROOTS = frozenset({KMS.root_public_key})
RECEIPT_PURPOSE = "aci.receipt.ed25519.v1"
X25519, SECP256K1 = "x25519-aes-256-gcm-hkdf-sha256", "secp256k1-aes-256-gcm-hkdf-sha256"

Document = dict[str, Any]


def secret_of(released: Document) -> bytes:
    return bytes.fromhex(released["key"])


def entry(path: str = "aci/receipt-ed25519/v1", **changes: object) -> Document:
    """An honest receipt key of this path."""
    released = APP.release(path, RECEIPT_PURPOSE)
    secret = secret_of(released)
    return {
        "role": "receipt",
        "path": path,
        "purpose": RECEIPT_PURPOSE,
        "algo": ED25519,
        "public_key": Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex(),
        "kms_public_key": PrivateKey(secret).public_key.format().hex(),
        "signature_chain": released["signature_chain"],
    } | changes


HONEST = entry()
DIRECT = APP.release("aci/receipt-ed25519/v1", RECEIPT_PURPOSE, "ed25519")["signature_chain"]


def keyset(*receipt_keys: str, e2ee: tuple[PublicKey, ...] = ()) -> Keyset:
    keys = tuple(PublicKey(f"r{place}", ED25519, key) for place, key in enumerate(receipt_keys))
    return Keyset(None, 1_900_000_000, keys, e2ee)


KEYSET = keyset(HONEST["public_key"])


def verify(
    *entries: Document,
    keys: Keyset = KEYSET,
    app_id: bytes | None = APP_ID,
    roots: frozenset[str] = ROOTS,
    provider: str = "dstack-kms",
) -> dict[str, Check]:
    custody = {"provider": provider, "keys": list(entries)}
    return {check.name: check for check in verify_custody(custody, keyset=keys, app_id=app_id, kms_roots=roots)}


def receipt(*entries: Document, **options: Any) -> Status:
    return verify(*entries, **options)["custody.receipt"].status


def test_an_honest_chain_passes() -> None:
    checks = verify(HONEST)
    assert {name: check.status for name, check in checks.items()} == {"custody.receipt": Status.PASS}
    assert APP_ID.hex() in checks["custody.receipt"].reason


def test_a_recovery_byte_may_count_from_27() -> None:
    raised = [f"{signature[:128]}{int(signature[128:], 16) + 27:02x}" for signature in HONEST["signature_chain"]]
    assert receipt(HONEST | {"signature_chain": raised}) is Status.PASS
    for byte in (4, 26, 31, 255):
        bad = [f"{HONEST['signature_chain'][0][:128]}{byte:02x}", HONEST["signature_chain"][1]]
        assert receipt(HONEST | {"signature_chain": bad}) is Status.FAIL


def test_hex_may_be_in_upper_case() -> None:
    assert receipt(HONEST | {"kms_public_key": HONEST["kms_public_key"].upper()}) is Status.PASS
    assert receipt(HONEST | {"public_key": HONEST["public_key"].upper()}) is Status.PASS


def test_without_custody_roots_or_a_measured_app_nothing_can_be_said() -> None:
    (absent,) = verify_custody(None, keyset=KEYSET, app_id=APP_ID, kms_roots=ROOTS)
    assert (absent.name, absent.status) == ("custody.receipt", Status.SKIP)
    assert receipt(HONEST, roots=frozenset()) is Status.SKIP
    assert receipt(HONEST, app_id=None) is Status.SKIP
    assert receipt(HONEST, provider="another") is Status.SKIP
    assert receipt() is Status.SKIP


def test_another_kms_is_refused() -> None:
    other = SimulatedKms(b"\x12" * 32)
    assert receipt(HONEST, roots=frozenset({other.root_public_key})) is Status.FAIL


def test_the_key_of_another_app_is_refused() -> None:
    assert receipt(HONEST, app_id=bytes(20)) is Status.FAIL


def test_a_key_for_another_purpose_is_refused() -> None:
    """The KMS releases any path for any purpose to the app; only the fixed purpose makes it this role's."""
    released = APP.release("aci/receipt-ed25519/v1", "another purpose")
    other = HONEST | {"signature_chain": released["signature_chain"]}
    assert receipt(other) is Status.FAIL
    assert receipt(other | {"purpose": "another purpose"}) is Status.FAIL


def test_a_key_that_the_keyset_does_not_have_is_refused() -> None:
    assert receipt(entry("another/path")) is Status.FAIL
    assert receipt(HONEST | {"algo": X25519}) is Status.FAIL


def test_each_key_of_a_role_has_to_be_accounted_for() -> None:
    second = entry("another/path")
    both = keyset(HONEST["public_key"], second["public_key"])
    assert receipt(HONEST, keys=both) is Status.SKIP
    assert receipt(HONEST, second, keys=both) is Status.PASS
    assert receipt(HONEST, second | {"signature_chain": HONEST["signature_chain"]}, keys=both) is Status.FAIL


def test_unknown_roles_are_not_looked_at() -> None:
    unknown = HONEST | {"role": "another", "kms_public_key": "00"}
    assert set(verify(HONEST, unknown)) == {"custody.receipt"}


def test_a_chain_over_the_key_itself_is_a_check_of_its_own() -> None:
    checks = verify(HONEST | {"direct_signature_chain": DIRECT})
    assert {name: check.status for name, check in checks.items()} == {
        "custody.receipt": Status.PASS,
        "custody.receipt.direct": Status.PASS,
    }
    wrong = verify(HONEST | {"direct_signature_chain": HONEST["signature_chain"]})
    assert wrong["custody.receipt"].status is Status.PASS
    assert wrong["custody.receipt.direct"].status is Status.FAIL


def sealing(role: str, purpose: str, algo: str) -> tuple[Document, PublicKey]:
    released = APP.release(f"path of {role}", purpose)
    point = PrivateKey(secret_of(released)).public_key
    public = point.format(compressed=False).hex() if algo == SECP256K1 else "5d" * 32
    shown = {
        "role": role,
        "purpose": purpose,
        "algo": algo,
        "public_key": public,
        "kms_public_key": point.format().hex(),
        "signature_chain": released["signature_chain"],
    }
    return shown, PublicKey(role, algo, public)


def test_every_role_of_the_keyset_has_a_check() -> None:
    x25519, x25519_key = sealing("e2ee-x25519", "aci.e2ee.x25519.v1", X25519)
    secp256k1, secp256k1_key = sealing("e2ee-secp256k1", "aci.e2ee.v1", SECP256K1)
    keys = keyset(HONEST["public_key"], e2ee=(x25519_key, secp256k1_key))
    checks = verify(HONEST, x25519, secp256k1, keys=keys)
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        ("custody.receipt", "custody.e2ee-x25519", "custody.e2ee-secp256k1"), Status.PASS
    )
    without = verify(HONEST, x25519, keys=keys)
    assert without["custody.e2ee-secp256k1"].status is Status.SKIP


def test_a_secp256k1_key_is_the_one_that_was_released() -> None:
    shown, key = sealing("e2ee-secp256k1", "aci.e2ee.v1", SECP256K1)
    other = PublicKey("other", SECP256K1, PrivateKey(b"\x07" * 32).public_key.format(compressed=False).hex())
    keys = keyset(HONEST["public_key"], e2ee=(key, other))
    checks = verify(HONEST, shown | {"public_key": other.public_key}, keys=keys)
    assert checks["custody.e2ee-secp256k1"].status is Status.FAIL


ODD_MEMBERS: list[Document] = [
    {"role": 5},
    {"public_key": "zz"},
    {"public_key": ""},
    {"kms_public_key": "ab" * 66},
    {"signature_chain": []},
    {"signature_chain": HONEST["signature_chain"][:1]},
    {"signature_chain": HONEST["signature_chain"] * 2},
    {"signature_chain": "text"},
    {"direct_signature_chain": []},
]


@pytest.mark.parametrize(
    "custody",
    [
        5,
        [],
        {},
        {"provider": "dstack-kms"},
        {"provider": "dstack-kms", "keys": {}},
        {"provider": "\ud800", "keys": []},
        {"provider": "dstack-kms", "keys": [HONEST] * 65},
        *({"provider": "dstack-kms", "keys": [HONEST | change]} for change in ODD_MEMBERS),
    ],
    ids=lambda custody: repr(custody)[:60],
)
def test_an_odd_document_fails(custody: object) -> None:
    (check,) = verify_custody(custody, keyset=KEYSET, app_id=APP_ID, kms_roots=ROOTS)
    assert check.status is Status.FAIL


@pytest.mark.parametrize(
    "change",
    [
        {"kms_public_key": "00" * 33},
        {"kms_public_key": "02" + "ff" * 32},
        {"signature_chain": ["00" * 65] * 2},
        {"signature_chain": ["ff" * 64 + "00"] * 2},
        {"signature_chain": ["ab" * 64] * 2},
    ],
)
def test_points_and_signatures_that_are_none_fail(change: Document) -> None:
    assert receipt(HONEST | change) is Status.FAIL


@given(st.integers(0, 1), st.integers(0, 65 * 8 - 1))
def test_no_bit_of_a_chain_can_be_flipped(place: int, bit: int) -> None:
    chain = list(HONEST["signature_chain"])
    signature = bytearray.fromhex(chain[place])
    signature[bit // 8] ^= 1 << bit % 8
    chain[place] = signature.hex()
    assert receipt(HONEST | {"signature_chain": chain}) is Status.FAIL


@given(st.binary(min_size=64, max_size=66), st.binary(max_size=40))
def test_any_signature_is_refused_or_names_a_key(signature: bytes, message: bytes) -> None:
    try:
        key = recovered(message, signature.hex())
    except CustodyError:
        return
    assert len(key) == 33
