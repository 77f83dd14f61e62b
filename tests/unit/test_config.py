"""The configuration: where its values come from, and what each mistake is answered with."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from confide import config
from confide.config import Config
from confide.errors import ConfigError

MODEL = '[[model]]\nid = "a"\nupstream_model = "x"\n'
LEAVES_OUT = '[[model]]\nid = "a"\n'
ATTESTED = "[server]\ntls = 'attested'\n"
TLS = "[server]\ntls_cert = '{0}'\ntls_key = '{0}'"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "confide.toml"


def load(file: Path, text: str, **variables: str) -> Config:
    file.write_text(text)
    return config.load(file, environ=variables)


def refusal(file: Path, text: str, **variables: str) -> str:
    """The message; every refusal has a remedy, and neither spans lines."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, **variables)
    assert caught.value.exit_status == 2
    assert caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value.message


def test_nothing_given_is_the_default(tmp_path: Path) -> None:
    assert config.load(None, environ={}) == Config()


def test_later_wins_file_variable_option(file: Path) -> None:
    file.write_text('[server]\nhost = "127.0.0.2"\nport = 1\ndrain_s = 3\n')
    environ = {"CONFIDE_SERVER_PORT": "2", "CONFIDE_SERVER_HOST": "127.0.0.3"}
    server = config.load(file, environ=environ, overrides={"server": {"port": 3}}).server
    assert (server.host, server.port, server.drain_s) == ("127.0.0.3", 3, 3.0)


def test_a_variable_names_the_file_and_an_option_another(file: Path, tmp_path: Path) -> None:
    file.write_text("[server]\nport = 1\n")
    assert config.load(None, environ={"CONFIDE_CONFIG": str(file)}).server.port == 1
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 2\n")
    assert config.load(other, environ={"CONFIDE_CONFIG": str(file)}).server.port == 2


def test_variables_are_numbers_booleans_or_text(file: Path) -> None:
    server = load(
        file, "", CONFIDE_SERVER_REMOTE_IMAGES="true", CONFIDE_SERVER_DRAIN_S="2.5", CONFIDE_SERVER_HOST="a"
    ).server
    assert (server.remote_images, server.drain_s, server.host) == (True, 2.5, "a")


def test_attested_tls_needs_no_files_and_takes_a_chain_and_a_host(file: Path) -> None:
    assert load(file, ATTESTED).server.tls_cert is None
    server = load(file, ATTESTED + "tls_cert = 'chain.pem'\ndomain = 'api.example.com'").server
    assert (server.tls, server.tls_cert, server.domain) == ("attested", "chain.pem", "api.example.com")


def test_the_build_may_say_what_it_was_made_from(file: Path) -> None:
    commit, image = "ab" * 32, "sha256:" + "cd" * 32
    url, provenance = "https://git.example.com/a/confide.git", "https://git.example.com/slsa?v=1#x"
    text = f"[source]\nrepo_url = '{url}'\nimage_provenance = '{provenance}'"
    source = load(file, text, CONFIDE_SOURCE_REPO_COMMIT=commit, CONFIDE_SOURCE_IMAGE_DIGEST=image).source
    assert (source.repo_url, source.repo_commit) == (url, commit)
    assert (source.image_digest, source.image_provenance) == (image, provenance)


def test_text_that_looks_like_a_date_is_text(file: Path) -> None:
    assert (
        load(file, "", CONFIDE_SERVER_TLS_CERT="2026-01-01", CONFIDE_SERVER_TLS_KEY="k").server.tls_cert == "2026-01-01"
    )


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_left_alone(file: Path) -> None:
    links = {
        "CONFIDE_SERVICE_HOST": "10.0.0.1",
        "CONFIDE_SERVICE_PORT": "80",
        "CONFIDE_SERVICE_PORT_HTTP": "80",
        "CONFIDE_PORT": "tcp://10.0.0.1:80",
        "CONFIDE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "CONFIDE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load(file, "", **links) == Config()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "[server]\nprot = 1",
            ["[server]", "unknown key 'prot'", "host, port, workers, worker_timeout_s, tls, tls_cert"],
        ),
        ("[sever]", ["unknown key 'sever'", "server, attester"]),
        (MODEL + "pricing = { input = 1 }", ["[[model]] number 1, pricing", "'input'", "prompt, completion"]),
        ("server = 3", ["[server]", "expected a table, got a whole number"]),
        ("[[server]]", ["[server]", "expected a table, got an array"]),
        ("[model]", ["[model]", "expected an array, got a table"]),
        (MODEL + LEAVES_OUT, ["[[model]] number 2", "the key upstream_model is missing"]),
        ("[server]\nport = '1'", ["[server] port", "expected a whole number, got text"]),
        ("[server]\nport = 65536", ["[server] port", "<= 65535"]),
        ("[server]\nport = -1", ["[server] port", ">= 0"]),
        ("[server]\nremote_images = 1", ["expected true or false, got a whole number"]),
        ("[server]\nhost = 'a b'", ["[server] host", "a host name or an address"]),
        ("[server]\nhost = ''", ["[server] host", "length >= 1"]),
        (f"[server]\nhost = '{'a' * 64}'", ["[server] host", "not a host name"]),
        ('[server]\ntls_key = "a\\u0000"', ["[server] tls_key", "a path"]),
        ("[limits]\nqueue_timeout_s = inf", ["[limits] queue_timeout_s", "<= 86400"]),
        ("[limits]\nqueue_timeout_s = nan", ["[limits] queue_timeout_s", "> 0"]),
        ("[server]\nmax_body_bytes = 99999999999999999999", ["[server] max_body_bytes", "<= "]),
        ("[attester]\nkind = 'sgx'", ["[attester] kind", "'sgx'", "auto, dstack, tsm, simulated"]),
        ("[store]\nurl = 'postgres://u:hidden@h/d'", ["[store] url", "sqlite:///FILE"]),
        (MODEL + "modalities = ['video']", ["[[model]] number 1, modalities[0]", "text, image"]),
        (MODEL + "pricing = { prompt = 'free' }", ["pricing.prompt", "decimal number"]),
        ("[server]\ntls_cert = 'c.pem'", ["tls_cert and tls_key", "both or neither"]),
        ("[server]\ntls_key = 'k.pem'", ["tls_cert and tls_key", "both or neither"]),
        ("[server]\ntls = 'acme'", ["[server] tls", "'acme'", "files, attested"]),
        (
            "[server]\ntls = 'attested'\ntls_key = 'k.pem'",
            ["[server] tls_key", 'tls = "attested"', "the attester makes"],
        ),
        ("[server]\ndomain = 'api.example.com'", ["[server] domain", 'tls is not "attested"']),
        (ATTESTED + "domain = 'API.example.com'", ["[server] domain", "a host name in lower case"]),
        (ATTESTED + "domain = 'api.example.com:443'", ["[server] domain", "a host name in lower case"]),
        (ATTESTED + "domain = 'api..example'", ["[server] domain", "a host name in lower case"]),
        (ATTESTED + "domain = ''", ["[server] domain", "a host name in lower case"]),
        (ATTESTED + "domain = 'a.example\\n'", ["[server] domain", "a host name in lower case"]),
        (f"{ATTESTED}domain = '{'a.' * 127}a'", ["[server] domain", "a host name in lower case"]),
        ("[attester]\nkeyset_lifetime_s = 9", ["[attester] keyset_lifetime_s", ">= 10"]),
        ("[attester]\nkeyset_lifetime_s = 31622401", ["[attester] keyset_lifetime_s", "<= 31622400"]),
        ("[attester]\nkeyset_lifetime_s = 10.5", ["[attester] keyset_lifetime_s", "a whole number"]),
        ("[source]\nrepo_commit = 'main'", ["[source] repo_commit", "a full commit"]),
        (f"[source]\nrepo_commit = '{'a' * 39}'", ["[source] repo_commit", "a full commit"]),
        (f"[source]\nrepo_commit = '{'A' * 40}'", ["[source] repo_commit", "lower case"]),
        (f"[source]\nimage_digest = '{'a' * 64}'", ["[source] image_digest", "sha256: and 64 hex digits"]),
        ("[source]\nrepo_url = ''", ["[source] repo_url", "length >= 1"]),
        ("[source]\nrepo_url = 'a b'", ["[source] repo_url", "in ASCII without spaces"]),
        ("[source]\nrepo = 'x'", ["[source]", "unknown key 'repo'", "repo_url, repo_commit"]),
        ("model = []", ["[[model]]", "at least one"]),
        (MODEL + "aliases = ['b', 'b']", ["[[model]] b", "given twice"]),
        (MODEL + "aliases = ['a']", ["[[model]] a", "given twice"]),
        (MODEL + MODEL, ["[[model]] a", "given twice"]),
        (MODEL + "modalities = ['text', 'image']", ["[[model]] a", "projector"]),
        (MODEL + "projector = 'p.gguf'", ["[[model]] a", "image"]),
        ("port 1", ["not valid TOML", "line 1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_the_file_is_named_where_it_is(file: Path, text: str, parts: list[str]) -> None:
    message = refusal(file, text)
    for part in parts:
        assert part.lower() in message.lower()
    assert "hidden" not in message


def test_bytes_that_are_not_text_are_not_toml(file: Path) -> None:
    file.write_bytes(b'[server]\nhost = "\xff"')
    with pytest.raises(ConfigError, match="byte 17 is not UTF-8"):
        config.load(file, environ={})


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file at .*absent\.toml"):
        config.load(tmp_path / "absent.toml", environ={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path, environ={})


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"CONFIDE_SERVER_PRT": "1"}, ["CONFIDE_SERVER_PRT", "CONFIDE_SERVER_PORT"]),
        ({"CONFIDE_SERVR_PORT": "1"}, ["CONFIDE_SERVR_PORT", "CONFIDE_SERVER_…", "CONFIDE_ENGINE_…"]),
        ({"CONFIDE_SERVER": "1"}, ["CONFIDE_SERVER names no setting"]),
        ({"CONFIDE_MODEL_ID": "a"}, ["CONFIDE_MODEL_ID names no setting"]),
        ({"CONFIDE_SERVER_PORT": "many"}, ["CONFIDE_SERVER_PORT", "[server] port", "got text"]),
        ({"CONFIDE_SERVER_PORT": "1\nhost = 2"}, ["CONFIDE_SERVER_PORT", "got text"]),
        ({"CONFIDE_ATTESTER_KIND": "sgx"}, ["CONFIDE_ATTESTER_KIND", "auto, dstack, tsm, simulated"]),
        ({"CONFIDE_ATTESTER_GPU_URL": "ftp://gpu"}, ["CONFIDE_ATTESTER_GPU_URL", "http://… or https://…"]),
        ({"CONFIDE_SERVER_HOST": "\udcff"}, ["CONFIDE_SERVER_HOST is not UTF-8"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_variable_names_the_variable(file: Path, variables: Mapping[str, str], parts: list[str]) -> None:
    message = refusal(file, "[server]\nport = 1\n", **variables)
    for part in parts:
        assert part in message
    assert str(file) not in message


def test_a_variable_over_a_section_that_is_no_table_is_refused_by_the_section(file: Path) -> None:
    assert "[server]" in refusal(file, "server = 3", CONFIDE_SERVER_PORT="1")


def test_a_mistake_in_an_option_names_the_option(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--port: \[server\] port"):
        config.load(None, environ={}, overrides={"server": {"port": 70000}})


@pytest.mark.parametrize("text", [TLS, MODEL + "modalities = ['image']\nprojector = '{0}'"])
def test_files_are_looked_at_only_when_asked(file: Path, tmp_path: Path, text: str) -> None:
    absent = tmp_path / "absent"
    loaded = load(file, text.format(absent))
    with pytest.raises(ConfigError, match="absent: cannot be read: No such file"):
        config.check_files(loaded)
    absent.touch()
    config.check_files(loaded)


def test_home_is_made_for_this_user_alone(tmp_path: Path) -> None:
    home = config.home({"CONFIDE_HOME": str(tmp_path / "a" / "b")})
    assert home.stat().st_mode & 0o777 == 0o700
    home.chmod(0o755)
    assert config.home({"CONFIDE_HOME": str(home)}).stat().st_mode & 0o777 == 0o700


def test_a_directory_that_all_users_share_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match="shared by all users"):
        config.home({"CONFIDE_HOME": str(tmp_path)})
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ConfigError) as caught:
            config.home({"CONFIDE_HOME": str(tmp_path / name)})
        assert "CONFIDE_HOME" in str(caught.value.remedy)


def test_home_follows_the_conventions_of_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert config.locate_home({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "confide"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.locate_home({}) == tmp_path / ".local" / "share" / "confide"
    monkeypatch.setattr("sys.platform", "darwin")
    assert config.locate_home({}) == tmp_path / "Library" / "Application Support" / "confide"


def test_locating_home_makes_nothing(tmp_path: Path) -> None:
    assert config.locate_home({"CONFIDE_HOME": str(tmp_path / "new")}) == tmp_path / "new"
    assert list(tmp_path.iterdir()) == []


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError):
        config.home({"CONFIDE_HOME": str(tmp_path / "loop")})


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ('gpu = "command"', ['got "command"', "gpu_command"]),
        ('gpu = "url"', ["gpu_url"]),
        ('gpu = "file"', ["gpu_file"]),
        ('gpu_url = "http://localhost/${nonce}"', ['got "none"', 'gpu = "url"']),
        ('gpu = "url"\ngpu_url = "http://localhost/${nonce}"\ngpu_file = "/run/${nonce}"', ["gpu_file"]),
        ('gpu = "command"\ngpu_command = ["nvattest", "collect-evidence"]', ["gpu_command", "no ${nonce} in it"]),
        ('gpu = "url"\ngpu_url = "http://localhost/gpu"', ["gpu_url", "no ${nonce} in it"]),
        ('gpu = "file"\ngpu_file = "/run/gpu.json"', ["gpu_file", "no ${nonce} in it"]),
    ],
)
def test_a_source_of_gpu_evidence_has_what_it_needs_and_nothing_else(file: Path, lines: str, parts: list[str]) -> None:
    message = refusal(file, f"[attester]\n{lines}\n")
    for part in parts:
        assert part in message


def test_a_source_of_gpu_evidence_may_come_from_the_environment(file: Path) -> None:
    variables = {
        "CONFIDE_ATTESTER_GPU": "command",
        "CONFIDE_ATTESTER_GPU_COMMAND": '["nvattest", "collect-evidence", "--nonce", "${nonce}"]',
    }
    file.write_text("")
    attester = config.load(file, environ=variables).attester
    assert (attester.gpu, attester.gpu_command[-1]) == ("command", "${nonce}")


@pytest.mark.parametrize("workers", ["0", "65", "-1", "1.5", "true", '"many"'])
def test_workers_beyond_sense_are_refused(file: Path, workers: str) -> None:
    assert "[server] workers" in refusal(file, f"[server]\nworkers = {workers}\n")


@pytest.mark.parametrize("bound", ["0", "0.99", "-30", "86401", "inf", "nan", "true", '"30"'])
def test_a_bound_for_workers_that_hang_beyond_sense_is_refused(file: Path, bound: str) -> None:
    assert "[server] worker_timeout_s" in refusal(file, f"[server]\nworker_timeout_s = {bound}\n")


def test_workers_that_hang_are_given_half_a_minute_unless_it_is_set(file: Path) -> None:
    assert Config().server.worker_timeout_s == 30
    assert load(file, "[server]\nworker_timeout_s = 1\n").server.worker_timeout_s == 1
    assert load(file, "", CONFIDE_SERVER_WORKER_TIMEOUT_S="2.5").server.worker_timeout_s == 2.5


def test_workers_are_one_unless_they_are_asked_for(file: Path) -> None:
    assert Config().server.workers == 1
    assert load(file, "", CONFIDE_SERVER_WORKERS="4").server.workers == 4
    with pytest.raises(ConfigError, match=r"--workers"):
        config.load(None, environ={}, overrides={"server": {"workers": 65}})
