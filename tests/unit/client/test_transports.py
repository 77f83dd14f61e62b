"""Both transports against a small service on a real socket, which a test may make misbehave."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

import confide
from attested_service import CHAT, MODEL, MODELS, REPORT, AttestedService, Reply, Seen, listening, serving
from confide.client.connections import RETIRED_MOST
from confide.client.http import AsyncClient, Client
from confide.client.known_service import KnownService
from confide.client.party import RelyingParty
from confide.client.proof import NoProof
from confide.client.sending import Destination
from confide.client.service import write_bundle_of
from confide.errors import CannotTell, ConfigError, VerificationError
from confide.evidence.result import Status, Verdict
from man_in_the_middle import between

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
STREAM = {**BODY, "stream": True}


class Asker(Protocol):
    """A client, blocking or not, in one shape."""

    client: Client | AsyncClient
    is_blocking: bool

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response: ...
    def verify(self, url: str) -> Any: ...
    def first_of_stream(self, url: str, **options: Any) -> bytes: ...
    def read_again(self, url: str, *, whole: bool) -> list[bytes]: ...
    def close(self) -> None: ...


class Blocking:
    is_blocking = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.client = Client(*arguments, **options)

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return self.client.request(method, url, **options)

    def verify(self, url: str) -> Any:
        return self.client.verify(url)

    def first_of_stream(self, url: str, **options: Any) -> bytes:
        with self.client.stream("POST", url, **options) as response:
            return next(response.iter_raw())

    def read_again(self, url: str, *, whole: bool) -> list[bytes]:
        with self.client.stream("POST", url, json=STREAM) as response:
            assert isinstance(response.stream, httpx2.SyncByteStream)
            for _ in response.stream:
                if not whole:
                    break
            return list(response.stream)

    def close(self) -> None:
        self.client.close()


class Awaiting:
    is_blocking = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.client = AsyncClient(*arguments, **options)
        self.runner = asyncio.Runner()

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        return self.runner.run(self.client.request(method, url, **options))

    def verify(self, url: str) -> Any:
        return self.runner.run(self.client.verify(url))

    def first_of_stream(self, url: str, **options: Any) -> bytes:
        async def first() -> bytes:
            async with self.client.stream("POST", url, **options) as response:
                return await anext(response.aiter_raw())

        return self.runner.run(first())

    def read_again(self, url: str, *, whole: bool) -> list[bytes]:
        async def again() -> list[bytes]:
            async with self.client.stream("POST", url, json=STREAM) as response:
                assert isinstance(response.stream, httpx2.AsyncByteStream)
                async for _ in response.stream:
                    if not whole:
                        break
                return [data async for data in response.stream]

        return self.runner.run(again())

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


Kind = Callable[..., Asker]
both = pytest.mark.parametrize("kind", [Blocking, Awaiting])


@contextmanager
def asking(service: AttestedService, kind: Kind, **options: Any) -> Iterator[Asker]:
    asker = kind(options.pop("policy", None) or service.policy(), **options)
    try:
        yield asker
    finally:
        asker.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    """The honest service over plain HTTP."""
    with serving(tmp_path) as started:
        yield started


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is gained by pausing between tries."""
    monkeypatch.setattr("confide.client.transport.FETCH_PAUSE_S", 0)
    monkeypatch.setattr("confide.client.async_transport.FETCH_PAUSE_S", 0)


def ask(asker: Asker, service: AttestedService, **options: Any) -> httpx2.Response:
    return asker.request("POST", service.url + CHAT, **({"json": BODY} | options))


def proven(response: httpx2.Response) -> confide.Proof:
    proof = confide.proof(response)
    assert proof.ok
    return proof


def refused(check: str, attempt: Callable[[], object], match: str | None = None) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as caught:
        attempt()
    assert caught.value.check == check
    assert caught.value.remedy
    return caught.value


def status(code: int, *parts: bytes, **headers: str | None) -> Callable[[Reply, Seen], Reply]:
    return lambda reply, _: reply.but(*parts, status=code, **headers)


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def reports(service: AttestedService) -> int:
    return sum(seen.path == REPORT for seen in service.seen)


# Which requests are proven.


@both
def test_other_methods_reach_verified_services_only_and_are_no_evidence(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        listed = asker.request("GET", service.url + MODELS)
        assert listed.json()["data"][0]["id"] == MODEL
        assert asker.request("HEAD", service.url + MODELS).status_code == 200
        assert asker.request("DELETE", service.url + "/v1/files/1").status_code == 404
        with pytest.raises(NoProof):
            confide.proof(listed)
        assert reports(service) == 1
    with asking(service, kind, policy=service.policy(require_channel=True)) as strict:
        seen = len(service.seen)
        refused("id-6", lambda: strict.request("GET", service.url + MODELS))
        assert [each.path for each in service.seen[seen:]] == [REPORT]


@both
def test_refusals_without_a_receipt_are_passed_on_as_they_are(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        for code in (400, 401, 404, 429, 500, 503):
            service.alter["answer"] = status(code, b'{"error":{}}', x_receipt_id=None)
            response = ask(asker, service)
            assert (response.status_code, response.content) == (code, b'{"error":{}}')
            with pytest.raises(NoProof):
                confide.proof(response)


@both
def test_a_redirect_is_not_followed_and_proves_nothing(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = status(307, b"", x_receipt_id=None, location="http://127.0.0.1:1/v1/elsewhere")
        assert ask(asker, service).status_code == 307
        assert len(service.prompts) == 1


@both
def test_a_redirect_that_is_followed_is_a_prompt_to_a_service_that_is_verified_first(
    tmp_path: Path, kind: Kind
) -> None:
    with serving(made(tmp_path / "one")) as one, serving(made(tmp_path / "two")) as two:
        with asking(one, kind, follow_redirects=True) as asker:
            one.alter["answer"] = status(307, b"", x_receipt_id=None, location=two.url + CHAT)
            refused("id-1", lambda: ask(asker, one))
        assert two.prompts == []


@both
def test_an_error_with_a_receipt_has_to_be_proven(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = status(502)
        assert proven(ask(asker, service)).ok
        service.alter["answer"] = status(502, b'{"error":{}}')
        refused("receipt-4", lambda: ask(asker, service))


@both
def test_an_empty_answer_is_proven_like_any_other(service: AttestedService, kind: Kind) -> None:
    service.receipt_members = {"returned_sha256": hashlib.sha256(b"").digest()}
    with asking(service, kind) as asker:
        for code in (200, 204):
            service.alter["answer"] = status(code, b"")
            response = ask(asker, service)
            assert (response.status_code, response.content) == (code, b"")
            proven(response)
        service.receipt_members = {}
        refused("receipt-4", lambda: ask(asker, service))


@both
def test_a_prompt_at_any_path_has_to_be_proven(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        response = asker.request("POST", service.url + "/elsewhere", json=BODY)
        assert proven(response).answer is not None


@both
def test_an_upload_in_pieces_is_hashed_as_it_leaves(service: AttestedService, kind: Kind) -> None:
    raw = json.dumps(BODY).encode()

    async def awaited() -> Any:
        for part in pieces():
            yield part

    def pieces() -> Iterator[bytes]:
        yield raw[:10]
        yield raw[10:]

    with asking(service, kind) as asker:
        content: Any = pieces() if asker.is_blocking else awaited()
        proof = proven(asker.request("POST", service.url + CHAT, content=content))
        assert proof.answer is not None
        assert proof.answer.request_sha256 == hashlib.sha256(raw).hexdigest()
        assert service.prompts[0].body == raw


# Where it goes.


@both
def test_a_service_may_live_under_a_path(service: AttestedService, kind: Kind) -> None:
    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"].startswith("/tenant/")
        await service({**scope, "path": scope["path"].removeprefix("/tenant")}, receive, send)

    with listening(prefixed) as port, asking(service, kind) as asker:
        for base in (f"http://127.0.0.1:{port}/tenant/v1", f"http://user:secret@127.0.0.1:{port}/tenant/v1/"):
            response = asker.request("POST", base.rstrip("/") + "/chat/completions", json=BODY)
            proof = proven(response)
            assert proof.service_proof is not None
            assert proof.service_proof.url == f"http://127.0.0.1:{port}/tenant"
        assert reports(service) == 1


@both
def test_each_service_is_verified_for_itself(tmp_path: Path, kind: Kind) -> None:
    with serving(tmp_path) as one, serving(tmp_path) as two, asking(one, kind) as asker:
        for service in (one, two, one):
            proven(ask(asker, service))
        assert (reports(one), reports(two)) == (1, 1)


# What is kept.


@both
def test_bodies_are_kept_when_the_client_was_made_so(service: AttestedService, kind: Kind, tmp_path: Path) -> None:
    with asking(service, kind, keep_bodies=True) as asker:
        for body in (BODY, STREAM):
            response = ask(asker, service, json=body)
            answer = proven(response).answer
            assert answer is not None
            assert answer.request_b64 is not None
            assert answer.response_b64 is not None
            path = proven(response).bundle(tmp_path / "answer.json")
            assert confide.verify_bundle(path, service.policy()).ok


# Failures on the way.


@both
def test_a_receipt_is_asked_for_again_when_the_connection_breaks(service: AttestedService, kind: Kind) -> None:
    broken = iter([True, True, False])

    def breaking(reply: Reply, _: Seen) -> Reply:
        return reply.but(b"{", content_length="5").cut() if next(broken) else reply

    with asking(service, kind) as asker:
        service.alter["receipt"] = breaking
        proven(ask(asker, service))
        service.alter["receipt"] = lambda reply, _: reply.but(b"{", content_length="5").cut()
        error = refused("receipt-1", lambda: ask(asker, service), match="could not be fetched")
        assert isinstance(error.__cause__, httpx2.TransportError)
        assert len(service.prompts) == 2


@both
def test_a_stream_that_breaks_is_not_whole_and_says_nothing_against_the_service(
    service: AttestedService, kind: Kind
) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = lambda reply, _: reply.but(*reply.parts[:2]).cut()
        refused("receipt-4", lambda: ask(asker, service, json=STREAM), match="broke before the end")
        del service.alter["answer"]
        proven(ask(asker, service, json=STREAM))


@both
def test_a_buffered_answer_that_breaks_is_the_transports_error(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = lambda reply, _: reply.but(b"{", content_length="5").cut()
        with pytest.raises(httpx2.TransportError):
            ask(asker, service)
        del service.alter["answer"]
        proven(ask(asker, service))


@both
def test_a_latched_client_sends_nothing_until_it_is_reset(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = lambda reply, _: reply.but(content_encoding="gzip")
        first = refused("receipt-4", lambda: ask(asker, service))
        del service.alter["answer"]
        seen = len(service.seen)
        second = refused("receipt-4", lambda: ask(asker, service), match="nothing was sent")
        refused("receipt-4", lambda: asker.request("GET", service.url + MODELS))
        assert second.__cause__ is first
        assert len(service.seen) == seen
        asker.client.reset()
        proven(ask(asker, service))


def test_what_waited_while_another_failed_is_not_sent(service: AttestedService) -> None:
    with Client(service.policy()) as client, ThreadPoolExecutor(1) as pool:
        line = client._verifying._line(Destination(httpx2.URL(service.url + CHAT)))
        with line.lock:
            asked = pool.submit(client.post, service.url + CHAT, json=BODY)
            with pytest.raises(TimeoutError):
                asked.result(0.3)  # it waits for its turn
            client._verifying.latch.close(VerificationError("another", check="id-6", remedy=""))
        refused("id-6", lambda: asked.result(10), match="nothing was sent")
        assert service.prompts == []


async def test_what_waited_while_another_failed_is_not_sent_from_asyncio_either(service: AttestedService) -> None:
    async with AsyncClient(service.policy()) as client:
        line = client._verifying._line(Destination(httpx2.URL(service.url + CHAT)))
        async with line.lock:
            asked = asyncio.create_task(client.post(service.url + CHAT, json=BODY))
            await asyncio.sleep(0.1)
            assert not asked.done()
            client._verifying.latch.close(VerificationError("another", check="id-6", remedy=""))
        with pytest.raises(VerificationError, match="nothing was sent"):
            await asked
        assert service.prompts == []


@both
def test_a_status_that_is_neither_answer_nor_error_has_to_be_proven_too(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        for code in (300, 304, 399):
            service.alter["answer"] = status(code, b"", x_receipt_id=None)
            refused("receipt-1", lambda: ask(asker, service))
            asker.client.reset()


@both
def test_a_stream_that_is_not_proven_latches_too(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = lambda reply, _: reply.but(*reply.parts[:-1], b"data: [DONE] \n\n")
        refused("receipt-4", lambda: ask(asker, service, json=STREAM))
        refused("receipt-4", lambda: ask(asker, service), match="nothing was sent")


@both
def test_the_first_event_may_be_read_and_the_rest_left(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        assert asker.first_of_stream(service.url + CHAT, json=STREAM).startswith(b"data: ")
        proven(ask(asker, service))


@both
def test_a_stream_is_read_once(service: AttestedService, kind: Kind) -> None:
    """An SDK that saw the last event reads on, so that the connection can be used again: there is nothing more."""
    with asking(service, kind) as asker:
        assert asker.read_again(service.url + CHAT, whole=True) == []
        with pytest.raises(httpx2.StreamConsumed):
            asker.read_again(service.url + CHAT, whole=False)


@both
def test_documents_are_bounded(service: AttestedService, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with asking(service, kind) as asker:
        service.alter["report"] = lambda reply, _: reply.but(b"{}" * (2 * 1024 * 1024 + 1))
        refused("id-1", lambda: ask(asker, service), match="larger than 4194304 bytes")
        asker.client.reset()
        service.alter = {"receipt": service.alter["report"]}
        refused("receipt-1", lambda: ask(asker, service), match="larger than 4194304 bytes")


@both
def test_a_body_that_is_too_large_to_be_held_is_refused(
    service: AttestedService, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.client.withholding.MAX_BODY_BYTES", 100)
    with asking(service, kind) as asker:
        refused("receipt-4", lambda: ask(asker, service), match="more than 100 bytes")


# Time.


@both
def test_a_service_that_cannot_be_asked_again_keeps_the_keyset_that_still_stands(
    service: AttestedService, kind: Kind
) -> None:
    clock = [service.keyset.not_after - 29 * 86_400]
    service.now = lambda: clock[0]
    with asking(service, kind, now=lambda: clock[0]) as asker:
        proven(ask(asker, service))
        service.alter["report"] = status(503)
        clock[0] = service.keyset.not_after - 200
        proven(ask(asker, service))
        assert reports(service) == 2
        clock[0] = service.keyset.not_after
        with pytest.raises(httpx2.ConnectError, match="status 503"):
            ask(asker, service)
        assert len(service.prompts) == 2


# Keys that change.


@both
def test_a_service_that_was_deployed_anew_is_verified_anew_and_asked_once(tmp_path: Path, kind: Kind) -> None:
    with (
        serving(made(tmp_path / "one"), tls=True) as one,
        serving(made(tmp_path / "two"), tls=True) as two,
        between(one) as relay,
        asking(one, kind, policy=one.policy(trust_roots=(one.root, two.root))) as asker,
    ):
        relay.intercepts = lambda _: False
        one.alter["receipt"] = lambda reply, _: reply.but(connection="close")
        assert proven(asker.request("POST", relay.url + CHAT, json=BODY)).verdict is Verdict.VERIFIED
        relay._service = two
        proof = proven(asker.request("POST", relay.url + CHAT, json=BODY))
        assert proof.facts["keyset_digest"] == two.keyset.digest()
        assert (len(one.prompts), len(two.prompts), reports(two)) == (1, 1, 1)


@both
def test_a_keyset_that_an_answer_names_is_verified_before_the_answer_counts(
    service: AttestedService, kind: Kind
) -> None:
    with asking(service, kind) as asker:
        old = service.keyset.digest()
        assert proven(ask(asker, service)).facts["keyset_digest"] == old
        service.keyset = service.attested_keyset(subject="another")
        for _ in range(2):
            assert proven(ask(asker, service)).facts["keyset_digest"] == service.keyset.digest() != old
        assert reports(service) == 2
        service.keyset = service.attested_keyset(subject="a third")
        service.alter["report"] = status(503)
        refused("id-1", lambda: ask(asker, service), match="got an answer under another keyset")


@both
def test_a_header_that_names_a_keyset_which_nobody_shows_is_refused(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        service.alter["answer"] = lambda reply, _: reply.but(x_aci_keyset_digest="sha256:" + "ab" * 32)
        proven(ask(asker, service))  # the receipt is under the keyset that was verified; the header is no evidence
        service.alter["answer"] = lambda reply, _: reply.but(x_aci_keyset_digest=None)
        proven(ask(asker, service))


@both
def test_a_connection_to_another_key_than_the_report_came_over_gets_no_prompt(tmp_path: Path, kind: Kind) -> None:
    with (
        serving(made(tmp_path / "one"), tls=True) as one,
        serving(made(tmp_path / "two"), tls=True) as two,
        between(one) as relay,
        asking(one, kind) as asker,
    ):

        def lead(number: int) -> bool:
            relay._service = two if number % 2 else one  # reports to the one, prompts to the other
            return False

        relay.intercepts = lead
        refused("id-6", lambda: asker.request("POST", relay.url + CHAT, json=BODY), match="got the TLS key")
        assert (reports(one), two.seen, one.prompts) == (2, [], [])


@both
def test_what_speaks_no_tls_while_the_key_changes_is_a_connection_error(tmp_path: Path, kind: Kind) -> None:
    with (
        serving(made(tmp_path / "one"), tls=True) as one,
        serving(made(tmp_path / "two"), tls=True) as two,
        serving(made(tmp_path / "plain")) as plain,
        between(one) as relay,
        asking(one, kind) as asker,
    ):
        places: list[Any] = [one, two, one, SimpleNamespace(tls=True, port=plain.port)]

        def lead(number: int) -> bool:
            relay._service = places[number]
            return False

        relay.intercepts = lead
        with pytest.raises(httpx2.ConnectError):
            asker.request("POST", relay.url + CHAT, json=BODY)
        assert (one.prompts, two.prompts) == ([], [])


@both
def test_a_service_that_went_away_is_a_connection_error_and_no_verdict(tmp_path: Path, kind: Kind) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(serving(tmp_path))
        with asking(service, kind) as asker:
            proven(ask(asker, service))
            stack.close()
            for _ in range(2):
                with pytest.raises(httpx2.TransportError):
                    ask(asker, service)


@both
def test_connections_to_keys_of_long_ago_are_closed(tmp_path: Path, kind: Kind) -> None:
    with ExitStack() as stack:
        services = [stack.enter_context(serving(made(tmp_path / str(number)), tls=True)) for number in range(5)]
        relay = stack.enter_context(between(services[0]))
        relay.intercepts = lambda _: False
        policy = services[0].policy(trust_roots=[each.root for each in services])
        asker = stack.enter_context(asking(services[0], kind, policy=policy))
        for each in services:
            relay._service = each
            each.alter["receipt"] = lambda reply, _: reply.but(connection="close")
            proven(asker.request("POST", relay.url + CHAT, json=BODY))
        [line] = asker.client._verifying._lines.values()
        assert len(line._retired) <= RETIRED_MOST + 1


def test_threads_that_meet_a_new_key_verify_the_service_once(tmp_path: Path) -> None:
    with (
        serving(made(tmp_path / "one"), tls=True) as one,
        serving(made(tmp_path / "two"), tls=True) as two,
        between(one) as relay,
        Client(one.policy(trust_roots=(one.root, two.root))) as client,
    ):
        relay.intercepts = lambda _: False
        one.alter["receipt"] = lambda reply, _: reply.but(connection="close")
        proven(client.post(relay.url + CHAT, json=BODY))
        relay._service = two
        together = threading.Barrier(8)

        def ask_at_once(_: int) -> confide.Proof:
            together.wait(10)
            return proven(client.post(relay.url + CHAT, json=BODY))

        with ThreadPoolExecutor(8) as pool:
            assert {proof.ok for proof in pool.map(ask_at_once, range(8))} == {True}
        assert (len(two.prompts), reports(two)) == (8, 1)


# client.verify, confide.verify_service


@both
def test_a_service_can_be_verified_before_it_is_asked(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as asker:
        assert asker.verify(service.url + "/v1").ok
        assert asker.verify(service.url).ok
        proven(ask(asker, service))
        assert reports(service) == 2
        service.alter["report"] = status(404)
        refused("id-1", lambda: asker.verify(service.url))


def test_verify_service_tells_what_held_and_what_did_not(service: AttestedService) -> None:
    for url in (service.url, service.url + "/v1/", service.url + "/"):
        result = confide.verify_service(url, service.policy())
        assert result.ok
        assert result.verdict is Verdict.PARTIAL
        assert result.simulated
    strict = confide.verify_service(service.url)
    assert {check.name for check in strict.checks if check.status is Status.FAIL} >= {"id-1", "id-6"}
    late = confide.verify_service(service.url, service.policy(), now=lambda: service.keyset.not_after)
    assert "id-3" in {check.name for check in late.checks if check.status is Status.FAIL}


def test_what_was_shown_of_a_service_is_a_bundle_for_better_or_worse(service: AttestedService, tmp_path: Path) -> None:
    policy = service.policy()
    path = write_bundle_of(confide.verify_service(service.url, policy), tmp_path / "service.json")
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert confide.verify_bundle(path, policy).ok
    service.alter["report"] = lambda reply, _: reply.but(b"{")
    assert write_bundle_of(confide.verify_service(service.url, policy), tmp_path / "none.json") is None
    assert not (tmp_path / "none.json").exists()


def test_verify_service_spells_a_host_as_keysets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def note(_: object, known: KnownService) -> Any:
        seen.append((known.root, known.host))
        raise CannotTell("enough", remedy="")

    monkeypatch.setattr(RelyingParty, "appraise", note)
    for url in ("https://b\xfccher.example/v1", "https://b\xfccher.example/under/here/v1/"):
        with pytest.raises(CannotTell, match="enough"):
            confide.verify_service(url)
    assert [host for _, host in seen] == ["xn--bcher-kva.example"] * 2
    assert [httpx2.URL(root).path.rstrip("/") for root, _ in seen] == ["", "/under/here"]


@pytest.mark.parametrize("proxy", ["http://user:pa/ss@proxy:99", "socks5://user:pass@proxy:99", "http://"])
def test_an_odd_proxy_of_the_environment_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError, match="the environment names a proxy") as caught:
        confide.verify_service("https://elsewhere.example/v1")
    assert "pa" not in f"{caught.value.message} {caught.value.remedy}".replace("a proxy that", "")


def test_verify_service_cannot_tell_where_there_is_no_report(service: AttestedService) -> None:
    for code in (404, 500, 302):
        service.alter["report"] = status(code)
        with pytest.raises(CannotTell, match=f"status {code}"):
            confide.verify_service(service.url, service.policy())
    service.alter["report"] = lambda reply, _: reply.but(b"{", content_length="5").cut()
    with pytest.raises(CannotTell, match="broke off"):
        confide.verify_service(service.url, service.policy())
    with pytest.raises(CannotTell, match="cannot be reached"):
        confide.verify_service("http://127.0.0.1:1")
    with pytest.raises(ConfigError):
        confide.verify_service("ftp://127.0.0.1")
