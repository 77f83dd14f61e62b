"""What both transports share: where a request goes, what is asked for beside it, and what failures are called."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

import confide
from confide.client.known_service import KnownService
from confide.client.sending import (
    Destination,
    Latch,
    answered,
    connection_options,
    cut_off,
    document_request,
    has_to_be_proven,
    is_prompt,
    require_identity,
    require_no_get,
    unfetched,
    unfollowed,
    unproven,
)
from confide.client.steps import Fetch
from confide.errors import ConfigError, VerificationError


@pytest.mark.parametrize(
    ("url", "root", "host", "endpoint"),
    [
        ("https://a.example/v1/chat/completions", "https://a.example", "a.example", "/v1/chat/completions"),
        ("https://A.Example:443/v1/models?x=1#y", "https://a.example", "a.example", "/v1/models"),
        ("http://a.example:8080/api/v1/x", "http://a.example:8080/api", "a.example", "/v1/x"),
        ("https://a.example/a/v1/b/v1/c", "https://a.example/a", "a.example", "/v1/b/v1/c"),
        ("https://a.example/other", "https://a.example", "a.example", "/other"),
        ("https://a.example/v1", "https://a.example", "a.example", "/v1"),
        ("https://a.example", "https://a.example", "a.example", "/"),
        ("https://a.example//v1//x", "https://a.example", "a.example", "/v1//x"),
        ("https://a.example/v1/a%20b", "https://a.example", "a.example", "/v1/a b"),
        ("http://[::1]:80/v1/x", "http://[::1]", "::1", "/v1/x"),
        ("https://[2001:db8::1]:8443/v1/x", "https://[2001:db8::1]:8443", "2001:db8::1", "/v1/x"),
        ("https://bücher.example/v1/x", "https://xn--bcher-kva.example", "xn--bcher-kva.example", "/v1/x"),
        ("https://user:secret@a.example/v1/x", "https://a.example", "a.example", "/v1/x"),
    ],
)
def test_a_request_goes_to_an_endpoint_under_the_root_of_a_service(
    url: str, root: str, host: str, endpoint: str
) -> None:
    found = Destination(httpx2.URL(url))
    assert (found.root, found.host, found.endpoint) == (root, host, endpoint)


def test_documents_are_asked_for_under_the_root_with_the_credential_alone() -> None:
    service = KnownService("https://a.example/api", "a.example")
    headers = httpx2.Headers({"authorization": "Bearer key", "x-api-key": "key", "cookie": "private", "x-other": "1"})
    request = document_request(service, Fetch("/v1/aci/receipts/r", with_credential=True), headers)
    assert str(request.url) == "https://a.example/api/v1/aci/receipts/r"
    assert set(request.headers) == {"host", "accept-encoding", "user-agent", "authorization", "x-api-key"}
    assert request.headers["accept-encoding"] == "identity"
    assert request.extensions["timeout"]["connect"] == 10
    for bare in (document_request(service, Fetch("/x"), headers), document_request(service, Fetch("/x"), None)):
        assert set(bare.headers) == {"host", "accept-encoding", "user-agent"}


def test_a_latch_keeps_its_first_reason_until_it_is_opened() -> None:
    latch, first = Latch(), VerificationError("id-1: because", check="id-1")
    latch.check()
    latch.close(first)
    latch.close(VerificationError("id-2: another", check="id-2"))
    with pytest.raises(VerificationError, match="nothing was sent: this client has failed before: id-1: bec") as caught:
        latch.check()
    assert (caught.value.check, caught.value.__cause__) == ("id-1", first)
    assert "reset()" in str(caught.value.remedy)
    latch.open()
    latch.check()


@pytest.mark.parametrize(
    ("status", "headers", "is_proven"),
    [
        (200, {}, True),
        (204, {}, True),
        (301, {}, True),
        (307, {"location": "/v1/elsewhere"}, False),
        (101, {}, True),
        (300, {}, True),
        (304, {}, True),
        (399, {}, True),
        (600, {}, True),
        (400, {}, False),
        (500, {}, False),
        (502, {"X-Receipt-Id": "r"}, True),
        (307, {"x-receipt-id": ""}, True),
    ],
)
def test_an_answer_has_to_be_proven_and_so_has_what_claims_a_receipt(
    status: int, headers: dict[str, str], is_proven: bool
) -> None:
    assert has_to_be_proven(httpx2.Response(status, headers=headers)) is is_proven


@pytest.mark.parametrize(
    ("method", "path", "is_asked"),
    [
        ("POST", "/v1/messages", True),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", "/base/v1/messages/count_tokens", False),
        ("POST", "/v1/messages/count_tokens/", True),
        ("POST", "/v1/chat/completions?x=/v1/messages/count_tokens", True),
        ("POST", "/messages/count_tokens", True),
        ("GET", "/v1/models", False),
    ],
)
def test_every_post_asks_for_an_answer_but_one_that_counts(method: str, path: str, is_asked: bool) -> None:
    assert is_prompt(method, Destination(httpx2.URL("https://a.example" + path))) is is_asked


def test_a_redirection_that_would_become_a_get_is_refused() -> None:
    elsewhere = {"location": "https://a.example/v1/other"}
    for status in (301, 302, 303):
        with pytest.raises(VerificationError, match=f"redirection, status {status}") as caught:
            require_no_get(httpx2.Response(status, headers=elsewhere))
        assert caught.value.check == "receipt-1"
        require_no_get(httpx2.Response(status))
    for status in (200, 304, 307, 308):
        require_no_get(httpx2.Response(status, headers=elsewhere))


def test_what_is_not_proven_leads_to_no_proof() -> None:
    shown = unproven(httpx2.Response(200, headers={"x-request-id": "r", "x-receipt-id": "r", "x-other": "1"}))
    assert "x-receipt-id" not in shown.headers
    assert shown.headers["x-other"] == "1"
    assert {shown.headers["x-request-id"], shown.headers["request-id"]} == {"unproven r", "unproven"}


def test_a_body_that_somebody_encoded_is_refused() -> None:
    for fine in ({}, {"content-encoding": "Identity"}):
        require_identity(httpx2.Response(200, headers=fine))
    with pytest.raises(VerificationError, match="content-encoding gz") as caught:
        require_identity(httpx2.Response(200, headers={"content-encoding": "gz\x1b[2K"}))
    assert caught.value.check == "receipt-4"
    assert caught.value.message.isprintable()


def test_a_response_leads_to_its_proof_where_sdks_look() -> None:
    given = httpx2.Response(200, headers={"x-receipt-id": "r", "x-request-id": "theirs"}, extensions={"x": 1})
    shown = answered(given, b"body", None)
    assert (shown.headers["x-request-id"], shown.headers["request-id"]) == ("r", "r")
    assert given.headers["x-request-id"] == "theirs"
    assert shown.read() == b"body"
    assert shown.extensions["x"] == 1
    bare = answered(httpx2.Response(200, headers={"x-request-id": "theirs"}), b"", None)
    assert bare.headers["x-request-id"] == "theirs"


def test_options_of_connections_are_told_from_those_of_a_client() -> None:
    options = {"http2": False, "limits": 1, "proxy": None, "trust_env": False, "timeout": 5}
    assert connection_options(options) == {"http2": False, "limits": 1, "proxy": None, "trust_env": False}
    assert options == {"timeout": 5}
    with pytest.raises(ConfigError, match="mounts, verify: a confide client decides by the attested key"):
        connection_options({"verify": False, "mounts": {}})
    with pytest.raises(TypeError):
        confide.Client(no_such_option=1)


@pytest.mark.parametrize("say", [cut_off, unfetched, unfollowed])
def test_what_a_connection_broke_off_with_is_not_repeated(say: Callable[[Any], VerificationError]) -> None:
    """The library quotes the bytes that it could not read."""
    error = say(httpx2.RemoteProtocolError("illegal chunk header: bytearray(b'the patient')"))
    assert "RemoteProtocolError" in error.message
    assert "patient" not in f"{error.message} {error.remedy}"
    assert "[Errno 104]" in say(httpx2.ReadError("[Errno 104] Connection reset by peer")).message
