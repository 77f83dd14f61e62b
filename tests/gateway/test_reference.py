"""The reference that the service serves: the page, the documents, `llms.txt`. Every link in them leads somewhere."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import pytest_asyncio

from confide.gateway.openapi.inference import MODEL
from confide.gateway.openapi.shelf import documents
from gateway_app import ScriptedGateway, answering, bearer, serving_scripted
from openapi_document import DOCUMENT, operations

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCS = Path(__file__).parent.parent.parent / "docs"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """What a page holds. `open`: elements that were not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "srcset", "action", "style"):
                self.loaded.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        await gateway.new_key()  # so that what is open shows
        yield gateway


async def test_the_page_is_whole_and_loads_nothing(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert page.open == []
    assert not {"script", "img", "iframe", "form", "object"} & set(page.tags)
    assert page.loaded == ["data:,"]
    assert page.handlers == []
    assert len(page.ids) == len(set(page.ids))
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


async def test_every_link_of_the_page_leads_somewhere(gateway: ScriptedGateway) -> None:
    page = Page((await gateway.client.get("/docs")).text)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    outside = {link for link in page.links if link[0] != "#"}
    assert {"/openapi.json", "/llms.txt", "/docs/verify.md"} <= outside
    for link in outside:
        assert (await gateway.client.get(link)).status_code == 200, link


async def test_every_operation_and_every_member_stands_on_the_page(gateway: ScriptedGateway) -> None:
    text = (await gateway.client.get("/docs")).text
    for method, path, operation in operations():
        section = text.partition(f'<section id="{operation["operationId"]}">')[2].partition("</section>")[0]
        assert method.upper() in section
        assert f"<code>{path}</code>" in section
        assert "curl" in section
        for status in operation["responses"]:
            assert f"<code>{status}</code>" in section
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for member in DOCUMENT["components"]["schemas"][name]["properties"]:
                assert f"<code>{member}</code>" in section, member


async def test_the_documents_are_served_as_they_lie_in_the_repository(gateway: ScriptedGateway) -> None:
    names = {path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md")}
    assert set(documents()) == names
    for name in names:
        answer = await gateway.client.get(f"/docs/{name}")
        assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert answer.content == (DOCS / name).read_bytes()


async def test_every_link_of_a_document_leads_to_another_or_out(gateway: ScriptedGateway) -> None:
    followed = 0
    for name in [*documents(), "adr/"]:
        text = (await gateway.client.get(f"/docs/{name}")).text
        for link in LINK.findall(text):
            if urlsplit(link).scheme:
                continue
            followed += 1
            assert (await gateway.client.get(urljoin(f"/docs/{name}", link))).status_code == 200, (name, link)
    assert followed > 20


async def test_llms_txt_lists_every_route_and_every_document(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.get("/llms.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("# Confide\n\n> ")
    for method, path, _ in operations():
        assert f"- `{method.upper()} {path}`: " in answer.text
    links = LINK.findall(answer.text)
    assert {f"/docs/{name}" for name in documents()} <= set(links)
    for link in links:
        assert (await gateway.client.get(link)).status_code == 200, link


@pytest.mark.parametrize(
    "path",
    [
        "/docs/..%2fpyproject.toml",
        "/docs/%2e%2e/README.md",
        "/docs//etc/passwd",
        "/docs/adr/../../pyproject.toml",
        "/docs/render_api.py",
        "/docs/adr",
        "/docs/",
        "/docs/verify.md%00",
        "/docs/CANARY",
    ],
)
async def test_nothing_but_the_documents_is_served(gateway: ScriptedGateway, path: str) -> None:
    answer = await gateway.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found"
    assert "CANARY" not in answer.text


async def test_the_reference_is_open_and_says_whose_it_is(gateway: ScriptedGateway) -> None:
    for path in ("/openapi.json", "/docs", "/docs/api.md", "/llms.txt"):
        for headers in ({}, bearer("wrong")):
            answer = await gateway.client.get(path, headers=headers)
            assert answer.status_code == 200
            assert answer.headers["x-aci-version"] == "aci/1"
            assert answer.headers["x-aci-keyset-digest"].startswith("sha256:")
        assert (await gateway.client.post(path)).status_code == 405


async def test_the_examples_name_the_model_that_a_first_run_serves(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert MODEL in answer.text
