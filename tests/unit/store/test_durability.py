"""A client that was told its proof exists finds it after the server was killed (architecture 4, Durability)."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from store_builders import NOW, opened

COMMIT_AND_TELL = """
import asyncio, sys
from pathlib import Path
from confide import config
from confide.store import Proof, open_store

async def one(store, name):
    digest = bytes(32)
    await store.commit(Proof(receipt_id=f"rcpt-{name}", chat_id=name, request_sha256=digest, response_sha256=digest,
        credential_sha256=None, expires_at=2**40, receipt=b"{}", seal=digest))
    print(name, flush=True)

async def main():
    store = open_store(None, Path(sys.argv[1]), config.Store())
    for batch in range(100_000):
        await asyncio.gather(*(one(store, f"{sys.argv[2]}-{batch}-{number}") for number in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40])
async def test_every_proof_that_was_told_of_is_there_after_kill_9(tmp_path: Path, lines: int) -> None:
    told: set[str] = set()
    for life in range(10):
        command = [sys.executable, "-c", COMMIT_AND_TELL, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told |= {process.stdout.readline().strip() for _ in range(lines)}
            process.send_signal(signal.SIGKILL)
            *whole, _cut = process.stdout.read().split("\n")
            told |= set(whole)
        assert process.returncode == -signal.SIGKILL
    assert len(told) >= 10 * lines
    async with opened(tmp_path) as store:
        ids = [lookup_id for name in told for lookup_id in (name, f"rcpt-{name}")]
        missing = [lookup_id for lookup_id in ids if await store.proof(lookup_id, now=NOW) is None]
    assert missing == []


KEEP_REPORT_AND_TELL = """
import asyncio, sys
from pathlib import Path
from confide import config
from confide.store import open_store

async def main():
    store = open_store(None, Path(sys.argv[1]), config.Store())
    await store.keep_report("sha256:" + "ab" * 32, b"the report", expires_at=2**40)
    print("kept", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_report_that_was_told_to_be_kept_is_there_after_kill_9(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KEEP_REPORT_AND_TELL, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        process.kill()
    async with opened(tmp_path) as store:
        assert await store.report("sha256:" + "ab" * 32, now=NOW) == b"the report"
