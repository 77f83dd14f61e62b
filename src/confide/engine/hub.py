"""Files of a model hub: `hf:OWNER/REPO/FILE@REVISION`, over plain HTTPS.

What is trusted: the hub's own origin, for the commit, the size and the SHA-256 of a large file. It then redirects to
wherever the bytes are kept; that server gets no token and its word counts for nothing, the digest decides. The commit
is recorded, so that the same name means the same bytes later.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Self
from urllib.parse import quote

import httpx2
import msgspec

from confide.engine import download
from confide.engine.download import Interrupted
from confide.errors import ConfigError

DEFAULT_ENDPOINT = "https://huggingface.co"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")
REFUSALS = {
    401: ("asks for a token, or there is no such repository", "Check the name, or set HF_TOKEN."),
    403: ("refuses this token", "Accept the model's licence on its page, or use another HF_TOKEN."),
    404: ("has no such repository, file or revision", "Check the owner, repository, file and revision."),
}


class HubName(msgspec.Struct, frozen=True):
    """`hf:OWNER/REPO/FILE@REVISION`; `file` may hold slashes."""

    owner: str
    repo: str
    file: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError. Without `@REVISION` it is `main`."""
        path, _, revision = text.removeprefix("hf:").partition("@")
        owner, repo, file = ([*path.split("/", 2), "", ""])[:3]
        climbs = any(part in ("", ".", "..") for part in file.split("/"))
        if not (NAME.fullmatch(owner) and NAME.fullmatch(repo)) or climbs or not file.lower().endswith(".gguf"):
            raise ConfigError(f"{text!r}: expected hf:OWNER/REPO/FILE.gguf@REVISION")
        return cls(owner, repo, file, revision or "main")

    def __str__(self) -> str:
        return f"hf:{self.owner}/{self.repo}/{self.file}@{self.revision}"


class HubFile(msgspec.Struct, frozen=True):
    """What the hub says about one file: `name` holds the commit where the hub states it, `size` in bytes."""

    name: HubName
    size: int
    sha256: str


class Hub(msgspec.Struct, frozen=True):
    """One hub. `token` is sent to `endpoint`'s own origin and nowhere else."""

    http: httpx2.Client
    endpoint: httpx2.URL
    token: str | None

    def describe(self, name: HubName, *, pause: download.Pause) -> HubFile:
        """Ask for the file's commit, size and SHA-256.

        Raises ConfigError where the hub refuses or states no SHA-256, CannotTell where it cannot be asked.
        """
        ask = functools.partial(self._describe, name)
        return download.retried(ask, what=f"{name} from the hub {self.endpoint.host}", pause=pause)

    def _describe(self, name: HubName) -> HubFile:
        with self._get(name, {}, is_final=describes) as response:
            headers = response.headers
            if download.origin(response.url) != download.origin(self.endpoint):
                raise no_digest(name)
        digest = headers.get("X-Linked-Etag", headers.get("ETag", "")).removeprefix("W/").strip('"').lower()
        size = headers.get("X-Linked-Size", headers.get("Content-Length", ""))
        if not SHA256.fullmatch(digest) or not size.isascii() or not size.isdigit():
            raise no_digest(name)
        commit = headers.get("X-Repo-Commit", "")
        exact = msgspec.structs.replace(name, revision=commit) if COMMIT.fullmatch(commit) else name
        return HubFile(exact, int(size), digest)

    @contextlib.contextmanager
    def open(self, name: HubName, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """GET the bytes, through a fresh redirect each time: the ones to storage expire."""
        with self._get(name, headers, is_final=lambda response: not response.has_redirect_location) as response:
            yield response

    @contextlib.contextmanager
    def _get(
        self, name: HubName, headers: Mapping[str, str], *, is_final: download.IsFinal
    ) -> Iterator[httpx2.Response]:
        path = f"{name.owner}/{name.repo}/resolve/{quote(name.revision, safe='')}/{quote(name.file)}"
        url = httpx2.URL(f"{str(self.endpoint).rstrip('/')}/{path}")
        private = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with download.follow(self.http, url, headers, private=private, is_final=is_final) as response:
            status, is_ours = response.status_code, download.origin(response.url) == download.origin(self.endpoint)
            if is_ours and status in REFUSALS:
                found, remedy = REFUSALS[status]
                raise ConfigError(f"{name}: the hub {self.endpoint.host} {found} ({status})", remedy=remedy)
            if status >= 400 and status != 416:
                raise Interrupted(f"it answered {status}")
            yield response


def describes(response: httpx2.Response) -> bool:
    """Whether this is where the hub says what the file is: there is no need to go on to the bytes."""
    return "X-Linked-Etag" in response.headers or not response.has_redirect_location


def no_digest(name: HubName) -> ConfigError:
    return ConfigError(
        f"{name}: the hub states no SHA-256 and size for it, so its bytes cannot be checked",
        remedy="Fetch the file yourself and add it with `confide models add PATH`.",
    )


def from_environment(http: httpx2.Client, environ: Mapping[str, str]) -> Hub:
    """The hub that HF_ENDPOINT names, with HF_TOKEN. Raises ConfigError on plain http to another machine."""
    text = environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    try:
        endpoint = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"HF_ENDPOINT: {text!r} is not a URL") from error
    if not endpoint.host or not (endpoint.scheme == "https" or is_loopback_http(endpoint)):
        raise ConfigError(f"HF_ENDPOINT: got {endpoint.scheme}://{endpoint.host}, expected https")
    return Hub(http, endpoint, token(environ))


def token(environ: Mapping[str, str]) -> str | None:
    """The token, without the newline that files end with. Raises ConfigError, which does not show it."""
    text = (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError("HF_TOKEN: got characters that no token has", remedy="Set it to the token alone.")
    return text or None


def is_loopback_http(url: httpx2.URL) -> bool:
    return url.scheme == "http" and url.host in LOOPBACK
