"""SIMULATED NVIDIA devices: reports of the real layout under a root of their own (tee-evidence 5.5, 6.5).

A verifier accepts them only where somebody pinned that very root. Everything derives from one seed, so that the root
is the same bytes in every process; every subject says that it is not NVIDIA's. A `GpuFault` makes a device fail one
check and no other.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from hashlib import sha384
from hmac import digest as hmac_digest
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confide.simulator.certificates import VALID_FROM, VALID_UNTIL, Identity, key_usage

P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
CHIPS = {"HOPPER": "GH100", "BLACKWELL": "GB100", "LS10": "LS_10"}  # architecture: its chip, as certificates call it
SWITCHES = ("LS10",)

FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")
FWID = sha384(b"Simulated GPU firmware").digest()
OTHER_FWID = sha384(b"Other simulated GPU firmware").digest()


class GpuFault(StrEnum):
    """What is wrong with a device. In the comments: the check that fails."""

    FOREIGN_ROOT = "foreign root"  # chain: nobody pinned its root
    EXPIRED = "expired"  # chain: the leaf's window is over when the simulator's begins
    LEAF_AS_ISSUER = "leaf as issuer"  # chain: what issued the leaf is no authority
    MISLABELLED = "mislabelled"  # chain: the entry names another architecture than the certificate
    SIGNATURE = "signature"  # signature: another key signed
    CUT = "cut"  # signature: the report ends too early
    OTHER_NONCE = "other nonce"  # nonce: whatever was asked, one recorded report
    FWID = "fwid"  # fwid: the report names other firmware than the certificate
    NO_FWID = "no fwid"  # fwid skips: the report names none


# Keys and certificates on P-384.


def derived_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """The P-384 key of this label: the first HMAC-SHA384 over label and counter that is a scalar of the curve."""
    prefix = f"confide simulated nvidia: {label}".encode()
    blocks = (hmac_digest(seed, prefix + counter.to_bytes(4, "big"), "sha384") for counter in count())
    scalars = (int.from_bytes(block, "big") for block in blocks)
    return ec.derive_private_key(next(scalar for scalar in scalars if 0 < scalar < P384_ORDER), ec.SECP384R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA P-384 with SHA-384 as 96 bytes r‖s, big endian; deterministic (RFC 6979)."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA384(), deterministic_signing=True)))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def issued(
    seed: bytes,
    common_name: str,
    issuer: Identity | None,
    *,
    is_ca: bool,
    fwid: bytes | None = None,
    over: bool = False,
) -> Identity:
    """A certificate with a key of its own, the same bytes for the same arguments; self-signed without `issuer`.

    `fwid`: 48 bytes for the FWID extension. `over`: its window is one second long.
    """
    key = derived_key(seed, f"key of {common_name}")
    signer = issuer.key if issuer else key
    serial = int.from_bytes(hmac_digest(seed, f"confide simulated nvidia: serial of {common_name}".encode(), "sha1"))
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated TEE (not NVIDIA)"),
        ]
    )
    builder = (
        x509.CertificateBuilder(
            issuer_name=issuer.certificate.subject if issuer else subject,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=serial >> 1 or 1,
            not_valid_before=VALID_FROM,
            not_valid_after=VALID_FROM.replace(second=1) if over else VALID_UNTIL,
        )
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(key_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if fwid is not None:
        extension = x509.UnrecognizedExtension(FWID_EXTENSION, fwid_extension(key, fwid))
        builder = builder.add_extension(extension, critical=False)
    return Identity(key, builder.sign(signer, SHA384(), ecdsa_deterministic=True))


def fwid_extension(key: ec.EllipticCurvePrivateKey, fwid: bytes) -> bytes:
    """SEQUENCE { version 1, the leaf's key, SEQUENCE { OID of SHA-384, OCTET STRING } } as in an H100's certificate."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    content = b"\x02\x01\x01" + spki + bytes.fromhex("303d06096086480165030402020430") + fwid
    return b"\x30\x81" + bytes((len(content),)) + content


# Reports (tee-evidence 6.5).


def measurement_blocks(number: int) -> bytes:
    """Blocks 1 to `number`, each with a SHA-384 value."""
    values = (sha384(f"Simulated GPU measurement {index}".encode()).digest() for index in range(1, number + 1))
    return b"".join(
        bytes((index, 1)) + (51).to_bytes(2, "little") + b"\x01" + (48).to_bytes(2, "little") + value
        for index, value in enumerate(values, start=1)
    )


def opaque_data(fields: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for kind, value in fields)


class SimulatedGpu:
    """A device that does not exist: a GPU, or a switch where the architecture is one's."""

    def __init__(
        self,
        seed: bytes,
        *,
        number: int = 0,
        arch: str = "HOPPER",
        driver_version: str = "570.172.08",
        fault: GpuFault | None = None,
    ) -> None:
        """`seed`: 32 bytes; devices of one seed have one root, and `number` tells them apart. `arch`: one of CHIPS.

        Raises ValueError for another length or architecture.
        """
        if len(seed) != 32:
            raise ValueError(f"the seed has {len(seed)} bytes, expected 32")
        if arch not in CHIPS:
            raise ValueError(f"unknown architecture {arch!r}, expected one of {', '.join(CHIPS)}")
        self.arch = arch
        self._fault = fault
        self._driver_version = driver_version
        root_seed = hmac_digest(seed, b"foreign", "sha256") if fault is GpuFault.FOREIGN_ROOT else seed
        who = f"{CHIPS[arch]} Simulated"
        self._root = issued(root_seed, "Simulated Device Identity CA", None, is_ca=True)
        self._identity = issued(
            seed, f"{who} Identity {number}", self._root, is_ca=fault is not GpuFault.LEAF_AS_ISSUER
        )
        self._leaf = issued(
            seed, f"{who} FMC LF {number}", self._identity, is_ca=False, fwid=FWID, over=fault is GpuFault.EXPIRED
        )
        self._device_nonce = hmac_digest(seed, f"device nonce {number}".encode(), "sha256")

    @property
    def root_der(self) -> bytes:
        """The root certificate, the same bytes for the same seed always: what a caller pins."""
        return self._root.der

    @property
    def root_pem(self) -> str:
        """The same certificate as PEM."""
        return self._root.pem

    @property
    def chain_pem(self) -> str:
        """Leaf, identity, root."""
        return self._leaf.pem + self._identity.pem + self._root.pem

    @property
    def ueid(self) -> str:
        """The leaf's serial number, decimal."""
        return str(self._leaf.certificate.serial_number)

    def report(self, nonce: bytes) -> bytes:
        """Request and response over exactly 32 bytes, else ValueError. The same nonce gives the same bytes."""
        if len(nonce) != 32:
            raise ValueError(f"32 bytes of nonce expected, got {len(nonce)}")
        if self._fault is GpuFault.OTHER_NONCE:
            nonce = bytes(31) + b"\x01"
        opaque = opaque_data(self._opaque_fields())
        blocks = 31 if self.arch in SWITCHES else 64
        record = measurement_blocks(blocks)
        signed = b"".join(
            (
                bytes.fromhex("11e001ff") + nonce + b"\x00",
                bytes.fromhex("11600000") + bytes((blocks,)) + len(record).to_bytes(3, "little") + record,
                self._device_nonce,
                len(opaque).to_bytes(2, "little") + opaque,
            )
        )
        key = self._identity.key if self._fault is GpuFault.SIGNATURE else self._leaf.key
        report = signed + raw_signature(key, signed)
        return report[:-1] if self._fault is GpuFault.CUT else report

    def _opaque_fields(self) -> Iterator[tuple[int, bytes]]:
        if self.arch in SWITCHES:
            yield 6, b"96.10.73.00.01"
            yield 22, bytes(8)
            return
        yield 6, bytes.fromhex("00cf009602000000")  # 96.00.CF.00.02
        yield 3, self._driver_version.encode() + b"\x00"
        if self._fault is not GpuFault.NO_FWID:
            yield 20, OTHER_FWID if self._fault is GpuFault.FWID else FWID
        yield 21, b"\x55"  # not in protected PCIe mode
        yield 1000, b"a type that no verifier knows"

    def entry(self, nonce: bytes) -> dict[str, str]:
        """The members of one entry of `evidence_list` (wire contract 6.4)."""
        return {
            "certificate": base64.b64encode(self.chain_pem.encode()).decode(),
            "evidence": base64.b64encode(self.report(nonce)).decode(),
            "arch": self._label(),
        }

    def _label(self) -> str:
        if self._fault is not GpuFault.MISLABELLED:
            return self.arch
        return "HOPPER" if self.arch in SWITCHES else "LS10"


def gpu_payload(devices: Iterable[SimulatedGpu], nonce: bytes, *, arch: str = "HOPPER") -> str:
    """The JSON text of `nvidia_payload` (wire contract 6.4). `nonce`: 32 bytes."""
    entries = [device.entry(nonce) for device in devices]
    return json.dumps({"nonce": nonce.hex(), "evidence_list": entries, "arch": arch})
