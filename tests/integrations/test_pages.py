"""The pages of docs/integrations, followed to the letter: each library as it is installed there, before the real
program over attested TLS, and before a service whose answers are altered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attested_service import ANSWER, Alter, Reply, Seen, serving
from integrations.pages import PAGES, Page, Place, built_wheel
from proxy_process import started
from running import Running, home_with_weights, running

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(400)]

ATTESTED = '[server]\ntls = "attested"\n'
FOLLOWED = {  # how often what the page runs shows that an answer is verified
    "openai-python": 2,
    "openai-javascript": 1,
    "anthropic-python": 2,
    "anthropic-javascript": 1,
    "langchain": 1,
    "llamaindex": 0,
    "llm": 0,
    "vercel-ai-sdk": 1,
    "curl": 1,
}
ALTERED = ANSWER.replace("42.", "43.")
NOT_RUN = {"README", "open-webui"}


@pytest.fixture(scope="module")
def wheel() -> Path:
    return built_wheel()


@pytest.fixture(scope="module")
def installed(node: Path, wheel: Path) -> dict[str, Page]:
    """All of them; `node` is what the JavaScript ones are run by."""
    pages = {name: Page(name) for name in FOLLOWED}
    for page in pages.values():
        page.install(wheel)
    return pages


@pytest.fixture(scope="module")
def place(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = home_with_weights(tmp_path_factory.mktemp("pages"), engine_home)
    with running(home, config=ATTESTED) as service, started(service.url, home) as proxy:
        yield Place(service.url, proxy.url, root_of(service))


def root_of(service: Running) -> Path:
    return service.home / "simulator" / "root.pem"


def altered(reply: Reply, _: Seen) -> Reply:
    return reply.but(reply.body.replace(b"42.", b"43."))


def altered_stream(reply: Reply, seen: Seen) -> Reply:
    is_stream = reply.headers["content-type"].startswith("text/event-stream")
    return altered(reply, seen) if is_stream else reply


@contextmanager
def tampered(home: Path, alter: Alter) -> Iterator[Place]:
    with serving(home, tls=True) as service:
        service.alter["answer"] = alter
        with started(service.url, home) as proxy:
            yield Place(service.url, proxy.url, service.root)


def test_every_page_is_followed() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(FOLLOWED) | NOT_RUN


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_is_right(installed: dict[str, Page], place: Place, tmp_path: Path, name: str) -> None:
    ran = installed[name].run(place, tmp_path)
    assert not any(ran.statuses), ran.output
    assert ran.output.count("VERIFIED") == FOLLOWED[name]
    assert len([line for line in ran.output.splitlines() if line.strip()]) >= 2  # a buffered answer, a streamed one


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_altered_answer_is_what_the_page_says(installed: dict[str, Page], tmp_path: Path, name: str) -> None:
    with tampered(tmp_path, altered) as place:
        ran = installed[name].run(place, tmp_path)
    assert all(ran.statuses), ran.output
    assert installed[name].told in ran.output
    assert ALTERED not in ran.output


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_altered_stream_is_what_the_page_says(installed: dict[str, Page], tmp_path: Path, name: str) -> None:
    with tampered(tmp_path, altered_stream) as place:
        ran = installed[name].run(place, tmp_path)
    assert all(ran.statuses), ran.output
    assert installed[name].told in ran.output
    assert ran.output.startswith(ANSWER) or name == "curl"  # which shows the head, and JSON
