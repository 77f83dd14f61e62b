"""Verify the answer of NVIDIA's remote attestation service: tokens that say what it found (tee-evidence 3.4, 4.3).

    [["JWT", main], {"GPU-0": token, …}]

On entry: the caller has the service's key set from somewhere else than the peer: it is an anchor. What must be shown:

1. nras.signature  every token is signed with ES384 by a key of that set, by the right issuer, and valid at `now`
2. nras.claims     the main token and every other one are about OUR nonce; the main token names each of the others by
                   its digest, one for each GPU; all of them say that what was found is as it should be

On exit: NVIDIA says that the devices behind our nonce run known firmware with debugging off. NOT shown, unless `ueids`
were given: that they are the devices whose evidence came along. Version 3.0 of the claims renames members: what is not
there under its name has not passed. PyJWT reads the system's clock, so it is given signatures only and no times.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from confide.evidence.nras_keys import NrasKeys, unpadded
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped

SIGNATURE, CLAIMS = "nras.signature", "nras.claims"
NRAS_REQUIRED = frozenset({SIGNATURE, CLAIMS})

NRAS_ISSUER = "https://nras.attestation.nvidia.com"
ALGORITHMS = ("ES384",)
LEEWAY_S = 60

MAX_ANSWER_BYTES = 512 * 1024  # eight GPUs need 15 kB
MAX_TOKENS = 64

TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)
DIGEST_ALGORITHMS = ("SHA-256", "SHA256")  # the service's spelling, and that of NVIDIA's own command-line tool

OVERALL_RESULT = "x-nvidia-overall-att-result"
# What each device's token must say, literally.
DEVICE_CLAIMS: Final[Mapping[str, object]] = {
    "measres": "success",
    "dbgstat": "disabled",
    "secboot": True,
    "x-nvidia-gpu-attestation-report-nonce-match": True,
}
DEVICE_FACTS = {
    "hwmodel": "model",
    "ueid": "ueid",
    "x-nvidia-gpu-driver-version": "driver_version",
    "x-nvidia-gpu-vbios-version": "vbios_version",
}

Members = dict[str, object]


class NrasError(ValueError):
    """An answer cannot be read. The text is for people."""


@dataclass(frozen=True)
class Token:
    """One token, taken apart: claims, until its signature was verified. `name`: "main", or that of its device."""

    name: str
    text: str
    header: Members
    claims: Members

    @property
    def label(self) -> str:
        """The name, fit for people."""
        return quoted(self.name)


@dataclass(frozen=True)
class Answer:
    """The main token and the others by name."""

    main: Token
    devices: tuple[Token, ...]

    @property
    def tokens(self) -> tuple[Token, ...]:
        return (self.main, *self.devices)


def verify_nras(
    answer: str | bytes | None,
    *,
    nonce: bytes,
    keys: NrasKeys | None,
    gpus: int,
    now: int,
    ueids: tuple[str, ...] | None = None,
    issuer: str = NRAS_ISSUER,
) -> Verification:
    """Check the service's answer as it came. Offline, about 1 ms a token, never raises on bad evidence.

    `answer`: JSON text, None when there is none. `nonce`: our 32 bytes. `keys`: None makes nras.signature skip.
    `gpus`: for how many GPUs there was evidence. `ueids`: their numbers, each of which a token must then name.
    """
    if answer is None:
        return Verification(now, unanswered("no answer of NVIDIA's remote service"), required=NRAS_REQUIRED)
    try:
        opened = parse_answer(answer)
    except NrasError as error:
        checks = (failed(SIGNATURE, str(error)), skipped(CLAIMS, "there are no tokens to read"))
        return Verification(now, checks, required=NRAS_REQUIRED)
    signed = check_signature(opened, keys, issuer, now)
    return Verification(
        now,
        (signed, check_claims(opened, nonce, gpus, ueids, signed)),
        (keys.anchor,) if keys else (),
        facts(opened) if signed.status is Status.PASS else {},
        required=NRAS_REQUIRED,
    )


def unanswered(reason: str) -> tuple[Check, ...]:
    """Both checks, skipped."""
    return tuple(skipped(name, reason) for name in (SIGNATURE, CLAIMS))


def parse_answer(answer: str | bytes) -> Answer:
    """The tokens of an answer, none of them verified. Raises NrasError."""
    if len(answer) > MAX_ANSWER_BYTES:
        raise NrasError(f"{len(answer)} bytes of answer, expected at most {MAX_ANSWER_BYTES}")
    try:
        (kind, main), others = msgspec.json.decode(answer, type=tuple[tuple[str, str], dict[str, str]])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NrasError(f"the answer cannot be read: {quoted(error)}") from error
    if kind != "JWT":
        raise NrasError(f"the answer begins with {quoted(kind)}, expected JWT")
    if len(others) > MAX_TOKENS:
        raise NrasError(f"{len(others)} tokens, expected at most {MAX_TOKENS}")
    return Answer(parse_token("main", main), tuple(parse_token(name, text) for name, text in sorted(others.items())))


def parse_token(name: str, text: str) -> Token:
    """Header and claims of a token in compact form (RFC 7515, 3.1). Raises NrasError."""
    if TOKEN.fullmatch(text) is None:
        raise NrasError(f"the token {quoted(name)} is not of the form header.claims.signature")
    header, claims, _ = text.split(".")
    try:
        return Token(name, text, members(header), members(claims))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NrasError(f"the token {quoted(name)} cannot be read: {quoted(error)}") from error


def members(part: str) -> Members:
    return msgspec.json.decode(unpadded(part), type=Members)


def check_signature(answer: Answer, keys: NrasKeys | None, issuer: str, now: int) -> Check:
    """(1) Every token. One that is not signed is refused with or without keys: it is no evidence of anybody's."""
    for token in answer.tokens:
        algorithm = token.header.get("alg")
        if algorithm not in ALGORITHMS:
            return failed(SIGNATURE, f"{token.label}: got the algorithm {quoted(algorithm)}, expected {ALGORITHMS[0]}")
    if keys is None:
        return skipped(SIGNATURE, "no key set of the service was given")
    for token in answer.tokens:
        for fault in token_faults(token, keys, issuer, now):
            return failed(SIGNATURE, f"{token.label}: {fault}")
    return passed(SIGNATURE, f"{len(answer.tokens)} tokens signed under {keys.anchor.name}")


def token_faults(token: Token, keys: NrasKeys, issuer: str, now: int) -> Iterator[str]:
    """What is wrong with one token whose algorithm is right, in words."""
    key_id = token.header.get("kid")
    key = keys.keys.get(key_id) if isinstance(key_id, str) else None
    if key is None:
        yield f"got the key id {quoted(key_id)}, which is not in the key set; fetch it anew from the service"
    elif not is_signed(token, key):
        yield f"the key {quoted(key_id)} did not sign it"
    if token.claims.get("iss") != issuer:
        yield f"got the issuer {quoted(token.claims.get('iss'))}, expected {issuer}"
    yield from time_faults(token, now)


def is_signed(token: Token, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether this key signed the token, header and claims. No claim is looked at."""
    try:
        jwt.PyJWS().decode_complete(token.text, key, algorithms=list(ALGORITHMS))
    except jwt.InvalidTokenError:
        return False
    return True


def time_faults(token: Token, now: int) -> Iterator[str]:
    """Times are whole Unix seconds, and all of them must be there."""
    times = {name: token.claims.get(name) for name in ("iat", "nbf", "exp")}
    for name, value in times.items():
        if type(value) is not int:
            yield f"got {quoted(value)} as {name}, expected Unix seconds"
        elif name == "exp" and now >= value + LEEWAY_S:
            yield f"expired at {value}, and the time is {now}; ask the service again"
        elif name != "exp" and now < value - LEEWAY_S:
            yield f"{name} is {value}, later than the time {now}"


def check_claims(answer: Answer, nonce: bytes, gpus: int, ueids: tuple[str, ...] | None, signed: Check) -> Check:
    """(2) What the tokens say. Before 1 has passed, anybody may have written them."""
    for fault in claim_faults(answer, nonce, gpus, ueids):
        return failed(CLAIMS, fault)
    if signed.status is not Status.PASS:
        return skipped(CLAIMS, "the tokens say what they should, and it is not shown that the service wrote them")
    return passed(CLAIMS, f"the service found {gpus} GPUs as they should be, for our nonce")


def claim_faults(answer: Answer, nonce: bytes, gpus: int, ueids: tuple[str, ...] | None) -> Iterator[str]:
    """What the tokens should say and do not, in words. A member that is absent is not as expected."""
    for token in answer.tokens:
        found = token.claims.get("eat_nonce")
        if not isinstance(found, str) or found.lower() != nonce.hex():
            yield f"{token.label}: got the nonce {quoted(found)}, expected {nonce.hex()}"
    if answer.main.claims.get(OVERALL_RESULT) is not True:
        yield f"main: got {quoted(answer.main.claims.get(OVERALL_RESULT))} as {OVERALL_RESULT}, expected true"
    yield from submodule_faults(answer, gpus)
    for token in answer.devices:
        for name, expected in DEVICE_CLAIMS.items():
            found = token.claims.get(name)
            if type(found) is not type(expected) or found != expected:
                yield f"{token.label}: got {quoted(found)} as {name}, expected {quoted(expected)}"
    if ueids is not None:
        yield from device_faults(answer, ueids)


def submodule_faults(answer: Answer, gpus: int) -> Iterator[str]:
    """The main token must name exactly the others, each by the digest of its text, and one for each GPU."""
    submodules = answer.main.claims.get("submods")
    names = {token.name for token in answer.devices}
    if not names:
        yield "there is no token of any device"
    elif not isinstance(submodules, dict):
        yield "main: names no submodules"
    elif submodules.keys() != names or len(names) != gpus:
        named, there = (quoted(", ".join(sorted(each)) or "none") for each in (submodules, names))
        yield f"main names {named}; there are tokens of {there}, and {gpus} GPUs"
    else:
        yield from digest_faults(submodules, answer.devices)


def digest_faults(submodules: Members, devices: tuple[Token, ...]) -> Iterator[str]:
    """`submodules`: one for each of the devices, by name."""
    for token in devices:
        digest = sha256(token.text.encode()).hexdigest()
        if submodules[token.name] not in [["DIGEST", [algorithm, digest]] for algorithm in DIGEST_ALGORITHMS]:
            yield f"{token.label}: main does not name the digest of this token, {digest}"


def device_faults(answer: Answer, ueids: tuple[str, ...]) -> Iterator[str]:
    """The tokens must be about these devices and no others."""
    found = sorted(quoted(token.claims.get("ueid")) for token in answer.devices)
    if found != sorted(ueids):
        yield f"the tokens are about {', '.join(found) or 'nothing'}, the evidence about {', '.join(sorted(ueids))}"


def facts(answer: Answer) -> dict[str, object]:
    """What the service says of each device, JSON-ready."""
    return {
        f"nras.{token.label}.{fact}": quoted(token.claims[name])
        for token in answer.devices
        for name, fact in DEVICE_FACTS.items()
        if name in token.claims
    }
