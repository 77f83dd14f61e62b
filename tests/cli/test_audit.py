"""`confide audit`, as a person or a script meets it, years later and without a network."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attested_service import ANSWER, serving
from cli.outcome import SIMULATED, Outcome, run

CONFIDE = Path(sys.executable).parent / "confide"
QUESTION = "What is the answer?"

# Whatever the command imports later finds no socket to open.
WITHOUT_SOCKETS = """
import socket, sys
from confide.cli.main import main

def refused(*_, **__):
    raise AssertionError("a socket was opened")

class NoSocket(socket.socket):
    __init__ = refused

socket.socket = socket.create_connection = socket.socketpair = NoSocket
socket.getaddrinfo = refused
sys.argv = ["confide", *sys.argv[1:]]
main()
"""


@pytest.fixture
async def bundle(tmp_path: Path) -> Path:
    """The proof of one answer over attested TLS; the service is gone."""
    path = tmp_path / "answer.json"
    with serving(tmp_path, tls=True) as service:
        asked = await run("ask", QUESTION, "--base-url", service.url, "--bundle", str(path), home=tmp_path)
        assert asked.status == 0, asked.error
    return path


async def audit(path: Path, home: Path, *arguments: str) -> Outcome:
    return await run("audit", str(path), "--allow-simulated", *arguments, home=home)


def rewritten(path: Path, change: Callable[[Any], None]) -> Path:
    document = json.loads(path.read_bytes())
    change(document)
    changed = path.with_name("changed.json")
    changed.write_text(json.dumps(document))
    return changed


async def test_it_shows_the_answer_first_then_the_service_then_the_verdict(bundle: Path, tmp_path: Path) -> None:
    audited = await audit(bundle, tmp_path)
    assert audited.status == 0, audited.error
    assert audited.names[:4] == [f"receipt-{number}" for number in range(1, 5)]
    assert audited.names.index("upstream-1") < audited.names.index("bundle-time") < audited.names.index("id-1")
    assert "by the record of whoever connected" in audited.stdout
    assert audited.lines[-2].startswith("VERIFIED (SIMULATED ROOT sim:")
    assert audited.lines[-1] == SIMULATED


async def test_json_is_one_object(bundle: Path, tmp_path: Path) -> None:
    document = (await audit(bundle, tmp_path, "--json")).document
    assert list(document) == ["verdict", "ok", "simulated", "now", "checks", "anchors", "facts"]
    assert (document["verdict"], document["ok"], document["simulated"]) == ("VERIFIED", True, True)
    assert document["now"] == json.loads(bundle.read_bytes())["service"]["verified_at"]


async def test_a_root_that_is_not_pinned_counts_for_nothing(bundle: Path, tmp_path: Path) -> None:
    audited = await run("audit", str(bundle), home=tmp_path)
    assert (audited.status, audited.check, audited.lines[-1]) == (1, "id-1", "NOT VERIFIED")
    root = str(tmp_path / "simulator" / "root.pem")
    assert (await run("audit", str(bundle), "--trust-root", root, home=tmp_path / "elsewhere")).status == 0


async def test_ten_years_later_it_still_verifies_as_of_its_own_time(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 10 * 365 * 86400
    monkeypatch.setattr("confide.client.auditing.time.time", lambda: later)
    audited = await audit(bundle, tmp_path)
    assert (audited.status, audited.status_of("bundle-time")) == (0, "pass")
    at = await audit(bundle, tmp_path, "--at", str(int(later)))
    assert (at.status, at.lines[-1]) == (1, SIMULATED)
    assert at.status_of("id-3") == "fail"


async def test_a_time_that_has_not_been_is_refused(bundle: Path, tmp_path: Path) -> None:
    audited = await audit(bundle, tmp_path, "--at", str(int(time.time()) + 86400))
    assert (audited.status, audited.status_of("bundle-time")) == (1, "fail")


async def test_question_and_answer_are_in_it_only_when_that_was_asked_for(bundle: Path, tmp_path: Path) -> None:
    assert "request_b64" not in bundle.read_text()
    with serving(tmp_path, tls=True) as service:
        path = str(tmp_path / "whole.json")
        asked = await run("ask", QUESTION, "--base-url", service.url, "--bundle", path, "--bodies", home=tmp_path)
    assert (asked.status, asked.lines[0]) == (0, ANSWER)
    assert {"request_b64", "response_b64"} <= json.loads(Path(path).read_bytes())["answers"][0].keys()
    assert (await audit(Path(path), tmp_path)).status == 0


async def test_a_bundle_over_plain_http_needs_a_policy_that_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    with serving(tmp_path) as service:
        assert (await run("ask", "Hi", "--base-url", service.url, "--bundle", str(path), home=tmp_path)).status == 0
    audited = await audit(path, tmp_path)
    assert (audited.status, audited.check) == (1, "id-6")
    accepted = await audit(path, tmp_path, "--no-require-channel")
    assert accepted.status == 0
    assert accepted.lines[-2].startswith("PARTIAL (SIMULATED ROOT sim:")


def other_answer(document: Any) -> None:
    document["answers"][0]["response_sha256"] = "ab" * 32


def other_question(document: Any) -> None:
    document["answers"][0]["request_sha256"] = "ab" * 32


def other_nonce(document: Any) -> None:
    document["service"]["nonce"] = "ab" * 32


def other_tls_key(document: Any) -> None:
    document["service"]["spki_sha256"] = "ab" * 32


def other_model(document: Any) -> None:
    receipt = document["answers"][0]["receipt"]
    assert "vendor/model" in receipt
    document["answers"][0]["receipt"] = receipt.replace("vendor/model", "vendor/other")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (other_answer, "receipt-4"),
        (other_question, "receipt-3"),
        (other_nonce, "id-2"),
        (other_tls_key, "id-6"),
        (other_model, "receipt-1"),
    ],
)
async def test_what_was_altered_is_named(
    bundle: Path, tmp_path: Path, change: Callable[[Any], None], check: str
) -> None:
    audited = await audit(rewritten(bundle, change), tmp_path)
    assert (audited.status, audited.status_of(check), audited.lines[-1]) == (1, "fail", SIMULATED)
    assert audited.lines[-2].startswith("NOT VERIFIED")


async def test_without_collateral_nobody_can_tell(bundle: Path, tmp_path: Path) -> None:
    def stripped(document: Any) -> None:
        report = json.loads(document["service"]["report"])
        del report["attestation"]["evidence"]["collateral"]
        document["service"]["report"] = json.dumps(report)

    audited = await audit(rewritten(bundle, stripped), tmp_path)
    assert audited.status == 3


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff\x00", b'{"format":"confide-bundle/2"}', b"[" * 100_000])
async def test_what_is_no_bundle_is_not_verified(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(raw)
    audited = await run("audit", str(path), home=tmp_path)
    assert (audited.status, audited.check, audited.status_of("bundle")) == (1, "bundle", "fail")
    assert audited.lines[-1] == "NOT VERIFIED"
    document = (await run("audit", str(path), "--json", home=tmp_path)).document
    assert (document["verdict"], document["checks"][0]["name"]) == ("NOT VERIFIED", "bundle")


async def test_wrong_usage_is_status_2(bundle: Path, tmp_path: Path) -> None:
    for arguments in (
        (),
        ("absent.json",),
        (str(tmp_path),),
        (str(bundle), "--at", "-1"),
        (str(bundle), "--trust-root", "absent.pem"),
        (str(bundle), "--claim", "is_good"),
        (str(bundle), "another"),
    ):
        assert (await run("audit", *arguments, home=tmp_path)).status == 2, arguments


def in_a_process(*command: str, home: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CONFIDE_HOME": str(home)}, timeout=60, check=False
    )


async def test_it_opens_no_socket(bundle: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-c", WITHOUT_SOCKETS)
    audited = await asyncio.to_thread(in_a_process, *command, "audit", str(bundle), "--allow-simulated", home=tmp_path)
    assert (audited.returncode, audited.stderr) == (0, "")
    assert audited.stdout.splitlines()[-1] == SIMULATED
    twin = await asyncio.to_thread(in_a_process, *command, "verify", "http://127.0.0.1:1", home=tmp_path)
    assert twin.returncode == 3
    assert "AssertionError" in twin.stderr


async def test_it_needs_no_network_at_all(bundle: Path, tmp_path: Path) -> None:
    alone = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no process a network of its own")
    audited = await asyncio.to_thread(
        in_a_process, *alone, str(CONFIDE), "audit", str(bundle), "--allow-simulated", home=tmp_path
    )
    assert (audited.returncode, audited.stderr) == (0, "")
