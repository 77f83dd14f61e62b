"""A small honest service that proves its answers, on a real socket in its own thread, and what a test makes of it.

    with serving(tmp_path) as service:
        with asking(service) as caller:
            assert caller.ask() == ANSWER
            service.alter["answer"] = lambda reply, _: reply.replacing(b"answer", b"Answer")

It is made of the simulated TEE and `confide.protocol`; it answers chats and Anthropic messages, buffered and streamed,
and records every request. `alter` holds one function a kind of response, which gets what is about to leave: so a test
is the relay, or the operator, and changes any byte.
"""

import asyncio
import hashlib
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.types import Message, Receive, Scope, Send

from confide.attester.simulated import SimulatedAttester
from confide.protocol.canonical import canonical
from confide.protocol.keyset import ED25519, Keyset, PublicKey, TlsKey
from confide.protocol.receipt import Signs, new_receipt_id, signed_receipt
from confide.protocol.report import SourceProvenance, aci_report
from confide.protocol.statement import aci_report_data
from confide.verifier.policy import Policy
from ending import end

Document = dict[str, Any]

MODEL = "vendor/model"
ANSWER = "The answer is 42."
TEXTS = ("The answer", " is ", "42.")
API_KEY = "sk-attested-service"
CHAT, MESSAGES, MODELS = "/v1/chat/completions", "/v1/messages", "/v1/models"
REPORT, RECEIPTS, SESSIONS = "/v1/aci/attestation", "/v1/aci/receipts/", "/v1/aci/sessions/"
MONTH_S = 30 * 24 * 60 * 60
STOP_WITHIN_S = 10


class Ed25519Signer:
    """An Ed25519 key that is not the attester's: an attacker's, or one in another role."""

    def __init__(self, key_id: str = "receipt-1") -> None:
        self.key_id = key_id
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_hex(self) -> str:
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


@dataclass(frozen=True)
class Seen:
    """A request as it came. Names of `headers` are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def nonce(self) -> str | None:
        values = self.query.get("nonce")
        return None if values is None else values[0]


@dataclass(frozen=True)
class Reply:
    """A response that is about to leave. `parts`: of the body, as they are written. `is_cut`: the connection breaks."""

    parts: tuple[bytes, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    is_cut: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def document(self) -> Document:
        document: Document = json.loads(self.body)
        return document

    def but(self, *parts: bytes, status: int | None = None, **headers: str | None) -> "Reply":
        """The same with another body, where one is given, another status and other headers; None takes one away."""
        named = dict(self.headers) | {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in named.items() if value is not None}
        return replace(self, parts=parts or self.parts, status=status or self.status, headers=kept)

    def holding(self, document: object) -> "Reply":
        """The same with this JSON as its body."""
        return self.but(json.dumps(document).encode())

    def replacing(self, old: bytes, new: bytes) -> "Reply":
        """The same with the first `old` in its body replaced; it has to be there."""
        assert old in self.body
        return self.but(self.body.replace(old, new, 1))

    def cut(self) -> "Reply":
        return replace(self, is_cut=True)


Alter = Callable[[Reply, Seen], Reply]


class AttestedService:
    """The service. Its members may be changed while it runs; `url` is its address, `seen` what it was asked."""

    def __init__(self, home: Path, *, tls: bool) -> None:
        """`home`: where the simulated TEE keeps its seed. `tls`: serve with the attested TLS key."""
        self.attester = SimulatedAttester(home, lambda: int(time.time()))
        self.root = home / "simulator/root.pem"
        self.signer: Signs = self.attester.workload_keys.receipt(1)
        self.keyset = self.attested_keyset()
        self.tls = tls
        self.serving: Any = "direct"
        self.port = 0
        self.seen: list[Seen] = []
        self.alter: dict[str, Alter] = {}
        self.receipts: dict[str, tuple[bytes, str | None]] = {}
        self.sessions: dict[str, bytes] = {}
        self.receipt_members: Document = {}  # instead of what is true of the exchange
        self.now: Callable[[], int] = lambda: int(time.time())
        self.chat_id: str | None = None  # None: a new one each time

    def attested_keyset(self, **changes: Any) -> Keyset:
        """The keyset with these members; the signer's key and the TLS key are in it."""
        workload = self.attester.workload_keys
        signing = PublicKey(workload.receipt(1).key_id, ED25519, workload.receipt(1).public_key_hex)
        members: Document = {
            "subject": None,
            "not_after": int(time.time()) + MONTH_S,
            "receipt_signing_keys": (signing,),
            "e2ee_public_keys": (PublicKey("e2ee-1", "x25519-aes-256-gcm-hkdf-sha256", "5d" * 32),),
            "tls_public_keys": (TlsKey(workload.tls.spki_sha256.hex()),),
        }
        return Keyset(**(members | changes))

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def prompts(self) -> list[Seen]:
        """The requests that carried a prompt."""
        return [seen for seen in self.seen if seen.method == "POST"]

    def policy(self, **changes: Any) -> Policy:
        """One that the honest service meets: its own root, and an attested channel where it serves TLS."""
        members: Document = {"trust_roots": (self.root,), "require_channel": self.tls}
        return Policy(**(members | changes))

    def sign(self, document: Document, signer: Signs | None = None) -> bytes:
        """Any receipt document, signed by the attested key or another."""
        unsigned = {name: value for name, value in document.items() if name != "signature"}
        signature = (signer or self.signer).sign(canonical(unsigned)).hex()
        return json.dumps({**unsigned, "signature": signature}).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = await read(scope, receive)
        self.seen.append(seen)
        kind, reply = await self.answer(seen)
        if kind in self.alter:
            reply = self.alter[kind](reply, seen)
        await write(reply, send)

    async def answer(self, seen: Seen) -> tuple[str, Reply]:
        """The kind of the response, and the honest response."""
        if seen.method == "POST":
            return "answer", self.inference(seen)
        if seen.path == REPORT:
            return "report", Reply((json.dumps(await self.report(seen.nonce)).encode(),))
        if seen.path.startswith(RECEIPTS):
            return "receipt", self.receipt(seen)
        if seen.path.startswith(SESSIONS):
            raw = self.sessions.get(seen.path.removeprefix(SESSIONS))
            return "session", Reply((raw,)) if raw is not None else not_found()
        if seen.path == MODELS:
            listed = {"id": MODEL, "object": "model", "created": 1, "owned_by": "vendor"}
            return "models", Reply((json.dumps({"object": "list", "data": [listed]}).encode(),))
        return "unknown", not_found()

    async def report(self, nonce: str | None, keyset: Keyset | None = None) -> Document:
        """An honest report for this nonce, over the service's keyset or another."""
        keyset = keyset or self.keyset
        evidence = await self.attester.attest(aci_report_data(keyset.digest(), nonce))
        document = aci_report(
            keyset=keyset,
            nonce=nonce,
            tee_type=evidence.tee_type,
            provenance=SourceProvenance(repo_url="https://git.example.com/service", repo_commit="ab" * 20),
            evidence=evidence.aci_members(),
            serving=self.serving,
        )
        parsed: Document = json.loads(json.dumps(document))  # as a relying party has it
        return parsed

    def report_now(self, nonce: str | None, keyset: Keyset | None = None) -> Document:
        """The same for a test that is not in a loop, or for `alter`: it runs in a thread and a loop of its own."""
        found: list[Document] = []
        thread = threading.Thread(target=lambda: found.append(asyncio.run(self.report(nonce, keyset))))
        thread.start()
        thread.join(STOP_WITHIN_S)
        return found[0]

    def inference(self, seen: Seen) -> Reply:
        """The answer, and its receipt kept."""
        parts, is_stream, chat_id = completion(seen, self.chat_id)
        receipt_id = new_receipt_id(secrets.token_bytes(12))
        members: Document = {
            "receipt_id": receipt_id,
            "chat_id": chat_id,
            "model": MODEL,
            "keyset_digest": self.keyset.digest(),
            "endpoint": seen.path,
            "served_at": self.now(),
            "received_sha256": hashlib.sha256(seen.body).digest(),
            "forwarded_sha256": hashlib.sha256(seen.body).digest(),
            "returned_sha256": hashlib.sha256(b"".join(parts)).digest(),
            "outcome": "complete",
            "signer": self.signer,
        }
        self.receipts[receipt_id] = signed_receipt(**(members | self.receipt_members)), credential(seen)
        headers = {
            "content-type": "text/event-stream" if is_stream else "application/json",
            "x-receipt-id": receipt_id,
            "x-aci-version": "aci/1",
            "x-aci-keyset-digest": self.keyset.digest(),
        }
        return Reply(parts, headers=headers)

    def receipt(self, seen: Seen) -> Reply:
        """Bound to the credential of the request (wire contract 7.7)."""
        raw, owner = self.receipts.get(seen.path.removeprefix(RECEIPTS), (b"", ""))
        if not raw or (owner is not None and credential(seen) not in (owner, None)):
            return not_found()
        if owner is not None and credential(seen) is None:
            return error(401, "unauthorized")
        return Reply((raw,))


def completion(seen: Seen, chat_id: str | None) -> tuple[tuple[bytes, ...], bool, str]:
    """The answer in parts, whether it is a stream, and its id."""
    is_stream = json.loads(seen.body).get("stream") is True
    if seen.path == MESSAGES:
        chat_id = chat_id or f"msg_{secrets.token_hex(12)}"
        return (message_events(chat_id) if is_stream else (message(chat_id),)), is_stream, chat_id
    chat_id = chat_id or f"chatcmpl-{secrets.token_hex(16)}"
    return (chat_events(chat_id) if is_stream else (chat_completion(chat_id),)), is_stream, chat_id


def chat_completion(chat_id: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    members = {"id": chat_id, "object": "chat.completion", "created": 1_780_000_000, "model": MODEL}
    return json.dumps({**members, "choices": [choice], "usage": usage}).encode()


def chat_events(chat_id: str) -> tuple[bytes, ...]:
    """Role, texts, the finish reason, `[DONE]`."""
    deltas: list[tuple[Document, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text}, None) for text in TEXTS]
    deltas += [({}, "stop")]
    members = {"id": chat_id, "object": "chat.completion.chunk", "created": 1_780_000_000, "model": MODEL}
    chunks = [
        {**members, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in deltas
    ]
    return (*(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks), b"data: [DONE]\n\n")


def message(chat_id: str) -> bytes:
    return json.dumps(message_members(chat_id) | {"content": [{"type": "text", "text": ANSWER}]}).encode()


def message_members(chat_id: str) -> Document:
    return {
        "id": chat_id,
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    }


def message_events(chat_id: str) -> tuple[bytes, ...]:
    """From `message_start` to `message_stop`."""
    begun = message_members(chat_id) | {"stop_reason": None}
    deltas = [{"type": "text_delta", "text": text} for text in TEXTS]
    events: list[Document] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ]
    return tuple(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events)


def credential(seen: Seen) -> str | None:
    """The token that came with a request, in either header."""
    bearer = seen.headers.get("authorization", "").partition(" ")[2]
    return bearer or seen.headers.get("x-api-key") or None


def error(status: int, kind: str) -> Reply:
    envelope = {"error": {"message": "It did not work.", "type": kind, "code": None, "param": None}}
    return Reply((json.dumps(envelope).encode(),), status=status)


def not_found() -> Reply:
    return error(404, "not_found")


async def read(scope: Scope, receive: Receive) -> Seen:
    body, more = b"", True
    while more:
        received: Message = await receive()
        body += received.get("body", b"")
        more = received.get("more_body", False)
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return Seen(scope["method"], scope["path"], parse_qs(scope["query_string"].decode()), headers, body)


class Cut(Exception):
    """Raised out of the application: the server drops the connection."""


async def write(reply: Reply, send: Send) -> None:
    headers = dict(reply.headers)
    if not headers.get("content-type", "").startswith("text/event-stream") and not reply.is_cut:
        headers.setdefault("content-length", str(len(reply.body)))
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
    for part in reply.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
    if reply.is_cut:
        raise Cut
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class Server(uvicorn.Server):
    """Uvicorn that ends when it is told, and not at its next look at a flag 100 ms later."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        def abort() -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

        await end(self.servers, abort)


@contextmanager
def serving(home: Path, *, tls: bool = False) -> Iterator[AttestedService]:
    """The service on a free port of 127.0.0.1. `home`: a directory of the test's; the same one gives the same keys."""
    home.mkdir(exist_ok=True)
    service = AttestedService(home, tls=tls)
    with listening(service, tls_context(service) if tls else None) as port:
        service.port = port
        yield service


@contextmanager
def listening(app: Callable[..., Any], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve an ASGI application in a thread, over TLS where a context is given; its port."""
    config = uvicorn.Config(app, ws="none", lifespan="off", access_log=False, log_config=None, server_header=False)
    if context is not None:
        config.ssl_context_factory = lambda *_: context
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        started, ended = threading.Event(), threading.Event()
        loops: list[tuple[asyncio.AbstractEventLoop, Server]] = []

        async def run() -> None:
            server = Server(config)
            loops.append((asyncio.get_running_loop(), server))
            serving = asyncio.create_task(server._serve([listener]))
            while not server.started:
                await asyncio.sleep(0.001)
            started.set()
            await serving
            ended.set()

        thread = threading.Thread(target=asyncio.run, args=(run(),), name="attested-service", daemon=True)
        thread.start()
        assert started.wait(STOP_WITHIN_S)
        try:
            yield listener.getsockname()[1]
        finally:
            loop, server = loops[0]
            loop.call_soon_threadsafe(server.ending.set)
            thread.join(STOP_WITHIN_S)
            assert ended.is_set()


def tls_context(service: AttestedService) -> ssl.SSLContext:
    """TLS with the attested key, which a certificate of its own goes with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = service.attester.workload_keys.tls
    key.load_into(context, chain_pem=key.self_signed(["127.0.0.1", "localhost"], int(time.time())))
    return context
