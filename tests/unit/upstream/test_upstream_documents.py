"""What an upstream shows of itself is fetched over a bounded connection, whose key is noted."""

import asyncio
from pathlib import Path

import pytest

from confide.upstream import documents
from confide.upstream.documents import Documents
from confide.upstream.verified import CannotVerify
from left_behind import nothing_left
from scripted import REPEAT, ScriptedUpstream, chunk, response, server_tls, sse_head
from tls_files import self_signed


async def test_an_upstream_that_sends_byte_after_byte_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "WITHIN_S", 0.5)
    async with ScriptedUpstream([sse_head(), REPEAT, chunk(b" ")], tls=server_tls(self_signed(tmp_path))) as upstream:
        with pytest.raises(CannotVerify, match="could not be fetched: TimeoutError"):
            await Documents(f"https://127.0.0.1:{upstream.port}").get("/v1/aci/attestation")


async def test_the_key_is_noted_with_the_document(tmp_path: Path) -> None:
    async with ScriptedUpstream([response(b"{}")], tls=server_tls(self_signed(tmp_path))) as upstream:
        found = await Documents(f"https://127.0.0.1:{upstream.port}").get("/v1/aci/attestation")
    assert (found.body, len(found.spki_sha256)) == (b"{}", 32)
    assert found.spki_sha256 != bytes(32)


@pytest.mark.both_loops
async def test_who_stops_waiting_in_the_handshake_leaves_no_connection() -> None:
    said = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)  # of the hello, which nothing answers
        said.set()
        await reader.read()
        writer.close()

    async with nothing_left():
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        asking = asyncio.create_task(Documents(f"https://127.0.0.1:{port}").get("/v1/aci/attestation"))
        await said.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.close()
