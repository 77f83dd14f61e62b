"""Answers of the remote attestation service: the honest one, and every way in which one can be dishonest."""

import base64
import json
from collections.abc import Callable
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.evidence.nras import (
    LEEWAY_S,
    MAX_ANSWER_BYTES,
    MAX_TOKENS,
    NRAS_ISSUER,
    NrasError,
    parse_answer,
    verify_nras,
)
from confide.evidence.nras_keys import MAX_KEY_SET_BYTES, KeySetError, NrasKeys, read_key_set
from confide.evidence.result import Verdict, Verification
from confide.simulator.gpu import derived_key, gpu_payload, raw_signature
from confide.simulator.nras import ISSUER, KEY_ID, LIFETIME_S, NrasFault, SimulatedNras, b64url
from device_chains import builder
from gpu_builders import NONCE, NOW, SEED, check, failed, gpus, nras_keys, passed, skipped

BOTH = {"nras.signature", "nras.claims"}
KEYS = nras_keys()


def answer(fault: NrasFault | None = None, number: int = 1) -> str:
    return SimulatedNras(SEED, fault=fault).attest(gpu_payload(gpus(number), NONCE), now=NOW)


def verified(text: str | bytes | None = None, **changes: object) -> Verification:
    """`verify_nras` on the honest answer about one GPU; arguments replace parts of it."""
    honest: dict[str, object] = {"nonce": NONCE, "keys": KEYS, "gpus": 1, "now": NOW, "ueids": (gpus()[0].ueid,)}
    return verify_nras(answer() if text is None else text, **(honest | changes))  # type: ignore[arg-type]  # any of them


def reason(result: Verification, name: str) -> str:
    return check(result, name).reason


def test_an_honest_answer_verifies_under_the_key_set_that_the_caller_gave() -> None:
    result = verified()
    assert passed(result) == BOTH
    assert result.verdict is Verdict.VERIFIED
    assert (result.now, result.anchors) == (NOW, (KEYS.anchor,))
    assert result.facts == {
        "nras.GPU-0.model": "GH100 Simulated",
        "nras.GPU-0.ueid": gpus()[0].ueid,
        "nras.GPU-0.driver_version": "570.172.08",
        "nras.GPU-0.vbios_version": "96.00.CF.00.02",
    }


def test_bytes_are_read_like_text() -> None:
    assert verified(answer().encode()).verdict is Verdict.VERIFIED


def test_an_answer_about_several_gpus() -> None:
    ueids = tuple(gpu.ueid for gpu in gpus(3))
    assert verified(answer(number=3), gpus=3, ueids=ueids).verdict is Verdict.VERIFIED
    assert failed(verified(answer(number=3), gpus=3, ueids=(*ueids[:2], "1"))) == {"nras.claims"}
    assert failed(verified(answer(number=3), gpus=2, ueids=None)) == {"nras.claims"}


def test_the_simulators_key_set_is_marked_as_simulated_whoever_says_otherwise_and_the_services_is_named() -> None:
    assert KEYS.anchor.simulated
    assert KEYS.anchor.name == f"sim:{KEYS.anchor.sha256}"
    assert verified().simulated
    assert read_key_set(SimulatedNras(SEED).jwks(), simulated=False).anchor == KEYS.anchor
    others = SimulatedNras(SEED).jwks().replace(b"simulated-nras-key", b"nv-eat-kid")
    real = read_key_set(others, simulated=False).anchor
    assert (real.name, real.simulated, real.sha256) == ("nras-jwks", False, sha256(others).hexdigest())


def test_the_issuer_is_nvidias() -> None:
    assert ISSUER == NRAS_ISSUER == "https://nras.attestation.nvidia.com"
    assert failed(verified(issuer="https://nras.example")) == {"nras.signature"}


def test_no_answer_and_no_keys_are_neither_yes_nor_no() -> None:
    absent = verify_nras(None, nonce=NONCE, keys=KEYS, gpus=1, now=NOW)
    keyless = verified(keys=None)
    for result in (absent, keyless):
        assert skipped(result) == BOTH
        assert result.verdict is Verdict.PARTIAL
        assert (result.anchors, result.facts) == ((), {})


SIGNATURE_FAULTS = {
    NrasFault.UNSIGNED: "main: got the algorithm none, expected ES384",
    NrasFault.ONE_UNSIGNED: "GPU-0: got the algorithm none, expected ES384",
    NrasFault.UNKNOWN_KID: "main: got the key id simulated-nras-other, which is not in the key set",
    NrasFault.OTHER_KEY: f"main: the key {KEY_ID} did not sign it",
    NrasFault.ISSUER: "main: got the issuer https://nras.example, expected https://nras.attestation.nvidia.com",
    NrasFault.EXPIRED: f"main: expired at {NOW - LIFETIME_S}, and the time is {NOW}",
    NrasFault.EARLY: f"main: iat is {NOW + LIFETIME_S}, later than the time {NOW}",
    NrasFault.NO_EXPIRY: "main: got None as exp, expected Unix seconds",
}
CLAIM_FAULTS = {
    NrasFault.NONCE: f"main: got the nonce {'00' * 32}, expected {NONCE.hex()}",
    NrasFault.ONE_NONCE: f"GPU-0: got the nonce {'00' * 32}, expected",
    NrasFault.NO_NONCE: "main: got the nonce None, expected",
    NrasFault.OVERALL: "main: got False as x-nvidia-overall-att-result, expected true",
    NrasFault.TRUTHY: "main: got true as x-nvidia-overall-att-result, expected true",
    NrasFault.MISSING_SUBMODULE: "main names none; there are tokens of GPU-0, and 1 GPUs",
    NrasFault.MISSING_TOKEN: "there is no token of any device",
    NrasFault.DIGEST: "GPU-0: main does not name the digest of this token",
    NrasFault.MEASUREMENTS: "GPU-0: got fail as measres, expected success",
    NrasFault.DEBUG: "GPU-0: got enabled as dbgstat, expected disabled",
    NrasFault.SECURE_BOOT: "GPU-0: got 1 as secboot, expected True",
    NrasFault.REPORT_NONCE: "GPU-0: got False as x-nvidia-gpu-attestation-report-nonce-match, expected True",
    NrasFault.RENAMED: "GPU-0: got None as measres, expected success",
    NrasFault.OTHER_DEVICE: "the tokens are about 1, the evidence about",
}


@pytest.mark.parametrize(("fault", "message"), SIGNATURE_FAULTS.items())
def test_a_fault_of_signing_fails_the_signature_and_proves_nothing(fault: NrasFault, message: str) -> None:
    result = verified(answer(fault))
    assert failed(result) == {"nras.signature"}
    assert skipped(result) == {"nras.claims"}
    assert reason(result, "nras.signature").startswith(message)
    assert result.facts == {}


@pytest.mark.parametrize(("fault", "message"), CLAIM_FAULTS.items())
def test_a_fault_of_the_verdict_fails_the_claims(fault: NrasFault, message: str) -> None:
    result = verified(answer(fault))
    assert failed(result) == {"nras.claims"}
    assert passed(result) == {"nras.signature"}
    assert reason(result, "nras.claims").startswith(message)


def test_every_fault_is_accounted_for() -> None:
    assert set(SIGNATURE_FAULTS) | set(CLAIM_FAULTS) == set(NrasFault)


@pytest.mark.parametrize("fault", [NrasFault.UNSIGNED, NrasFault.ONE_UNSIGNED])
def test_an_unsigned_token_is_refused_without_keys_as_well(fault: NrasFault) -> None:
    assert failed(verified(answer(fault), keys=None)) == {"nras.signature"}


def test_wrong_claims_fail_without_keys_as_well() -> None:
    assert failed(verified(answer(NrasFault.DIGEST), keys=None)) == {"nras.claims"}


def test_times_have_a_minutes_leeway_and_no_more() -> None:
    end = NOW + LIFETIME_S
    for now, holds in [
        (NOW - LEEWAY_S - 1, False),
        (NOW - LEEWAY_S, True),
        (end + LEEWAY_S - 1, True),
        (end + LEEWAY_S, False),
    ]:
        assert verified(now=now).ok is holds, now


@pytest.mark.parametrize("x5c_only", [False, True])
def test_a_key_may_come_as_coordinates_or_as_a_certificate_alone(x5c_only: bool) -> None:
    keys = read_key_set(SimulatedNras(SEED).jwks(x5c_only=x5c_only), simulated=True)
    assert keys.keys[KEY_ID].public_numbers() == KEYS.keys[KEY_ID].public_numbers()
    assert verified(keys=keys).ok


def test_an_answer_about_no_gpu_proves_nothing() -> None:
    nothing = SimulatedNras(SEED).attest(gpu_payload([], NONCE), now=NOW)
    for ueids in (None, ()):
        assert failed(verified(nothing, gpus=0, ueids=ueids)) == {"nras.claims"}


# Answers by hand: members of a token replaced, signed with the simulated service's own key.


def resigned(change: Callable[[dict[str, object]], object], header: dict[str, object] | None = None) -> str:
    """The honest answer with a changed main token, signed again."""
    (_, main), others = json.loads(answer())
    claims = json.loads(base64.urlsafe_b64decode(main.split(".")[1] + "=="))
    change(claims)
    head = {"alg": "ES384", "kid": KEY_ID} if header is None else header
    text = f"{b64url(json.dumps(head).encode())}.{b64url(json.dumps(claims).encode())}"
    signature = raw_signature(derived_key(SEED, "key of Simulated NRAS"), text.encode())
    return json.dumps([["JWT", f"{text}.{b64url(signature)}"], others])


def test_an_answer_signed_again_is_as_good() -> None:
    assert verified(resigned(lambda claims: None)).ok
    assert verified(resigned(lambda claims: claims.update(eat_nonce=NONCE.hex().upper()))).ok


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [True, 1.8e9, "1800000000", None])
def test_times_are_whole_numbers(name: str, value: object) -> None:
    assert failed(verified(resigned(lambda claims: claims.update({name: value})))) == {"nras.signature"}


@pytest.mark.parametrize(
    "submodules",
    [None, [], "GPU-0", {"GPU-0": None}, {"GPU-0": ["DIGEST"]}, {"GPU-0": ["DIGEST", ["SHA-1", "00"]]}],
)
def test_submodules_of_another_shape_have_failed(submodules: object) -> None:
    assert failed(verified(resigned(lambda claims: claims.update(submods=submodules)))) == {"nras.claims"}


def test_a_submodule_that_has_no_token_has_failed() -> None:
    def change(claims: dict[str, object]) -> None:
        submodules = claims["submods"]
        assert isinstance(submodules, dict)
        submodules["GPU-1"] = submodules["GPU-0"]

    assert failed(verified(resigned(change))) == {"nras.claims"}


@pytest.mark.parametrize(
    "header",
    [
        {"kid": KEY_ID},
        {"alg": None, "kid": KEY_ID},
        {"alg": ["ES384"], "kid": KEY_ID},
        {"alg": "es384", "kid": KEY_ID},
        {"alg": "HS256", "kid": KEY_ID},
        {"alg": "ES256", "kid": KEY_ID},
        {"alg": "ES384"},
        {"alg": "ES384", "kid": None},
        {"alg": "ES384", "kid": [KEY_ID]},
        {"alg": "ES384", "kid": KEY_ID, "crit": ["exp"]},
        {"alg": "ES384", "kid": KEY_ID, "crit": ["b64"], "b64": False},
    ],
)
def test_a_header_that_is_not_understood_is_refused(header: dict[str, object]) -> None:
    assert failed(verified(resigned(lambda claims: None, header))) == {"nras.signature"}


def test_a_key_of_the_tokens_own_is_not_looked_at() -> None:
    """The header brings a key along, and its id is not in the set."""
    (jwk,) = json.loads(SimulatedNras(SEED).jwks())["keys"]
    result = verified(resigned(lambda claims: None, {"alg": "ES384", "kid": "own", "jwk": jwk, "x5c": jwk["x5c"]}))
    assert failed(result) == {"nras.signature"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the answer cannot be read"),
        ("{}", "the answer cannot be read"),
        ("[]", "the answer cannot be read"),
        (b"\xff", "the answer cannot be read"),
        ('["\ud800"]', "the answer cannot be read"),
        ("[" * 100_000, "the answer cannot be read"),
        ('[["JWT","a.b.c"]]', "the answer cannot be read"),
        ('[["JWT","a.b.c"],{},{}]', "the answer cannot be read"),
        ('[["EAT","a.b.c"],{}]', "the answer begins with EAT, expected JWT"),
        ('[["JWT","a.b"],{}]', "the token main is not of the form"),
        ('[["JWT","a.b.c.d"],{}]', "the token main is not of the form"),
        ('[["JWT","a.b.c=="],{}]', "the token main is not of the form"),
        ('[["JWT","a.b.c\\n"],{}]', "the token main is not of the form"),
        ('[["JWT","ä.b.c"],{}]', "the token main is not of the form"),
        ('[["JWT","a.b.c"],{}]', "the token main cannot be read"),
        ('[["JWT","e30.W10.c"],{}]', "the token main cannot be read"),
        ('[["JWT","e30.e30.c"],{"GPU-0":"x"}]', "the token GPU-0 is not of the form"),
        (" " * (MAX_ANSWER_BYTES + 1), f"expected at most {MAX_ANSWER_BYTES}"),
        (
            json.dumps([["JWT", "e30.e30."], {str(place): "e30.e30." for place in range(MAX_TOKENS + 1)}]),
            f"65 tokens, expected at most {MAX_TOKENS}",
        ),
    ],
)
def test_an_answer_that_cannot_be_read_has_failed(text: str | bytes, message: str) -> None:
    result = verified(text)
    assert failed(result) == {"nras.signature"}
    assert skipped(result) == {"nras.claims"}
    assert reason(result, "nras.signature").startswith((message, f"{len(text)} bytes of answer, {message}"))


# Key sets.


def key_set(*entries: dict[str, object]) -> bytes:
    return json.dumps({"keys": entries}).encode()


(HONEST,) = json.loads(SimulatedNras(SEED).jwks())["keys"]


def test_keys_of_other_kinds_are_left_out() -> None:
    keys = read_key_set(
        key_set(
            {"kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "kid": "p256", "x": "AA", "y": "AA"},
            HONEST,
            {key: value for key, value in HONEST.items() if key != "kid"},
        ),
        simulated=True,
    )
    assert set(keys.keys) == {KEY_ID}


def rsa_certificate() -> str:
    key = rsa.generate_private_key(65537, 2048)
    certificate = builder("leaf", "leaf", ca=None, key=key).sign(key, SHA256())
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


@pytest.mark.parametrize(
    ("jwks", "message"),
    [
        (b"", "the key set cannot be read"),
        (b"\xff", "the key set cannot be read"),
        (b"[" * 100_000, "the key set cannot be read"),
        (b" " * (MAX_KEY_SET_BYTES + 1), f"expected at most {MAX_KEY_SET_BYTES}"),
        (b'{"keys": []}', "the key set holds no key on P-384 with an id"),
        (key_set({"kty": "EC", "kid": "rsa", "x5c": [rsa_certificate()]}), "the key set holds no key on P-384"),
        (key_set(HONEST, HONEST), f"two keys have the id {KEY_ID}"),
        (key_set(HONEST | {"x": HONEST["y"]}), f"the key {KEY_ID} cannot be used"),
        (key_set(HONEST | {"x": "AA"}), "its coordinates have 1 and 48 bytes, expected 48 each"),
        (key_set(HONEST | {"x": "*"}), f"the key {KEY_ID} cannot be used"),
        (key_set(HONEST | {"x": None, "x5c": []}), "it has neither coordinates nor a certificate"),
        (key_set(HONEST | {"x": None, "x5c": ["AAAA"]}), f"the key {KEY_ID} cannot be used"),
        (key_set(HONEST | {"x": None, "x5c": ["*"]}), f"the key {KEY_ID} cannot be used"),
    ],
)
def test_a_key_set_that_verifies_nothing_is_refused(jwks: bytes, message: str) -> None:
    with pytest.raises(KeySetError, match=message):
        read_key_set(jwks, simulated=True)


# Properties.


@given(text=st.one_of(st.text(max_size=256), st.binary(max_size=256)))
def test_any_text_gives_a_result(text: str | bytes) -> None:
    assert failed(verified(text)) == {"nras.signature"}


@given(data=st.data())
@settings(max_examples=200)
def test_a_changed_answer_is_refused_or_says_the_same(data: st.DataObject) -> None:
    text = answer()
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        parsed = parse_answer(changed)
    except NrasError as error:
        assert str(error)  # noqa: PT017 - the change may also be harmless
    else:
        assert verified(changed).ok is (parsed == parse_answer(text))


@given(jwks=st.binary(max_size=256))
def test_any_bytes_are_a_key_set_or_are_refused(jwks: bytes) -> None:
    try:
        keys = read_key_set(jwks, simulated=True)
    except KeySetError as error:
        assert str(error)  # noqa: PT017 - nothing says that it must be refused
    else:
        assert isinstance(keys, NrasKeys)
