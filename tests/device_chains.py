"""Chains of certificates as NVIDIA devices have them, to be broken one rule at a time."""

from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from confide.evidence.policy import Anchors
from confide.simulator.certificates import key_usage
from confide.simulator.gpu import derived_key
from gpu_builders import SEED

KEYS: dict[str, Any] = {name: derived_key(SEED, f"test {name}") for name in ("leaf", "identity", "upper", "root")}


def builder(
    subject: str,
    issuer: str,
    *,
    ca: bool | None,
    path_length: int | None = None,
    usage: bool | None = None,
    key: Any = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    starts: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    ends: datetime = datetime(2045, 1, 1, tzinfo=UTC),
    common_name: str | None = None,
) -> x509.CertificateBuilder:
    """A certificate without anything that is not asked for. `usage`: a KeyUsage, of an authority or of none."""

    def name(of: str) -> x509.Name:
        text = common_name if common_name is not None and of == subject else f"GH100 {of}"
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])

    made = x509.CertificateBuilder(
        issuer_name=name(issuer),
        subject_name=name(subject),
        public_key=(key or KEYS[subject]).public_key(),
        serial_number=7,
        not_valid_before=starts,
        not_valid_after=ends,
    )
    if ca is not None:
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if usage is not None:
        made = made.add_extension(key_usage(usage), critical=True)
    for extension, critical in extensions:
        made = made.add_extension(extension, critical=critical)
    return made


def chain(*, sign_with: Any = None, algorithm: Any = None, **certificates: dict[str, Any]) -> tuple[bytes, Anchors]:
    """Leaf, identity, upper authority and root as PEM, with the changes asked for, and anchors with this root."""
    plan: dict[str, dict[str, Any]] = {
        "leaf": {"issuer": "identity", "ca": None},
        "identity": {"issuer": "upper", "ca": True},
        "upper": {"issuer": "root", "ca": True},
        "root": {"issuer": "root", "ca": True},
    }
    made = []
    for subject, honest in plan.items():
        wanted = honest | certificates.get(subject, {})
        issuer = wanted["issuer"]
        signer = sign_with if subject == "leaf" and sign_with else certificates.get(issuer, {}).get("key", KEYS[issuer])
        hashed = algorithm if subject == "leaf" and algorithm else SHA384()
        made.append(builder(subject, **wanted).sign(signer, None if is_ed25519(signer) else hashed))
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in made)
    return pem, Anchors.of().with_simulated(made[-1].public_bytes(Encoding.DER))


def is_ed25519(key: object) -> bool:
    return isinstance(key, ed25519.Ed25519PrivateKey)
