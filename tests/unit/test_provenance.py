"""Which source a build says it is from: what its maker stated, else what the installer wrote down, else nothing."""

import importlib.metadata
import json

import pytest

from confide.config import Source
from confide.protocol.report import SourceProvenance
from confide.provenance import installed_from, source_provenance

COMMIT = "ab" * 20
REPOSITORY = "https://git.example.com/confide.git"
FROM_GIT = {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": COMMIT, "requested_revision": "main"}}


class Installed:
    """A distribution whose `direct_url.json` (PEP 610) is this text; None when it has no such file."""

    def __init__(self, text: str | None) -> None:
        self._text = text

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


def installed(monkeypatch: pytest.MonkeyPatch, direct_url: object) -> None:
    text = direct_url if direct_url is None or isinstance(direct_url, str) else json.dumps(direct_url)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed(text))


def test_what_the_installer_took_from_a_repository_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FROM_GIT)
    said = source_provenance(Source())
    assert said == SourceProvenance(repo_url=REPOSITORY, repo_commit=COMMIT)
    assert said.is_acceptable


@pytest.mark.parametrize(
    "direct_url",
    [None, {"url": "file:///src", "dir_info": {"editable": True}}, "no JSON", "[]", '{"url": 1}', ""],
    ids=["a wheel", "a directory", "no JSON", "no object", "no text", "empty"],
)
def test_where_the_installer_says_nothing_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch, direct_url: object
) -> None:
    installed(monkeypatch, direct_url)
    assert source_provenance(Source()) == SourceProvenance()


def test_a_program_that_was_not_installed_claims_nothing() -> None:
    assert installed_from("no-such-distribution") is None


@pytest.mark.parametrize("stated", [Source(repo_url="https://a.example"), Source(repo_commit="cd" * 32)])
def test_what_the_maker_states_is_never_mixed_with_what_the_installer_wrote(
    monkeypatch: pytest.MonkeyPatch, stated: Source
) -> None:
    """A commit of one repository under the address of another would be a lie."""
    installed(monkeypatch, FROM_GIT)
    said = source_provenance(stated)
    assert (said.repo_url, said.repo_commit) == (stated.repo_url, stated.repo_commit)


def test_an_image_stands_beside_what_the_installer_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FROM_GIT)
    image = Source(image_digest="sha256:" + "ef" * 32, image_provenance="https://a.example/slsa")
    assert source_provenance(image) == SourceProvenance(
        repo_url=REPOSITORY,
        repo_commit=COMMIT,
        image_digest=image.image_digest,
        image_provenance=image.image_provenance,
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:hidden@git.example.com/a.git", "https://git.example.com/a.git"),
        ("https://hidden@git.example.com:8443/a?b#c", "https://git.example.com:8443/a?b#c"),
        ("ssh://git@git.example.com/a", "ssh://git.example.com/a"),
        ("https://a:b@c:hidden@git.example.com/", "https://git.example.com/"),
    ],
)
def test_a_password_of_the_installer_is_not_published(monkeypatch: pytest.MonkeyPatch, url: str, said: str) -> None:
    installed(monkeypatch, {**FROM_GIT, "url": url})
    assert source_provenance(Source()).repo_url == said
