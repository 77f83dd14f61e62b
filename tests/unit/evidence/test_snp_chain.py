"""The certificates behind a report: every rule by a chain that breaks this one alone, made of simulated keys."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.evidence.result import Status
from confide.evidence.snp_chain import (
    MAX_CRL_BYTES,
    Chain,
    SnpChainError,
    load_certificate,
    split_certificates,
    verify_chain,
    verify_crl,
)
from confide.evidence.snp_report import Product
from confide.evidence.snp_vcek import named_product, read_endorsement
from confide.simulator.certificates import der, key_usage
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.snp_certificates import (
    PSS_SHA384,
    SimulatedAuthority,
    authority,
    certificate,
    extension,
    integer,
    p384_key,
    sealed,
)
from snp_builders import NOW, SEED, failing, platform, reason, statuses, verified

HONEST = platform()
ARK = authority(SEED, "Simulated ARK-Milan", None)
ASK = authority(SEED, "Simulated SEV-Milan", ARK)
LEAF_KEY = p384_key(SEED, "VCEK").public_key()
P256_KEY = ec.derive_private_key(1, ec.SECP256R1()).public_key()
SMALL_RSA_KEY = rsa.RSAPublicNumbers(65537, (1 << 3071) + 1).public_key()
AMD = "1.3.6.1.4.1.3704.1"

BASIC_CONSTRAINTS, KEY_USAGE = x509.BasicConstraints.oid, x509.KeyUsage.oid


def constraints(*, ca: bool, path_length: int | None = None) -> bytes:
    value = x509.BasicConstraints(ca=ca, path_length=path_length)
    return extension(BASIC_CONSTRAINTS, value.public_bytes(), is_critical=True)


def usage(*, is_ca: bool) -> bytes:
    return extension(KEY_USAGE, key_usage(is_ca=is_ca).public_bytes(), is_critical=True)


def amd(arc: str, value: bytes) -> bytes:
    return extension(x509.ObjectIdentifier(f"{AMD}.{arc}"), value)


def made(of: SimulatedAuthority, under: SimulatedAuthority, *extensions: bytes, **changes: object) -> bytes:
    """This CA's certificate with other extensions, key or names."""
    arguments: dict[str, object] = {
        "serial": of.serial,
        "subject": of.name,
        "public_key": of.key.public_key,
        "issuer_name": under.name,
        "issuer": under.key,
        "extensions": extensions,
    }
    return certificate(**(arguments | changes))  # type: ignore[arg-type]  # tests replace any of them


def leaf(*extensions: bytes, **changes: object) -> bytes:
    return made(ASK, ASK, *extensions, **({"public_key": LEAF_KEY} | changes))


def chain(vcek: bytes = HONEST.vcek_der, ask: bytes = ASK.der, ark: bytes = ARK.der, now: int = NOW) -> Chain:
    return verify_chain(vcek, ask, ark, now)


CA = constraints(ca=True)


def test_the_honest_chain_holds() -> None:
    assert HONEST.chain_der == ASK.der + ARK.der
    verified = chain()
    assert verified.leaf_key == LEAF_KEY
    assert verified.root.serial == ARK.serial
    assert chain(leaf()).leaf.constraints.ca is False
    assert chain(leaf(constraints(ca=False), usage(is_ca=False))).leaf.usage is not None
    assert chain(ask=made(ASK, ARK, CA), ark=made(ARK, ARK, CA)).root.usage is None


def test_our_simulated_signatures_are_those_that_the_library_verifies() -> None:
    """`cryptography` knows the chain as its own loader reads it, with no code of ours in between."""
    ark, ask, vcek = (x509.load_der_x509_certificate(each) for each in (ARK.der, ASK.der, HONEST.vcek_der))
    ark.verify_directly_issued_by(ark)
    ask.verify_directly_issued_by(ark)
    vcek.verify_directly_issued_by(ask)
    assert x509.load_der_x509_crl(HONEST.crl(NOW)).is_signature_valid(ARK.key.public_key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"now": 1_767_225_599}, "the ARK holds from 1767225600 to 2397945600, got 1767225599"),
        ({"now": 2_397_945_601}, "the ARK holds from 1767225600 to 2397945600"),
        ({"ark": made(ARK, ARK, constraints(ca=False))}, "the ARK must not issue certificates"),
        ({"ark": made(ARK, ARK)}, "the ARK must not issue certificates"),
        ({"ark": made(ARK, ARK, CA, usage(is_ca=False))}, "the ARK must not issue certificates"),
        ({"ark": made(ARK, ARK, constraints(ca=True, path_length=0))}, "path length 0, expected at least 1"),
        ({"ask": made(ASK, ARK, constraints(ca=False))}, "the ASK must not issue certificates"),
        ({"ask": made(ASK, ARK, usage(is_ca=True))}, "the ASK must not issue certificates"),
        ({"ask": made(ASK, ARK, CA, public_key=LEAF_KEY)}, "the ASK has no RSA key of 4096 bits"),
        ({"ask": made(ASK, ARK, CA, public_key=SMALL_RSA_KEY)}, "the ASK has no RSA key of 4096 bits"),
        ({"ask": made(ASK, ASK, CA)}, "the ASK is issued by O=Simulated.*CN=Simulated SEV-Milan, expected"),
        ({"ask": made(ASK, ARK, CA, issuer=ASK.key)}, "the signature on the ASK is not its issuer's"),
        ({"vcek": leaf(issuer_name=ARK.name)}, "the VCEK is issued by .*ARK-Milan, expected .*SEV-Milan"),
        ({"vcek": leaf(issuer=ARK.key)}, "the signature on the VCEK is not its issuer's"),
        ({"vcek": leaf(CA)}, "the VCEK is a CA"),
        ({"vcek": leaf(usage(is_ca=True))}, "the VCEK must not sign reports"),
        ({"vcek": leaf(public_key=P256_KEY)}, "the VCEK has no key on P-384"),
        ({"vcek": leaf(public_key=ARK.key.public_key)}, "the VCEK has no key on P-384"),
        (
            {"vcek": leaf(extension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00", is_critical=True))},
            "the VCEK has the critical extension 1.2.3.4, expected none",
        ),
        ({"vcek": leaf(CA, CA)}, "VCEK: it cannot be read: .*extension"),
        ({"vcek": leaf(serial=1)[:-1]}, "VCEK: it cannot be read"),
        ({"ask": b""}, "ASK: it is not a version 3 certificate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_chain_that_breaks_one_rule_is_refused_for_it(changes: dict[str, bytes], message: str) -> None:
    with pytest.raises(SnpChainError, match=message):
        chain(**changes)  # type: ignore[arg-type]  # one part at a time


def test_the_serial_number_zero_is_read_and_signed_for() -> None:
    zero = leaf(serial=0)
    assert zero[13:16] == b"\x02\x01\x00"
    assert load_certificate(zero).serial == 0
    assert chain(zero).leaf.signed[9:12] == b"\x02\x01\x00"
    one = zero[:15] + b"\x01" + zero[16:]
    assert load_certificate(one).serial == 1
    with pytest.raises(SnpChainError, match="the signature on the VCEK is not its issuer's"):
        chain(one)


@pytest.mark.parametrize("serial", [b"\x02\x01\xff", b"\x02\x81\x80"])
def test_a_negative_serial_number_is_refused_without_a_warning(serial: bytes) -> None:
    zero = leaf(serial=0)
    with pytest.raises(SnpChainError, match="serial number is negative or far too long"):
        load_certificate(zero[:13] + serial + zero[16:])


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_another_signature_algorithm_is_refused(place: str) -> None:
    other = PSS_SHA384.replace(bytes.fromhex("a203020130"), bytes.fromhex("a203020120"))  # a salt of 32 bytes
    encoded = leaf()
    first, last = encoded.index(PSS_SHA384), encoded.rindex(PSS_SHA384)
    where = first if place == "inside" else last
    assert first != last
    with pytest.raises(SnpChainError, match=r"signed in another way, expected RSA-PSS|it cannot be read"):
        load_certificate(encoded[:where] + other + encoded[where + len(other) :])


def test_certificates_come_as_pem_or_der() -> None:
    both = (ASK.der, ARK.der)
    assert split_certificates(HONEST.chain_der) == both
    assert split_certificates(HONEST.chain_pem.encode()) == both
    assert split_certificates(b"\n" + HONEST.chain_pem.replace("\n", "\r\n").encode() + b"\n\n") == both
    assert split_certificates(b"") == ()
    with pytest.raises(SnpChainError, match="not plain PEM at byte"):
        split_certificates(HONEST.chain_pem.encode() + b"and more")


# The revocation list.


def signed_list(*parts: bytes, issuer: SimulatedAuthority = ARK, tail: bytes = b"") -> bytes:
    """A CRL whose last parts are these."""
    return sealed(der(0x30, integer(1), PSS_SHA384, issuer.name.public_bytes(), *parts, tail), issuer.key)


def time(offset_s: int) -> bytes:
    return der(0x17, datetime.fromtimestamp(NOW + offset_s, UTC).strftime("%y%m%d%H%M%SZ").encode())


def extended(encoded: bytes) -> bytes:
    return der(0xA0, der(0x30, encoded))


def revoked(serial: int) -> bytes:
    return der(0x30, der(0x30, integer(serial), time(0)))


def test_the_honest_list_says_when_the_next_one_comes() -> None:
    assert verify_crl(HONEST.crl(NOW), chain(), NOW) == NOW + 30 * 24 * 60 * 60
    assert verify_crl(signed_list(time(0), time(60)), chain(), NOW) == NOW + 60
    assert verify_crl(signed_list(time(0), time(60), revoked(12345)), chain(), NOW) == NOW + 60


@pytest.mark.parametrize(
    ("crl", "message"),
    [
        (b"", "the CRL cannot be read"),
        (HONEST.crl(NOW)[:-1], "the CRL cannot be read"),
        (bytes(MAX_CRL_BYTES + 1), f"a CRL of {MAX_CRL_BYTES + 1} bytes, expected at most"),
        (signed_list(time(0)), "does not say until when it holds"),
        (signed_list(time(1), time(60)), f"the CRL holds from {NOW + 1} to {NOW + 60}, got {NOW}"),
        (signed_list(time(-60), time(-1)), f"the CRL holds from {NOW - 60} to {NOW - 1}, got {NOW}"),
        (signed_list(time(0), time(60), issuer=ASK), "the CRL is issued by .*SEV-Milan, expected .*ARK-Milan"),
        (
            sealed(der(0x30, integer(1), PSS_SHA384, ARK.name.public_bytes(), time(0), time(60)), ASK.key),
            "the signature on the CRL is not its issuer's",
        ),
        (
            signed_list(
                time(0),
                time(60),
                tail=extended(extension(x509.DeltaCRLIndicator.oid, integer(1), is_critical=True)),
            ),
            "the CRL has the critical extension 2.5.29.27, expected none",
        ),
        (
            signed_list(time(0), time(60), revoked(ASK.serial)),
            f"the ASK with the serial number {ASK.serial} is revoked",
        ),
        (
            signed_list(time(0), time(60), revoked(ARK.serial)),
            f"the ARK with the serial number {ARK.serial} is revoked",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_breaks_one_rule_is_refused_for_it(crl: bytes, message: str) -> None:
    with pytest.raises(SnpChainError, match=message):
        verify_crl(crl, chain(), NOW)


def test_an_ark_that_may_not_sign_lists_has_none() -> None:
    no_lists = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    ark = made(ARK, ARK, CA, extension(KEY_USAGE, no_lists.public_bytes()))
    with pytest.raises(SnpChainError, match="the ARK must not sign CRLs"):
        verify_crl(HONEST.crl(NOW), chain(ark=ark), NOW)


# What a VCEK says of chip and firmware.

PRODUCT = amd("2", b"\x16\x08Milan-B0")
LEVELS = tuple(amd(f"3.{arc}", b"\x02\x01\x05") for arc in (1, 2, 3, 8))


def test_patch_levels_and_chip_are_read() -> None:
    endorsed = read_endorsement(load_certificate(leaf(PRODUCT, *LEVELS, amd("4", bytes(range(64))))), Product.MILAN)
    assert (endorsed.product_name, endorsed.provider, endorsed.chip) == ("Milan-B0", None, bytes(range(64)))
    assert set(endorsed.tcb.levels.values()) == {0, 5}
    wrapped = amd("4", b"\x04\x40" + bytes(range(64)))
    assert read_endorsement(load_certificate(leaf(PRODUCT, *LEVELS, wrapped)), Product.MILAN).chip == endorsed.chip
    lent = read_endorsement(load_certificate(leaf(PRODUCT, *LEVELS, amd("5", b"\x16\x05cloud"))), Product.MILAN)
    assert (lent.provider, lent.chip) == ("cloud", None)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ((), "the extension 1.3.6.1.4.1.3704.1.2 is missing"),
        ((PRODUCT, *LEVELS[:3]), "3704.1.3.8 is missing"),
        ((PRODUCT, amd("3.1", b"\x02\x02\x01\x00"), *LEVELS[1:]), "holds the integer 0100, expected 0 to 255"),
        ((PRODUCT, amd("3.1", b"\x02\x01\xff"), *LEVELS[1:]), "holds the integer ff, expected 0 to 255"),
        ((PRODUCT, amd("3.1", b"\x02\x00"), *LEVELS[1:]), "holds the integer , expected 0 to 255"),
        ((PRODUCT, amd("3.1", b"\x02\x01\x05\x00"), *LEVELS[1:]), "holds 02010500, expected one value of type 0x02"),
        ((PRODUCT, amd("3.1", b"\x04\x01\x05"), *LEVELS[1:]), "holds 040105, expected one value of type 0x02"),
        ((PRODUCT, amd("3.1", b""), *LEVELS[1:]), "holds , expected one value"),
        ((amd("2", b"\x16\x01\xff"), *LEVELS), "holds ff, expected ASCII text"),
        ((PRODUCT, *LEVELS, amd("4", b"\x04\x02ab")), "the chip's id has 2 bytes, expected 64 on milan"),
        ((PRODUCT, *LEVELS, amd("4", bytes(63))), "3704.1.4 holds 0000"),
        ((PRODUCT, *LEVELS, amd("4", b"\x04\x81\x80" + bytes(128))), "3704.1.4 holds 04818000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_extensions_that_cannot_be_read_are_named(extensions: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(SnpChainError, match=message):
        read_endorsement(load_certificate(leaf(*extensions)), Product.MILAN)


@pytest.mark.parametrize(
    ("extensions", "product"),
    [((PRODUCT,), Product.MILAN), ((amd("2", b"\x16\x06Venice"),), None), ((), None)],
)
def test_the_product_is_named_or_not(extensions: tuple[bytes, ...], product: Product | None) -> None:
    assert named_product(load_certificate(leaf(*extensions))) is product


def test_a_version_2_report_under_a_vcek_of_no_known_product_is_refused() -> None:
    """Version 2 does not name the CPU, and a simulated root stands for no product."""
    machine = platform(version=2)
    result = verified(of=machine, vcek=leaf(amd("2", b"\x16\x06Venice")))
    assert failing(result) == {"snp.vcek"}
    assert "got a VCEK that names no known product" in reason(result, "snp.vcek")
    assert statuses(result)["snp.tcb"] is Status.SKIP


@pytest.mark.parametrize(("name", "is_accepted"), [(b"Siena-B1", True), (b"Milan", True), (b"Genoa-B1", False)])
def test_a_vcek_may_name_a_sibling_and_not_another_product(name: bytes, is_accepted: bool) -> None:
    levels = {"1": 4, "2": 0, "3": 24, "8": 213}
    chip = HONEST.report(bytes(64))[0x1A0:0x1E0]
    named = (amd("2", der(0x16, name)), *(amd(f"3.{arc}", integer(level)) for arc, level in levels.items()))
    result = verified(vcek=leaf(*named, amd("4", chip)))
    assert result.ok is is_accepted
    assert failing(result) == (set() if is_accepted else {"snp.vcek"})


def test_spki_of_a_loaded_certificate_is_the_key_that_was_certified() -> None:
    loaded, given = load_certificate(leaf()).key, LEAF_KEY
    encoding = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert loaded.public_bytes(*encoding) == given.public_bytes(*encoding)


def test_another_seed_gives_another_chain() -> None:
    other = SimulatedSnpPlatform(b"\x33" * 32, now=NOW)
    with pytest.raises(SnpChainError, match="the signature on the ASK"):
        chain(other.vcek_der, other.chain_der[: -len(other.root_der)])
