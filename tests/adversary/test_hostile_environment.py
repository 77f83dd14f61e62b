"""The attacker sets variables of the client's environment: proxies, certificates, a place to write TLS secrets to.

They want the prompt over a proxy of theirs, or a key believed because an authority of theirs signed for it. Proxies of
the environment are not used, authorities are not asked, and what could take the verification away is refused as an
option. The twin: the same client in an honest environment.
"""

from pathlib import Path

import pytest

import confide
from attested_service import ANSWER, serving
from callers import EVERY, Kind, asking, assert_refused
from confide import ConfigError
from man_in_the_middle import between
from tls_files import self_signed

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_proxy_of_the_environment_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, tls: bool
) -> None:
    with serving(tmp_path, tls=tls) as service, between(service, self_signed(tmp_path)) as relay:
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{relay.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with asking(service, kind) as caller:
            assert caller.ask() == ANSWER
        assert relay.connections == 0


@pytest.mark.parametrize("kind", EVERY)
def test_tls_secrets_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    secrets = tmp_path / "secrets.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(secrets))
    with serving(tmp_path, tls=True) as service, asking(service, kind) as caller:
        assert caller.ask() == ANSWER
    assert not secrets.exists()


@pytest.mark.parametrize("kind", EVERY)
def test_an_authority_of_the_environment_helps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    own = self_signed(tmp_path)
    with serving(tmp_path, tls=True) as service, between(service, own) as relay:
        monkeypatch.setenv("SSL_CERT_FILE", str(own.cert))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        with asking(service, kind, url=relay.url) as caller:
            assert_refused(caller, service, "id-6", prompts=0)
        with asking(service, kind) as caller:  # and the attested key needs no authority
            assert caller.ask() == ANSWER


@pytest.mark.parametrize("client", [confide.Client, confide.AsyncClient])
@pytest.mark.parametrize("option", ["verify", "cert", "mounts", "transport"])
def test_what_would_take_the_verification_away_is_no_option(client: type, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        client(confide.Policy(), **{option: None})
