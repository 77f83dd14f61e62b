"""The official JavaScript SDKs verify through `confide proxy`: proven answers come, altered ones are errors."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import javascript
from attested_service import API_KEY, MODEL, Reply, Seen, serving
from proxy_process import Started, started
from running import Running, home_with_weights, running
from sdk.adversary import before, root_of
from sdk.builders import CONFIG
from sdk.builders import MODEL as REAL

ATTESTED = CONFIG.replace("[server]", '[server]\ntls = "attested"')
EACH_SURFACE = "streamed|its text|embedding"
UNPROVEN = [(file, name) for file in ("openai_unproven", "anthropic_unproven") for name in javascript.names(file)]


def altered(reply: Reply, _: Seen) -> Reply:
    return reply.replacing(b"42.", b"43.")


@pytest.fixture(scope="module")
def proxy(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    home = home_with_weights(tmp_path_factory.mktemp("proven"), engine_home)
    with running(home, config=ATTESTED) as service, started(service.url, home) as proxying:
        yield proxying


@pytest.mark.engine
@pytest.mark.parametrize("file", ["openai", "anthropic"])
def test_proven_answers_come_on_every_surface(node: Path, proxy: Started, file: str) -> None:
    ended = javascript.run(node, file, proxy.url, REAL, only=EACH_SURFACE)
    assert len(ended) >= 3
    assert set(ended.values()) == {None}
    assert httpx2.get(f"{proxy.url}/v1/models").status_code == 200  # it is not latched


@pytest.mark.parametrize(("file", "name"), UNPROVEN)
def test_altered_answers_are_errors(node: Path, tmp_path: Path, file: str, name: str) -> None:
    with serving(tmp_path, tls=True) as service:
        service.alter["answer"] = altered
        with started(service.url, tmp_path) as proxy:
            ended = javascript.run(node, file, proxy.url, MODEL, key=API_KEY, only=f"^{name}$")
        assert ended == {name: None}
        assert len(service.prompts) == 1


@pytest.mark.engine
@pytest.mark.parametrize("name", javascript.names("openai_altered"))
def test_of_no_surface_an_altered_answer_passes(node: Path, service: Running, tmp_path: Path, name: str) -> None:
    with before(service) as adversary:
        trusting = ("--trust-root", str(root_of(service)), "--no-require-channel")
        with started(adversary.url, tmp_path, *trusting, simulated=False) as proxy:
            adversary.begin()
            ended = javascript.run(node, "openai_altered", proxy.url, REAL, only=f"^{name}$")
    assert ended == {name: None}
    assert adversary.changed == 1
