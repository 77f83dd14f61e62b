"""Pins of TLS keys: which certificates are for a pinned key, and that nothing else is admitted."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from confide.protocol.pins import require_pinned, spki_of, spki_sha256
from tls_files import certificate_for

KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
PIN, OTHER_PIN = spki_sha256(KEY.public_key()), spki_sha256(OTHER_KEY.public_key())


class Refused(Exception):
    pass


@pytest.mark.parametrize("der", [None, b"", b"\x30\x00", b"x" * 100])
def test_a_certificate_without_a_readable_key_has_no_digest(der: bytes | None) -> None:
    assert spki_of(der) is None


def test_the_digest_is_of_the_key_and_not_of_the_certificate() -> None:
    certificates = [certificate_for(KEY.public_key(), name, OTHER_KEY, "issuer") for name in ("one", "two")]
    first, second = (each.public_bytes(Encoding.DER) for each in certificates)
    assert first != second
    assert spki_of(first) == spki_of(second) == PIN
    assert PIN != OTHER_PIN


@pytest.mark.parametrize("pins", [{PIN}, {PIN, OTHER_PIN}])
def test_a_pinned_key_is_admitted(pins: set[bytes]) -> None:
    require_pinned(PIN, frozenset(pins), Refused)


@pytest.mark.parametrize("pins", [set(), {OTHER_PIN}, {PIN[:31]}, {PIN + b"\x00"}, {PIN.hex().encode()}])
def test_another_key_is_refused_with_both_digests_in_the_reason(pins: set[bytes]) -> None:
    with pytest.raises(Refused) as caught:
        require_pinned(PIN, frozenset(pins), Refused)
    expected = next((pin.hex() for pin in pins), "none")
    assert str(caught.value) == f"got the TLS key {PIN.hex()}, expected {expected}"


@pytest.mark.parametrize("pins", [set(), {PIN}, {bytes(32)}])
def test_a_key_that_cannot_be_read_is_never_admitted(pins: set[bytes]) -> None:
    with pytest.raises(Refused, match="a key that cannot be read"):
        require_pinned(None, frozenset(pins), Refused)
