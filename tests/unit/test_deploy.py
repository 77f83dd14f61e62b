"""What lies in deploy/ does what docs/deploy.md says of it, as far as no image has to be built for that."""

import hashlib
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tls_files import self_signed

REPOSITORY = Path(__file__).parent.parent.parent
DEPLOY = REPOSITORY / "deploy"
CONFIDE = Path(sys.executable).parent / "confide"
DIGEST, KEY_SHA256 = "sha256:" + "ab" * 32, hashlib.sha256(b"cfd_token").hexdigest()
GIVEN = {"--image": "registry.example.com:5000/confide", "--digest": DIGEST, "--key-sha256": KEY_SHA256}


def run(*command: object, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    given = {"PATH": os.environ["PATH"], **(environ or {})}
    return subprocess.run([str(part) for part in command], env=given, capture_output=True, text=True, check=False)


def render(**changed: str) -> "subprocess.CompletedProcess[str]":
    given = GIVEN | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return run(sys.executable, DEPLOY / "dstack" / "render.py", *(part for pair in given.items() for part in pair))


# The image.


def test_the_base_image_has_to_be_given_by_digest() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^ARG BASE_DIGEST.*$", dockerfile, re.MULTILINE) == ["ARG BASE_DIGEST"]
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE_IMAGE}@${BASE_DIGEST}"}


def test_every_step_of_the_image_stops_at_the_first_failure() -> None:
    steps = re.findall(r"^RUN (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert steps
    assert set(steps) == {"set -eu; \\"}


def test_the_image_is_made_of_named_files_that_exist() -> None:
    ignored = (DEPLOY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    named = [line[1:] for line in ignored if line.startswith("!")]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    assert (DEPLOY / "Dockerfile.dockerignore").read_text() == (DEPLOY / ".dockerignore").read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} <= set(named)


@pytest.mark.parametrize("digest", ["", "latest", "sha256:abc", DIGEST.upper()])
def test_building_twice_wants_a_digest(digest: str) -> None:
    done = run("bash", DEPLOY / "build-twice.sh", environ={"BASE_DIGEST": digest})
    assert done.returncode == 2
    assert "BASE_DIGEST" in done.stderr


def test_building_twice_says_plainly_that_nothing_was_built(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = run("bash", DEPLOY / "build-twice.sh", environ={"PATH": str(tmp_path), "BASE_DIGEST": DIGEST})
    assert done.returncode == 3, done.stderr
    assert "NOTHING WAS BUILT" in done.stderr


# The health check.


@contextmanager
def answering(status: int, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that answers `/health/ready` with `status`, over TLS where there is a context; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # TLS that is tried on a plain server is no request

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_address[1])
        server.shutdown()
        thread.join()


def healthy(port: str) -> bool:
    done = run(sys.executable, "-I", DEPLOY / "healthcheck.py", environ={"CONFIDE_SERVER_PORT": port})
    assert done.returncode in (0, 1)
    return done.returncode == 0


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (404, False)])
def test_health_is_what_the_service_says(status: int, expected: bool) -> None:
    with answering(status) as port:
        assert healthy(port) is expected


def test_health_over_tls_with_a_key_of_its_own(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    with answering(200, context) as port:
        assert healthy(port)


def test_nobody_there_is_not_healthy() -> None:
    with answering(200) as port:
        pass
    assert not healthy(port)
    assert not healthy("none")


# The first API key.


def import_key(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run(sys.executable, DEPLOY / "import_key.py", *arguments, environ={"CONFIDE_HOME": str(home)})


def keys(home: Path) -> list[dict[str, object]]:
    listed = run(CONFIDE, "keys", "list", "--json", environ={"CONFIDE_HOME": str(home)})
    found: list[dict[str, object]] = json.loads(listed.stdout)
    return found


def test_a_key_is_imported_once(tmp_path: Path) -> None:
    for _ in range(2):
        done = import_key(tmp_path, "first", KEY_SHA256)
        assert done.returncode == 0, done.stderr
    (key,) = keys(tmp_path)
    assert (key["name"], key["state"]) == ("first", "active")


def test_an_imported_key_that_was_revoked_stays_revoked(tmp_path: Path) -> None:
    import_key(tmp_path, "first", KEY_SHA256)
    run(CONFIDE, "keys", "revoke", str(keys(tmp_path)[0]["id"]), environ={"CONFIDE_HOME": str(tmp_path)})
    assert import_key(tmp_path, "first", KEY_SHA256).returncode == 0
    assert [key["state"] for key in keys(tmp_path)] == ["revoked"]


@pytest.mark.parametrize("arguments", [(), ("first",), ("first", "cfd_token"), ("a b", KEY_SHA256)])
def test_what_is_no_digest_is_refused_and_not_repeated(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = import_key(tmp_path, *arguments)
    assert done.returncode == 2
    assert "cfd_" not in done.stdout + done.stderr


# What dstack measures.


def test_the_measured_document_is_the_same_each_time_and_names_the_image() -> None:
    first, second = render(), render()
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stderr == f"compose hash {hashlib.sha256(first.stdout.encode()).hexdigest()}\n"
    document = json.loads(first.stdout)
    assert document["allowed_envs"] == []
    assert document["public_logs"] is False
    assert "pre_launch_script" not in document
    compose = document["docker_compose_file"]
    images = re.findall(r"^    image: (.*)$", compose, re.MULTILINE)
    assert set(images) == {f"{GIVEN['--image']}@{DIGEST}"}
    assert f"CONFIDE_SOURCE_IMAGE_DIGEST: {DIGEST}" in compose
    assert KEY_SHA256 in compose


def test_nothing_is_left_for_an_environment_that_nobody_measures() -> None:
    assert "$" not in json.loads(render().stdout)["docker_compose_file"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("digest", "sha256:" + "0" * 63 + "$"),
        ("digest", "latest"),
        ("image", "registry.example.com/confide:latest"),
        ("image", "registry.example.com/confide@sha256"),
        ("image", "x\n    privileged: true"),
        ("key_sha256", "cfd_token"),
    ],
)
def test_a_value_of_another_form_is_refused(member: str, value: str) -> None:
    done = render(**{member: value})
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize("changed", [{"digest": "sha256:" + "cd" * 32}, {"key_sha256": "cd" * 32}, {"name": "other"}])
def test_whatever_is_given_is_measured(changed: dict[str, str]) -> None:
    assert render(**changed).stderr != render().stderr


# The unit.


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit = (DEPLOY / "vm" / "confide.service").read_text()
    (tmp_path / "confide.service").write_text(unit.replace("/opt/confide/bin/confide", "/bin/true"))
    done = run("systemd-analyze", "verify", tmp_path / "confide.service")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "setting",
    [
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "MemoryDenyWriteExecute=yes",
        "LimitCORE=1",
        "MemorySwapMax=0",
        "StateDirectoryMode=0700",
        "CapabilityBoundingSet=CAP_DAC_OVERRIDE",
        "RestartPreventExitStatus=2",
    ],
)
def test_the_unit_has_what_the_page_promises(setting: str) -> None:
    assert setting in (DEPLOY / "vm" / "confide.service").read_text().splitlines()


def test_the_configuration_for_a_machine_is_valid(tmp_path: Path) -> None:
    done = run(CONFIDE, "serve", "--config", DEPLOY / "vm" / "confide.toml", "--print-config")
    assert done.returncode == 0, done.stderr
    assert 'kind = "tsm"' in done.stdout
    assert 'tls = "attested"' in done.stdout
