"""One bounded GET: who is asked, for how long, how much of it, and where a redirect may lead."""

from collections.abc import Callable, Iterator

import httpx2
import pytest

from confide.collateral.fetch import MAX_RETRY_AFTER_S, Fetcher, NotKnown, Unavailable, require_base
from confide.errors import ConfigError

URL = "https://vendor.example/thing?x=1"


def fetcher(answer: Callable[[httpx2.Request], httpx2.Response], **limits: float) -> Fetcher:
    # One that would follow redirects and send credentials, if it were asked to.
    http = httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True, auth=("user", "password"))
    return Fetcher(http, **limits)  # type: ignore[arg-type]  # limits are floats


def test_it_asks_plainly_and_sends_nothing_of_ours() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, content=b"ok", headers={"x": "1"})

    got = fetcher(answer).get(URL, what="it", limit=2)
    assert (got.body, got.url, got.headers["x"]) == (b"ok", URL, "1")
    (request,) = seen
    assert (request.method, str(request.url)) == ("GET", URL)
    assert "authorization" not in request.headers
    assert (request.headers["accept-encoding"], request.headers["user-agent"]) == ("identity", "confide")


@pytest.mark.parametrize(
    ("location", "is_followed"),
    [
        ("/other", True),
        ("https://vendor.example/other", True),
        ("https://vendor.example:8443/other", False),
        ("http://vendor.example/other", False),
        ("https://elsewhere.example/other", False),
        ("//elsewhere.example/other", False),
        ("https://vendor.example.elsewhere.example/", False),
        ("file:///etc/passwd", False),
        ("http://[", False),
        ("//:1", False),
    ],
)
def test_a_redirect_stays_within_the_origin(location: str, is_followed: bool) -> None:
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        if str(request.url) == URL:
            return httpx2.Response(302, headers={"location": location})
        return httpx2.Response(200, content=b"ok")

    if is_followed:
        assert fetcher(answer).get(URL, what="it", limit=9).url == "https://vendor.example/other"
    else:
        with pytest.raises(Unavailable, match="redirects to"):
            fetcher(answer).get(URL, what="it", limit=9)
        assert seen == [URL]


def test_the_limit_is_the_last_size_that_is_taken() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b"123")

    assert fetcher(answer).get(URL, what="it", limit=3).body == b"123"
    with pytest.raises(Unavailable, match="sends more than 2 bytes"):
        fetcher(answer).get(URL, what="it", limit=2)


def test_an_answer_that_goes_on_and_on_is_left() -> None:
    moments = iter(range(1000))

    class Slowly(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"."

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Slowly())

    asking = Fetcher(fetcher(answer).http, whole_s=30, clock=lambda: float(next(moments)))
    with pytest.raises(Unavailable, match="longer than 30 s"):
        asking.get(URL, what="it", limit=10_000)


def test_an_answer_whose_headers_come_too_late_is_none() -> None:
    moments = iter([0.0, 1.0, 31.0])
    answering = fetcher(lambda _: httpx2.Response(200, content=b"")).http
    with pytest.raises(Unavailable, match="longer than 30 s"):
        Fetcher(answering, whole_s=30, clock=lambda: next(moments)).get(URL, what="it", limit=1)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, 60), ({"retry-after": "5"}, 5), ({"retry-after": "0"}, 1), ({"retry-after": "9" * 9}, MAX_RETRY_AFTER_S)]
    + [({"retry-after": text}, 60) for text in ("", "-1", "soon", "9" * 10, "²")],
)
def test_what_the_service_asks_for_is_kept_within_reason(headers: dict[str, str], seconds: int) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    with pytest.raises(Unavailable) as raised:
        fetcher(lambda _: httpx2.Response(429, headers=raw)).get(URL, what="it", limit=9)
    assert raised.value.retry_after_s == seconds


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 500])
def test_any_other_status_is_no_answer(status: int) -> None:
    with pytest.raises(Unavailable, match=f"status {status}"):
        fetcher(lambda _: httpx2.Response(status, content=b"ok")).get(URL, what="it", limit=9)


def test_404_is_an_answer_of_its_own() -> None:
    with pytest.raises(NotKnown, match=r"it: vendor\.example does not know it \(404\)"):
        fetcher(lambda _: httpx2.Response(404)).get(URL, what="it", limit=9)


def test_a_connection_that_fails_is_told_with_its_reason() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    with pytest.raises(Unavailable, match=r"vendor\.example cannot be asked: .*Name or service not known"):
        fetcher(answer).get(URL, what="it", limit=9)


@pytest.mark.parametrize(
    "url", ["https://x/", "https://x:1/y/", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost"]
)
def test_these_addresses_will_do(url: str) -> None:
    assert require_base(url, "it") == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["http://x", "http://127.0.0.1.x", "https://", "x", "https://a@x", "https://x#y", "http://["]
)
def test_these_will_not(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^it: "):
        require_base(url, "it")
