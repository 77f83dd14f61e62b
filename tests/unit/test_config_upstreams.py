"""`[[upstream]]` and what a `[[model]]` says of it: what is accepted, and how a mistake is named."""

from pathlib import Path

import pytest

from confide import config
from confide.errors import ConfigError

LOCAL = '[[upstream]]\nname = "a"\nkind = "local"\nbase_url = "http://127.0.0.1:8000/v1"\n'
ACI = '[[upstream]]\nname = "b"\nkind = "aci"\nbase_url = "https://b.example.com/v1"\n'
OPENAI = '[[upstream]]\nname = "c"\nkind = "openai"\nbase_url = "https://c.example.com/v1"\nallow_unverified = true\n'


VECTORS = 'kind = "embeddings"\n'


def model(upstream: str, more: str = "") -> str:
    return f'[[model]]\nid = "m"\nupstream = {upstream}\n{more}'


def load(tmp_path: Path, text: str) -> config.Config:
    file = tmp_path / "confide.toml"
    file.write_text(text)
    return config.load(file, environ={})


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.remedy
    return caught.value


def test_a_file_without_upstreams_means_the_embedded_engine(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[[model]]\nid = "m"\nupstream_model = "smollm2-135m"\n')
    [only] = loaded.model
    assert [(choice.name, choice.upstream_model) for choice in only.choices] == [("embedded", "smollm2-135m")]
    assert (loaded.serving, loaded.is_embedded(only)) == ("direct", True)


def test_upstreams_in_order_and_by_weight(tmp_path: Path) -> None:
    text = ACI + OPENAI + model('["b", { name = "c", weight = 3, upstream_model = "x" }]', 'upstream_model = "y"\n')
    loaded = load(tmp_path, text)
    [only] = loaded.model
    assert [(each.name, each.weight, each.upstream_model) for each in only.choices] == [("b", None, "y"), ("c", 3, "x")]
    assert loaded.serving == "aggregator"
    assert load(tmp_path, LOCAL + model('"a"')).serving == "direct"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1", "http://[::1]:1/v1", "http://localhost:1", "unix:/run/e.sock"]
)
def test_a_local_engine_is_near(tmp_path: Path, url: str) -> None:
    load(tmp_path, LOCAL.replace("http://127.0.0.1:8000/v1", url) + model('"a"'))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (LOCAL.replace("127.0.0.1", "10.0.0.7") + model('"a"'), ["[[upstream]] a", "loopback"]),
        (LOCAL.replace("127.0.0.1", "127.0.0.1.example.com") + model('"a"'), ["[[upstream]] a", "loopback"]),
        (LOCAL.replace("http:", "https:") + model('"a"'), ["[[upstream]] a", "loopback"]),
        (ACI.replace("https:", "http:") + model('"b"'), ["[[upstream]] b", "over TLS"]),
        (OPENAI.replace("https:", "http:") + model('"c"'), ["[[upstream]] c", "in clear"]),
        (OPENAI.replace("allow_unverified = true\n", "") + model('"c"'), ["[[upstream]] c", "allow_unverified"]),
        (ACI + "allow_unverified = true\n" + model('"b"'), ["[[upstream]] b", "needs no such leave"]),
        (LOCAL + "session_s = 60\n" + model('"a"'), ["[[upstream]] a", "session_s", "attested upstreams"]),
        (ACI.replace('"aci"', '"legacy-proxy"') + "required_gpus = 1\n" + model('"b"'), ["required_gpus"]),
        (LOCAL + ACI + model('["a", "b"]'), ["local", "aci", "second hop"]),
        (ACI + model('"b"') + '[[model]]\nid = "n"\nupstream_model = "smollm2-135m"\n', ["embedded", "aci"]),
        (LOCAL, ["[[upstream]] a", "no model names it"]),
        (LOCAL + model('"a"', 'kind = "words"\n'), ["number 1, kind", "'words'", "chat, embeddings"]),
        (LOCAL + model('"a"', "vector_length = 8\n"), ["[[model]] m", "vector_length", "embeddings"]),
        (LOCAL + model('"a"', VECTORS + 'modalities = ["text", "image"]\n'), ["[[model]] m", "takes text alone"]),
        (LOCAL + 'surfaces = ["chat"]\n' + model('"a"', VECTORS), ["[[model]] m", "upstream a", "this surface"]),
        (LOCAL + LOCAL + model('"a"'), ["[[upstream]] a", "twice"]),
        (LOCAL + model('"other"'), ["[[model]] m", "'other'", "embedded, a"]),
        (LOCAL + model('["a", "a"]'), ["[[model]] m", "a is given twice"]),
        (LOCAL + model("[]"), ["[[model]] number 1, upstream"]),
        (LOCAL.replace('base_url = "http://127.0.0.1:8000/v1"\n', "") + model('"a"'), ["a: the key base_url"]),
        (LOCAL.replace("http://", "http://user:secret@") + model('"a"'), ["number 1, base_url", "without credentials"]),
        (LOCAL.replace("8000", "99999") + model('"a"'), ["[[upstream]] a", "not a URL with a host and a port"]),
        (LOCAL + 'key_env = "A"\nkey_file = "/b"\n' + model('"a"'), ["key_env and key_file"]),
        (LOCAL + 'key_env = "A"\nkey_header = "cookie"\n' + model('"a"'), ["key_header", "'cookie'", "x-api-key"]),
        (LOCAL + 'key_header = "x-api-key"\n' + model('"a"'), ["[[upstream]] a", "key_header", "no key"]),
        (LOCAL + "nonsense = 1\n" + model('"a"'), ["[[upstream]] number 1", "'nonsense'", "base_url"]),
        (LOCAL.replace('"local"', '"remote"') + model('"a"'), ["number 1, kind", "'remote'", "legacy-proxy"]),
        (OPENAI + model('"c"', "tee_only = true\n"), ["[[model]] m", "tee_only"]),
        ("[server]\ntee_only = true\n" + OPENAI + model('"c"'), ["[[model]] m", "tee_only"]),
        (
            '[[upstream]]\nname = "embedded"\nkind = "local"\nbase_url = "unix:/e"\n'
            + model('"embedded"', 'upstream_model = "x"'),
            ["this name means"],
        ),
        ('[[upstream]]\nname = "e"\nkind = "embedded"\ncache_salt = true\n' + model('"e"'), ["takes no keys"]),
        (model('"embedded"'), ["number 1: the key upstream_model is missing"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text).message
    for part in parts:
        assert part in message
    assert "secret" not in message or "user:secret" not in message


def test_the_credential_of_an_upstream_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    named = load(tmp_path, LOCAL + 'key_env = "ENGINE_KEY"\n' + model('"a"')).upstream[0]
    assert config.upstream_key(named, {"ENGINE_KEY": " sk-1 \n"}) == "sk-1"
    for value in ("", "two words", "caf\u00e9"):
        with pytest.raises(ConfigError) as caught:
            config.upstream_key(named, {"ENGINE_KEY": value})
        assert "ENGINE_KEY" in caught.value.message
        assert not value or value not in caught.value.message
    (tmp_path / "key").write_text("sk-2\n")
    in_file = load(tmp_path, LOCAL + f'key_file = "{tmp_path}/key"\n' + model('"a"')).upstream[0]
    assert config.upstream_key(in_file, {}) == "sk-2"


def test_the_credential_goes_as_a_bearer_unless_another_header_is_named(tmp_path: Path) -> None:
    [bearer] = load(tmp_path, LOCAL + 'key_env = "A"\n' + model('"a"')).upstream
    [named] = load(tmp_path, LOCAL + 'key_env = "A"\nkey_header = "x-api-key"\n' + model('"a"')).upstream
    assert (bearer.key_header, named.key_header) == ("authorization", "x-api-key")


def test_a_key_or_root_that_is_not_there_is_found_before_anything_slow(tmp_path: Path) -> None:
    for text in (
        LOCAL + 'key_env = "ENGINE_KEY_THAT_IS_NOT_SET"\n' + model('"a"'),
        ACI + 'trust_roots = ["/absent"]\n' + model('"b"'),
    ):
        with pytest.raises(ConfigError, match=r"\[\[upstream\]\]"):
            config.check_files(load(tmp_path, text))


def test_without_a_file_there_is_a_model_to_chat_with_and_one_for_embeddings() -> None:
    models = config.load(None, environ={}).model
    assert [(each.kind, each.weights) for each in models] == [
        ("chat", "smollm2-135m"),
        ("embeddings", "all-minilm-l6-v2"),
    ]


def test_a_model_of_vectors_may_run_anywhere(tmp_path: Path) -> None:
    [only] = load(tmp_path, LOCAL + model('"a"', VECTORS + "vector_length = 1024\n")).model
    assert (only.kind, only.vector_length) == ("embeddings", 1024)
    [only] = load(tmp_path, '[[model]]\nid = "m"\nupstream_model = "all-minilm-l6-v2"\n' + VECTORS).model
    assert only.kind == "embeddings"
