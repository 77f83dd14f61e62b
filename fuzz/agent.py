"""Fuzz the guest agent's answers: whatever dstack's agent says, the attester refuses in its own errors or serves
evidence over the bytes that were asked for.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import TypeVar

import httpx2
import msgspec

from confide.attester.base import app_compose_of
from confide.attester.dstack import DstackAttester
from confide.attester.dstack_agent import AgentFailed, Endpoint, GuestAgent, stated_error
from confide.attester.own_output import tdx_report_data
from confide.errors import ConfigError, InternalError, NotReady
from confide.simulator.guest_agent import SimulatedGuestAgent
from confide.simulator.kms import SimulatedKms
from confide.simulator.tdx import SimulatedTdxPlatform
from fuzz._bytes import patched
from fuzz._documents import changed

REPORT_DATA = bytes(64)
RECEIPT_KEY = "ab" * 32
SIMULATED = SimulatedGuestAgent(SimulatedTdxPlatform(b"\x11" * 32, now=1_800_000_000), SimulatedKms(b"\x11" * 32))
TCB_INFO = str(SIMULATED.info({})["tcb_info"]).encode()
KEYS: dict[bytes, dict[str, object]] = {}
HONEST = {
    "/GetQuote": SIMULATED.get_quote({"report_data": REPORT_DATA.hex()}),
    "/Info": SIMULATED.info({}) | {"tcb_info": json.loads(TCB_INFO)},  # as an object, for changes inside it
    "/GetKey": {},  # made for each path
    "/Version": SIMULATED.version({}),
}
METHODS = tuple(HONEST)
LOOP = asyncio.new_event_loop()

T = TypeVar("T")


Answer = Callable[[dict[str, object]], httpx2.Response]


def written(members: dict[str, object]) -> bytes:
    return json.dumps(members).encode()


async def one_part(content: bytes) -> AsyncIterator[bytes]:
    """A body that comes over a wire, unlike bytes that are there at once."""
    yield content


def saying(content: bytes) -> httpx2.Response:
    return httpx2.Response(200, content=one_part(content))


def honestly(members: dict[str, object]) -> httpx2.Response:
    return saying(written(members))


class AnsweringAgent(GuestAgent):
    """The client with an agent behind it that answers one method in its own way, and honestly otherwise."""

    def __init__(self, method: str = "", answer: Answer = honestly) -> None:
        """`answer`: the honest members to what is sent in their place."""
        super().__init__(Endpoint("http://localhost"))
        self._method, self._answer = method, answer

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self._respond), base_url="http://localhost")

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        method = request.url.path
        honest = released(request.content) if method == "/GetKey" else HONEST[method]
        return self._answer(honest) if method == self._method else honestly(honest)


def released(asked: bytes) -> dict[str, object]:
    """What `GetKey` gives, made once for each path."""
    if asked not in KEYS:
        KEYS[asked] = SIMULATED.get_key(json.loads(asked))
    return KEYS[asked]


def done(work: Coroutine[object, object, T]) -> T:
    return LOOP.run_until_complete(work)


def fuzz_one(data: bytes) -> None:
    """One input: its first byte says which method is answered, and what the others are to that answer."""
    method = METHODS[data[0] % len(METHODS)] if data else METHODS[0]
    if not stated_error(data).isprintable():
        raise AssertionError("an error of the agent's is not fit for a log")
    for text in (data.decode("latin-1"), patched(TCB_INFO, data).decode("latin-1")):
        with suppress(ValueError):
            app_compose_of({"tcb_info": text})
    answers: tuple[Answer, ...] = (
        lambda _: saying(data[1:]),
        lambda honest: saying(patched(written(honest), data[1:])),
        lambda honest: honestly(changed(honest, iter(data[1:]))),
        lambda _: httpx2.Response(302, content=one_part(b""), headers=[(b"location", data[1:])]),
    )
    agent = AnsweringAgent(method, answers[data[0] // len(METHODS) % len(answers)] if data else honestly)
    serve(agent)
    with suppress(AgentFailed):
        done(agent.version())


def serve(agent: GuestAgent) -> bool:
    """Whether anything is served: nothing but evidence over our bytes, in members that can be written."""
    try:
        attester = done(DstackAttester.open(agent))
        evidence = done(attester.attest(REPORT_DATA))
    except (ConfigError, NotReady, InternalError) as error:
        if not error.message.isprintable():
            raise AssertionError("a reason is not fit for a terminal") from error
        return False
    if tdx_report_data(evidence.quote) != REPORT_DATA:
        raise AssertionError("evidence over other data would have been served")
    members = [evidence.aci_members(RECEIPT_KEY), evidence.info]
    if json.loads(msgspec.json.encode(members)) != members:
        raise AssertionError("evidence is read otherwise than it was written")
    return True


if not serve(AnsweringAgent()):
    raise AssertionError("an honest agent's evidence was not served")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
