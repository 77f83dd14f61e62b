"""The SIMULATED TDX platform: quotes of the real format under a root of its own.

A verifier accepts its quotes only where somebody pinned that very root. Everything derives from one 32-byte seed, so
the root is the same bytes in every process; every subject says that it is not Intel's (tee-evidence 5, 5.1).
"""

from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256, sha384

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.errors import ConfigError
from confide.simulator import measurements
from confide.simulator.certificates import (
    SGX_COMPONENTS,
    VALID_FROM,
    VALID_UNTIL,
    Identity,
    derived,
    derived_key,
    issued,
    raw_point,
    raw_signature,
    sgx_extension,
)
from confide.simulator.collateral import (
    MODULE_SIGNER,
    QE_PRODUCT_ID,
    QE_SIGNER,
    QE_SVN,
    SIMULATED_ADVISORY,
    TCB_STATUSES,
    TEE_TCB_SVN,
    qe_identity,
    revocation_list,
    tcb_info,
)
from confide.simulator.measurements import SimulatedBoot

__all__ = ["SIMULATED_ADVISORY", "SimulatedTdxPlatform"]

QE_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")  # initialised, attestation key; no DEBUG
QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # the binding accepts Intel's only
TD_ATTRIBUTE_DEBUG = 1 << 0
TD_ATTRIBUTE_SEPT_VE_DISABLE = 1 << 28
XFAM = bytes.fromhex("e702060000000000")


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
