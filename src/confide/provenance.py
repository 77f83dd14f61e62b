"""Which source this program was built from, as far as it can know (wire contract 7.3).

Labels, not evidence: a verifier believes them where measured evidence backs them.
"""

import importlib.metadata
from urllib.parse import urlsplit, urlunsplit

import msgspec

from confide.config import Source
from confide.protocol.report import SourceProvenance


class VcsInfo(msgspec.Struct, frozen=True):
    """Where an installer took the source from."""

    commit_id: str


class DirectUrl(msgspec.Struct, frozen=True):
    """`direct_url.json` of an installed distribution (PEP 610); `vcs_info` where it came from a repository."""

    url: str
    vcs_info: VcsInfo | None = None


def source_provenance(settings: Source) -> SourceProvenance:
    """What `[source]` says; where it names no repository, what the installer recorded; None for what nobody knows."""
    stated = SourceProvenance(**msgspec.structs.asdict(settings))
    installed = installed_from()
    if installed is None or stated.repo_url is not None or stated.repo_commit is not None:
        return stated
    return msgspec.structs.replace(stated, repo_url=installed.repo_url, repo_commit=installed.repo_commit)


def installed_from(distribution: str = "confide") -> SourceProvenance | None:
    """Repository and commit that the distribution was installed from; None where nobody wrote that down."""
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    if text is None:
        return None
    try:
        found = msgspec.json.decode(text, type=DirectUrl)
    except msgspec.DecodeError:
        return None
    if found.vcs_info is None:
        return None
    return SourceProvenance(repo_url=without_credentials(found.url), repo_commit=found.vcs_info.commit_id)


def without_credentials(url: str) -> str:
    """The URL without the user and password that an installer may have been given."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
