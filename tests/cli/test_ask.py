"""`confide ask`, as a person or a script meets it."""

import asyncio
import contextlib
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attested_service import ANSWER, Reply, Seen, serving
from cli.outcome import SIMULATED, Outcome, run
from confide.client.asking import MAX_ANSWER_BYTES, MAX_DOCUMENT_BYTES
from gateway_app import ScriptedGateway, answering, serving_scripted, token
from running import home_with_weights, running
from scripted import CLOSE, LAST_CHUNK, REPEAT, Script, ScriptedUpstream, chunk, response, sse_head
from tls_files import self_signed

CONFIDE = Path(sys.executable).parent / "confide"
JSON = b"Content-Type: application/json"
SIGNATURE_PROOF = ("--signature", "ecdsa")
BOTH = pytest.mark.parametrize("how", [(), SIGNATURE_PROOF], ids=["receipt", "signature"])
CHAT = b'{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"Two."}}]}'


async def ask(url: str, home: Path, *arguments: str, prompt: str = "Hello", **variables: str) -> Outcome:
    return await run("ask", prompt, *arguments, home=home, CONFIDE_BASE_URL=url, **variables)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("The answer", " is 42.")) as service:
        yield service


@contextlib.asynccontextmanager
async def hostile(*scripts: Script) -> AsyncIterator[tuple[str, ScriptedUpstream]]:
    """A service that answers each request with the next script, and its address."""
    async with ScriptedUpstream(*scripts) as upstream:
        yield f"http://127.0.0.1:{upstream.port}", upstream


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
async def test_it_prints_the_answer_then_the_checks_then_the_verdict(
    gateway: ScriptedGateway, tmp_path: Path, stream: str
) -> None:
    asked = await ask(gateway.url, tmp_path, stream)
    assert asked.status == 0
    assert asked.lines[0] == "The answer is 42."
    names = [line.split()[0] for line in asked.lines[2:] if line]
    assert names[:2] == ["check", "receipt-1"]
    assert names.index("receipt-4") < names.index("id-1") < names.index("id-6") < names.index("tdx.quote")
    for check in (*(f"receipt-{number}" for number in range(1, 5)), "upstream-1", "id-1", "id-2", "id-3", "tdx.quote"):
        assert asked.status_of(check) == "pass"
    assert f"pinned: {tmp_path}/simulator/root.pem" in asked.stdout
    assert "anchor: sim:" in asked.stdout
    assert asked.lines[-1] == SIMULATED
    assert "\x1b" not in asked.stdout


async def test_plain_http_to_this_machine_is_accepted_and_called_partial(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    asked = await ask(gateway.url, tmp_path)
    assert (asked.status, asked.status_of("id-6")) == (0, "skip")
    assert asked.lines[-3] == "not shown, and accepted by the policy: id-6"
    assert asked.lines[-2].startswith("PARTIAL (SIMULATED ROOT sim:")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
async def test_the_request_signature_is_checked_when_it_is_asked_for(
    gateway: ScriptedGateway, tmp_path: Path, stream: str
) -> None:
    asked = await ask(gateway.url, tmp_path, *SIGNATURE_PROOF, stream)
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


MEMBERS = ["answer", "id", "verdict", "ok", "simulated", "now", "checks", "anchors", "facts"]


async def test_json_is_one_object(gateway: ScriptedGateway, tmp_path: Path) -> None:
    before = int(time.time())
    document = (await ask(gateway.url, tmp_path, "--json")).document
    assert list(document) == MEMBERS
    assert (document["answer"], document["verdict"], document["ok"]) == ("The answer is 42.", "PARTIAL", True)
    assert document["id"].startswith("chatcmpl-")
    assert document["simulated"] is True
    assert before <= document["now"] <= time.time()
    assert {*document["checks"][0]} == {"name", "status", "reason"}
    assert document["anchors"][0]["simulated"] is True
    assert document["facts"]["serving"] == "direct"


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_json_of_a_signature_is_one_object(gateway: ScriptedGateway, tmp_path: Path, algo: str) -> None:
    asked = await ask(gateway.url, tmp_path, "--json", "--signature", algo)
    document = asked.document
    assert list(document) == MEMBERS
    assert (document["answer"], document["verdict"], document["simulated"]) == ("The answer is 42.", "VERIFIED", True)
    assert document["id"].startswith("chatcmpl-")
    assert {*document["checks"][0]} == {"name", "status", "reason"}
    assert document["anchors"][0]["simulated"] is True
    assert algo in {check["name"]: check["reason"] for check in document["checks"]}["signature"]


@BOTH
async def test_options_reach_the_request(gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]) -> None:
    arguments = (*how, "--model", "alias/model", "--max-tokens", "7", "--no-stream")
    asked = await ask(gateway.url, tmp_path, *arguments, prompt="Grüß dich, 二!")
    assert asked.status == 0
    forwarded = json.loads(gateway.engine.requests[-1].body)
    assert forwarded["messages"][-1]["content"] == "Grüß dich, 二!"
    assert 7 in forwarded.values()


async def test_the_base_url_may_be_given_as_an_sdk_wants_it(gateway: ScriptedGateway, tmp_path: Path) -> None:
    for url in (f"{gateway.url}/v1", f"{gateway.url}/v1/", f"{gateway.url}/"):
        assert (await ask("http://127.0.0.1:1", tmp_path, "--base-url", url)).status == 0


@BOTH
async def test_the_answer_is_printed_while_it_is_written(tmp_path: Path, how: tuple[str, ...]) -> None:
    gate = asyncio.Event()
    script = [sse_head(), token("Once upon"), gate, *answering(" a time.")[1:]]
    async with serving_scripted(tmp_path, script) as gateway:
        environ = {**os.environ, "CONFIDE_HOME": str(tmp_path), "CONFIDE_BASE_URL": gateway.url}
        process = await asyncio.create_subprocess_exec(
            str(CONFIDE), "ask", "Hello", *how, env=environ, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readexactly(9) == b"Once upon"
            gate.set()
            rest = await process.stdout.read()
        assert rest.startswith(b" a time.\n")
        assert await process.wait() == 0


@BOTH
async def test_the_terminal_obeys_nothing_in_an_answer(tmp_path: Path, how: tuple[str, ...]) -> None:
    hidden = "ok\x1b[2J\x07\x9b1A\r\tfine\n"
    async with serving_scripted(tmp_path, answering(hidden)) as gateway:
        asked = await ask(gateway.url, tmp_path, *how)
        assert asked.stdout.startswith("ok\ufffd[2J\ufffd\ufffd1A\ufffd\tfine\n")
        assert (await ask(gateway.url, tmp_path, *how, "--json")).document["answer"] == hidden


@BOTH
async def test_the_key_comes_from_the_environment_and_is_never_printed(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    _, key = gateway.store.create_key("laptop")
    await gateway.authenticator.refresh()
    asked = await ask(gateway.url, tmp_path, *how, CONFIDE_API_KEY=f"{key}\n")
    assert asked.status == 0
    assert key not in asked.stdout
    for wrong in ("", "cfd_wrong"):
        refused = await ask(gateway.url, tmp_path, *how, CONFIDE_API_KEY=wrong)
        assert refused.status == 1
        assert refused.error is not None
        assert "401" in refused.error.message
        assert "CONFIDE_API_KEY" in str(refused.error.remedy)
        assert "cfd_wrong" not in refused.error.message


@BOTH
async def test_an_unknown_model_is_said_with_a_way_on(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    refused = await ask(gateway.url, tmp_path, *how, "--model", "vendor/none")
    assert (refused.status, refused.stdout) == (1, "")
    assert "no such model" in str(refused.error)
    assert refused.error is not None
    assert "--model" in str(refused.error.remedy)


@BOTH
async def test_a_service_that_is_not_ready_is_no_verdict(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    gateway.switch.is_ready = False
    refused = await ask(gateway.url, tmp_path, *how)
    assert refused.status == 3
    assert "loading" in str(refused.error)


@BOTH
async def test_nobody_there_is_status_3_and_says_how_to_start_one(tmp_path: Path, how: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(CONFIDE), "ask", "a secret prompt", *how, "--base-url", "http://127.0.0.1:1"),
        env={**os.environ, "CONFIDE_HOME": str(tmp_path), "CONFIDE_API_KEY": "cfd_secret"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (3, b"")
    assert b"Start one with `confide serve`" in stderr
    assert b"Traceback" not in stderr
    assert b"secret" not in stderr


@pytest.mark.parametrize(("how", "response_check"), [((), "receipt-4"), (SIGNATURE_PROOF, "response-hash")])
async def test_an_answer_that_broke_off_is_verified_and_not_called_done(
    tmp_path: Path, how: tuple[str, ...], response_check: str
) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("The ans"), CLOSE]) as gateway:
        asked = await ask(gateway.url, tmp_path, *how)
    assert asked.status == 3
    assert "broke off" in str(asked.error)
    assert asked.lines[0] == "The ans"
    assert asked.status_of(response_check) == "pass"


@BOTH
async def test_a_simulated_root_counts_only_where_it_was_pinned(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "simulator" / "root.pem"
    unpinned = await ask(gateway.url, elsewhere, *how)
    assert (unpinned.status, unpinned.status_of("tdx.root")) == (1, "fail")
    assert unpinned.lines[-1] == "NOT VERIFIED"
    pinned = await ask(gateway.url, elsewhere, *how, "--trust-root", str(root))
    assert (pinned.status, pinned.lines[-1]) == (0, SIMULATED)


@BOTH
async def test_the_simulator_of_this_machine_counts_only_for_this_machine(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    """0.0.0.0 reaches the same socket, and is no loopback address."""
    url = gateway.url.replace("127.0.0.1", "0.0.0.0")
    asked = await ask(url, tmp_path, *how, HTTP_PROXY="", http_proxy="", ALL_PROXY="", all_proxy="")
    assert (asked.status, asked.status_of("tdx.root")) == (1, "fail")


@BOTH
async def test_roots_that_are_given_replace_the_machines_own(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    certificate = self_signed(tmp_path).certificate
    other = tmp_path / "other.pem"
    other.write_bytes(certificate.public_bytes(Encoding.PEM))
    asked = await ask(gateway.url, tmp_path, *how, "--trust-root", str(other))
    assert (asked.status, asked.status_of("tdx.root")) == (1, "fail")
    both = ("--trust-root", str(other), "--trust-root", str(tmp_path / "simulator" / "root.pem"))
    assert (await ask(gateway.url, tmp_path, *how, *both)).status == 0


@BOTH
async def test_evidence_is_judged_at_the_time_that_is_given(
    gateway: ScriptedGateway, tmp_path: Path, how: tuple[str, ...]
) -> None:
    asked = await ask(gateway.url, tmp_path, *how, "--at", "1700000000")
    assert (asked.status, asked.status_of("tdx.quote")) == (1, "fail")
    assert asked.lines[-2].startswith("NOT VERIFIED (SIMULATED ROOT")
    assert asked.lines[-1] == SIMULATED


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-tokens", "0"),
        ("--signature", "rsa"),
        ("--signature",),
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
        ("--accept-tcb", "Fine"),
        ("--compose-hash", "abc"),
        ("--claim", "unheard_of"),
        ("--max-keyset-age", "0"),
        ("--bundle", "no/such/directory/answer.json"),
        ("--bundle", "."),
        ("--allow-simulated",),
        (*SIGNATURE_PROOF, "--bundle", "answer.json"),
        ("--bodies",),
        (*SIGNATURE_PROOF, "--claim", "tee_attested"),
        (*SIGNATURE_PROOF, "--compose-hash", "ab" * 32),
        (*SIGNATURE_PROOF, "--max-keyset-age", "60"),
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
    refused = await ask("http://127.0.0.1:1", tmp_path, *SIGNATURE_PROOF, SSL_CERT_FILE=str(tmp_path / "absent.pem"))
    assert refused.status == 2
    assert "SSL_CERT_FILE" in str(refused.error and refused.error.remedy)


# A service whose answers do not hold: the default proof. Its older sister is attacked in tests/adversary.


async def test_over_attested_tls_the_verdict_is_whole(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        asked = await ask(service.url, tmp_path)
    assert (asked.status, asked.lines[0], asked.status_of("id-6")) == (0, ANSWER, "pass")
    assert asked.lines[-2].startswith("VERIFIED (SIMULATED ROOT sim:")
    assert asked.lines[-1] == SIMULATED


async def test_nothing_is_told_to_a_service_before_it_is_verified(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        assert (await ask(service.url, tmp_path, CONFIDE_API_KEY="sk-secret")).status == 0
        assert service.seen[0].path == "/v1/aci/attestation"
        assert "sk-secret" not in str(service.seen[0])
        assert service.prompts[0].headers["authorization"] == "Bearer sk-secret"
        service.seen.clear()
        refused = await ask(service.url, tmp_path / "elsewhere", CONFIDE_API_KEY="sk-secret")
        assert (refused.status, refused.check, refused.lines[-1]) == (1, "id-1", "NOT VERIFIED")
        assert [seen.path for seen in service.seen] == ["/v1/aci/attestation"]


async def test_a_streamed_answer_that_was_altered_is_followed_by_a_refusal(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        service.alter["answer"] = lambda reply, _: reply.replacing(b"42.", b"43.")
        asked = await ask(service.url, tmp_path)
        document = (await ask(service.url, tmp_path, "--json")).document
    assert (asked.status, asked.lines[0], asked.check) == (1, "The answer is 43.", "receipt-4")
    assert asked.status_of("receipt-4") == "fail"
    assert asked.status_of("id-1") == "pass"
    assert asked.lines[-2].startswith("NOT VERIFIED (SIMULATED ROOT sim:")
    assert asked.lines[-1] == SIMULATED
    assert (document["answer"], document["verdict"], document["ok"]) == ("The answer is 43.", "NOT VERIFIED", False)
    assert document["id"] is None


async def test_a_buffered_answer_that_was_altered_is_not_shown(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        service.alter["answer"] = lambda reply, _: reply.replacing(b"42.", b"43.")
        asked = await ask(service.url, tmp_path, "--no-stream")
    assert (asked.status, asked.check) == (1, "receipt-4")
    assert "43." not in asked.stdout
    assert asked.lines[0].startswith("check")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
async def test_an_answer_without_a_receipt_is_not_verified(tmp_path: Path, stream: str) -> None:
    bundle = tmp_path / "answer.json"
    with serving(tmp_path, tls=True) as service:
        service.alter["answer"] = lambda reply, _: reply.but(x_receipt_id=None)
        asked = await ask(service.url, tmp_path, stream, "--bundle", str(bundle))
        service.alter = {"receipt": lambda reply, _: reply.but(status=404)}
        lost = await ask(service.url, tmp_path, stream)
    assert (asked.status, asked.names, asked.lines[-1]) == (1, ["receipt-1"], "NOT VERIFIED")
    assert (lost.status, lost.names, lost.lines[-1]) == (1, ["receipt-1"], "NOT VERIFIED")
    assert not bundle.exists()


async def test_a_stream_that_is_cut_is_not_verified(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        service.alter["answer"] = lambda reply, _: reply.but(*reply.parts[:3]).cut()
        asked = await ask(service.url, tmp_path)
    assert (asked.status, asked.lines[0], asked.lines[-1]) == (1, "The answer is ", "NOT VERIFIED")
    assert asked.check == "receipt-4"


async def test_a_service_without_a_report_cannot_be_told(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.alter["report"] = lambda reply, _: reply.but(b"<html>", status=503)
        asked = await ask(service.url, tmp_path)
        assert service.prompts == []
    assert asked.status == 3
    assert "503" in str(asked.error)


async def test_without_collateral_nobody_can_tell(tmp_path: Path) -> None:
    def stripped(reply: Reply, _: Seen) -> Reply:
        report = reply.document
        del report["attestation"]["evidence"]["collateral"]
        return reply.holding(report)

    with serving(tmp_path) as service:
        service.alter["report"] = stripped
        asked = await ask(service.url, tmp_path, "--json", "--offline")
        assert service.prompts == []
    assert (asked.status, asked.document["verdict"], asked.document["ok"]) == (3, "PARTIAL", False)
    assert "collateral" in str(asked.error)


async def test_the_policy_is_asked_before_the_question_is(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        asked = await ask(service.url, tmp_path, "--claim", "gpu_attested")
        assert service.prompts == []
    assert (asked.status, asked.check) == (1, "policy-claims")


async def test_certificates_of_the_environment_that_are_none_are_status_2(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    """A keyset without TLS keys leaves the connection to the authorities that the environment names."""
    refused = await ask(gateway.url, tmp_path, SSL_CERT_FILE=str(tmp_path / "absent.pem"))
    assert refused.status == 2
    assert "SSL_CERT_FILE" in refused.remedy


# A service that is none, or that wants to hurt.

MODELS = response(b'{"object":"list","data":[{"id":"a/model"}]}', JSON)
SIGNATURE = response(b"{}", JSON)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 3), (b"<html>", 3), (b"[]", 3), (b'{"data":[]}', 3), (b'{"data":[{"id":5}]}', 3), (b"\xff", 3)],
)
async def test_a_page_that_is_no_catalogue_is_no_service(tmp_path: Path, body: bytes, status: int) -> None:
    async with hostile([response(body, JSON)]) as (url, _):
        assert (await ask(url, tmp_path, *SIGNATURE_PROOF)).status == status


@pytest.mark.parametrize("body", [b"", b"{}", b'{"id":5}', b'{"id":""}', b"\xff", b"[" * 100_000])
async def test_an_answer_without_an_id_has_no_proof(tmp_path: Path, body: bytes) -> None:
    async with hostile([MODELS], [response(body, JSON)]) as (url, _):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream")
    assert refused.status == 1
    assert "no id" in str(refused.error)


async def test_an_id_stays_one_part_of_a_path(tmp_path: Path) -> None:
    strange = CHAT.replace(b"chatcmpl-1", "../../v1/models?x=é#".encode())
    async with hostile([response(strange, JSON)], [SIGNATURE], [SIGNATURE]) as (url, service):
        assert (await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream", "--model", "m")).status == 1
        asked = service.requests[1].target.split(b"?")[0]
    assert asked == b"/v1/signature/..%2F..%2Fv1%2Fmodels%3Fx%3D%C3%A9%23"


async def test_empty_documents_are_failed_checks(tmp_path: Path) -> None:
    async with hostile([response(CHAT, JSON)], [SIGNATURE], [SIGNATURE]) as (url, _):
        asked = await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream", "--model", "m")
    assert (asked.status, asked.lines[0], asked.lines[-1]) == (1, "Two.", "NOT VERIFIED")


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    elsewhere = response(b"", b"Location: http://127.0.0.1:1/", status=b"307 Temporary Redirect")
    async with hostile([elsewhere]) as (url, service):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--model", "m", CONFIDE_API_KEY="cfd_key")
        assert len(service.requests) == 1
    assert refused.status == 1
    assert "307" in str(refused.error)


async def test_a_redirect_to_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    nowhere = response(b"", b"Location: //:1", status=b"307 Temporary Redirect")
    async with hostile([nowhere]) as (url, _):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--model", "m")
    assert refused.status == 1
    assert "redirect" in str(refused.error)


async def test_a_compressed_answer_is_refused(tmp_path: Path) -> None:
    async with hostile([response(CHAT, JSON, b"Content-Encoding: gzip")]) as (url, service):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream", "--model", "m")
        assert (b"accept-encoding", b"identity") in service.requests[0].headers
    assert refused.status == 1
    assert "compressed" in str(refused.error)


async def test_an_answer_that_is_cut_cannot_be_told(tmp_path: Path) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + CHAT
    async with hostile([cut, CLOSE]) as (url, _):
        assert (await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream", "--model", "m")).status == 3


async def test_a_refusal_that_is_no_error_document_is_still_a_sentence(tmp_path: Path) -> None:
    for status, expected in ((b"502 Bad Gateway", 3), (b"403 Forbidden", 1)):
        async with hostile([response(b"\x1b[2J<html>", status=status)]) as (url, _):
            refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--model", "m")
        assert refused.status == expected
        assert str(refused.error).isprintable()


async def test_a_report_has_a_largest_size(tmp_path: Path) -> None:
    many = response(b" " * (MAX_DOCUMENT_BYTES + 1), JSON)
    async with hostile([response(CHAT, JSON)], [SIGNATURE], [many]) as (url, _):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--no-stream", "--model", "m")
    assert refused.status == 1
    assert f"report is larger than {MAX_DOCUMENT_BYTES}" in str(refused.error)


async def test_an_answer_has_a_largest_size(tmp_path: Path) -> None:
    comment = chunk((b": " + b"x" * 1021 + b"\n\n") * 1024)
    async with hostile([sse_head(), REPEAT, comment, LAST_CHUNK]) as (url, _):
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF, "--model", "m")
    assert refused.status == 1
    assert f"answer is larger than {MAX_ANSWER_BYTES}" in str(refused.error)


# TLS.


async def test_a_certificate_that_nobody_vouches_for_is_status_3(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with ScriptedUpstream([MODELS], tls=context) as service:
        url = f"https://127.0.0.1:{service.port}"
        refused = await ask(url, tmp_path, *SIGNATURE_PROOF)
        assert service.requests == []
        assert refused.status == 3
        assert "SSL_CERT_FILE" in str(refused.error and refused.error.remedy)
        assert (
            await ask(url, tmp_path, *SIGNATURE_PROOF, SSL_CERT_FILE=str(files.cert))
        ).status == 1  # asked: there is no answer


@pytest.mark.engine
async def test_over_tls_the_channel_is_bound(tmp_path: Path, engine_home: Path) -> None:
    home, files = home_with_weights(tmp_path, engine_home), self_signed(tmp_path)
    config = f'[server]\ntls_cert = "{files.cert}"\ntls_key = "{files.key}"\n'
    with running(home, config=config) as service:
        asked = await ask(service.url, home, *SIGNATURE_PROOF, "--max-tokens", "4", SSL_CERT_FILE=str(files.cert))
    assert asked.status == 0, asked.error
    assert (asked.status_of("channel"), asked.status_of("binding.report-data")) == ("pass", "pass")
    assert files.spki_sha256.hex() in asked.stdout
