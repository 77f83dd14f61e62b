"""What an engine answers instead of an answer, in our terms."""

import time
from email.utils import formatdate

import pytest

from confide.errors import LimitReached, NotReady, RefusedByUpstream, UpstreamFailed, UpstreamTimeout
from confide.upstream.base import Unserved
from confide.upstream.kinds.refusals import NOT_TAKEN, read_retry_after, refused

OURS = b'{"error":{"message":"no","type":"t","code":null,"param":null}}'


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, UpstreamFailed),
        (401, UpstreamFailed),
        (403, UpstreamFailed),
        (404, UpstreamFailed),
        (408, UpstreamTimeout),
        (412, UpstreamFailed),
        (429, LimitReached),
        (500, UpstreamFailed),
        (502, UpstreamFailed),
        (503, NotReady),
        (504, UpstreamTimeout),
    ],
)
def test_what_is_between_us_and_the_engine_may_be_served_by_another(status: int, kind: type) -> None:
    failure = refused(status, [], OURS, is_aliased=False)
    assert isinstance(failure, Unserved)
    assert type(failure.error) is kind


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422, 451])
def test_what_is_wrong_with_the_request_is_told(status: int) -> None:
    failure = refused(status, [], OURS, is_aliased=False)
    assert isinstance(failure, RefusedByUpstream)
    assert (failure.status, failure.raw) == (status, OURS)


@pytest.mark.parametrize(
    "message",
    [
        "see https://engine/x",
        "10.1.2.3 refused",
        "host engine-3.internal is down",
        "node localhost:8000",
        "id 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "slot 0123456789abcdef0",
    ],
)
def test_words_that_name_a_machine_are_replaced(message: str) -> None:
    body = b'{"error":{"message":"%b","type":"t","code":null,"param":null}}' % message.encode()
    failure = refused(400, [], body, is_aliased=False)
    assert isinstance(failure, RefusedByUpstream)
    assert (failure.message, failure.raw) == (NOT_TAKEN, None)


def test_an_engine_with_another_name_for_the_model_is_not_quoted() -> None:
    body = b'{"error":{"message":"Qwen takes 4096 tokens","type":"t","code":null,"param":null}}'
    failure = refused(400, [], body, is_aliased=True)
    assert isinstance(failure, RefusedByUpstream)
    assert (failure.message, failure.raw) == (NOT_TAKEN, None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"7", 7), (b"0", 1), (b"999999", 3600), (b"", None), (b"soon", None), ("٣".encode(), None), (b"-1", None)],
)
def test_retry_after_is_read_where_it_can_be(value: bytes, seconds: int | None) -> None:
    assert read_retry_after([(b"retry-after", value)]) == seconds


def test_retry_after_may_be_a_date() -> None:
    at = formatdate(time.time() + 100, usegmt=True).encode()
    assert 90 <= (read_retry_after([(b"retry-after", at)]) or 0) <= 100
    assert read_retry_after([(b"retry-after", formatdate(0, usegmt=True).encode())]) == 1
    assert read_retry_after([]) is None
