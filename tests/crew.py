"""A service of several worker processes as it is seen from outside: its connections, its log, its processes."""

import asyncio
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from attested_service import listening
from outside import Verifier
from running import Running

MODEL = "worked/model"
WITHIN_S = 20.0
CHAT = "/v1/chat/completions"
LOCAL = """
[server]
workers = {workers}
{server}
[[upstream]]
name = "engine"
kind = "local"
base_url = "http://127.0.0.1:{port}/v1"
cache_salt = true
{rest}
[[model]]
id = "worked/model"
upstream = "engine"
"""


class Engine:
    """An OpenAI-shaped engine. `prompts`: the bodies it was given. A stream stops half-way until `go_on` is set.
    `listed`: its answer to the question for its models.
    """

    def __init__(self) -> None:
        self.listed: tuple[int, bytes] = (200, b"{}")
        self.prompts: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            status, body = self.listed
            await answer(send, body, b"application/json", status=status)
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        prompt = json.loads(body)
        self.prompts.append(prompt)
        number = len(self.prompts)
        if not prompt.get("stream"):
            await answer(send, completion(number), b"application/json")
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": event(number, "half"), "more_body": True})
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        rest = event(number, " whole", "stop") + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": rest})


async def answer(send: Any, body: bytes, kind: bytes, *, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


def completion(number: int) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}
    document = {"id": f"chatcmpl-{os.urandom(8).hex()}-{number}", "object": "chat.completion", "created": 1}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({**document, "model": MODEL, "choices": [choice], "usage": usage}).encode()


def event(number: int, text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    document = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + json.dumps({**document, "choices": [choice]}).encode() + b"\n\n"


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """One that listens."""
    app = Engine()
    with listening(app) as port:
        app.port = port
        yield app


def log_lines(service: Running) -> list[dict[str, Any]]:
    """What the service has logged: whole lines, each a JSON object."""
    found = []
    for line in service.stderr.read_text().splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            found.append(json.loads(line))
    return found


def until(condition: Callable[[], Any], what: str = "it did not come about") -> Any:
    """What `condition` gives once that is true."""
    end = time.monotonic() + WITHIN_S
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def pids(service: Running) -> dict[int, int]:
    """The process id of each worker, the one that was started last."""
    return {line["worker"]: line["pid"] for line in log_lines(service) if line["event"] == "worker.ready"}


def served_by(service: Running, receipt: str) -> int:
    """The worker that answered with this receipt."""

    def found() -> int | None:
        lines = log_lines(service)
        return next((line["worker"] for line in lines if line.get("receipt") == receipt), None)

    worker: int = until(found, f"no line of {receipt}")
    return worker


def is_running(pid: int) -> bool:
    """Whether this process is there, and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The process id of this process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def prompt(**members: Any) -> dict[str, Any]:
    """A request for the model above, with these members too, or in place of its own."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Is it whole?"}], **members}


@contextlib.contextmanager
def callers(service: Running, *, model: str = MODEL, **options: Any) -> Iterator[dict[int, httpx2.Client]]:
    """A client for each worker, on a connection that this worker accepted."""
    found: dict[int, httpx2.Client] = {}
    with contextlib.ExitStack() as closing:
        for _ in range(24):
            client = closing.enter_context(httpx2.Client(base_url=service.url, timeout=30, **options))
            asked = client.post(CHAT, json=prompt(model=model, max_tokens=1))
            assert asked.status_code == 200, asked.text
            found.setdefault(served_by(service, asked.headers["x-receipt-id"]), client)
            if found.keys() == pids(service).keys():
                break
        assert found.keys() == pids(service).keys()
        yield found


class Exchanged(NamedTuple):
    """An answer that ended: what was sent, what came, and where its receipt is."""

    sent: bytes
    received: bytes
    receipt_id: str


class Asker(threading.Thread):
    """Asks again and again over one connection, and over another once that is cut off. `cuts`: how often it was."""

    def __init__(self, service: Running, *, stream: bool) -> None:
        super().__init__(daemon=True)
        self.exchanged: list[Exchanged] = []
        self.cuts = 0
        self.is_over = threading.Event()
        self._url = service.url
        self._stream = stream

    def run(self) -> None:
        while not self.is_over.is_set():
            with httpx2.Client(base_url=self._url, timeout=60) as client:
                try:
                    self._ask_over(client)
                except (httpx2.NetworkError, httpx2.RemoteProtocolError):
                    self.cuts += 1

    def _ask_over(self, client: httpx2.Client) -> None:
        while not self.is_over.is_set():
            request = client.build_request("POST", CHAT, json=prompt(stream=self._stream))
            answer = client.send(request)
            assert answer.status_code == 200, answer.text
            self.exchanged.append(Exchanged(request.content, answer.content, answer.headers["x-receipt-id"]))


@contextlib.contextmanager
def busy(service: Running, number: int) -> Iterator[list[Asker]]:
    """So many who ask, half of them for streams, until the block ends; each has had an answer when it begins."""
    askers = [Asker(service, stream=each % 2 == 0) for each in range(number)]
    for asker in askers:
        asker.start()
    try:
        until(lambda: all(asker.exchanged for asker in askers), "somebody has no answer")
        yield askers
    finally:
        for asker in askers:
            asker.is_over.set()
        for asker in askers:
            asker.join()


def answers(askers: Iterable[Asker]) -> list[Exchanged]:
    """All that they have had by now."""
    return [each for asker in askers for each in asker.exchanged]


def prove(service: Running, exchanged: Iterable[Exchanged]) -> None:
    """Each of these answers has a receipt that is there and verifies, and was complete."""
    verifier, nonce = Verifier(service.url, service.home), os.urandom(32).hex()
    with httpx2.Client(base_url=service.url) as client:
        verifier.believe(nonce_report(client, nonce), nonce)
        for each in exchanged:
            receipt = client.get(f"/v1/aci/receipts/{each.receipt_id}")
            assert receipt.status_code == 200, receipt.text
            proven = verifier.proven(
                receipt.content,
                receipt_id=each.receipt_id,
                sent=each.sent,
                response_sha256=hashlib.sha256(each.received).digest(),
            )
            assert proven.outcome == "complete"


def nonce_report(client: httpx2.Client, nonce: str) -> bytes:
    """The report for this nonce, 64 hex digits."""
    report = client.get("/v1/aci/attestation", params={"nonce": nonce})
    assert report.status_code == 200, report.text
    return report.content
