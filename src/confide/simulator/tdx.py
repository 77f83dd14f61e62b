"""The SIMULATED TDX platform: certificates, quotes and collateral of the real formats under a root of its own.

A verifier accepts its quotes only where somebody pinned that very root. Everything derives from one 32-byte seed, so
the root is the same bytes in every process; every subject says that it is not Intel's (tee-evidence 5, 5.1).

Read from top to bottom: keys, certificates, revocation lists, collateral, quote, platform.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256, sha384
from hmac import digest as hmac_digest
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confide.errors import ConfigError
from confide.simulator import measurements
from confide.simulator.measurements import SimulatedBoot

VALID_FROM = datetime(2026, 1, 1, tzinfo=UTC)
VALID_UNTIL = datetime(2045, 12, 27, tzinfo=UTC)
COLLATERAL_WINDOW = timedelta(days=30)

# What the quote, the PCK certificate and the collateral must agree on. An FMSPC that starts 51D0 is not Intel's.
FMSPC = bytes.fromhex("51d000000000")
PCE_ID = bytes(2)
PCE_SVN = 11
SGX_COMPONENTS = bytes.fromhex("03030202040100050000000000000000")
TEE_TCB_SVN = bytes.fromhex("06010300000000000000000000000000")  # [0] module SVN, [1] names the identity "TDX_01"
MODULE_SIGNER = bytes(48)
QE_SIGNER = sha256(b"Simulated TD quoting enclave: signer").digest()
QE_PRODUCT_ID = 2
QE_SVN = 4
QE_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")  # initialised, attestation key; no DEBUG
QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # the binding accepts Intel's only
TCB_EVALUATION_DATA_NUMBER = 17
SIMULATED_ADVISORY = "SIMULATED-SA-00001"

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)

TD_ATTRIBUTE_DEBUG = 1 << 0
TD_ATTRIBUTE_SEPT_VE_DISABLE = 1 << 28
XFAM = bytes.fromhex("e702060000000000")

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


# Keys. Labels keep them apart from each other and from whatever else is derived from the same seed.


def derived(seed: bytes, label: str) -> Iterator[bytes]:
    """32 bytes for each counter value: HMAC-SHA256 over label and counter."""
    for counter in count():
        yield hmac_digest(seed, f"confide simulated tdx: {label}".encode() + counter.to_bytes(4, "big"), "sha256")


def derived_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of this label: the first derived value that is a scalar of the curve."""
    candidates = (int.from_bytes(block, "big") for block in derived(seed, label))
    return ec.derive_private_key(next(scalar for scalar in candidates if 0 < scalar < P256_ORDER), ec.SECP256R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as 64 bytes r‖s; deterministic (RFC 6979)."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as 64 bytes x‖y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


# Certificates.


@dataclass(frozen=True)
class Identity:
    """A key, its serial number, and the certificate that its issuer gave it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


def name(common_name: str) -> x509.Name:
    """A subject that nobody can take for Intel's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated TEE (not Intel)"),
        ]
    )


def key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def issued(
    seed: bytes,
    common_name: str,
    issuer: Identity | None,
    *,
    path_length: int | None = None,
    extensions: tuple[x509.UnrecognizedExtension, ...] = (),
) -> Identity:
    """A certificate with a key of its own; self-signed without `issuer`, a CA exactly when `path_length` is given.

    The same seed and arguments give the same bytes: serial number, key, window and signature are all derived.
    """
    is_ca = path_length is not None
    key = derived_key(seed, f"key of {common_name}")
    issuer_key = issuer.key if issuer else key
    serial = int.from_bytes(next(derived(seed, f"serial of {common_name}"))[:16], "big") >> 1 or 1
    builder = (
        x509.CertificateBuilder(
            issuer_name=issuer.certificate.subject if issuer else name(common_name),
            subject_name=name(common_name),
            public_key=key.public_key(),
            serial_number=serial,
            not_valid_before=VALID_FROM,
            not_valid_after=VALID_UNTIL,
        )
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(key_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Identity(key, builder.sign(issuer_key, SHA256(), ecdsa_deterministic=True))


# The SGX extension of a PCK certificate, 1.2.840.113741.1.13.1 (tee-evidence 6.3), in DER by hand.

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
SGX_EXTENSION_ARC = bytes.fromhex("2a864886f84d010d01")  # the content octets of that OID
BOOLEAN, INTEGER, OCTET_STRING, OID, ENUMERATED, SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
TRUE = b"\xff"


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sgx_member(arc: tuple[int, ...], tag: int, *parts: bytes) -> bytes:
    return der(SEQUENCE, der(OID, SGX_EXTENSION_ARC + bytes(arc)), der(tag, *parts))


def sgx_extension(ppid: bytes, platform_instance_id: bytes) -> x509.UnrecognizedExtension:
    """The extension of a multi-package platform. `ppid`, `platform_instance_id`: 16 bytes each."""
    components = [sgx_member((2, place), INTEGER, bytes((svn,))) for place, svn in enumerate(SGX_COMPONENTS, start=1)]
    flags = [sgx_member((7, place), BOOLEAN, TRUE) for place in (1, 2, 3)]  # dynamic platform, cached keys, SMT
    value = der(
        SEQUENCE,
        sgx_member((1,), OCTET_STRING, ppid),
        sgx_member(
            (2,),
            SEQUENCE,
            *components,
            sgx_member((2, 17), INTEGER, bytes((PCE_SVN,))),
            sgx_member((2, 18), OCTET_STRING, SGX_COMPONENTS),
        ),
        sgx_member((3,), OCTET_STRING, PCE_ID),
        sgx_member((4,), OCTET_STRING, FMSPC),
        sgx_member((5,), ENUMERATED, b"\x01"),
        sgx_member((6,), OCTET_STRING, platform_instance_id),
        sgx_member((7,), SEQUENCE, *flags),
    )
    return x509.UnrecognizedExtension(SGX_EXTENSION, value)


# Collateral: what Intel's provisioning service would serve. Every window is now..now + 30 days.


def intel_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def revocation_list(issuer: Identity, moment: datetime, revoked: tuple[x509.Certificate, ...] = ()) -> str:
    """The issuer's CRL as DER in hex. The binding demands next update, CRL number and authority key identifier."""
    builder = (
        x509.CertificateRevocationListBuilder(
            issuer_name=issuer.certificate.subject, last_update=moment, next_update=moment + COLLATERAL_WINDOW
        )
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder(certificate.serial_number, moment).build()
        )
    return builder.sign(issuer.key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER).hex()


def tcb_level(tcb: dict[str, object], status: str) -> dict[str, object]:
    level: dict[str, object] = {"tcb": tcb, "tcbDate": intel_time(VALID_FROM), "tcbStatus": status}
    return level if status == "UpToDate" else level | {"advisoryIDs": [SIMULATED_ADVISORY]}


def window(moment: datetime) -> dict[str, object]:
    return {
        "issueDate": intel_time(moment),
        "nextUpdate": intel_time(moment + COLLATERAL_WINDOW),
        "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER,
    }


def compact(document: dict[str, object]) -> str:
    """The text that is signed and served, byte for byte."""
    return json.dumps(document, separators=(",", ":"))


def tcb_info(moment: datetime, status: str) -> str:
    """TCB info version 3 whose only level, with this status, is the platform's own."""
    module = {
        "mrsigner": MODULE_SIGNER.hex().upper(),
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
    }
    identity = {"id": f"TDX_{TEE_TCB_SVN[1]:02X}", "tcbLevels": [tcb_level({"isvsvn": TEE_TCB_SVN[0]}, "UpToDate")]}
    own_tcb: dict[str, object] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in SGX_COMPONENTS],
        "pcesvn": PCE_SVN,
        "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
    }
    return compact(
        {"id": "TDX", "version": 3, "fmspc": FMSPC.hex().upper(), "pceId": PCE_ID.hex(), "tcbType": 0}
        | window(moment)
        | {
            "tdxModule": module,
            "tdxModuleIdentities": [module | identity],
            "tcbLevels": [tcb_level(own_tcb, status)],
        }
    )


def qe_identity(moment: datetime) -> str:
    """The identity of the simulated quoting enclave."""
    return compact(
        {"id": "TD_QE", "version": 2}
        | window(moment)
        | {
            "miscselect": "00" * 4,
            "miscselectMask": "FF" * 4,
            "attributes": "11" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF" + "00" * 8,
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": QE_PRODUCT_ID,
            "tcbLevels": [tcb_level({"isvsvn": QE_SVN}, "UpToDate")],
        }
    )


# Quote (tee-evidence 6.1, 6.2).


def prefixed(data: bytes, width: int = 4) -> bytes:
    """The data behind its own length, little endian."""
    return len(data).to_bytes(width, "little") + data


def header(version: int, platform_id: bytes) -> bytes:
    """48 bytes. `platform_id`: 16 bytes, which the quoting enclave puts into the user data."""
    attestation_key_type = (2).to_bytes(2, "little")  # ECDSA P-256
    tee_type = (0x81).to_bytes(4, "little")
    return (
        version.to_bytes(2, "little")
        + attestation_key_type
        + tee_type
        + bytes(4)
        + QE_VENDOR_ID
        + platform_id
        + bytes(4)
    )


def td_report(boot: SimulatedBoot, report_data: bytes, *, debug: bool) -> bytes:
    """TD report 1.0, 584 bytes, in the order of its layout."""
    attributes = TD_ATTRIBUTE_SEPT_VE_DISABLE | (TD_ATTRIBUTE_DEBUG if debug else 0)
    return b"".join(
        (
            TEE_TCB_SVN,
            sha384(b"Simulated TDX module").digest(),  # mr_seam
            MODULE_SIGNER,  # mr_signer_seam
            bytes(8),  # seam_attributes
            attributes.to_bytes(8, "little"),
            XFAM,
            measurements.MR_TD,
            measurements.MR_CONFIG_ID,
            measurements.NO_OWNER,  # mr_owner
            measurements.NO_OWNER,  # mr_owner_config
            *boot.rtmrs,
            report_data,
        )
    )


def qe_report(report_data: bytes) -> bytes:
    """The enclave report of the simulated quoting enclave, 384 bytes. `report_data`: 32 bytes."""
    return b"".join(
        (
            SGX_COMPONENTS,  # cpu_svn
            bytes(4 + 28),  # miscselect, reserved
            QE_ATTRIBUTES,
            sha256(b"Simulated TD quoting enclave: code").digest(),  # mrenclave
            bytes(32),
            QE_SIGNER,
            bytes(96),
            QE_PRODUCT_ID.to_bytes(2, "little"),
            QE_SVN.to_bytes(2, "little"),
            bytes(60),
            report_data + bytes(32),
        )
    )


def authentication(signed: bytes, attestation_key: ec.EllipticCurvePrivateKey, pck: Identity, chain: str) -> bytes:
    """Signature data: the attestation key signs header and body, the PCK key vouches for the attestation key."""
    auth_data = bytes(32)
    point = raw_point(attestation_key)
    enclave_report = qe_report(sha256(point + auth_data).digest())
    certification = b"".join(
        (
            enclave_report,
            raw_signature(pck.key, enclave_report),
            prefixed(auth_data, 2),
            (5).to_bytes(2, "little") + prefixed(chain.encode() + b"\x00"),  # 5: PCK chain as PEM
        )
    )
    return raw_signature(attestation_key, signed) + point + (6).to_bytes(2, "little") + prefixed(certification)


# Platform.


class SimulatedTdxPlatform:
    """A machine that does not exist, and the part of Intel's services that speaks for it."""

    def __init__(
        self, seed: bytes, *, now: int, debug: bool = False, tcb_status: str = "UpToDate", revoked: bool = False
    ) -> None:
        """`seed`: 32 bytes. `now`: Unix seconds, inside the root's life (2026-01-01 to 2045-12-27), else ConfigError.

        `debug` sets the DEBUG attribute in every quote; `tcb_status` is the platform's TCB level in the collateral;
        `revoked` puts its PCK certificate on the CRL. Raises ValueError for another seed length or status name.
        """
        if len(seed) != 32:
            raise ValueError(f"the seed has {len(seed)} bytes, expected 32")
        if tcb_status not in TCB_STATUSES:
            raise ValueError(f"unknown TCB status {tcb_status!r}, expected one of {', '.join(TCB_STATUSES)}")
        require_alive(now)
        self._seed = seed
        self._debug = debug
        self._tcb_status = tcb_status
        self._revoked = revoked
        self._root = issued(seed, "Simulated SGX Root CA", None, path_length=1)
        self._pck_ca = issued(seed, "Simulated SGX PCK Platform CA", self._root, path_length=0)
        self._tcb_signer = issued(seed, "Simulated SGX TCB Signing", self._root)
        self._pck = issued(
            seed,
            "Simulated SGX PCK Certificate",
            self._pck_ca,
            extensions=(sgx_extension(self._bytes("ppid", 16), self._bytes("platform instance", 16)),),
        )
        self._kms = issued(seed, "Simulated KMS CA", None, path_length=0)
        self._boot = SimulatedBoot(
            instance_id=self._bytes("instance", 20),
            device_id=self._bytes("device", 32),
            key_provider_id=self._kms.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        )

    def _bytes(self, label: str, length: int) -> bytes:
        return next(derived(self._seed, label))[:length]

    @property
    def root_der(self) -> bytes:
        """The root certificate, the same bytes for the same seed always: what a caller pins."""
        return self._root.der

    @property
    def root_pem(self) -> str:
        """The same certificate as PEM."""
        return self._root.pem

    @property
    def root_sha256_hex(self) -> str:
        """SHA-256 of `root_der`, 64 lower-case hex digits."""
        return sha256(self._root.der).hexdigest()

    def quote(self, report_data: bytes) -> bytes:
        """A version 4 quote over exactly 64 bytes, else ValueError.

        The attestation key is another one for other report data; the same report data gives the same bytes.
        """
        if len(report_data) != 64:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        signed = header(4, self._bytes("platform", 16)) + td_report(self._boot, report_data, debug=self._debug)
        attestation_key = derived_key(self._seed, f"attestation key for {report_data.hex()}")
        chain = self._pck.pem + self._pck_ca.pem + self._root.pem
        return signed + prefixed(authentication(signed, attestation_key, self._pck, chain))

    def collateral(self, now: int) -> dict[str, str]:
        """The JSON members of a DCAP quote collateral, good from `now` (Unix seconds) for 30 days. Costs about 1 ms.

        Byte members are lower-case hex. Raises ConfigError outside the root's life.
        """
        moment = require_alive(now)
        info, identity = tcb_info(moment, self._tcb_status), qe_identity(moment)
        tcb_chain = self._tcb_signer.pem + self._root.pem
        return {
            "pck_crl_issuer_chain": self._pck_ca.pem + self._root.pem,
            "root_ca_crl": revocation_list(self._root, moment),
            "pck_crl": revocation_list(self._pck_ca, moment, (self._pck.certificate,) if self._revoked else ()),
            "tcb_info_issuer_chain": tcb_chain,
            "tcb_info": info,
            "tcb_info_signature": raw_signature(self._tcb_signer.key, info.encode()).hex(),
            "qe_identity_issuer_chain": tcb_chain,
            "qe_identity": identity,
            "qe_identity_signature": raw_signature(self._tcb_signer.key, identity.encode()).hex(),
        }

    @cached_property
    def event_log(self) -> str:
        """JSON text in dstack's shape; replays to the four registers of every quote."""
        return self._boot.event_log

    @property
    def app_compose(self) -> str:
        """The raw JSON text that the measured compose hash is taken over."""
        return measurements.APP_COMPOSE

    @property
    def vm_config(self) -> str:
        """JSON text."""
        return measurements.VM_CONFIG

    @cached_property
    def info(self) -> dict[str, object]:
        """The members of dstack's `Info` (wire contract 6.1); `tcb_info` is JSON text."""
        return self._boot.info(issued(self._seed, "Simulated app", self._kms).pem)


def require_alive(now: int) -> datetime:
    """The moment `now` (Unix seconds), or ConfigError when no simulated certificate is valid then."""
    if not VALID_FROM.timestamp() <= now < VALID_UNTIL.timestamp():
        raise ConfigError(
            f"the simulated TEE is valid from {VALID_FROM:%Y-%m-%d} to {VALID_UNTIL:%Y-%m-%d}, "
            f"and the time given is {now} in Unix seconds",
            remedy="Set the machine's clock.",
        )
    return datetime.fromtimestamp(now, UTC)
