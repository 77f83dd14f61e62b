"""`confide ask`, as a person or a script meets it."""

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from confide.cli.main import app
from confide.client.asking import MAX_ANSWER_BYTES, MAX_DOCUMENT_BYTES
from confide.errors import ConfideError
from gateway_app import ScriptedGateway, answering, serving_scripted, token
from running import home_with_weights, running
from scripted import CLOSE, LAST_CHUNK, REPEAT, Script, ScriptedUpstream, chunk, response, sse_head
from tls_files import self_signed

CONFIDE = Path(sys.executable).parent / "confide"
SIMULATED = "SIMULATED TEE: no hardware protection"
JSON = b"Content-Type: application/json"
CHAT = b'{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"Two."}}]}'


@dataclass
class Outcome:
    """How the command ended."""

    status: int
    stdout: str
    error: ConfideError | None

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    def status_of(self, check_id: str) -> str:
        return next(line.split()[1] for line in self.lines if line.split()[:1] == [check_id])


async def ask(url: str, home: Path, *arguments: str, prompt: str = "Hello", **variables: str) -> Outcome:
    """The command in this process; what it raises is what `main` turns into words and an exit status."""
    environ = {"CONFIDE_HOME": str(home), "CONFIDE_API_KEY": None, "CONFIDE_BASE_URL": url, **variables}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["ask", prompt, *arguments], env=environ)
    if result.exception is None or isinstance(result.exception, SystemExit):
        return Outcome(result.exit_code, result.stdout, None)
    assert isinstance(result.exception, ConfideError), result.exception
    return Outcome(result.exception.exit_status, result.stdout, result.exception)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("The answer", " is 42.")) as service:
        yield service


@contextlib.asynccontextmanager
async def hostile(*scripts: Script) -> AsyncIterator[tuple[str, ScriptedUpstream]]:
    """A service that answers each request with the next script, and its address."""
    async with ScriptedUpstream(*scripts) as upstream:
        yield f"http://127.0.0.1:{upstream.port}", upstream


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
async def test_it_prints_the_answer_then_the_checks_then_the_verdict(
    gateway: ScriptedGateway, tmp_path: Path, how: str
) -> None:
    asked = await ask(gateway.url, tmp_path, how)
    assert asked.status == 0
    assert asked.lines[0] == "The answer is 42."
    for check in ("request-hash", "response-hash", "signature", "tdx.quote", "binding.report-data", "software"):
        assert asked.status_of(check) == "pass"
    assert (asked.status_of("gpu"), asked.status_of("channel")) == ("skip", "skip")
    assert f"pinned: {tmp_path}/simulator/root.pem" in asked.stdout
    assert "anchor: sim:" in asked.stdout
    assert asked.lines[-2].startswith("VERIFIED (SIMULATED ROOT sim:")
    assert asked.lines[-1] == SIMULATED
    assert "\x1b" not in asked.stdout


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_json_is_one_object(gateway: ScriptedGateway, tmp_path: Path, algo: str) -> None:
    asked = await ask(gateway.url, tmp_path, "--json", "--algo", algo)
    document = asked.document
    assert list(document) == ["answer", "id", "verdict", "simulated", "checks", "anchors"]
    assert (document["answer"], document["verdict"], document["simulated"]) == ("The answer is 42.", "VERIFIED", True)
    assert document["id"].startswith("chatcmpl-")
    assert {*document["checks"][0]} == {"id", "status", "reason"}
    assert document["anchors"][0]["simulated"] is True
    assert algo in {check["name"]: check["reason"] for check in document["checks"]}["signature"]


async def test_options_reach_the_request(gateway: ScriptedGateway, tmp_path: Path) -> None:
    arguments = ("--model", "alias/model", "--max-tokens", "7", "--no-stream")
    asked = await ask(gateway.url, tmp_path, *arguments, prompt="Grüß dich, 二!")
    assert asked.status == 0
    forwarded = json.loads(gateway.engine.requests[-1].body)
    assert forwarded["messages"][-1]["content"] == "Grüß dich, 二!"
    assert 7 in forwarded.values()


async def test_the_base_url_may_be_given_as_an_sdk_wants_it(gateway: ScriptedGateway, tmp_path: Path) -> None:
    for url in (f"{gateway.url}/v1", f"{gateway.url}/v1/", f"{gateway.url}/"):
        assert (await ask("http://127.0.0.1:1", tmp_path, "--base-url", url)).status == 0


async def test_the_answer_is_printed_while_it_is_written(tmp_path: Path) -> None:
    gate = asyncio.Event()
    script = [sse_head(), token("Once upon"), gate, *answering(" a time.")[1:]]
    async with serving_scripted(tmp_path, script) as gateway:
        environ = {**os.environ, "CONFIDE_HOME": str(tmp_path), "CONFIDE_BASE_URL": gateway.url}
        process = await asyncio.create_subprocess_exec(
            str(CONFIDE), "ask", "Hello", env=environ, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readexactly(9) == b"Once upon"
            gate.set()
            rest = await process.stdout.read()
        assert rest.startswith(b" a time.\n")
        assert await process.wait() == 0


async def test_the_terminal_obeys_nothing_in_an_answer(tmp_path: Path) -> None:
    hidden = "ok\x1b[2J\x07\x9b1A\r\tfine\n"
    async with serving_scripted(tmp_path, answering(hidden)) as gateway:
        asked = await ask(gateway.url, tmp_path)
        assert asked.stdout.startswith("ok\ufffd[2J\ufffd\ufffd1A\ufffd\tfine\n")
        assert (await ask(gateway.url, tmp_path, "--json")).document["answer"] == hidden


async def test_the_key_comes_from_the_environment_and_is_never_printed(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    _, key = gateway.store.create_key("laptop")
    await gateway.authenticator.refresh()
    asked = await ask(gateway.url, tmp_path, CONFIDE_API_KEY=f"{key}\n")
    assert asked.status == 0
    assert key not in asked.stdout
    for wrong in ("", "cfd_wrong"):
        refused = await ask(gateway.url, tmp_path, CONFIDE_API_KEY=wrong)
        assert refused.status == 1
        assert refused.error is not None
        assert "401" in refused.error.message
        assert "CONFIDE_API_KEY" in str(refused.error.remedy)
        assert "cfd_wrong" not in refused.error.message


async def test_an_unknown_model_is_said_with_a_way_on(gateway: ScriptedGateway, tmp_path: Path) -> None:
    refused = await ask(gateway.url, tmp_path, "--model", "vendor/none")
    assert (refused.status, refused.stdout) == (1, "")
    assert "no such model" in str(refused.error)
    assert refused.error is not None
    assert "--model" in str(refused.error.remedy)


async def test_a_service_that_is_not_ready_is_no_verdict(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.switch.is_ready = False
    refused = await ask(gateway.url, tmp_path)
    assert refused.status == 3
    assert "loading" in str(refused.error)


async def test_nobody_there_is_status_3_and_says_how_to_start_one(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(CONFIDE), "ask", "a secret prompt", "--base-url", "http://127.0.0.1:1"),
        env={**os.environ, "CONFIDE_HOME": str(tmp_path), "CONFIDE_API_KEY": "cfd_secret"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (3, b"")
    assert b"Start one with `confide serve`" in stderr
    assert b"Traceback" not in stderr
    assert b"secret" not in stderr


async def test_an_answer_that_broke_off_is_verified_and_not_called_done(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("The ans"), CLOSE]) as gateway:
        asked = await ask(gateway.url, tmp_path)
    assert asked.status == 3
    assert "broke off" in str(asked.error)
    assert asked.lines[0] == "The ans"
    assert asked.status_of("response-hash") == "pass"


async def test_a_simulated_root_counts_only_where_it_was_pinned(gateway: ScriptedGateway, tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "simulator" / "root.pem"
    unpinned = await ask(gateway.url, elsewhere)
    assert (unpinned.status, unpinned.status_of("tdx.root")) == (1, "fail")
    assert unpinned.lines[-1] == "NOT VERIFIED"
    pinned = await ask(gateway.url, elsewhere, "--trust-root", str(root))
    assert (pinned.status, pinned.lines[-1]) == (0, SIMULATED)


async def test_the_simulator_of_this_machine_counts_only_for_this_machine(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    """0.0.0.0 reaches the same socket, and is no loopback address."""
    url = gateway.url.replace("127.0.0.1", "0.0.0.0")
    asked = await ask(url, tmp_path, HTTP_PROXY="", http_proxy="", ALL_PROXY="", all_proxy="")
    assert (asked.status, asked.status_of("tdx.root")) == (1, "fail")


async def test_roots_that_are_given_replace_the_machines_own(gateway: ScriptedGateway, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path).certificate
    other = tmp_path / "other.pem"
    other.write_bytes(certificate.public_bytes(Encoding.PEM))
    asked = await ask(gateway.url, tmp_path, "--trust-root", str(other))
    assert (asked.status, asked.status_of("tdx.root")) == (1, "fail")
    both = ("--trust-root", str(other), "--trust-root", str(tmp_path / "simulator" / "root.pem"))
    assert (await ask(gateway.url, tmp_path, *both)).status == 0


async def test_evidence_is_judged_at_the_time_that_is_given(gateway: ScriptedGateway, tmp_path: Path) -> None:
    asked = await ask(gateway.url, tmp_path, "--at", "1700000000")
    assert (asked.status, asked.status_of("tdx.quote")) == (1, "fail")
    assert asked.lines[-2].startswith("NOT VERIFIED (SIMULATED ROOT")
    assert asked.lines[-1] == SIMULATED


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-tokens", "0"),
        ("--algo", "rsa"),
        ("--at", "-1"),
        ("--at", "9999999999999"),
        ("--base-url", "ftp://127.0.0.1"),
        ("--base-url", "127.0.0.1:8080"),
        ("--base-url", "http://"),
        ("--base-url", "http://127.0.0.1:99999999"),
        ("--base-url", f"http://{'a' * 70}.example"),
        ("--base-url", "http://a..example"),
        ("--base-url", "http://user:pass@127.0.0.1"),
        ("--trust-root", "absent.pem"),
        ("--trust-root", __file__),
        ("another prompt",),
    ],
    ids=lambda each: " ".join(each)[-40:],
)
async def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert (await ask("http://127.0.0.1:1", tmp_path, *arguments)).status == 2


@pytest.mark.parametrize("key", ["with space", "ключ", "new\nline"])
async def test_a_key_that_cannot_be_one_is_not_shown(tmp_path: Path, key: str) -> None:
    refused = await ask("http://127.0.0.1:1", tmp_path, CONFIDE_API_KEY=key)
    assert refused.status == 2
    assert key not in str(refused.error)


async def test_environment_that_names_no_certificates_is_status_2(tmp_path: Path) -> None:
    refused = await ask("http://127.0.0.1:1", tmp_path, SSL_CERT_FILE=str(tmp_path / "absent.pem"))
    assert refused.status == 2
    assert "SSL_CERT_FILE" in str(refused.error and refused.error.remedy)


# A service that is none, or that wants to hurt.

MODELS = response(b'{"object":"list","data":[{"id":"a/model"}]}', JSON)
SIGNATURE = response(b"{}", JSON)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 3), (b"<html>", 3), (b"[]", 3), (b'{"data":[]}', 3), (b'{"data":[{"id":5}]}', 3), (b"\xff", 3)],
)
async def test_a_page_that_is_no_catalogue_is_no_service(tmp_path: Path, body: bytes, status: int) -> None:
    async with hostile([response(body, JSON)]) as (url, _):
        assert (await ask(url, tmp_path)).status == status


@pytest.mark.parametrize("body", [b"", b"{}", b'{"id":5}', b'{"id":""}', b"\xff", b"[" * 100_000])
async def test_an_answer_without_an_id_has_no_proof(tmp_path: Path, body: bytes) -> None:
    async with hostile([MODELS], [response(body, JSON)]) as (url, _):
        refused = await ask(url, tmp_path, "--no-stream")
    assert refused.status == 1
    assert "no id" in str(refused.error)


async def test_an_id_stays_one_part_of_a_path(tmp_path: Path) -> None:
    strange = CHAT.replace(b"chatcmpl-1", "../../v1/models?x=é#".encode())
    async with hostile([response(strange, JSON)], [SIGNATURE], [SIGNATURE]) as (url, service):
        assert (await ask(url, tmp_path, "--no-stream", "--model", "m")).status == 1
        asked = service.requests[1].target.split(b"?")[0]
    assert asked == b"/v1/signature/..%2F..%2Fv1%2Fmodels%3Fx%3D%C3%A9%23"


async def test_empty_documents_are_failed_checks(tmp_path: Path) -> None:
    async with hostile([response(CHAT, JSON)], [SIGNATURE], [SIGNATURE]) as (url, _):
        asked = await ask(url, tmp_path, "--no-stream", "--model", "m")
    assert (asked.status, asked.lines[0], asked.lines[-1]) == (1, "Two.", "NOT VERIFIED")


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    elsewhere = response(b"", b"Location: http://127.0.0.1:1/", status=b"307 Temporary Redirect")
    async with hostile([elsewhere]) as (url, service):
        refused = await ask(url, tmp_path, "--model", "m", CONFIDE_API_KEY="cfd_key")
        assert len(service.requests) == 1
    assert refused.status == 1
    assert "307" in str(refused.error)


async def test_a_compressed_answer_is_refused(tmp_path: Path) -> None:
    async with hostile([response(CHAT, JSON, b"Content-Encoding: gzip")]) as (url, service):
        refused = await ask(url, tmp_path, "--no-stream", "--model", "m")
        assert (b"accept-encoding", b"identity") in service.requests[0].headers
    assert refused.status == 1
    assert "compressed" in str(refused.error)


async def test_an_answer_that_is_cut_cannot_be_told(tmp_path: Path) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + CHAT
    async with hostile([cut, CLOSE]) as (url, _):
        assert (await ask(url, tmp_path, "--no-stream", "--model", "m")).status == 3


async def test_a_refusal_that_is_no_error_document_is_still_a_sentence(tmp_path: Path) -> None:
    for status, expected in ((b"502 Bad Gateway", 3), (b"403 Forbidden", 1)):
        async with hostile([response(b"\x1b[2J<html>", status=status)]) as (url, _):
            refused = await ask(url, tmp_path, "--model", "m")
        assert refused.status == expected
        assert str(refused.error).isprintable()


async def test_a_report_has_a_largest_size(tmp_path: Path) -> None:
    many = response(b" " * (MAX_DOCUMENT_BYTES + 1), JSON)
    async with hostile([response(CHAT, JSON)], [SIGNATURE], [many]) as (url, _):
        refused = await ask(url, tmp_path, "--no-stream", "--model", "m")
    assert refused.status == 1
    assert f"report is larger than {MAX_DOCUMENT_BYTES}" in str(refused.error)


async def test_an_answer_has_a_largest_size(tmp_path: Path) -> None:
    comment = chunk((b": " + b"x" * 1021 + b"\n\n") * 1024)
    async with hostile([sse_head(), REPEAT, comment, LAST_CHUNK]) as (url, _):
        refused = await ask(url, tmp_path, "--model", "m")
    assert refused.status == 1
    assert f"answer is larger than {MAX_ANSWER_BYTES}" in str(refused.error)


# TLS.


async def test_a_certificate_that_nobody_vouches_for_is_status_3(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with ScriptedUpstream([MODELS], tls=context) as service:
        url = f"https://127.0.0.1:{service.port}"
        refused = await ask(url, tmp_path)
        assert service.requests == []
        assert refused.status == 3
        assert "SSL_CERT_FILE" in str(refused.error and refused.error.remedy)
        assert (await ask(url, tmp_path, SSL_CERT_FILE=str(files.cert))).status == 1  # asked: there is no answer


@pytest.mark.engine
async def test_over_tls_the_channel_is_bound(tmp_path: Path, engine_home: Path) -> None:
    home, files = home_with_weights(tmp_path, engine_home), self_signed(tmp_path)
    config = f'[server]\ntls_cert = "{files.cert}"\ntls_key = "{files.key}"\n'
    with running(home, config=config) as service:
        asked = await ask(service.url, home, "--max-tokens", "4", SSL_CERT_FILE=str(files.cert))
    assert asked.status == 0, asked.error
    assert (asked.status_of("channel"), asked.status_of("binding.report-data")) == ("pass", "pass")
    assert files.spki_sha256.hex() in asked.stdout
