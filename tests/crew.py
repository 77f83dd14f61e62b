"""A service of several worker processes as it is seen from outside: its connections, its log, its processes."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

from attested_service import listening
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
