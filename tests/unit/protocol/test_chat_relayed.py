"""A chat request that the engine judges: what is read of it, and what of it is changed."""

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat_relayed import OURS_MOST_BYTES, parse_relayed, relayed_body
from confide.protocol.serving import parse_constraints

BODY = b'{"model":"m","messages":"the engine\'s to judge","temperature":99}'


def handed_on(body: bytes, *, model: str = "m", drop_constraints: bool = False, cache_salt: str | None = None) -> bytes:
    request = parse_relayed(body)
    return relayed_body(body, request, model=model, drop_constraints=drop_constraints, cache_salt=cache_salt)


def test_what_is_not_ours_is_not_judged() -> None:
    request = parse_relayed(BODY)
    assert (request.model, request.stream, request.provider) == ("m", False, None)
    assert handed_on(BODY) is BODY


@pytest.mark.parametrize(("stream", "expected"), [(b"true", True), (b"false", False), (b"null", False)])
def test_stream_is_read(stream: bytes, expected: bool) -> None:
    assert parse_relayed(b'{"model":"m","stream":%b}' % stream).stream is expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"model":"m"', None),
        (b"[" * 100_000, None),
        (b'{"model":"m","model":"m"}', None),
        (b"{}", "model"),
        (b'{"model":7}', "model"),
        (b'{"model":null}', "model"),
        (b'{"model":"\xff"}', "model"),
        (b'{"model":"m","stream":1}', "stream"),
        (b'{"model":"m","provider":7}', "provider"),
        (b'{"model":"m","provider":{"a":1,"a":1}}', "provider"),
    ],
)
def test_what_nobody_could_route_is_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_relayed(body)
    assert caught.value.param == param
    assert caught.value.__context__ is None


def test_constraints_are_read_and_the_rest_of_provider_is_not() -> None:
    request = parse_relayed(b'{"model":"m","provider":{"aci_verified":true,"order":[1.0]}}')
    assert request.provider == {"aci_verified": True, "order": None}
    assert parse_relayed(b'{"model":"m","provider":null}').provider is None


def test_a_constraint_that_is_too_large_is_none() -> None:
    ids = b"[" + b",".join([b'"%b"' % (b"0" * 64)] * (OURS_MOST_BYTES // 60)) + b"]"
    request = parse_relayed(b'{"model":"m","provider":{"aci_session_ids":%b}}' % ids)
    with pytest.raises(InvalidRequest):
        parse_constraints(request.provider)


@pytest.mark.parametrize(
    ("body", "handed", "options"),
    [
        (b'{ "model" : "m" }', b'{ "model" : "n" }', {"model": "n"}),
        (b'{"priority":1,"model":"m"}', b'{"model":"m"}', {}),
        (b'{"model":"m","provider":{"aci_verified":true}}', b'{"model":"m"}', {"drop_constraints": True}),
        (
            b'{"model":"m","provider":{ "aci_verified":true, "x": 1.0 }}',
            b'{"model":"m","provider":{ "x": 1.0 }}',
            {"drop_constraints": True},
        ),
        (b'{"model":"m"}', b'{"cache_salt":"s","model":"m"}', {"cache_salt": "s"}),
        (b'{"cache_salt":[], "model":"m"}', b'{"cache_salt":"s", "model":"m"}', {"cache_salt": "s"}),
        (b'{"priority":1, "model":"m"}', b'{"cache_salt":"s","model":"n"}', {"cache_salt": "s", "model": "n"}),
    ],
)
def test_only_what_is_ours_is_changed(body: bytes, handed: bytes, options: dict[str, str | bool]) -> None:
    assert handed_on(body, **options) == handed  # type: ignore[arg-type]  # each case has its own
