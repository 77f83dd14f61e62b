"""A model hub over HTTPS: names, digests, redirects, the token, and two pulls at once."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from confide.engine import catalogue, pull
from confide.engine.catalogue import Installed
from confide.engine.hub import HubName
from confide.errors import CannotTell, ConfigError, VerificationError
from gguf_writer import PAIRS, U32, Typed, gguf_bytes
from weights_server import Resource, WeightsServer

GGUF = gguf_bytes(data=bytes(200_000))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hf:acme/Tiny-GGUF/q4/Tiny Model.gguf"
TOKEN = "hf_secret"


def path_at(revision: str) -> str:
    return f"/acme/Tiny-GGUF/resolve/{revision}/q4/Tiny%20Model.gguf"


@dataclass
class Hub:
    """A hub that redirects to its storage, and a state directory."""

    hub: WeightsServer
    storage: WeightsServer
    home: Path
    answer: Resource
    blob: Resource

    def environ(self, **variables: str) -> Mapping[str, str]:
        return {"HF_ENDPOINT": self.hub.address, "HF_TOKEN": TOKEN, **variables}

    def pull(self, name: str = NAME, id: str | None = None, **variables: str) -> Installed:
        return pull.pull(self.home, name, id=id, environ=self.environ(**variables), pause=lambda seconds: None)

    def redirect_to(self, url: str) -> None:
        self.answer.headers["Location"] = url

    def is_empty(self) -> bool:
        """Nothing installed, and no part of it kept."""
        return not [path for path in self.home.glob("models/**/*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture
def hub(start_server: Callable[[], WeightsServer], tmp_path: Path) -> Hub:
    hub, storage = start_server(), start_server()
    blob = storage.put("/blob?signature=1", Resource(GGUF, headers={"ETag": '"blob"'}))
    headers = {
        "Location": storage.url("/blob?signature=1"),
        "X-Repo-Commit": COMMIT,
        "X-Linked-Etag": f'"{hashlib.sha256(GGUF).hexdigest()}"',
        "X-Linked-Size": str(len(GGUF)),
    }
    answer = hub.put(path_at("main"), Resource(status=302, headers=headers))
    hub.put(path_at(COMMIT), answer)
    return Hub(hub, storage, tmp_path / "home", answer, blob)


def test_a_file_is_installed_with_the_commit_it_came_from(hub: Hub) -> None:
    installed = hub.pull(f"{NAME}@main")
    assert installed.path.read_bytes() == GGUF
    assert installed.path.parent == hub.home / "models" / "tiny-model"
    assert installed.weights.source == f"{NAME}@{COMMIT}"
    assert installed.weights.context_length == 2048
    assert catalogue.verify_weights(catalogue.find(hub.home, "tiny-model")) == installed


def test_the_bytes_are_asked_for_by_commit_not_by_branch(hub: Hub) -> None:
    hub.pull()
    assert hub.hub.paths() == [path_at("main"), path_at(COMMIT)]


def test_the_token_goes_to_the_hub_and_never_to_its_storage(hub: Hub) -> None:
    hub.pull()
    assert [seen.headers["Authorization"] for seen in hub.hub.seen] == [f"Bearer {TOKEN}"] * 2
    assert len(hub.storage.seen) == 1
    assert all(TOKEN not in str(seen.headers) for seen in hub.storage.seen)


def test_the_token_does_not_come_back_after_a_detour(hub: Hub) -> None:
    hub.storage.put("/detour", Resource(status=302, headers={"Location": hub.hub.url("/back")}))
    hub.hub.put("/back", Resource(GGUF))
    hub.redirect_to(hub.storage.url("/detour"))
    hub.pull()
    assert [seen.headers["Authorization"] for seen in hub.hub.seen if seen.path == "/back"] == [None]


def test_without_a_token_none_is_sent(hub: Hub) -> None:
    hub.pull(HF_TOKEN="")
    assert [seen.headers["Authorization"] for seen in hub.hub.seen] == [None, None]


def test_the_older_token_variable_is_honoured(hub: Hub) -> None:
    hub.pull(HF_TOKEN="", HUGGING_FACE_HUB_TOKEN="older")
    assert hub.hub.seen[0].headers["Authorization"] == "Bearer older"


def test_a_token_s_last_newline_is_not_sent(hub: Hub) -> None:
    hub.pull(HF_TOKEN=f"{TOKEN}\n")
    assert hub.hub.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("text", [f"{TOKEN}\r\nX-Other: 1", f"{TOKEN} {TOKEN}", f"{TOKEN}é"])
def test_what_cannot_be_a_token_is_refused_unshown(hub: Hub, text: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as refusal:
        hub.pull(HF_TOKEN=text)
    assert TOKEN not in f"{refusal.value} {refusal.value.remedy}"
    assert hub.hub.seen == []


def test_a_renamed_repository_is_followed_within_the_hub(hub: Hub) -> None:
    moved = Resource(status=307, headers={"Location": path_at(COMMIT)})
    hub.hub.put(path_at("v1"), moved)
    assert hub.pull(f"{NAME}@v1").weights.source == f"{NAME}@{COMMIT}"


def test_a_cut_transfer_continues_through_a_fresh_redirect(hub: Hub) -> None:
    hub.blob.cuts = [70_000]
    assert hub.pull().path.read_bytes() == GGUF
    asked = hub.storage.ranges("/blob?signature=1")
    assert asked[0] is None
    assert str(asked[1]).startswith("bytes=")
    assert hub.hub.paths().count(path_at(COMMIT)) == 2


def test_an_expired_storage_address_is_renewed(hub: Hub) -> None:
    hub.blob.failures = [403]
    assert hub.pull().path.read_bytes() == GGUF


def test_a_hub_that_is_busy_is_asked_again(hub: Hub) -> None:
    hub.answer.failures = [429, 503]
    assert hub.pull().path.read_bytes() == GGUF


def test_storage_that_serves_other_bytes_is_refused(hub: Hub) -> None:
    hub.blob.body = GGUF[:-1] + b"\x01"
    with pytest.raises(VerificationError) as refusal:
        hub.pull()
    assert refusal.value.check == "weights.sha256"
    assert hub.is_empty()


def test_a_digest_that_only_the_storage_states_is_none(hub: Hub) -> None:
    del hub.answer.headers["X-Linked-Etag"]
    hub.blob.headers["X-Linked-Etag"] = hashlib.sha256(GGUF).hexdigest()
    with pytest.raises(ConfigError, match="states no SHA-256"):
        hub.pull()
    assert hub.is_empty()


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"f572d396fae9206628714fb2ce00f72e94f2258f"'},
        {"X-Linked-Etag": "short"},
        {"X-Linked-Etag": "a" * 64, "X-Linked-Size": "many"},
    ],
    ids=["a git blob's SHA-1", "no digest at all", "no size"],
)
def test_a_file_without_sha256_is_refused(hub: Hub, headers: dict[str, str]) -> None:
    hub.hub.put(path_at("main"), Resource(GGUF, headers=headers))
    with pytest.raises(ConfigError, match="states no SHA-256") as refusal:
        hub.pull()
    assert "confide models add PATH" in str(refusal.value.remedy)


def test_a_hub_that_serves_large_files_itself_is_fine(hub: Hub) -> None:
    headers = {"ETag": f'"{hashlib.sha256(GGUF).hexdigest()}"', "X-Repo-Commit": COMMIT}
    for revision in ("main", COMMIT):
        hub.hub.put(path_at(revision), Resource(GGUF, headers=headers))
    assert hub.pull().path.read_bytes() == GGUF


@pytest.mark.parametrize(("status", "remedy"), [(401, "HF_TOKEN"), (403, "licence"), (404, "revision")])
def test_refusals_say_what_to_do(hub: Hub, status: int, remedy: str) -> None:
    hub.answer.status = status
    with pytest.raises(ConfigError, match=rf"\({status}\)") as refusal:
        hub.pull()
    assert remedy in str(refusal.value.remedy)
    assert TOKEN not in f"{refusal.value} {refusal.value.remedy}"


def test_redirects_are_bounded(hub: Hub) -> None:
    for hop in range(8):
        hub.storage.put(f"/hop{hop}", Resource(status=302, headers={"Location": f"/hop{hop + 1}"}))
    hub.redirect_to(hub.storage.url("/hop0"))
    with pytest.raises(CannotTell, match="more than 5 redirects"):
        hub.pull()
    assert len(hub.storage.seen) == 5


def test_a_redirect_to_an_address_that_is_none_is_refused(hub: Hub) -> None:
    hub.redirect_to("//:1")
    with pytest.raises(CannotTell, match="redirects to an address that is none"):
        hub.pull()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_refused(hub: Hub, target: str) -> None:
    hub.redirect_to(target)
    with pytest.raises(CannotTell, match="expected https"):
        hub.pull()


@pytest.mark.parametrize("endpoint", ["http://hub.example", "hub.example", "http://", "https://[::1"])
def test_an_endpoint_is_https_or_on_this_machine(hub: Hub, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        hub.pull(HF_ENDPOINT=endpoint)


def test_no_network_is_neither_yes_nor_no(hub: Hub) -> None:
    with pytest.raises(CannotTell, match="cannot be fetched") as failure:
        hub.pull(HF_ENDPOINT="http://127.0.0.1:1")
    assert failure.value.exit_status == 3


def test_what_is_no_gguf_is_not_kept(hub: Hub) -> None:
    for content, says in (
        (b"x" * 500, "not a GGUF file"),
        (gguf_bytes({**PAIRS, "split.count": Typed(U32, 2)}), "2 parts"),
    ):
        hub.blob.body = content
        hub.answer.headers["X-Linked-Etag"] = hashlib.sha256(content).hexdigest()
        hub.answer.headers["X-Linked-Size"] = str(len(content))
        with pytest.raises(ConfigError, match=says):
            hub.pull()
        assert hub.is_empty()


def test_a_file_larger_than_the_disk_is_refused_before_the_transfer(hub: Hub) -> None:
    hub.answer.headers["X-Linked-Size"] = str(2**60)
    with pytest.raises(ConfigError, match=f"{2**60} are needed"):
        hub.pull()
    assert hub.storage.seen == []


def test_another_file_under_a_taken_id_needs_its_own(hub: Hub) -> None:
    with pytest.raises(ConfigError, match="the id smollm2-135m: taken"):
        hub.pull(id="smollm2-135m")
    assert hub.pull(id="mine").weights.id == "mine"


def test_weights_whose_file_is_gone_come_back_from_the_recorded_commit(hub: Hub) -> None:
    hub.pull().path.unlink()
    with pytest.raises(catalogue.NotInstalled):
        catalogue.find(hub.home, "tiny-model")
    del hub.hub.resources[path_at("main")]
    assert hub.pull("tiny-model").path.read_bytes() == GGUF


def test_names_are_read_and_written() -> None:
    name = HubName.parse("hf:acme/repo.v1/dir/model.Q8.gguf@refs/pr/1")
    assert (name.owner, name.repo, name.file, name.revision) == ("acme", "repo.v1", "dir/model.Q8.gguf", "refs/pr/1")
    assert HubName.parse(str(name)) == name
    assert HubName.parse("hf:a/b/c.gguf").revision == "main"


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:a/b", "hf:a/b/c.bin", "hf:../b/c.gguf", "hf:a/b/../c.gguf", "hf:a/b//c.gguf", "hf:a b/c/d.gguf"],
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected hf:OWNER/REPO/FILE"):
        HubName.parse(text)


def test_two_pulls_at_once_fetch_once(hub: Hub) -> None:
    """The first holds the lock until the second has said that it waits."""
    second_waits = threading.Event()
    hub.blob.before_body = lambda: second_waits.wait(30)
    first = start_pull(hub)
    wait_for_request(hub.storage)
    second = start_pull(hub)
    assert second.stderr
    assert "another process" in second.stderr.readline()
    second_waits.set()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(hub.storage.seen) == 1
    assert catalogue.find(hub.home, "tiny-model").path.read_bytes() == GGUF


def start_pull(hub: Hub) -> subprocess.Popen[str]:
    """`confide models pull` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from confide.cli.models import app; app()", "pull", NAME],
        env={**os.environ, **hub.environ(), "CONFIDE_HOME": str(hub.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_request(server: WeightsServer) -> None:
    with server.arrived:
        assert server.arrived.wait_for(lambda: bool(server.seen), timeout=30)
