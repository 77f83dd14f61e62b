"""The quote parser: strict about every length and type, and quiet on any bytes whatsoever."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.evidence.quote import MAX_QUOTE_BYTES, TD_REPORT_10, TD_REPORT_15, QuoteError, parse_quote
from confide.simulator.tdx import SimulatedTdxPlatform

# Offsets in a version 4 quote (tee-evidence 6.1, 6.2).
AUTH_LENGTH = 632
CERTIFICATION_TYPE = 764
CERTIFICATION_LENGTH = 766
AUTH_DATA_LENGTH = 770 + 384 + 64
PEM_TYPE = AUTH_DATA_LENGTH + 2 + 32
PEM_LENGTH = PEM_TYPE + 2
PEM = PEM_LENGTH + 4


def patched(quote: bytes, offset: int, value: bytes) -> bytes:
    return quote[:offset] + value + quote[offset + len(value) :]


def with_pem(quote: bytes, pem: bytes) -> bytes:
    """The same quote around another PEM text, with all three lengths made to fit."""
    frame = quote[AUTH_LENGTH + 4 : CERTIFICATION_LENGTH]
    inner = quote[CERTIFICATION_LENGTH + 4 : PEM_LENGTH] + len(pem).to_bytes(4, "little") + pem
    auth = frame + len(inner).to_bytes(4, "little") + inner
    return quote[:AUTH_LENGTH] + len(auth).to_bytes(4, "little") + auth


@pytest.mark.parametrize("layout", [TD_REPORT_10, TD_REPORT_15])
def test_the_layout_has_no_gap_and_no_overlap(layout: dict[str, tuple[int, int]]) -> None:
    end = 0
    for offset, length in layout.values():
        assert offset == end
        end = offset + length
    assert end in (584, 648)


def test_report_data_is_what_the_guest_asked_for_and_measurements_are_not(platform: SimulatedTdxPlatform) -> None:
    first, second = parse_quote(platform.quote(b"\xaa" * 64)), parse_quote(platform.quote(b"\xbb" * 64))
    assert (first.report_data, second.report_data) == (b"\xaa" * 64, b"\xbb" * 64)
    for name in TD_REPORT_10:
        assert name == "report_data" or getattr(first, name) == getattr(second, name)


def test_the_chain_is_leaf_ca_root_and_nothing_is_left_over(quote: bytes, platform: SimulatedTdxPlatform) -> None:
    parsed = parse_quote(quote)
    assert len(parsed.chain) == 3
    assert parsed.chain[2] == platform.root_der
    assert (parsed.trimmed, parsed.tail) == (quote, b"")


@pytest.mark.parametrize("tail", [b"\x00" * 70, b"\nexample"])
def test_what_follows_the_quote_is_kept_apart(quote: bytes, tail: bytes) -> None:
    parsed = parse_quote(quote + tail)
    assert (parsed.trimmed, parsed.tail) == (quote, tail)


def test_every_shorter_quote_is_refused(quote: bytes) -> None:
    for length in range(0, len(quote), 97):
        with pytest.raises(QuoteError, match="cut short"):
            parse_quote(quote[:length])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x03\x00", "quote version 3, expected 4 or 5"),
        (2, b"\x03\x00", "attestation key type 3, expected 2"),
        (4, b"\x00\x00\x00\x00", "TEE type 0x0, expected 0x81: this is not a TDX quote"),
        (AUTH_LENGTH, b"\xff\xff\xff\xff", "cut short: the signature data needs 4294967295 bytes"),
        (AUTH_LENGTH, b"\x00\x00\x00\x00", "cut short: the quote signature"),
        (CERTIFICATION_TYPE, b"\x07\x00", "certification data type 7, expected 6"),
        (CERTIFICATION_LENGTH, b"\x01\x00\x00\x00", "bytes too many after the outer certification data"),
        (AUTH_DATA_LENGTH, b"\x21\x00", "33 bytes of QE authentication data, expected 32"),
        (PEM_TYPE, b"\x01\x00", "certification data type 1, expected 5"),
        (PEM_LENGTH, b"\x01\x00\x00\x00", "bytes too many after the certificate chain"),
        (PEM, b"=", "the certificate chain is not plain PEM at its byte 0"),
    ],
)
def test_what_is_wrong_is_named(quote: bytes, offset: int, value: bytes, message: str) -> None:
    with pytest.raises(QuoteError, match=message):
        parse_quote(patched(quote, offset, value))


@pytest.mark.parametrize(
    ("body_header", "message"),
    [
        (b"\x01\x00\x80\x01\x00\x00", "body type 1, expected 2"),
        (b"\x04\x00\x88\x02\x00\x00", "body type 4, expected 2"),
        (b"\x02\x00\x88\x02\x00\x00", "body of 648 bytes, expected 584 for body type 2"),
    ],
)
def test_version_5_bodies_that_we_cannot_judge_are_refused(quote: bytes, body_header: bytes, message: str) -> None:
    with pytest.raises(QuoteError, match=message):
        parse_quote(patched(quote[:48] + body_header + quote[48:], 0, b"\x05\x00"))


def test_a_version_5_quote_says_which_report_it_holds(quote: bytes) -> None:
    report_10 = parse_quote(patched(quote[:48] + b"\x02\x00\x48\x02\x00\x00" + quote[48:], 0, b"\x05\x00"))
    report_15 = parse_quote(
        patched(quote[:48] + b"\x03\x00\x88\x02\x00\x00" + quote[48:632] + b"\x07" * 64 + quote[632:], 0, b"\x05\x00")
    )
    assert (report_10.version, report_10.mr_service_td) == (5, b"")
    assert (report_15.tee_tcb_svn2, report_15.mr_service_td) == (b"\x07" * 16, b"\x07" * 48)
    assert report_10.report_data == report_15.report_data == parse_quote(quote).report_data


def test_hex_text_instead_of_bytes_gets_a_hint(quote: bytes) -> None:
    with pytest.raises(QuoteError, match="as raw bytes"):
        parse_quote(quote.hex().encode())


def test_a_buffer_beyond_the_limit_is_refused_and_one_at_the_limit_is_not(quote: bytes) -> None:
    assert parse_quote(quote.ljust(MAX_QUOTE_BYTES, b"\x00")).trimmed == quote
    with pytest.raises(QuoteError, match=f"expected at most {MAX_QUOTE_BYTES}"):
        parse_quote(quote.ljust(MAX_QUOTE_BYTES + 1, b"\x00"))


def test_a_chain_has_one_spelling(quote: bytes) -> None:
    pem = quote[PEM:]
    assert parse_quote(with_pem(quote, pem)) == parse_quote(quote)
    # Spare bits: the last digit before the padding of the root; one of its unused low bits is set.
    end = pem.rindex(b"=\n-----END")
    last = end - 1 if pem[end - 1 : end] == b"=" else end
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    digit = alphabet[alphabet.index(pem[last - 1 : last]) | 1 :][:1]
    for spelling, message in [
        (pem + b"\x00", "not plain PEM"),
        (b"\n" + pem, "not plain PEM"),
        (b"Subject: trust me\n" + pem, "not plain PEM"),
        (pem.replace(b"-----END", b"A\n-----END", 1), "not base64"),
        (pem[: last - 1] + digit + pem[last:], "not in canonical base64"),
        (b"", "not plain PEM"),
        (b"\x00", "not plain PEM"),
    ]:
        with pytest.raises(QuoteError, match=message):
            parse_quote(with_pem(quote, spelling))


@given(raw=st.binary(max_size=2048))
def test_random_bytes_are_refused_in_words(raw: bytes) -> None:
    with pytest.raises(QuoteError, match=r"\w"):
        parse_quote(raw)


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_quote_parses_or_is_refused_and_nothing_else(data: st.DataObject, quote: bytes) -> None:
    start = data.draw(st.integers(0, len(quote)))
    stop = data.draw(st.integers(start, min(start + 16, len(quote))))
    mutated = quote[:start] + data.draw(st.binary(max_size=16)) + quote[stop:]
    try:
        parsed = parse_quote(mutated)
    except QuoteError as error:
        assert str(error)  # noqa: PT017 - the mutation may also be harmless
    else:
        assert parsed.trimmed + parsed.tail == mutated
