"""`confide serve` before it serves: the configuration it prints, and the ones it refuses."""

import datetime
import os
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from confide import config
from confide.cli.serve import MASK, as_toml, masked
from confide.config import Attester, Config, Engine, Limits, Model, Pricing, Server, Source, Store
from running import CONFIDE

Completed = subprocess.CompletedProcess[str]

LARGEST = 2**63 - 1
MODEL = '[[model]]\nid = "a"\nupstream_model = "smollm2-135m"\n'


def serve(home: Path, *arguments: str, **variables: str) -> Completed:
    """`confide serve` with only these settings, in a directory of its own."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    command = [str(CONFIDE), "serve", *arguments]
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1"}
    environ = {**keep, **offline, "CONFIDE_HOME": str(home), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
ids = st.from_regex(r"[^\s\x00-\x1f\ud800-\udfff]{1,30}", fullmatch=True)
seconds = st.floats(min_value=0, max_value=86_400, exclude_min=True)
decimals = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,9})?", fullmatch=True)
sqlite_urls = st.from_regex(r"sqlite:///[^\x00-\x1f\ud800-\udfff]{1,30}", fullmatch=True)


domains = st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,10})?(\.[a-z0-9]{1,10}){0,3}", fullmatch=True)
labels = st.from_regex(r"[!-~]{1,40}", fullmatch=True)


def whole(least: int, most: int = LARGEST) -> st.SearchStrategy[int]:
    return st.integers(least, most)


@st.composite
def servers(draw: st.DrawFn) -> Server:
    tls: Literal["files", "attested"] = draw(st.sampled_from(["files", "attested"]))
    has_cert = draw(st.booleans())
    return Server(
        host=draw(st.from_regex(r"[a-z0-9]{1,20}(\.[a-z0-9]{1,20}){0,3}|[0-9a-f:]{2,20}", fullmatch=True)),
        port=draw(whole(0, 65535)),
        tls=tls,
        tls_cert=draw(paths) if has_cert else None,
        tls_key=draw(paths) if has_cert and tls == "files" else None,
        domain=draw(st.none() | domains) if tls == "attested" else None,
        max_body_bytes=draw(whole(1)),
        drain_s=draw(seconds),
        keepalive_comment_s=draw(st.none() | seconds),
        remote_images=draw(st.booleans()),
    )


@st.composite
def models(draw: st.DrawFn, name: str, aliases: list[str]) -> Model:
    is_visual = draw(st.booleans())
    return Model(
        id=name,
        aliases=tuple(aliases),
        upstream_model=draw(texts),
        name=draw(st.none() | texts),
        description=draw(st.none() | texts),
        provider=draw(texts),
        context_length=draw(st.none() | whole(1)),
        modalities=("text", "image") if is_visual else ("text",),
        projector=draw(paths) if is_visual else None,
        pricing=Pricing(prompt=draw(decimals), completion=draw(decimals)),
    )


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    names = draw(st.lists(ids, min_size=3, max_size=6, unique=True))
    return Config(
        server=draw(servers()),
        attester=Attester(
            kind=draw(st.sampled_from(["auto", "simulated"])), keyset_lifetime_s=draw(whole(10, 31_622_400))
        ),
        source=draw(
            st.builds(
                Source,
                repo_url=st.none() | labels,
                repo_commit=st.none() | st.from_regex(r"[0-9a-f]{40}|[0-9a-f]{64}", fullmatch=True),
                image_digest=st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
                image_provenance=st.none() | labels,
            )
        ),
        store=draw(
            st.builds(
                Store,
                url=st.none() | sqlite_urls,
                receipt_ttl_s=whole(60, 315_360_000),
                max_proofs=whole(100),
                synchronous=st.sampled_from(["normal", "full"]),
            )
        ),
        limits=draw(
            st.builds(
                Limits,
                queue=whole(0, 1_000_000),
                queue_timeout_s=seconds,
                max_n=whole(1, 128),
                first_byte_timeout_s=seconds,
                idle_timeout_s=seconds,
            )
        ),
        engine=draw(
            st.builds(
                Engine,
                slots=whole(1, 64),
                context_length=whole(512, 1_048_576),
                threads=whole(0, 1024),
                batch=whole(16, 2048),
            )
        ),
        model=(draw(models(names[0], names[1:-1])), draw(models(names[-1], []))),
    )


@settings(max_examples=60, deadline=None)
@given(effective=configurations())
def test_what_is_printed_gives_the_same_configuration_again(
    tmp_path_factory: pytest.TempPathFactory, effective: Config
) -> None:
    file = tmp_path_factory.mktemp("printed") / "confide.toml"
    file.write_bytes(as_toml(effective).encode())
    assert config.load(file, environ={}) == effective


def test_the_program_prints_what_file_variables_and_options_come_to(tmp_path: Path) -> None:
    file = tmp_path / "confide.toml"
    file.write_text('[server]\nport = 1\ndrain_s = 3\n[[model]]\nid = "modèle"\nupstream_model = "x"\n')
    arguments = ("--config", str(file), "--port", "9", "--print-config")
    done = serve(tmp_path / "home", *arguments, CONFIDE_LIMITS_QUEUE="5", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text(done.stdout)
    loaded = config.load(file, environ={})
    assert (loaded.server.port, loaded.server.drain_s, loaded.limits.queue) == (9, 3.0, 5)
    assert loaded.model == (Model(id="modèle", upstream_model="x"),)


def test_printing_needs_no_state_directory(tmp_path: Path) -> None:
    assert serve(tmp_path / "home", "--print-config").returncode == 0
    assert serve(Path("/dev/null"), "--print-config").returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("api_key", "s3cret", MASK),
        ("hub_token", "s3cret", MASK),
        ("password", "s3cret", MASK),
        ("tls_key", "/etc/key.pem", "/etc/key.pem"),
        ("keepalive", "s3cret", "s3cret"),
        ("url", "postgresql://me:s3cret@db/confide", f"postgresql://{MASK}@db/confide"),
        ("url", "redis://:s3cret@cache:6379/0", f"redis://{MASK}@cache:6379/0"),
        ("url", "sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db"),
        ("base_url", "https://host/path@x", "https://host/path@x"),
        ("upstream", {"token": "s3cret", "n": 1}, {"token": MASK, "n": 1}),
        ("urls", ["https://u:s3cret@a", "https://b"], [f"https://{MASK}@a", "https://b"]),
    ],
)
def test_secrets_are_masked(key: str, value: object, shown: object) -> None:
    assert masked(key, value) == shown


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("[server]\nprot = 1", (), "[server]: unknown key 'prot'"),
        ("[server]\nport = 'x'", (), "[server] port"),
        ("", ("--port", "70000"), "--port: [server] port"),
        ("nonsense", (), "not valid TOML"),
        (MODEL + 'aliases = ["a"]', (), "given twice"),
        (MODEL + 'modalities = ["image"]', (), "projector"),
        ("[server]\ntls_cert = 'c.pem'", (), "both or neither"),
        ("[server]\ntls = 'attested'\ntls_key = 'k.pem'", (), "where the attester makes the key"),
        ("[server]\ntls = 'attested'\ntls_cert = 'c.pem'", (), "tls_cert c.pem: cannot be read"),
        ("[server]\ndomain = 'a.example'", (), 'tls is not "attested"'),
        ("[server]\ntls_cert = 'c.pem'\ntls_key = 'k.pem'", (), "tls_cert c.pem: cannot be read"),
        (MODEL + "modalities = ['image']\nprojector = 'none.gguf'", (), "projector none.gguf: cannot be read"),
        (
            '[[model]]\nid = "a"\nupstream_model = "gpt-9"',
            (),
            "unknown weights 'gpt-9', expected one of: all-minilm-l6-v2, smollm2-135m",
        ),
        ("[server]\nhost = 'no.such.host.invalid'", (), "no such address"),
    ],
    ids=lambda value: value.replace("\n", " ") if isinstance(value, str) else "",
)
def test_a_configuration_that_cannot_work_is_refused(
    tmp_path: Path, text: str, arguments: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "confide.toml"
    file.write_text(text)
    assert_refused(serve(tmp_path / "home", "--config", str(file), *arguments), words)


def test_a_variable_that_is_wrong_is_refused(tmp_path: Path) -> None:
    assert_refused(serve(tmp_path / "home", CONFIDE_SERVER_PORT="x"), "CONFIDE_SERVER_PORT")
    assert_refused(serve(tmp_path / "home", CONFIDE_SERVER_PRT="1"), "CONFIDE_SERVER_PRT names no setting")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(serve(tmp_path / "home", "--config", str(tmp_path / "absent")), "no configuration file")


def test_files_that_are_no_certificate_or_do_not_go_together_are_refused(tmp_path: Path) -> None:
    key, other = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    (tmp_path / "cert.pem").write_bytes(certificate(key))
    (tmp_path / "key.pem").write_bytes(private(key, NoEncryption()))
    (tmp_path / "other.pem").write_bytes(private(other, NoEncryption()))
    (tmp_path / "locked.pem").write_bytes(private(key, BestAvailableEncryption(b"open sesame")))
    (tmp_path / "text.pem").write_text("not a certificate")
    wrong = {("cert.pem", "other.pem"), ("cert.pem", "locked.pem"), ("text.pem", "key.pem"), ("cert.pem", "text.pem")}
    for cert_name, key_name in sorted(wrong):
        tls = {"CONFIDE_SERVER_TLS_CERT": str(tmp_path / cert_name), "CONFIDE_SERVER_TLS_KEY": str(tmp_path / key_name)}
        assert_refused(serve(tmp_path / "home", **tls), "tls_cert")
    tls = {"CONFIDE_SERVER_TLS_CERT": str(tmp_path / "cert.pem"), "CONFIDE_SERVER_TLS_KEY": str(tmp_path / "key.pem")}
    assert serve(tmp_path / "home", **tls).returncode == 3  # the honest twin gets as far as the network


def assert_refused(done: Completed, words: str) -> None:
    """One sentence that holds `words`, one remedy, status 2, and nothing for a script to read."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert words in first
    assert second


def certificate(key: EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=36_500))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def private(key: EllipticCurvePrivateKey, encryption: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
