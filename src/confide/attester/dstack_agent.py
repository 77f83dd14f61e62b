"""A client of dstack's guest agent: HTTP/1.1 with JSON over a unix socket (tee-evidence 2.1).

The agent is measured code of this guest and is believed; that it is slow, broken or of another version is not ruled
out, so answers are bounded in time and size, and read strictly. It also gives out this service's keys: whoever speaks
for the agent has them, which is why the socket's path is no setting that a peer could reach.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec

from confide.attester.keys import ReleasedSecret
from confide.protocol.canonical import DocumentError, parse_document, typed

SOCKETS = ("var/run/dstack.sock", "run/dstack.sock", "var/run/dstack/dstack.sock", "run/dstack/dstack.sock")
ENDPOINT_VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"

QUOTE_DEADLINE_S = 30.0  # the platform makes one quote at a time
DEADLINE_S = 10.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_REASON = 200  # characters of an error text of the agent's

T = TypeVar("T")


class AgentFailed(Exception):
    """The agent gave no usable answer. The text is for the operator and never for a client: it may quote the agent.

    `temporary`: it was not there or too slow, so that it may answer later.
    """

    def __init__(self, method: str, reason: str, *, temporary: bool = False) -> None:
        super().__init__(f"{method}: {reason}")
        self.temporary = temporary


@dataclass(frozen=True)
class Endpoint:
    """Where the agent listens: a socket's path, or an http or https URL. `simulated`: the environment names it, so it
    is not the machine's own.
    """

    location: str
    simulated: bool = False


def find_agent(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Endpoint | None:
    """The endpoint that the environment names, else the first socket that exists, else None."""
    named = environ.get(ENDPOINT_VARIABLE)
    if named:
        return Endpoint(named, simulated=True)
    found = next((root / socket for socket in SOCKETS if (root / socket).is_socket()), None)
    return None if found is None else Endpoint(str(found))


class QuoteAnswer(msgspec.Struct, frozen=True):
    """The members of `GetQuote`; byte members are hex. Off TDX `quote` is empty and `attestation` is dstack's own."""

    quote: str
    event_log: str | list[Any]  # entries are passed on as they came
    report_data: str = ""
    vm_config: str = ""
    attestation: str = ""


@dataclass(frozen=True)
class Quoted:
    """A quote and what travels with it. `event_log`, `vm_config`: JSON text, as the agent wrote it. `quote`: empty
    where the platform is not TDX. `report_data`: what the agent says that it quoted, empty when it does not say.
    """

    quote: bytes
    event_log: str
    report_data: bytes
    vm_config: str


class KeyAnswer(msgspec.Struct, frozen=True):
    """The members of `GetKey`, hex. Shown without the key."""

    key: str
    signature_chain: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "KeyAnswer(key=…)"


@dataclass(frozen=True)
class ReleasedKey:
    """What `GetKey` released. `signature_chain`: hex, leaf first, as the agent gave it."""

    secret: ReleasedSecret
    signature_chain: tuple[str, ...]


class Version(msgspec.Struct, frozen=True):
    """The agent's own name for its version."""

    version: str
    rev: str = ""


class GuestAgent:
    """One agent. Every call has a connection of its own, so it may be used from one event loop after another."""

    def __init__(
        self, endpoint: Endpoint, *, deadline_s: float = DEADLINE_S, quote_deadline_s: float = QUOTE_DEADLINE_S
    ) -> None:
        self.endpoint = endpoint
        self._deadline_s = deadline_s
        self._quote_deadline_s = quote_deadline_s

    async def quote(self, report_data: bytes) -> Quoted:
        """`GetQuote` over exactly 64 bytes, else ValueError: the agent would pad less by rules of its own."""
        if len(report_data) != 64:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        method = "GetQuote"
        raw = await self._call(method, {"report_data": report_data.hex()}, self._quote_deadline_s)
        answer = read(method, raw, QuoteAnswer)
        log = answer.event_log
        return Quoted(
            quote=unhexed(method, "quote", answer.quote),
            event_log=log if isinstance(log, str) else msgspec.json.encode(log).decode(),
            report_data=unhexed(method, "report_data", answer.report_data),
            vm_config=answer.vm_config,
        )

    async def info(self) -> dict[str, object]:
        """`Info`, its members as they came (wire contract 6.1)."""
        raw = await self._call("Info", {}, self._deadline_s)
        return read("Info", raw, dict[str, object])

    async def key(self, path: str, purpose: str, algorithm: str = "secp256k1") -> ReleasedKey:
        """`GetKey`: the 32 bytes of this path; the same for every algorithm, which decides what the chain names."""
        asked = {"path": path, "purpose": purpose, "algorithm": algorithm}
        answer = read("GetKey", await self._call("GetKey", asked, self._deadline_s), KeyAnswer)
        try:
            secret = ReleasedSecret(unhexed("GetKey", "key", answer.key))
        except ValueError as error:
            raise AgentFailed("GetKey", str(error)) from None
        return ReleasedKey(secret, answer.signature_chain)

    async def version(self) -> Version:
        """`Version`, which agents before 0.5.7 do not have."""
        return read("Version", await self._call("Version", {}, self._deadline_s), Version)

    async def _call(self, method: str, members: Mapping[str, object], deadline_s: float) -> bytes:
        """The body of a good answer. Raises AgentFailed."""
        try:
            async with asyncio.timeout(deadline_s), self._client() as client:
                return await exchanged(client, method, members)
        except TimeoutError as error:
            raise AgentFailed(method, f"no answer within {deadline_s:g} s", temporary=True) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:  # ValueError: a redirect to nowhere
            reason = f"{type(error).__name__}: {one_line(str(error))}"
            raise AgentFailed(method, reason, temporary=True) from error

    def _client(self) -> httpx2.AsyncClient:
        location = self.endpoint.location
        if location.startswith(("http://", "https://")):
            transport = httpx2.AsyncHTTPTransport(trust_env=False)
            return httpx2.AsyncClient(transport=transport, base_url=location, timeout=None, trust_env=False)
        # Nothing on a unix socket is TLS, and reading the machine's authorities would take longer than the call.
        transport = httpx2.AsyncHTTPTransport(uds=location, trust_env=False, verify=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None, trust_env=False)


async def exchanged(client: httpx2.AsyncClient, method: str, members: Mapping[str, object]) -> bytes:
    """One request and its whole answer, at most 4 MiB. Raises AgentFailed, httpx2.HTTPError."""
    plain = {"accept-encoding": "identity"}
    async with client.stream("POST", f"/{method}", json=members, headers=plain) as response:
        body = bytearray()
        async for part in response.aiter_raw():  # as it came: unpacking it could make it any size
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise AgentFailed(method, f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    if response.status_code != 200:
        raise AgentFailed(method, f"status {response.status_code}: {stated_error(bytes(body))}")
    return bytes(body)


def stated_error(body: bytes) -> str:
    """The text in `{"error": …}`, as far as there is one."""
    try:
        stated = parse_document(body, what="it").get("error")
    except DocumentError:
        stated = None
    return one_line(stated) if isinstance(stated, str) and stated else "without a reason"


def read(method: str, raw: bytes, kind: type[T]) -> T:
    """The answer's members. Raises AgentFailed."""
    try:
        return typed(parse_document(raw, what="the answer"), kind, what="the answer")
    except DocumentError as error:
        raise AgentFailed(method, one_line(str(error))) from None


def unhexed(method: str, member: str, digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise AgentFailed(method, f"{member} is not hex") from None


def one_line(text: str) -> str:
    """A foreign text, fit for a log line: bounded, without control characters."""
    line = " ".join(text.split())[:MAX_REASON]
    return "".join(character if character.isprintable() else "?" for character in line)
