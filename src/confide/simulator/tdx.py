"""The SIMULATED TDX platform: quotes of the real format under a root of its own.

A verifier accepts its quotes only where somebody pinned that very root. Everything derives from one 32-byte seed, so
the root is the same bytes in every process; every subject says that it is not Intel's (tee-evidence 5, 5.1).
"""

from datetime import UTC, datetime, timedelta
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
from confide.simulator.measurements import LogStyle, SimulatedBoot
from confide.simulator.tdx_fault import QuoteForm, TdxFault

__all__ = ["SIMULATED_ADVISORY", "QuoteForm", "SimulatedTdxPlatform", "TdxFault"]

QE_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")  # initialised, attestation key; no DEBUG
QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # the binding accepts Intel's only
TD_ATTRIBUTE_DEBUG = 1 << 0
TD_ATTRIBUTE_SEPT_VE_DISABLE = 1 << 28
FAULTY_ATTRIBUTES = {
    TdxFault.SEPT_VE: TD_ATTRIBUTE_SEPT_VE_DISABLE,
    TdxFault.RESERVED_ATTRIBUTE: 1 << 1,
    TdxFault.MIGRATABLE: 1 << 29,
    TdxFault.PERFMON: 1 << 63,
}  # by fault, the bit that is the other way round
ISSUED = {TdxFault.EXPIRED: -timedelta(days=40), TdxFault.FUTURE: timedelta(days=1)}
XFAM = bytes.fromhex("e702060000000000")


# Quote (tee-evidence 6.1, 6.2).


def prefixed(data: bytes, width: int = 4) -> bytes:
    """The data behind its own length, little endian."""
    return len(data).to_bytes(width, "little") + data


def header(version: int, platform_id: bytes, vendor_id: bytes = QE_VENDOR_ID) -> bytes:
    """48 bytes. `platform_id`: 16 bytes, which the quoting enclave puts into the user data."""
    attestation_key_type = (2).to_bytes(2, "little")  # ECDSA P-256
    tee_type = (0x81).to_bytes(4, "little")
    return (
        version.to_bytes(2, "little") + attestation_key_type + tee_type + bytes(4) + vendor_id + platform_id + bytes(4)
    )


def td_report(boot: SimulatedBoot, report_data: bytes, *, debug: bool, fault: TdxFault | None) -> bytes:
    """TD report 1.0, 584 bytes, in the order of its layout."""
    attributes = TD_ATTRIBUTE_SEPT_VE_DISABLE | (TD_ATTRIBUTE_DEBUG if debug else 0)
    attributes ^= FAULTY_ATTRIBUTES.get(fault, 0) if fault else 0
    return b"".join(
        (
            TEE_TCB_SVN,
            sha384(b"Simulated TDX module").digest(),  # mr_seam
            b"\x01" * 48 if fault is TdxFault.MODULE_SIGNER else MODULE_SIGNER,  # mr_signer_seam
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


def framed(form: QuoteForm, report_10: bytes, fault: TdxFault | None) -> bytes:
    """The TD report as a quote of this form holds it: version 5 states type and length, and 1.5 has 64 bytes more."""
    if form is QuoteForm.V4:
        return report_10
    service_td = b"\x01" * 48 if fault is TdxFault.SERVICE_TD else bytes(48)
    body = report_10 + TEE_TCB_SVN + service_td if form is QuoteForm.V5_REPORT_15 else report_10
    return form.body_type.to_bytes(2, "little") + prefixed(body)


def qe_report(report_data: bytes, fault: TdxFault | None) -> bytes:
    """The enclave report of the simulated quoting enclave, 384 bytes. `report_data`: 32 bytes."""
    return b"".join(
        (
            SGX_COMPONENTS,  # cpu_svn
            bytes(4 + 28),  # miscselect, reserved
            bytes((QE_ATTRIBUTES[0] | 0x02,)) + QE_ATTRIBUTES[1:] if fault is TdxFault.QE_DEBUG else QE_ATTRIBUTES,
            sha256(b"Simulated TD quoting enclave: code").digest(),  # mrenclave
            bytes(32),
            bytes(32) if fault is TdxFault.QE_SIGNER else QE_SIGNER,
            bytes(96),
            QE_PRODUCT_ID.to_bytes(2, "little"),
            (QE_SVN - 1 if fault is TdxFault.QE_TOO_OLD else QE_SVN).to_bytes(2, "little"),
            bytes(60),
            report_data + bytes(32),
        )
    )


def authentication(
    signed: bytes, attestation_key: ec.EllipticCurvePrivateKey, pck: Identity, chain: str, fault: TdxFault | None
) -> bytes:
    """Signature data: the attestation key signs header and body, the PCK key vouches for the attestation key."""
    auth_data = bytes(32)
    point = raw_point(attestation_key)
    vouched = raw_point(pck.key) if fault is TdxFault.ATTESTATION_KEY else point
    enclave_report = qe_report(sha256(vouched + auth_data).digest(), fault)
    certification = b"".join(
        (
            enclave_report,
            raw_signature(attestation_key if fault is TdxFault.QE_REPORT else pck.key, enclave_report),
            prefixed(auth_data, 2),
            (5).to_bytes(2, "little") + prefixed(chain.encode() + b"\x00"),  # 5: PCK chain as PEM
        )
    )
    signer = pck.key if fault is TdxFault.SIGNATURE else attestation_key
    outer_type = 7 if fault is TdxFault.CERTIFICATION_TYPE else 6
    return raw_signature(signer, signed) + point + outer_type.to_bytes(2, "little") + prefixed(certification)


# Platform.


class SimulatedTdxPlatform:
    """A machine that does not exist, and the part of Intel's services that speaks for it."""

    def __init__(
        self,
        seed: bytes,
        *,
        now: int,
        debug: bool = False,
        tcb_status: str = "UpToDate",
        revoked: bool = False,
        log: LogStyle | None = None,
        form: QuoteForm = QuoteForm.V4,
        fault: TdxFault | None = None,
    ) -> None:
        """`seed`: 32 bytes. `now`: Unix seconds, inside the root's life (2026-01-01 to 2045-12-27), else ConfigError.

        `debug` sets the DEBUG attribute in every quote; `tcb_status` is the platform's TCB level in the collateral;
        `revoked` puts its PCK certificate on the CRL; `log` is how the guest logs; `form` is the layout of its quotes;
        `fault` is one thing that is wrong. Raises ValueError for another seed length or status name, and for a fault
        that quotes of this form cannot have.
        """
        if len(seed) != 32:
            raise ValueError(f"the seed has {len(seed)} bytes, expected 32")
        if tcb_status not in TCB_STATUSES:
            raise ValueError(f"unknown TCB status {tcb_status!r}, expected one of {', '.join(TCB_STATUSES)}")
        if fault is TdxFault.SERVICE_TD and form is not QuoteForm.V5_REPORT_15:
            raise ValueError(f"only a TD report 1.5 names a migration TD; got {form}")
        require_alive(now)
        self._seed = seed
        self._form = form
        self._fault = fault
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
            style=log or LogStyle(),
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
        """A quote over exactly 64 bytes, else ValueError.

        The attestation key is another one for other report data; the same report data gives the same bytes.
        """
        if len(report_data) != 64:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        fault, form = self._fault, self._form
        vendor_id = bytes(16) if fault is TdxFault.VENDOR else QE_VENDOR_ID
        report = td_report(self._boot, report_data, debug=self._debug, fault=fault)
        signed = header(form.version, self._bytes("platform", 16), vendor_id) + framed(form, report, fault)
        attestation_key = derived_key(self._seed, f"attestation key for {report_data.hex()}")
        chain = self._pck.pem + self._pck_ca.pem + self._root.pem
        tail = b"\nappended" if fault is TdxFault.APPENDED else b""
        return signed + prefixed(authentication(signed, attestation_key, self._pck, chain, fault)) + tail

    def collateral(self, now: int) -> dict[str, str]:
        """The JSON members of a DCAP quote collateral, good from `now` (Unix seconds) for 30 days. Costs about 1 ms.

        Byte members are lower-case hex. Raises ConfigError outside the root's life.
        """
        fault = self._fault
        moment = require_alive(now) + ISSUED.get(fault, timedelta()) if fault else require_alive(now)
        info, identity = tcb_info(moment, self._tcb_status, fault), qe_identity(moment, fault)
        signer, signer_root = self._tcb_signer_and_root()
        tcb_chain = signer.pem + signer_root.pem
        return {
            "pck_crl_issuer_chain": self._pck_ca.pem + self._root.pem,
            "root_ca_crl": self._root_crl(moment),
            "pck_crl": self._pck_crl(moment),
            "tcb_info_issuer_chain": tcb_chain,
            "tcb_info": tampered(info) if fault is TdxFault.TCB_INFO else info,
            "tcb_info_signature": raw_signature(signer.key, info.encode()).hex(),
            "qe_identity_issuer_chain": tcb_chain,
            "qe_identity": tampered(identity) if fault is TdxFault.QE_IDENTITY else identity,
            "qe_identity_signature": raw_signature(signer.key, identity.encode()).hex(),
        }

    def _tcb_signer_and_root(self) -> tuple[Identity, Identity]:
        """The TCB signer and its issuer: under `TdxFault.TCB_SIGNER` a root with the same name and another key."""
        if self._fault is not TdxFault.TCB_SIGNER:
            return self._tcb_signer, self._root
        seed = self._bytes("another root", 32)
        root = issued(seed, "Simulated SGX Root CA", None, path_length=1)
        return issued(seed, "Simulated SGX TCB Signing", root), root

    def _root_crl(self, moment: datetime) -> str:
        """What the root revoked, as DER in hex."""
        if self._fault is TdxFault.ROOT_CRL_EXPIRED:
            moment += ISSUED[TdxFault.EXPIRED]
        revoked = {TdxFault.PCK_CA_REVOKED: self._pck_ca, TdxFault.TCB_SIGNER_REVOKED: self._tcb_signer}
        gone = revoked.get(self._fault) if self._fault else None
        return revocation_list(self._root, moment, (gone.certificate,) if gone else ())

    def _pck_crl(self, moment: datetime) -> str:
        """What the Platform CA revoked, as DER in hex."""
        if self._fault is TdxFault.EMPTY_CRL:
            return ""
        issuer = self._root if self._fault is TdxFault.OTHER_CRL else self._pck_ca
        return revocation_list(issuer, moment, (self._pck.certificate,) if self._revoked else ())

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


def tampered(signed: str) -> str:
    """The text with a higher number of its TCB recovery than was signed."""
    return signed.replace('"tcbEvaluationDataNumber":', '"tcbEvaluationDataNumber":1')


def require_alive(now: int) -> datetime:
    """The moment `now` (Unix seconds), or ConfigError when no simulated certificate is valid then."""
    if not VALID_FROM.timestamp() <= now < VALID_UNTIL.timestamp():
        raise ConfigError(
            f"the simulated TEE is valid from {VALID_FROM:%Y-%m-%d} to {VALID_UNTIL:%Y-%m-%d}, "
            f"and the time given is {now} in Unix seconds",
            remedy="Set the machine's clock.",
        )
    return datetime.fromtimestamp(now, UTC)
