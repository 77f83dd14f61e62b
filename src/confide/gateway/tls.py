"""What the server speaks TLS with, and the key that reports bind: the attester's own, or the operator's files."""

import ssl
import time
from pathlib import Path

from cryptography import x509

from confide.attester.base import Attester
from confide.config import Config, is_loopback
from confide.errors import ConfigError
from confide.protocol.pins import spki_sha256


def attested_chain(config: Config, attester: Attester) -> bytes | None:
    """The certificates (PEM) that go with the attester's TLS key; None where it makes none. Raises ConfigError.

    The chain is the operator's for that key, or a certificate that the key signed itself: whoever pins the attested key
    needs no authority.
    """
    if config.server.tls != "attested":
        return None
    if config.server.tls_cert is None:
        return attester.workload_keys.tls.self_signed(tls_names(config), int(time.time()))
    try:
        return Path(config.server.tls_cert).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"[server] tls_cert {config.server.tls_cert}: cannot be read: {error.strerror}",
            remedy="Name a file that this user may read.",
        ) from error


def attested_tls(config: Config, attester: Attester, chain: bytes | None = None) -> ssl.SSLContext | None:
    """What the server speaks TLS with where the attester made the key; None otherwise. Raises ConfigError.

    `chain`: as `attested_chain` gave it; None for one of now.
    """
    chain = attested_chain(config, attester) if chain is None else chain
    if chain is None:
        return None
    key = attester.workload_keys.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key.load_into(context, chain_pem=chain)
    return context


def tls_names(config: Config) -> tuple[str, ...]:
    """The names of a certificate that we make: the listed domain, where we listen, and this machine on loopback."""
    names = [config.server.domain, config.server.host]
    names += ["localhost", "127.0.0.1", "::1"] if is_loopback(config.server.host) else []
    return tuple(dict.fromkeys(name for name in names if name is not None and name not in ("0.0.0.0", "::")))  # noqa: S104


def tls_spki_sha256(config: Config, attester: Attester) -> bytes | None:
    """SHA-256 (32 bytes) of the key that TLS is served with, None without TLS. Raises ConfigError."""
    if config.server.tls == "attested":
        return attester.workload_keys.tls.spki_sha256
    return leaf_spki_sha256(config.server.tls_cert)


def leaf_spki_sha256(certificate: str | None) -> bytes | None:
    """SHA-256 (32 bytes) of the leaf's SubjectPublicKeyInfo, or None without TLS. Raises ConfigError."""
    if certificate is None:
        return None
    try:
        leaf = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"[server] tls_cert {certificate}: not a PEM certificate that can be read") from error
    return spki_sha256(leaf.public_key())
