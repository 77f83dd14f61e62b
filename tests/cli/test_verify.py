"""`confide verify`, as a person or a script meets it."""

import asyncio
import os
import pty
import re
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attested_service import Reply, Seen, serving
from cli.outcome import SIMULATED, Outcome, run
from confide.attester.seed import load_seed
from confide.protocol.bundle import parse_bundle
from confide.simulator.gpu import gpu_payload
from confide.simulator.nras import NrasFault, SimulatedNras
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.tdx import SimulatedTdxPlatform
from gateway_app import ScriptedGateway, answering, serving_scripted
from gpu_builders import SEED as GPU_SEED
from gpu_builders import gpus
from running import home_with_weights, running
from scripted import ScriptedUpstream, response
from tls_files import self_signed
from vendors import Vendors
from vendors import serving as listening_vendors

CONFIDE = Path(sys.executable).parent / "confide"
ON_PLAIN_HTTP = ("--allow-simulated", "--no-require-channel")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("unused")) as service:
        yield service


async def verify(url: str, home: Path, *arguments: str, **variables: str) -> Outcome:
    return await run("verify", url, *arguments, home=home, **variables)


async def test_it_shows_every_check_in_order_then_the_anchor_then_the_verdict(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    verified = await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP)
    assert verified.status == 0, verified.error
    assert verified.names[:6] == [f"id-{number}" for number in range(1, 7)]
    assert {"tdx.quote", "tdx.tcb", "binding.report-data"} <= set(verified.names)
    assert f"pinned: {tmp_path}/simulator/root.pem" in verified.stdout
    assert "anchor: sim:" in verified.stdout
    assert verified.lines[-3] == "not shown, and accepted by the policy: id-6"
    assert verified.lines[-2].startswith("PARTIAL (SIMULATED ROOT sim:")
    assert verified.lines[-1] == SIMULATED
    assert "\x1b" not in verified.stdout
    assert gateway.engine.requests == []


async def test_piped_output_has_one_line_a_check(gateway: ScriptedGateway, tmp_path: Path) -> None:
    verified = await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, COLUMNS="40")
    listed = verified.lines[1 : verified.lines.index("")]
    assert len(listed) == len(verified.names) > 10
    assert max(map(len, listed)) > 120


async def test_json_is_one_object(gateway: ScriptedGateway, tmp_path: Path) -> None:
    before = int(time.time())
    document = (await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, "--json")).document
    assert list(document) == ["verdict", "ok", "simulated", "now", "checks", "anchors", "facts"]
    assert (document["verdict"], document["ok"], document["simulated"]) == ("PARTIAL", True, True)
    assert before <= document["now"] <= time.time()
    assert {*document["checks"][0]} == {"name", "status", "reason"}
    assert {*document["anchors"][0]} == {"name", "sha256", "simulated"}
    assert document["facts"]["serving"] == "direct"


async def test_a_simulated_tee_is_refused_unless_it_is_asked_for(gateway: ScriptedGateway, tmp_path: Path) -> None:
    refused = await verify(gateway.url, tmp_path, "--no-require-channel")
    assert (refused.status, refused.status_of("id-1"), refused.lines[-1]) == (1, "fail", "NOT VERIFIED")
    assert refused.check == "id-1"
    assert "--allow-simulated" in refused.remedy
    root = str(tmp_path / "simulator" / "root.pem")
    assert (await verify(gateway.url, tmp_path / "elsewhere", "--no-require-channel", "--trust-root", root)).status == 0


async def test_plain_http_is_refused_and_the_remedy_says_what_to_add(gateway: ScriptedGateway, tmp_path: Path) -> None:
    refused = await verify(gateway.url, tmp_path, "--allow-simulated")
    assert (refused.status, refused.check, refused.status_of("id-6")) == (1, "id-6", "fail")
    assert refused.remedy.startswith("If you started this service yourself, add --no-require-channel")
    assert refused.lines[-2].startswith("NOT VERIFIED (SIMULATED ROOT")
    assert refused.lines[-1] == SIMULATED
    both = await verify(gateway.url, tmp_path)
    assert "--allow-simulated" in both.remedy
    assert "--no-require-channel" in both.remedy


async def test_a_service_elsewhere_is_not_excused_with_options(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """0.0.0.0 reaches the same socket, and is no loopback address."""
    url = gateway.url.replace("127.0.0.1", "0.0.0.0")
    refused = await verify(url, tmp_path, HTTP_PROXY="", http_proxy="", ALL_PROXY="", all_proxy="")
    assert (refused.status, refused.remedy) == (1, "Do not rely on this service.")


async def test_the_options_of_the_policy_are_demanded(gateway: ScriptedGateway, tmp_path: Path) -> None:
    shown = (await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, "--json")).document
    reason = next(check["reason"] for check in shown["checks"] if check["name"] == "id-4")
    measured = reason.split("SHA-256 ")[1].split(",")[0]
    for arguments, check, status in (
        (("--compose-hash", f"sha256:{measured.upper()}"), "policy-compose", 0),
        (("--compose-hash", measured, "--compose-hash", "ab" * 32), "policy-compose", 0),
        (("--compose-hash", "ab" * 32), "policy-compose", 1),
        (("--claim", "tcb_up_to_date", "--claim", "tee_attested"), "policy-claims", 0),
        (("--claim", "gpu_attested"), "policy-claims", 1),
        (("--max-keyset-age", "60"), "policy-keyset-age", 1),
        (("--accept-tcb", "SWHardeningNeeded"), "tdx.tcb", 0),
    ):
        verified = await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, *arguments)
        assert (verified.status, verified.status_of(check)) == (status, "fail" if status else "pass"), arguments


async def test_it_verifies_as_of_the_time_that_is_given(gateway: ScriptedGateway, tmp_path: Path) -> None:
    verified = await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, "--at", "1700000000", "--json")
    assert (verified.status, verified.document["now"], verified.document["verdict"]) == (1, 1700000000, "NOT VERIFIED")


async def test_the_bundle_holds_the_proof_of_the_service_and_no_answers(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    path = tmp_path / "service.json"
    verified = await verify(gateway.url, tmp_path, *ON_PLAIN_HTTP, "--bundle", str(path))
    assert verified.status == 0
    assert f"bundle: {path}" in verified.lines
    bundle = parse_bundle(path.read_bytes())
    assert (bundle.service.url, bundle.answers) == (gateway.url, ())
    assert path.stat().st_mode & 0o777 == 0o600
    audited = await run("audit", str(path), *ON_PLAIN_HTTP, home=tmp_path)
    assert (audited.status, audited.lines[-1]) == (0, SIMULATED)


async def test_a_service_that_does_not_hold_leaves_a_bundle_too_for_whoever_asks_why(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    path = tmp_path / "service.json"
    assert (await verify(gateway.url, tmp_path, "--bundle", str(path))).status == 1
    assert (await run("audit", str(path), home=tmp_path)).status == 1


@pytest.mark.parametrize("report", [b"", b"{}", b"<html>", b"\xff", b"[" * 100_000, b'{"api_version":"aci/1"}'])
async def test_what_is_no_report_is_not_verified(tmp_path: Path, report: bytes) -> None:
    path = tmp_path / "service.json"
    async with ScriptedUpstream([response(report)]) as service:
        refused = await verify(f"http://127.0.0.1:{service.port}", tmp_path, "--bundle", str(path))
    assert (refused.status, refused.check, refused.lines[-1]) == (1, "id-1", "NOT VERIFIED")
    assert not path.exists()


async def test_a_report_for_another_nonce_is_not_verified(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        old = await service.report("ab" * 32)
        service.alter["report"] = lambda reply, _: reply.holding(old)
        refused = await verify(service.url, tmp_path, "--allow-simulated")
        del service.alter["report"]
        honest = await verify(service.url, tmp_path, "--allow-simulated")
    assert (refused.status, refused.check, refused.status_of("id-1")) == (1, "id-2", "pass")
    assert (honest.status, honest.error) == (0, None)


async def test_without_collateral_nobody_can_tell(tmp_path: Path) -> None:
    def stripped(reply: Reply, _: Seen) -> Reply:
        report = reply.document
        del report["attestation"]["evidence"]["collateral"]
        return reply.holding(report)

    with serving(tmp_path) as service:
        service.alter["report"] = stripped
        refused = await verify(service.url, tmp_path, *ON_PLAIN_HTTP, "--json", "--offline")
    assert (refused.status, refused.document["verdict"]) == (3, "PARTIAL")
    assert "collateral" in str(refused.error)


async def test_nobody_there_is_status_3(tmp_path: Path) -> None:
    refused = await verify("http://127.0.0.1:1", tmp_path, "--no-require-channel")
    assert (refused.status, refused.stdout) == (3, "")
    assert "confide serve" in refused.remedy


async def test_a_service_that_has_no_report_is_status_3(tmp_path: Path) -> None:
    async with ScriptedUpstream([response(b"{}", status=b"404 Not Found")]) as service:
        refused = await verify(f"http://127.0.0.1:{service.port}", tmp_path)
    assert refused.status == 3
    assert "404" in str(refused.error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("127.0.0.1:8080",),
        ("ftp://127.0.0.1",),
        ("http://user:pass@127.0.0.1",),
        (),
        ("http://127.0.0.1:1", "--allow-simulated"),
        ("http://127.0.0.1:1", "--trust-root", "absent.pem"),
        ("http://127.0.0.1:1", "--trust-root", __file__),
        ("http://127.0.0.1:1", "--at", "soon"),
        ("http://127.0.0.1:1", "--accept-tcb", "Revoked"),
        ("http://127.0.0.1:1", "--compose-hash", "xyz"),
        ("http://127.0.0.1:1", "--claim", "is_good"),
        ("http://127.0.0.1:1", "--bundle", "no/such/directory/file.json"),
    ],
    ids=lambda each: " ".join(each)[-40:],
)
async def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert (await run("verify", *arguments, home=tmp_path)).status == 2


async def test_a_machine_without_a_simulator_says_how_to_get_one(tmp_path: Path) -> None:
    refused = await verify("http://127.0.0.1:1", tmp_path / "nothing", "--allow-simulated")
    assert "confide serve" in refused.remedy
    assert not (tmp_path / "nothing").exists()


async def test_a_proxy_that_is_none_is_status_2(tmp_path: Path) -> None:
    environ = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "socks5://127.0.0.1:1")
    refused = await verify("https://confide.example", tmp_path, NO_PROXY="", no_proxy="", **environ)
    assert refused.status == 2
    assert "PROXY" in refused.remedy


async def test_a_terminal_gets_colour_and_wrapped_reasons(gateway: ScriptedGateway, tmp_path: Path) -> None:
    shown = await asyncio.to_thread(on_a_terminal, "verify", gateway.url, *ON_PLAIN_HTTP, home=tmp_path)
    assert "\x1b[32mpass" in shown
    assert "\x1b[33mskip" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[-1] == SIMULATED
    assert max(map(len, lines[: lines.index("")])) == 100


def on_a_terminal(*arguments: str, home: Path) -> str:
    """What the command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "CONFIDE_HOME": str(home), "COLUMNS": "100", "TERM": "xterm-256color"}
    environ.pop("NO_COLOR", None)
    process = subprocess.Popen([CONFIDE, *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=environ)
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 4096):
            written += data
    except OSError:  # how Linux tells that the other side of a terminal is closed
        pass
    finally:
        os.close(ours)
        process.wait(30)
    return written.decode()


async def test_over_tls_that_does_not_end_in_the_tee_the_channel_fails(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    """Whoever ends TLS in front of the service reads along."""
    report = (await gateway.client.get(f"/v1/aci/attestation?nonce={'ab' * 32}")).content
    files = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with ScriptedUpstream([response(report)], tls=context) as service:
        refused = await verify(f"https://127.0.0.1:{service.port}", tmp_path, "--allow-simulated")
    assert (refused.status, refused.status_of("id-6")) == (1, "fail")


async def test_over_attested_tls_the_channel_is_shown_and_the_verdict_is_whole(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as service:
        verified = await verify(service.url, tmp_path, "--allow-simulated")
    assert (verified.status, verified.status_of("id-6")) == (0, "pass")
    assert verified.lines[-2].startswith("VERIFIED (SIMULATED ROOT sim:")


@pytest.mark.engine
async def test_over_attested_tls_the_service_is_verified(tmp_path: Path, engine_home: Path) -> None:
    home = home_with_weights(tmp_path, engine_home)
    with running(home, config='[server]\ntls = "attested"\n') as service:
        verified = await verify(service.url, home, "--allow-simulated")
    assert (verified.status, verified.status_of("id-6")) == (0, "pass")
    assert verified.lines[-2].startswith("VERIFIED (SIMULATED ROOT sim:")
    assert verified.lines[-1] == SIMULATED


async def test_a_proxy_that_the_environment_names_is_used_but_not_to_this_machine(tmp_path: Path) -> None:
    async with ScriptedUpstream([response(b"{}")], [response(b"{}")]) as named:
        environ = dict.fromkeys(("HTTP_PROXY", "http_proxy"), f"http://127.0.0.1:{named.port}") | {"NO_PROXY": ""}
        assert (await verify("http://confide.example", tmp_path, **environ, no_proxy="")).status == 1
        assert named.requests[0].target.startswith(b"http://confide.example/v1/aci/attestation?nonce=")
        assert (await verify("http://127.0.0.1:1", tmp_path, **environ, no_proxy="")).status == 3
        assert (await verify("http://confide.invalid", tmp_path, **environ, no_proxy="confide.invalid")).status == 3
        assert len(named.requests) == 1


# What a service does not send along


def without_collateral(reply: Reply, _: Seen) -> Reply:
    report = reply.document
    del report["attestation"]["evidence"]["collateral"]
    return reply.holding(report)


@contextmanager
def vendors_of(home: Path) -> Iterator[Vendors]:
    """The services of the vendors of the simulated TEE under `home`, and of simulated GPUs."""
    now = int(time.time())
    platform = SimulatedTdxPlatform(load_seed(home / "simulator"), now=now)
    with listening_vendors(SimulatedPccs(platform, now=now - 3600, nras=SimulatedNras(GPU_SEED))) as vendors:
        yield vendors


def asked_at(vendors: Vendors) -> tuple[str, ...]:
    return ("--pccs-url", vendors.url, "--kds-url", vendors.url, "--nras-url", vendors.url)


async def test_what_a_service_does_not_send_is_asked_of_the_vendor_kept_and_carried_in_the_bundle(
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "bundle.json"
    with serving(tmp_path) as service, vendors_of(tmp_path) as vendors:
        service.alter["report"] = without_collateral
        fetched = await verify(service.url, tmp_path, *ON_PLAIN_HTTP, *asked_at(vendors), "--bundle", str(bundle))
        assert (fetched.status, len(vendors.asked)) == (0, 4), fetched.error
        kept = await verify(service.url, tmp_path, *ON_PLAIN_HTTP, *asked_at(vendors), "--offline")
        assert (kept.status, len(vendors.asked)) == (0, 4), kept.error
    audited = await run("audit", str(bundle), *ON_PLAIN_HTTP, home=tmp_path)
    assert audited.status == 0, audited.error
    carried = parse_bundle(bundle.read_bytes()).service.collateral
    assert carried is not None
    (tmp_path / "collateral.json").write_text(carried)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = ("--trust-root", str(tmp_path / "simulator" / "root.pem"), "--no-require-channel")
    with serving(tmp_path) as service:
        service.alter["report"] = without_collateral
        file = ("--collateral", str(tmp_path / "collateral.json"))
        verified = await verify(service.url, elsewhere, *root, *file, "--offline")
        assert verified.status == 0, verified.error
        refused = await verify(service.url, elsewhere, *root, "--offline")
        assert refused.status == 3
        assert "offline it cannot be fetched" in str(refused.error)


async def test_the_verdict_of_nvidias_service_is_asked_for_where_it_is_demanded(tmp_path: Path) -> None:
    def with_gpus(reply: Reply, seen: Seen) -> Reply:
        report = reply.document
        assert seen.nonce is not None
        report["attestation"]["evidence"]["nvidia_payload"] = gpu_payload(gpus(2), bytes.fromhex(seen.nonce))
        return reply.holding(report)

    gpu_root, bundle, jwks = (tmp_path / name for name in ("gpu-root.pem", "bundle.json", "jwks.json"))
    gpu_root.write_text(gpus()[0].root_pem)
    jwks.write_bytes(SimulatedNras(GPU_SEED).jwks())
    demands = (*ON_PLAIN_HTTP, "--trust-root", str(gpu_root), "--require-gpus", "2", "--require-nras")
    with serving(tmp_path) as service, vendors_of(tmp_path) as vendors:
        vendors.services.now = int(time.time())
        service.alter["report"] = with_gpus
        verified = await verify(service.url, tmp_path, *demands, *asked_at(vendors), "--bundle", str(bundle))
        assert verified.status == 0, verified.error
        assert verified.status_of("nras.claims") == "pass"
        assert vendors.asked == ["/v3/attest/gpu", "/.well-known/jwks.json"]
        unasked = await verify(service.url, tmp_path, *demands, "--offline")
        assert unasked.status == 3
        vendors.services.nras = SimulatedNras(GPU_SEED, fault=NrasFault.DEBUG)
        refused = await verify(service.url, tmp_path, *demands, *asked_at(vendors))
        assert (refused.status, refused.check) == (1, "nras.claims")
    alone = await run("audit", str(bundle), *demands, home=tmp_path)
    assert alone.status == 3  # keys are an anchor, and do not travel
    audited = await run("audit", str(bundle), *demands, "--nras-jwks", str(jwks), home=tmp_path)
    assert (audited.status, audited.status_of("nras.signature")) == (0, "pass"), audited.error
