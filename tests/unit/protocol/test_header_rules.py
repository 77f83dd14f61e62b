"""Which headers of a Messages request go on to an upstream that speaks Messages itself (wire contract 3.5)."""

import pytest

from confide.protocol.messages_headers import BETA_MOST_BYTES, CURRENT, messages_headers

VERSION, BETA = b"anthropic-version", b"anthropic-beta"
KEY = b"sk-confide-0123456789"


def betas(*headers: tuple[bytes, bytes]) -> bytes | None:
    """What goes on as `anthropic-beta`."""
    return dict(messages_headers(headers)).get(BETA)


def test_without_any_the_current_version_is_said_and_no_beta() -> None:
    assert messages_headers([]) == (CURRENT,)
    assert messages_headers([(b"accept", b"*/*"), (b"content-type", b"application/json")]) == (CURRENT,)


@pytest.mark.parametrize("name", [VERSION, b"Anthropic-Version"])
def test_a_date_goes_on_as_the_version(name: bytes) -> None:
    assert messages_headers([(name, b" 2024-01-02\t")]) == ((VERSION, b"2024-01-02"),)


@pytest.mark.parametrize("value", [b"", b"latest", b"2024-1-2", b"2024-01-02\r\nx: y", b"2024-01-02, 2024-01-03"])
def test_what_is_no_date_gives_way_to_the_current_version(value: bytes) -> None:
    assert messages_headers([(VERSION, value)]) == (CURRENT,)


def test_two_versions_are_none() -> None:
    assert messages_headers([(VERSION, b"2024-01-02"), (VERSION, b"2024-01-02")]) == (CURRENT,)


def test_betas_of_all_headers_are_joined() -> None:
    assert betas((BETA, b"one-2024-01-02 ,two"), (b"Anthropic-Beta", b"three.v1_x")) == b"one-2024-01-02,two,three.v1_x"


@pytest.mark.parametrize("value", [b"", b"one,,two", b"one two", b"-one", b"one\r\nx: y", b"\xc3\xa4", b"a" * 65])
def test_among_names_of_betas_one_that_is_none_makes_all_none(value: bytes) -> None:
    assert betas((BETA, value)) is None
    assert betas((BETA, b"good"), (BETA, value)) is None


def test_names_of_betas_are_bounded_together() -> None:
    names = b",".join([b"a" * 63] * (BETA_MOST_BYTES // 64))
    assert betas((BETA, names)) == names
    assert betas((BETA, names + b",ab")) is None


@pytest.mark.parametrize("credential", [(b"x-api-key", KEY), (b"Authorization", b"Bearer " + KEY)])
@pytest.mark.parametrize("value", [KEY, b"good," + KEY, b"x" + KEY + b"y"])
def test_betas_that_hold_the_credential_of_the_request_do_not_go_on(
    credential: tuple[bytes, bytes], value: bytes
) -> None:
    assert betas(credential, (BETA, value)) is None
    assert betas(credential, (BETA, b"good")) == b"good"


def test_a_credential_too_short_to_be_one_is_looked_for_as_a_whole_name_alone() -> None:
    assert betas((b"x-api-key", b"a"), (BETA, b"a-beta")) == b"a-beta"
    assert betas((b"x-api-key", b"a"), (BETA, b"beta,a")) is None
    assert betas((b"authorization", b""), (b"x-api-key", b" "), (BETA, b"beta")) == b"beta"
