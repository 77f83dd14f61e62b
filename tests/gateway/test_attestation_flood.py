"""A flood of attestation requests, each with a nonce of its own so that none can be answered from memory.

The platform makes one quote at a time. What is more than it can do is refused at once; memory stays where it was, and
a stream that runs meanwhile keeps its pace. The flood comes from a process of its own, so that what it costs its sender
is not on the service's account.
"""

import asyncio
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.attester.base import MAX_WAITING, Evidence
from confide.attester.simulated import SimulatedAttester
from gateway_app import ScriptedGateway, answering, chat, finish, serving_scripted, token
from scripted import LAST_CHUNK, sse_head

REQUESTS = 1000
TICK_S = 0.01  # the engine writes a token so often
TOKENS = 400
MEMORY_BYTES = 96 * 1024 * 1024  # for a thousand connections; what the queue holds is a fraction of it

FLOOD = """
import asyncio, collections, json, secrets, sys

async def ask(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = (f"GET {path}?nonce={secrets.token_hex(32)} HTTP/1.1", "Host: a", "Connection: close", "", "")
    writer.write("\\r\\n".join(lines).encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\\r\\n\\r\\n")
    return int(head.split()[1]), b"retry-after:" in head.lower(), len(body)

async def flood(port, path, count):
    answers = await asyncio.gather(*(ask(port, path) for _ in range(count)))
    counted = collections.Counter(f"{status} {'later' if later else 'now'}" for status, later, _ in answers)
    print(json.dumps(counted))

asyncio.run(flood(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


class SlowPlatform(SimulatedAttester):
    """Takes as long for a quote as hardware does, and records how many were being waited for at most."""

    pace_s = 0.02
    most_waiting = 0

    async def attest(self, report_data: bytes) -> Evidence:
        self.most_waiting = max(self.most_waiting, self._waiting)
        return await super().attest(report_data)

    def _produce(self, report_data: bytes) -> Evidence:
        time.sleep(self.pace_s)
        return super()._produce(report_data)


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Room for a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def flooded(gateway: ScriptedGateway, path: str, count: int = REQUESTS) -> dict[str, int]:
    """How often each answer came: its status, and whether it said when to come back."""
    port = gateway.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, port, path, str(count), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    counted: dict[str, int] = json.loads(output)
    return counted


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def arrivals(gateway: ScriptedGateway) -> tuple[list[float], str]:
    """When each token of a streamed answer came, in s, and the text."""
    times, text = [], ""
    async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith('data: {"'):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    if choice["delta"].get("content"):
                        times.append(time.monotonic())
                        text += choice["delta"]["content"]
    return times, text


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.mark.parametrize("path", ["/v1/aci/attestation", "/v1/attestation/report"])
async def test_a_flood_is_refused_beyond_what_the_platform_can_do_and_a_stream_keeps_its_pace(
    tmp_path: Path, path: str
) -> None:
    ticks = [asyncio.Event() for _ in range(TOKENS)]
    script: list[bytes | asyncio.Event] = [sse_head()]
    for number, tick in enumerate(ticks):
        script += (tick, token(f"{number} "))
    script += (finish(), LAST_CHUNK)
    attester = SlowPlatform(tmp_path, lambda: int(time.time()))
    async with serving_scripted(tmp_path, script, attester=attester) as gateway:
        streaming = asyncio.create_task(arrivals(gateway))
        ticking = asyncio.create_task(ticked(ticks))
        await asyncio.sleep(0.5)
        begins, before = time.monotonic(), resident_bytes()
        counted = await flooded(gateway, path)
        ends, after = time.monotonic(), resident_bytes()
        await ticking
        times, text = await streaming

        assert sum(counted.values()) == REQUESTS
        assert set(counted) == {"200 now", "503 later"}
        assert counted["503 later"] > counted["200 now"] >= MAX_WAITING
        assert attester.most_waiting == MAX_WAITING
        assert after - before < MEMORY_BYTES

        assert text == "".join(f"{number} " for number in range(TOKENS))
        meanwhile = gaps([at for at in times if begins <= at <= ends])
        # A thousand connections that come at once cost one pause: about half a millisecond for each that is refused.
        assert statistics.median(meanwhile) < 3 * TICK_S
        assert statistics.quantiles(meanwhile, n=20)[-1] < 10 * TICK_S
        assert max(meanwhile) < 10


async def ticked(ticks: list[asyncio.Event]) -> None:
    for tick in ticks:
        await asyncio.sleep(TICK_S)
        tick.set()


async def test_memory_does_not_grow_from_flood_to_flood_and_there_is_room_afterwards(tmp_path: Path) -> None:
    attester = SlowPlatform(tmp_path, lambda: int(time.time()))
    async with serving_scripted(tmp_path, answering("Hi"), attester=attester) as gateway:
        sizes = []
        for _ in range(4):
            await flooded(gateway, "/v1/aci/attestation", 500)
            sizes.append(resident_bytes())
        assert sizes[-1] - sizes[0] < 8 * 1024 * 1024
        assert (await gateway.client.get("/v1/aci/attestation?nonce=" + "0" * 64)).status_code == 200
        assert (await gateway.post()).status_code == 200
