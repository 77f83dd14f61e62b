"""The gateway in this process, on a real socket, with a real store and the simulated TEE, before a scripted engine.

    async with serving_scripted(tmp_path, [sse_head(), token("Hi"), finish(), LAST_CHUNK]) as gateway:
        answer = await gateway.client.post("/v1/chat/completions", json=chat("Hello"))

The engine is a ScriptedUpstream on a unix socket that speaks llama.cpp's events; it records what it was sent and when
its clients left.
"""

import asyncio
import contextlib
import io
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from confide.attester.base import Attester
from confide.attester.nvidia import open_gpu
from confide.attester.simulated import SimulatedAttester
from confide.client.pinning import pinned_context
from confide.config import Config, Model
from confide.engine.facts import EngineFacts
from confide.engine.slots import Slots
from confide.engine.special import special_pattern
from confide.engine.wordpiece import WordPiece
from confide.errors import NotReady
from confide.gateway.app import Gateway
from confide.gateway.auth import Authenticator
from confide.gateway.http import Protocol, announcing
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.tls import attested_tls
from confide.protocol.canonical import digest_of, digest_text
from confide.protocol.receipt import (
    FORWARDED,
    RECEIVED,
    RETURNED,
    Outcome,
    Receipt,
    parse_receipt,
    signature_fault,
)
from confide.store.base import Proof
from confide.store.sqlite import SqliteStore, open_store
from confide.telemetry.logs import Log
from confide.upstream.channel import Channel, Timeouts, UnixAddress
from confide.upstream.images import ImageFetcher, ImageLimits
from confide.upstream.kinds.embedded import EmbeddedUpstream
from confide.upstream.kinds.embedded_embeddings import EmbeddedEmbeddings
from ending import end
from scripted import LAST_CHUNK, Script, ScriptedUpstream, chunk, sse_head

MODEL = "vendor/model"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
VECTOR_CONTEXT, VECTOR_LENGTH = 300, 4  # of the embedding models
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581hello", "\u2581world", "s")
TOKENIZER = WordPiece(WORDS)


@dataclass
class EngineSwitch:
    """Whether the scripted engine counts as ready."""

    is_ready: bool = True

    def check_ready(self) -> None:
        if not self.is_ready:
            raise NotReady("the model is loading; try again shortly", retry_after_s=2)


@dataclass
class ScriptedGateway:
    """Everything a test may look at. `log_text()` is what the service wrote about itself."""

    url: str
    client: httpx2.AsyncClient
    engine: ScriptedUpstream
    switch: EngineSwitch
    slots: Slots
    vector_slots: Slots
    channel: Channel
    store: SqliteStore
    attester: Attester
    lifecycle: Lifecycle
    authenticator: Authenticator
    written: io.StringIO
    app: Gateway

    async def post(self, **members: object) -> httpx2.Response:
        """The answer to a chat request with these members."""
        return await self.client.post("/v1/chat/completions", json=chat() | members)

    def asked(self, index: int = -1) -> dict[str, Any]:
        """The body of a request that reached the engine, the last one by default."""
        body: dict[str, Any] = json.loads(self.engine.requests[index].body)
        return body

    def follow(self, *scripts: Script) -> None:
        """What the engine does from now on; the last script serves all further requests."""
        self.engine.scripts = ((),) * len(self.engine.requests) + scripts

    async def new_key(self, name: str = "test") -> str:
        """Create an API key, which closes the service to all others; its token."""
        _, token = self.store.create_key(name)
        await self.authenticator.refresh()
        return token

    def log_text(self) -> str:
        return self.written.getvalue()

    def outcomes(self) -> list[str]:
        """The outcome of each request so far, in order."""
        lines = [json.loads(line) for line in self.log_text().splitlines()]
        return [line["outcome"] for line in lines if line["event"] == "request"]

    def last_line(self) -> dict[str, Any]:
        """The log line of the request that ended last."""
        lines = [json.loads(line) for line in self.log_text().splitlines()]
        last: dict[str, Any] = [line for line in lines if line["event"] == "request"][-1]
        return last

    async def proof(self) -> Proof | None:
        """What is kept of the request that ended last, by the receipt id in its log line."""
        receipt_id = self.last_line()["receipt"]
        return None if receipt_id is None else await self.store.proof(receipt_id, now=int(time.time()))

    async def outcome(self, count: int) -> str:
        """Wait until so many requests are over, and give the last one's outcome."""
        async with asyncio.timeout(5):
            while len(self.outcomes()) < count:
                await asyncio.sleep(0.005)
        return self.outcomes()[count - 1]


@contextlib.asynccontextmanager
async def serving_scripted(
    home: Path,
    *scripts: Script,
    config: Config | None = None,
    takes_images: bool = False,
    reasons: bool = False,
    timeouts: Timeouts | None = None,
    tls_spki_sha256: bytes | None = None,
    now: Callable[[], float] = time.time,
    attester: Attester | None = None,
    tokenizer: WordPiece | None = TOKENIZER,
) -> AsyncIterator[ScriptedGateway]:
    """A gateway in front of an engine that follows `scripts`. `home`: an empty directory of the test's.

    `now`: the clock of keysets and receipts, in Unix seconds. `attester`: the simulated one, unless it is given.
    `tokenizer`: of the embedding models.
    """
    config = config or Config(model=(Model(id=MODEL, aliases=("alias/model",), upstream_model="scripted"),))
    written, switch, lifecycle = io.StringIO(), EngineSwitch(), Lifecycle()
    async with contextlib.AsyncExitStack() as closing:
        engine = await closing.enter_async_context(ScriptedUpstream(*scripts, path=home / "engine.sock"))
        store = open_store(None, home, config.store)
        closing.push_async_callback(store.close)
        authenticator = Authenticator(store)
        await authenticator.refresh()
        attester = attester or SimulatedAttester(home, lambda: int(time.time()))
        gpu = await open_gpu(config.attester, home, attester)
        channel = Channel(UnixAddress(str(home / "engine.sock")), timeouts=timeouts or Timeouts(), max_connections=64)
        closing.push_async_callback(channel.close)
        slots = Slots(config.engine.slots, queue=config.limits.queue, timeout_s=config.limits.queue_timeout_s)
        upstream = EmbeddedUpstream(
            channel=channel,
            engine=switch,
            slots=slots,
            counting=Slots(1, queue=config.limits.queue, timeout_s=config.limits.queue_timeout_s),
            facts=EngineFacts(special_pattern(SPECIAL), takes_images=takes_images, reasons=reasons),
            api_key="engine-key",
            max_n=config.limits.max_n,
            context_length=4096,
            description="scripted",
            images=ImageFetcher(ImageLimits(remote_images=config.server.remote_images))
            if any("image" in model.modalities for model in config.model)
            else None,
        )
        vector_slots = Slots(1, queue=config.limits.queue, timeout_s=config.limits.queue_timeout_s)
        vectors = EmbeddedEmbeddings(
            channel=channel,
            engine=switch,
            slots=vector_slots,
            api_key="engine-key",
            tokenizer=tokenizer,
            context_length=VECTOR_CONTEXT,
            vector_length=VECTOR_LENGTH,
            token_count=TOKENIZER.size,
            description="scripted",
        )
        gateway = Gateway(
            config=config,
            attester=attester,
            authenticator=authenticator,
            models_served=ModelTable(
                ServedModel.by(model, vectors if model.kind == "embeddings" else upstream, created=1, simulated=True)
                for model in config.model
            ),
            store=store,
            lifecycle=lifecycle,
            log=Log(written),
            now=now,
            tls_spki_sha256=tls_spki_sha256,
            gpu=gpu,
        )
        tls, common = attested_tls(config, attester), announcing(gateway.keyset.headers)
        url = await closing.enter_async_context(listening(gateway, common, tls))
        any_key = pinned_context(None)  # the default loads every public root
        client = await closing.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=20, verify=any_key))
        yield ScriptedGateway(
            url,
            client,
            engine,
            switch,
            slots,
            vector_slots,
            channel,
            store,
            attester,
            lifecycle,
            authenticator,
            written,
            gateway,
        )


@contextlib.asynccontextmanager
async def listening(
    app: Gateway, http: type[Protocol] = Protocol, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve `app` with the server that the program uses, on a free port of 127.0.0.1."""
    # The protocol is named, as in the program: asyncio leaves Nagle's algorithm on for a socket that does not say TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        server = PromptServer(
            uvicorn.Config(
                app,
                http=http,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                ssl_context_factory=None if tls is None else (lambda _config, _default: tls),
            )
        )
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.ending.set()
            await task


class PromptServer(uvicorn.Server):
    """Uvicorn that ends when `ending` is set, and not at its next look at a flag 100 ms later."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        def shut_down() -> None:
            for connection in list(self.server_state.connections):
                connection.shutdown()

        await end(self.servers, shut_down)


async def assert_receipted(
    gateway: ScriptedGateway, received: bytes, outcome: Outcome, *, sent: bytes | None = None, is_forwarded: bool = True
) -> Receipt:
    """The request that ended last left a receipt over what its client read, signed by a key of the keyset.

    `sent`: the client's body, where the test has it. `is_forwarded`: inference was given the request.
    """
    proof = await gateway.proof()
    assert proof is not None
    receipt = parse_receipt(proof.receipt)
    assert signature_fault(receipt, gateway.app.keyset().epoch.keyset) is None
    assert receipt.members.workload_keyset_digest == gateway.app.keyset().epoch.digest
    assert receipt.members.receipt_id == proof.receipt_id == gateway.last_line()["receipt"]
    assert receipt.members.chat_id == proof.chat_id
    assert receipt.outcome == outcome
    assert receipt.body_hash(RETURNED) == digest_of(received) == digest_text(proof.response_sha256)
    assert receipt.body_hash(RECEIVED) == digest_text(proof.request_sha256)
    if sent is not None:
        assert receipt.body_hash(RECEIVED) == digest_of(sent)
    assert (receipt.body_hash(FORWARDED) is not None) is is_forwarded
    return receipt


@dataclass
class RawAnswer:
    """A response as its bytes came: `headers` by lower-case name, in order; `body` after transfer decoding."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header that may come once at most."""
        found = [value for each, value in self.headers if each == name]
        assert len(found) <= 1
        return found[0] if found else None


class RawConnection:
    """One connection to the gateway on which a test writes what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> RawAnswer:
        """The next response. Raises EOFError when the connection ends before it is whole."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            pairs = [line.split(":", 1) for line in lines]
            headers = [(name.lower(), value.strip()) for name, value in pairs]
            answer = RawAnswer(int(status.split()[1]), headers, b"")
            answer.body = await self._body(answer)
        return answer

    async def is_closed(self) -> bool:
        """Whether the gateway closes the connection, once all it sent was read."""
        async with asyncio.timeout(5):
            return not await self._reader.read(1)

    async def _body(self, answer: RawAnswer) -> bytes:
        if answer.header("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(answer.header("content-length") or 0))
        parts = []
        while size := int(await self._reader.readline(), 16):
            parts.append(await self._reader.readexactly(size + 2))
        await self._reader.readexactly(2)
        return b"".join(part[:-2] for part in parts)


@contextlib.asynccontextmanager
async def raw_connection(url: str) -> AsyncIterator[RawConnection]:
    """Connect to the gateway at `url`."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def raw_post(body: bytes, *headers: bytes, target: bytes = b"/v1/chat/completions") -> bytes:
    """A POST request as bytes, with a length."""
    lines = [b"POST " + target + b" HTTP/1.1", b"Host: confide", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def event(data: object) -> bytes:
    """One engine event as a chunk of its response."""
    return chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def token(text: str) -> bytes:
    """The engine wrote `text`."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "id": "engine-id"})


def finish(reason: str = "stop", *, prompt_tokens: int = 3, completion_tokens: int = 2) -> bytes:
    """The engine's last events: the finish reason, usage with its extras, and the terminator."""
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    return (
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        + event({"choices": [], "usage": usage, "timings": {"predicted_ms": 1.5}, "model": "/secret/path.gguf"})
        + chunk(b"data: [DONE]\n\n")
    )


def answering(*texts: str, reason: str = "stop") -> Script:
    """A whole answer made of these pieces."""
    return [sse_head(), *(token(text) for text in texts), finish(reason), LAST_CHUNK]


def bearer(token: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {token}"}


def chat(text: str = "Hello", **members: object) -> dict[str, object]:
    """The body of a request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **members}
