"""What `confide doctor` says of upstreams: the first thing that is wrong with each, and how to mend it."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attested_service import MODEL, AttestedService, listening, serving, tls_context
from confide.cli import doctor_upstreams
from confide.cli.finding import Finding
from confide.config import Config, Model, Upstream
from crew import Engine, engine
from running import CONFIDE


@pytest.fixture
def upstream() -> Iterator[Engine]:
    with engine() as found:
        yield found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path / "service", tls=True) as service:
        yield service


def found(settings: Upstream, *, wanted: str = "m") -> Finding:
    """What is said of an upstream that is to serve this model."""
    config = Config(upstream=(settings,), model=(Model(id="m", upstream="one", upstream_model=wanted),))
    [finding] = doctor_upstreams.upstreams(config)
    assert finding.check == "upstream one"
    assert (finding.remedy is None) == (finding.status == "ok")
    return finding


def local(port: int, **keys: Any) -> Upstream:
    return Upstream(name="one", kind="local", base_url=f"http://127.0.0.1:{port}/v1", **keys)


def aci(service: AttestedService, **keys: Any) -> Upstream:
    given: dict[str, Any] = {"kind": "aci", "trust_roots": (str(service.root),), **keys}
    return Upstream(name="one", base_url=f"{service.url}/v1", **given)


def test_one_that_lists_the_model_is_fine(upstream: Engine) -> None:
    upstream.listed = (200, json.dumps({"data": [{"id": "m"}, {"id": "other"}]}).encode())
    finding = found(local(upstream.port))
    assert (finding.status, "lists m" in finding.found) == ("ok", True)


@pytest.mark.parametrize("listed", [(200, b"{}"), (200, b"\xff"), (404, b"none"), (200, b'{"data":[]}')])
def test_one_that_lists_nothing_is_taken_as_it_is(upstream: Engine, listed: tuple[int, bytes]) -> None:
    upstream.listed = listed
    assert found(local(upstream.port)).status == "ok"


def test_one_that_lists_others_is_told_which(upstream: Engine) -> None:
    upstream.listed = (200, json.dumps({"data": [{"id": f"m{n}"} for n in range(20)]}).encode())
    finding = found(local(upstream.port), wanted="m99")
    assert finding.status == "warn"
    assert "does not list m99" in finding.found
    assert "m0, m1" in str(finding.remedy)
    assert "m9" not in str(finding.remedy)


@pytest.mark.parametrize(
    ("status", "words", "remedy"),
    [
        (401, "refuses the key", "key_env"),
        (401, "refuses the key", "key_header"),
        (403, "refuses the key", "key_env"),
        (503, "status 503", "log"),
    ],
)
def test_one_that_refuses_or_fails(upstream: Engine, status: int, words: str, remedy: str) -> None:
    upstream.listed = (status, b"{}")
    finding = found(local(upstream.port))
    assert finding.status == "warn"
    assert words in finding.found
    assert remedy in str(finding.remedy)


def test_one_that_lists_a_page_of_them_may_have_others(upstream: Engine) -> None:
    upstream.listed = (200, json.dumps({"data": [{"id": "m0", "type": "model"}], "has_more": True}).encode())
    finding = found(local(upstream.port), wanted="m99")
    assert (finding.status, "lists" in finding.found) == ("ok", False)


def test_one_that_is_not_to_be_probed_is_not_asked(upstream: Engine) -> None:
    upstream.listed = (500, b"")
    assert found(local(upstream.port, probe="none")).status == "ok"


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        finding = found(local(port))
    assert (finding.status, f"127.0.0.1 port {port}" in finding.found) == ("warn", True)
    assert "refused" in finding.found.lower()
    assert "base_url" in str(finding.remedy)


def test_nobody_answers() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(0)
        port = mute.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the queue of one is full
            finding = found(local(port, connect_timeout_s=0.2, first_byte_timeout_s=0.2))
    assert finding.status == "warn"
    assert "0.2" in finding.found


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    finding = found(Upstream(name="one", kind="local", base_url=f"unix:{tmp_path}/engine.sock"))
    assert (finding.status, "engine.sock: No such file" in finding.found) == ("warn", True)


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    settings = Upstream(name="one", kind="openai", base_url="https://nowhere.invalid/v1", allow_unverified=True)
    finding = found(settings)
    assert finding.status == "warn"
    assert "nowhere.invalid port 443: the name does not resolve" in finding.found


def test_a_key_that_is_not_set_fails() -> None:
    finding = found(local(1, key_env="NOBODY_SETS_THIS"))
    assert (finding.status, "NOBODY_SETS_THIS" in finding.found) == ("fail", True)


def test_a_certificate_that_nobody_vouches_for(service: AttestedService) -> None:
    finding = found(Upstream(name="one", kind="openai", base_url=f"{service.url}/v1", allow_unverified=True))
    assert finding.status == "warn"
    assert "CERTIFICATE_VERIFY_FAILED" in finding.found.upper().replace(" ", "_")


def test_one_that_proves_itself(service: AttestedService) -> None:
    finding = found(aci(service), wanted=MODEL)
    assert finding.status == "ok", finding
    assert "verified, SIMULATED TEE" in finding.found
    assert "tee_attested" in finding.found


def test_one_that_proves_itself_is_given_its_key(service: AttestedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITS_KEY", "sk-secret")
    assert found(aci(service, key_env="ITS_KEY"), wanted=MODEL).status == "ok"
    assert [seen.path for seen in service.seen if "sk-secret" in str(seen.headers)] == ["/v1/models"]


def test_one_of_anthropics_shape_is_asked_as_such(service: AttestedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITS_KEY", "sk-secret")
    keys: dict[str, Any] = {"key_env": "ITS_KEY", "key_header": "x-api-key", "surfaces": ("messages",)}
    assert found(aci(service, **keys), wanted=MODEL).status == "ok"
    [asked] = [seen for seen in service.seen if seen.path == "/v1/models"]
    assert (asked.headers["x-api-key"], asked.headers["anthropic-version"]) == ("sk-secret", "2023-06-01")
    assert "authorization" not in asked.headers
    assert [seen for seen in service.seen if "sk-secret" in str(seen.headers)] == [asked]


def test_one_that_does_not_fails_and_is_given_no_key(service: AttestedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITS_KEY", "sk-secret")
    finding = found(aci(service, trust_roots=("intel", "amd"), key_env="ITS_KEY"))
    assert finding.status == "fail"
    assert "does not prove what it has to" in finding.found
    assert "id-1" in finding.found
    assert f"confide verify {service.url}" in str(finding.remedy)
    assert service.seen
    assert not any("sk-secret" in value for seen in service.seen for value in seen.headers.values())


def test_one_with_another_root_is_told_the_whole_command(service: AttestedService, tmp_path: Path) -> None:
    with serving(tmp_path / "other") as other:
        finding = found(aci(service, trust_roots=(str(other.root),)))
    assert finding.status == "fail"
    assert f"--trust-root {other.root}" in str(finding.remedy)


def test_an_older_report_that_does_not_hold_names_no_command_that_could_not_help(service: AttestedService) -> None:
    finding = found(aci(service, kind="legacy-proxy"))
    assert finding.status in ("warn", "fail")
    assert "confide verify" not in str(finding.remedy)


def test_one_that_has_no_report(upstream: Engine, service: AttestedService) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with listening(nothing, tls_context(service)) as port:
        settings = Upstream(name="one", kind="aci", base_url=f"https://127.0.0.1:{port}/v1")
        finding = found(settings)
    assert finding.status in ("warn", "fail")
    assert "nothing is sent to it" in finding.found


def test_the_command_says_it_of_each(upstream: Engine, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "confide.toml").write_text(
        f'[server]\nworkers = 64\nport = 0\n[[upstream]]\nname = "one"\nkind = "local"\n'
        f'base_url = "http://127.0.0.1:{upstream.port}/v1"\n'
        f'[[upstream]]\nname = "two"\nkind = "local"\nbase_url = "unix:{home}/none.sock"\n'
        '[[model]]\nid = "m"\nupstream = ["one", "two"]\n'
    )
    environ = {**os.environ, "CONFIDE_HOME": str(home)}
    done = subprocess.run(
        [CONFIDE, "doctor", "--json", "--config", tmp_path / "confide.toml"],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert (checks["upstream one"]["status"], checks["upstream two"]["status"]) == ("ok", "warn")
    assert checks["workers"]["status"] == "warn"
    assert "workers = " in checks["workers"]["remedy"]
