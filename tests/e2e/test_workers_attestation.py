"""What a platform is asked for at a time is bounded over all workers (ADR 24)."""

import asyncio
import secrets
from pathlib import Path

import pytest

from confide.attester.base import MAX_WAITING
from crew import LOCAL, engine, log_lines, until
from running import Running, running
from simulated_machine import simulating

REQUESTS = 160  # more than twice as many as are taken at a time, so that every worker is asked for more than its share
NEVER_S = 60


async def status_of(service: Running) -> int:
    """Ask for a report, on a connection of its own, for a nonce that nobody has asked for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rsplit(":", 1)[1]))
    try:
        target = f"/v1/aci/attestation?nonce={secrets.token_hex(32)}"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("kind", "fault"),
    [(("tsm", "--tee", "tdx"), "hung"), (("dstack", "--gpus", "1"), "gpus-hung")],
    ids=["of the guest", "of its GPUs"],
)
async def test_a_flood_gets_no_further_than_with_one_process(
    tmp_path: Path, workers: int, kind: tuple[str, ...], fault: str
) -> None:
    """While the platform hangs, those that wait are as many whatever the number of workers; all others are refused."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with engine() as upstream, simulating(tmp_path / "machine", *kind) as machine:
        config = LOCAL.format(workers=workers, server="", rest="", port=upstream.port)
        with running(home, config=config, environ=machine.environ) as service:
            assert await status_of(service) == 200
            if workers > 1:  # every worker keeps a report of its own when it starts, which takes a place as well
                until(lambda: sum(line["event"] == "keyset" for line in log_lines(service)) == workers)
            with machine.wrong(fault):
                asked = {asyncio.create_task(status_of(service)) for _ in range(REQUESTS)}
                refused: set[asyncio.Task[int]] = set()
                async with asyncio.timeout(NEVER_S):
                    while len(refused) < REQUESTS - MAX_WAITING:
                        refused, _ = await asyncio.wait(asked, timeout=0.1)
                assert {task.result() for task in refused} == {503}
                assert [await status_of(service) for _ in range(3 * workers)] == [503] * 3 * workers
                assert sum(task.done() for task in asked) == REQUESTS - MAX_WAITING
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
