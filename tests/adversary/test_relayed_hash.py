"""A relay between client and service changes the prompt and sends the hash of the original, or any other, as a header.

It wants that hash signed, so that the client believes its own prompt was answered. The hash that is signed is that of
the bytes which arrived, whatever a header says. The twin: without a relay it is the client's own hash that is signed.
"""

import hashlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from confide.protocol.signature import Algo, split_text, verify_text
from gateway_app import ScriptedGateway, answering, chat, serving_scripted

ORIGINAL = json.dumps(chat("Transfer 5 to Ada.")).encode()
CHANGED = json.dumps(chat("Transfer 500 to Eve.")).encode()
CHANGED_STREAMED = json.dumps(chat("Transfer 500 to Eve.", stream=True)).encode()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Done")) as gateway:
        yield gateway


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def signed_request_hashes(gateway: ScriptedGateway, body: bytes, headers: list[tuple[str, str]]) -> set[str]:
    """The request hash under both signatures of the answer to `body`."""
    answer = await gateway.client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200
    chat_id = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))["id"]
    hashes = set()
    for algo in Algo:
        proof = (await gateway.client.get(f"/v1/signature/{chat_id}?signing_algo={algo}")).json()
        verify_text(proof["text"], proof["signature"], proof["signing_address"], algo)
        hashes.add(split_text(proof["text"])[0])
    return hashes


HEADERS = [
    ("X-Request-Hash", sha256(ORIGINAL)),
    ("x-request-hash", sha256(ORIGINAL).upper()),
    ("X-Request-Hash", f"sha256:{sha256(ORIGINAL)}"),
    ("X-Request-Hash", ""),
    ("X-Request-Hash", "0" * 64),
    ("X-Request-Hash", f"{sha256(ORIGINAL)}:{sha256(b'answer')}"),
    ("X-Response-Hash", sha256(ORIGINAL)),
    ("X-Content-SHA256", sha256(ORIGINAL)),
    ("X-Amz-Content-Sha256", sha256(ORIGINAL)),
    ("Digest", f"sha-256={sha256(ORIGINAL)}"),
    ("Content-Digest", f"sha-256=:{sha256(ORIGINAL)}:"),
    ("Repr-Digest", f"sha-256=:{sha256(ORIGINAL)}:"),
    ("Content-MD5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
    ("ETag", sha256(ORIGINAL)),
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: f"{header[0]}: {header[1][:20]}")
@pytest.mark.parametrize("body", [CHANGED, CHANGED_STREAMED], ids=["buffered", "streamed"])
async def test_a_relays_hash_is_never_the_one_that_is_signed(
    gateway: ScriptedGateway, header: tuple[str, str], body: bytes
) -> None:
    assert await signed_request_hashes(gateway, body, [header, header]) == {sha256(body)}


async def test_the_honest_clients_hash_is_signed_with_and_without_the_header(gateway: ScriptedGateway) -> None:
    assert await signed_request_hashes(gateway, ORIGINAL, []) == {sha256(ORIGINAL)}
    assert await signed_request_hashes(gateway, ORIGINAL, [HEADERS[0]]) == {sha256(ORIGINAL)}


@pytest.mark.parametrize(
    "again",
    [
        lambda body: json.dumps(json.loads(body), separators=(",", ":")).encode(),
        lambda body: json.dumps(json.loads(body), indent=1).encode(),
        lambda body: json.dumps(json.loads(body), sort_keys=True).encode(),
        lambda body: b" " + body,
        lambda body: body + b"\n",
        lambda body: body.replace(b"Ada", b"\\u0041da"),
        lambda body: body.replace(b'"messages"', b'"unknown":1,"messages"'),
        lambda body: body.replace(b'"model"', b'"model":"x","model"'),
    ],
    ids=["compact", "indented", "sorted", "space before", "line feed after", "escape", "unknown member", "duplicate"],
)
async def test_a_body_that_means_the_same_has_another_hash(gateway: ScriptedGateway, again: object) -> None:
    assert callable(again)
    written_again: bytes = again(ORIGINAL)
    assert json.loads(written_again)["messages"] == json.loads(ORIGINAL)["messages"]
    hashes = await signed_request_hashes(gateway, written_again, [HEADERS[0]])
    assert hashes == {sha256(written_again)}
    assert hashes != {sha256(ORIGINAL)}


async def test_a_hash_in_the_body_or_the_query_is_ignored_too(gateway: ScriptedGateway) -> None:
    body = json.dumps({**json.loads(CHANGED), "request_hash": sha256(ORIGINAL), "hash": sha256(ORIGINAL)}).encode()
    assert await signed_request_hashes(gateway, body, []) == {sha256(body)}
    answer = await gateway.client.post(f"/v1/chat/completions?request_hash={sha256(ORIGINAL)}", content=CHANGED)
    found = await gateway.client.get(f"/v1/signature/{answer.json()['id']}?request_hash={sha256(ORIGINAL)}")
    assert split_text(found.json()["text"])[0] == sha256(CHANGED)
