"""The SIMULATED remote attestation service: what NVIDIA's would answer about simulated devices (tee-evidence 5.5).

It verifies the reports that it is shown and signs with a key of its own, which a verifier accepts only where somebody
gave it the key set. An `NrasFault` makes an answer fail one check and no other.
"""

import base64
import json
from enum import StrEnum
from hashlib import sha256
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from confide.simulator.gpu import derived_key, issued, raw_signature

ISSUER = "https://nras.attestation.nvidia.com"  # what verifiers demand; the key set is what says who it really was
LIFETIME_S = 60 * 60
KEY_ID = "simulated-nras-key"

Claims = dict[str, object]


class NrasFault(StrEnum):
    """What is wrong with an answer. The first group fails nras.signature, the second nras.claims."""

    UNSIGNED = "unsigned"  # alg: none
    ONE_UNSIGNED = "one unsigned"  # only the device's token
    UNKNOWN_KID = "unknown kid"
    OTHER_KEY = "other key"  # under the id of the right one
    ISSUER = "issuer"
    EXPIRED = "expired"
    EARLY = "early"
    NO_EXPIRY = "no expiry"

    NONCE = "nonce"
    ONE_NONCE = "one nonce"  # only in the device's token
    NO_NONCE = "no nonce"
    OVERALL = "overall"
    TRUTHY = "truthy"  # the overall result is the text "true"
    MISSING_SUBMODULE = "missing submodule"
    MISSING_TOKEN = "missing token"  # noqa: S105 - a fault, no password
    DIGEST = "digest"
    MEASUREMENTS = "measurements"
    DEBUG = "debug"
    SECURE_BOOT = "secure boot"
    REPORT_NONCE = "report nonce"
    RENAMED = "renamed"  # a member under another name, as in version 3.0 of the claims
    OTHER_DEVICE = "other device"


SHIFTS_S: dict[NrasFault | None, int] = {NrasFault.EXPIRED: -2 * LIFETIME_S, NrasFault.EARLY: LIFETIME_S}
OVERALL_RESULTS: dict[NrasFault | None, object] = {NrasFault.OVERALL: False, NrasFault.TRUTHY: "true"}


class SimulatedNras:
    """A service that does not exist. Deterministic: the same payload at the same time gives the same answer."""

    def __init__(self, seed: bytes, *, fault: NrasFault | None = None) -> None:
        """`seed`: 32 bytes, that of the devices that it knows."""
        self._seed = seed
        self._fault = fault
        self._root_der = issued(seed, "Simulated Device Identity CA", None, is_ca=True).der
        self._identity = issued(seed, "Simulated NRAS", None, is_ca=False)

    def jwks(self, *, x5c_only: bool = False) -> bytes:
        """The key set as JSON text. `x5c_only`: without coordinates, as the real one may be."""
        numbers = self._identity.key.public_key().public_numbers()
        key: Claims = {
            "kty": "EC",
            "crv": "P-384",
            "alg": "ES384",
            "use": "sig",
            "kid": KEY_ID,
            "x5c": [base64.b64encode(self._identity.der).decode()],
        }
        if not x5c_only:
            key |= {"x": b64url(numbers.x.to_bytes(48, "big")), "y": b64url(numbers.y.to_bytes(48, "big"))}
        return json.dumps({"keys": [key]}).encode()

    def attest(self, payload: str, *, now: int) -> str:
        """The answer to an `nvidia_payload` as JSON text, good for an hour from `now` (Unix seconds).

        Raises ValueError when it is not evidence of devices of this seed, for the nonce that it names.
        """
        asked = json.loads(payload)
        leaves = [self._verified(entry, bytes.fromhex(asked["nonce"])) for entry in asked["evidence_list"]]
        tokens = {
            f"GPU-{place}": self._token(self._device_claims(leaf, asked["nonce"], now), is_main=False)
            for place, leaf in enumerate(leaves)
        }
        main = self._token(self._main_claims(tokens, asked["nonce"], now), is_main=True)
        if self._fault is NrasFault.MISSING_TOKEN:
            tokens.popitem()
        return json.dumps([["JWT", main], tokens])

    def _verified(self, entry: dict[str, str], nonce: bytes) -> x509.Certificate:
        """The leaf of a device whose report holds."""
        path = x509.load_pem_x509_certificates(base64.b64decode(entry["certificate"]))
        report = base64.b64decode(entry["evidence"])
        if path[-1].public_bytes(Encoding.DER) != self._root_der or report[4:36] != nonce:
            raise ValueError("the simulated service knows only devices of its own seed that answer the nonce")
        key = path[0].public_key()
        r, s = (int.from_bytes(half, "big") for half in (report[-96:-48], report[-48:]))
        try:
            for certificate, issuer in pairwise(path):
                certificate.verify_directly_issued_by(issuer)
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(encode_dss_signature(r, s), report[:-96], ec.ECDSA(SHA384()))
        except InvalidSignature as error:
            raise ValueError("the device did not sign this report") from error
        return path[0]

    def _common_claims(self, nonce: str, now: int, *, is_main: bool) -> Claims:
        fault = self._fault
        wrong_nonce = fault is NrasFault.NONCE or (fault is NrasFault.ONE_NONCE and not is_main)
        start = now + SHIFTS_S.get(fault, 0)
        claims: Claims = {
            "iss": "https://nras.example" if fault is NrasFault.ISSUER else ISSUER,
            "eat_nonce": "00" * 32 if wrong_nonce else nonce,
            "iat": start,
            "nbf": start,
            "exp": start + LIFETIME_S,
        }
        if fault is NrasFault.NO_EXPIRY:
            del claims["exp"]
        if fault is NrasFault.NO_NONCE:
            del claims["eat_nonce"]
        return claims

    def _main_claims(self, tokens: dict[str, str], nonce: str, now: int) -> Claims:
        digests = {name: sha256(token.encode()).hexdigest() for name, token in tokens.items()}
        if self._fault is NrasFault.MISSING_SUBMODULE:
            digests.popitem()
        if self._fault is NrasFault.DIGEST:
            digests["GPU-0"] = "00" * 32
        overall = OVERALL_RESULTS.get(self._fault, True)
        return {
            **self._common_claims(nonce, now, is_main=True),
            "sub": "NVIDIA-PLATFORM-ATTESTATION",
            "x-nvidia-ver": "2.0",
            "x-nvidia-overall-att-result": overall,
            "submods": {name: ["DIGEST", ["SHA-256", digest]] for name, digest in digests.items()},
        }

    def _device_claims(self, leaf: x509.Certificate, nonce: str, now: int) -> Claims:
        fault = self._fault
        measurements = "measres-renamed" if fault is NrasFault.RENAMED else "measres"
        return {
            **self._common_claims(nonce, now, is_main=False),
            "ueid": "1" if fault is NrasFault.OTHER_DEVICE else str(leaf.serial_number),
            "hwmodel": "GH100 Simulated",
            measurements: "fail" if fault is NrasFault.MEASUREMENTS else "success",
            "dbgstat": "enabled" if fault is NrasFault.DEBUG else "disabled",
            "secboot": 1 if fault is NrasFault.SECURE_BOOT else True,
            "x-nvidia-gpu-attestation-report-nonce-match": fault is not NrasFault.REPORT_NONCE,
            "x-nvidia-gpu-driver-version": "570.172.08",
            "x-nvidia-gpu-vbios-version": "96.00.CF.00.02",
        }

    def _token(self, claims: Claims, *, is_main: bool) -> str:
        """The claims as a token in compact form (RFC 7515, 3.1)."""
        fault = self._fault
        unsigned = fault is NrasFault.UNSIGNED or (fault is NrasFault.ONE_UNSIGNED and not is_main)
        header = {"alg": "none"} if unsigned else {"alg": "ES384", "kid": KEY_ID, "typ": "JWT"}
        if fault is NrasFault.UNKNOWN_KID:
            header["kid"] = "simulated-nras-other"
        text = f"{b64url(json.dumps(header).encode())}.{b64url(json.dumps(claims).encode())}"
        key = derived_key(self._seed, "another key") if fault is NrasFault.OTHER_KEY else self._identity.key
        return f"{text}." if unsigned else f"{text}.{b64url(raw_signature(key, text.encode()))}"


def b64url(data: bytes) -> str:
    """Base64 in its URL form without padding (RFC 7515, 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
