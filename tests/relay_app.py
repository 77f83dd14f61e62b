"""The gateway before upstreams of any kind but the embedded one, opened from a configuration as the program does it.

async with serving_upstreams(home, CONFIG) as gateway:
    answer = await gateway.post(content=b'{"model": …}')
"""

import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from confide import config as configuration
from confide.attester.simulated import SimulatedAttester
from confide.client.pinning import pinned_context
from confide.config import Config
from confide.gateway.app import Gateway
from confide.gateway.auth import Authenticator
from confide.gateway.http import announcing
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable
from confide.gateway.reload import Reload
from confide.gateway.tls import attested_tls, tls_spki_sha256
from confide.gateway.upstreams import Upstreams, open_upstreams, served_models
from confide.protocol.receipt import Receipt, parse_receipt, signature_fault
from confide.store.sqlite import SqliteStore, open_store
from confide.telemetry.logs import Log
from confide.upstream.verified import AttestedUpstream
from gateway_app import listening
from scripted import LAST_CHUNK, Script, chunk, response, sse_head

MODEL = "vendor/model"
CHAT = "/v1/chat/completions"


@dataclass
class RelayGateway:
    """Everything a test may look at."""

    url: str
    client: httpx2.AsyncClient
    app: Gateway
    store: SqliteStore
    upstreams: Upstreams
    models: ModelTable
    lifecycle: Lifecycle
    authenticator: Authenticator
    written: io.StringIO
    reload: Callable[[Config], Reload]

    async def post(self, content: bytes | None = None, **members: Any) -> httpx2.Response:
        """The answer to a body of these bytes, or to a chat with these members."""
        return await self.client.post(CHAT, content=body(**members) if content is None else content)

    def attested(self, name: str) -> AttestedUpstream:
        upstream = self.upstreams.opened[name].upstream
        assert isinstance(upstream, AttestedUpstream)
        return upstream

    async def receipt(self, answer: httpx2.Response) -> Receipt:
        """The receipt that the answer names, once its signature was checked."""
        document = await self.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
        assert document.status_code == 200, document.text
        receipt = parse_receipt(document.content)
        assert signature_fault(receipt, self.app.keyset().epoch.keyset) is None
        return receipt

    async def events(self, answer: httpx2.Response) -> list[dict[str, Any]]:
        """The event log of its receipt, as it stands there."""
        document = await self.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
        events: list[dict[str, Any]] = document.json()["event_log"]
        return events

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What the service wrote about itself."""
        return [line for line in map(json.loads, self.written.getvalue().splitlines()) if line["event"] == event]


@contextlib.asynccontextmanager
async def serving_upstreams(
    home: Path, text: str, *, now: Callable[[], float] = time.time
) -> AsyncIterator[RelayGateway]:
    """A gateway that runs by the configuration in `text`. `home`: an empty directory."""
    config = parsed(home, text)
    written, lifecycle = io.StringIO(), Lifecycle()
    log = Log(written)
    async with contextlib.AsyncExitStack() as closing:
        store = open_store(None, home, config.store)
        closing.push_async_callback(store.close)
        authenticator = Authenticator(store)
        await authenticator.refresh()
        attester = SimulatedAttester(home, lambda: int(time.time()))
        upstreams = await closing.enter_async_context(
            open_upstreams(config, store=store, now=lambda: int(now()), log=log)
        )
        models = ModelTable(served_models(config, upstreams, {}, simulated=True, created=1))
        gateway = Gateway(
            config=config,
            attester=attester,
            authenticator=authenticator,
            models_served=models,
            store=store,
            lifecycle=lifecycle,
            log=log,
            now=now,
            tls_spki_sha256=tls_spki_sha256(config, attester),
        )
        tls = attested_tls(config, attester)
        url = await closing.enter_async_context(listening(gateway, announcing(gateway.keyset.headers), tls))
        client = await closing.enter_async_context(
            httpx2.AsyncClient(base_url=url, timeout=20, verify=pinned_context(None))
        )

        def reload(new: Config) -> Reload:
            return Reload(config, lambda: new, home, upstreams, models, {}, simulated=True, log=log)

        yield RelayGateway(url, client, gateway, store, upstreams, models, lifecycle, authenticator, written, reload)


def parsed(home: Path, text: str) -> Config:
    """The configuration in `text`."""
    file = home / "confide.toml"
    file.write_text(text)
    return configuration.load(file, environ={})


def body(text: str = "Hello", **members: Any) -> bytes:
    """A chat request with one user message."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": text}], **members}
    return msgspec.json.encode(request)


def local(port: int, name: str = "engine", **keys: Any) -> str:
    """An [[upstream]] on loopback."""
    return upstream(name, "local", f"http://127.0.0.1:{port}/v1", **{"probe": "none", **keys})


def upstream(name: str, kind: str, base_url: str, **keys: Any) -> str:
    """An [[upstream]] with these keys."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": name, "kind": kind, **keys}.items()]
    return "\n".join(["[[upstream]]", f"base_url = {json.dumps(base_url)}", *lines, ""])


def model(upstream: str, **keys: Any) -> str:
    """A [[model]] served by `upstream`, which is TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"id": MODEL, **keys}.items()]
    return "\n".join(["[[model]]", f"upstream = {upstream}", *lines, ""])


def completion(text: str = "Hi", *, model: str = MODEL, **members: object) -> bytes:
    """The body of an engine's buffered answer, with spaces of its own."""
    message = {"role": "assistant", "content": text}
    document = {
        "id": "chatcmpl-of-the-engine",
        "object": "chat.completion",
        "created": 1780000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        **members,
    }
    return json.dumps(document).encode()


def answered(document: bytes, *headers: bytes, status: bytes = b"200 OK") -> Script:
    """The engine answers with this JSON."""
    return [response(document, b"Content-Type: application/json", *headers, status=status)]


def delta(text: str, *, model: str = MODEL, finish: str | None = None, **members: object) -> bytes:
    """An engine's event: a fragment of an answer."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    document = {"id": "chatcmpl-of-the-engine", "object": "chat.completion.chunk", "model": model, **members}
    return b"data: " + json.dumps({**document, "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def streamed(*events: bytes) -> Script:
    """The engine streams these bytes, a chunk each, and ends cleanly."""
    return [sse_head(), *(chunk(event) for event in events), LAST_CHUNK]
