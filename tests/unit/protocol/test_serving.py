"""Serving constraints are taken exactly or refused, and are not handed on (wire contract 7.4, 7.6)."""

import json
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.serving import MAX_SESSION_IDS, UNCONSTRAINED, Constraints, forwarded_body, parse_constraints

ID, OTHER_ID = "95" * 32, "96" * 32


def refused(provider: dict[str, object]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_constraints(provider)
    return caught.value


def ids(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


@pytest.mark.parametrize(
    ("provider", "constraints"),
    [
        (None, UNCONSTRAINED),
        ({}, UNCONSTRAINED),
        ({"order": ["x"], "ACI_verified": 1, "aciVerified": 1, "aci": 1}, UNCONSTRAINED),
        ({"aci_verified": False}, Constraints(stated=True)),
        ({"aci_verified": True}, Constraints(required=True, stated=True)),
        ({"aci_session_ids": [ID]}, Constraints(required=True, session_ids=(ID,), stated=True)),
        (
            {"aci_session_ids": [OTHER_ID, ID, OTHER_ID], "aci_verified": True},
            Constraints(required=True, session_ids=(OTHER_ID, ID), stated=True),
        ),
    ],
)
def test_constraints_are_taken(provider: dict[str, object] | None, constraints: Constraints) -> None:
    assert parse_constraints(provider) == constraints


@pytest.mark.parametrize("value", [None, 0, 1, "true", [], {}])
def test_verified_is_a_boolean(value: object) -> None:
    assert refused({"aci_verified": value}).param == "provider.aci_verified"
    assert refused({"aci_verified": value, "aci_session_ids": [ID]}).param == "provider.aci_verified"


@pytest.mark.parametrize(
    "value",
    [None, [], {}, ID, [None], [7], ["95" * 31], ["AB" * 32], [ID, ID + "\n"], ["sha256:" + ID], ["٩" * 64], [[ID]]],
)
def test_session_ids_are_a_list_of_ids(value: object) -> None:
    assert refused({"aci_session_ids": value}).param == "provider.aci_session_ids"


def test_a_list_of_session_ids_has_a_greatest_length() -> None:
    assert len(parse_constraints({"aci_session_ids": ids(MAX_SESSION_IDS)}).session_ids) == MAX_SESSION_IDS
    assert "1 to 1024" in refused({"aci_session_ids": ids(MAX_SESSION_IDS + 1)}).message


def test_session_ids_cannot_be_pinned_and_waived() -> None:
    assert refused({"aci_session_ids": [ID], "aci_verified": False}).param == "provider.aci_verified"


def test_an_unknown_constraint_is_refused_never_ignored() -> None:
    assert refused({"aci_verified": True, "aci_future": True}).param == "provider.aci_future"


@pytest.mark.parametrize("member", ["aci_", "aci_canary b7f2", "aci_é", "aci_" + "a" * 33, "aci_Verified"])
def test_a_name_of_the_callers_own_is_refused_and_not_repeated(member: str) -> None:
    error = refused({member: 1})
    assert error.param == "provider"
    assert member not in error.message


# What is handed to inference

BODY = (
    '{ "model" : "m",\n "provider":{"order": [ "x" ],"aci_verified":true, "only" :1.0 },"messages":'
    '[ {"role":"user","content":"h\\u00e9 é"},{"role":"assistant","content":"a","tool_calls":[ ]} ],'
    '"seed" :  1e2, "temperature":0.50}'
)


def forwarded(
    body: str = BODY, *, constraints: bool = False, calls: bool = False, messages: bytes | None = None
) -> str:
    return forwarded_body(
        body.encode(), drop_constraints=constraints, drop_empty_tool_calls=calls, messages=messages
    ).decode()


def test_a_body_with_nothing_to_take_out_is_handed_on_as_it_came() -> None:
    raw = BODY.encode()
    assert forwarded_body(raw, drop_constraints=False, drop_empty_tool_calls=False) is raw


def test_constraints_are_taken_out_and_the_rest_is_compact_in_its_order_and_with_its_digits() -> None:
    assert forwarded(constraints=True) == (
        '{"model":"m","provider":{"order":["x"],"only":1.0},"messages":'
        '[{"role":"user","content":"hé é"},{"role":"assistant","content":"a","tool_calls":[]}],'
        '"seed":1e2,"temperature":0.50}'
    )


@pytest.mark.parametrize("provider", ['{"aci_verified":false}', f'{{"aci_session_ids":["{ID}"], "aci_verified":true}}'])
def test_a_provider_that_becomes_empty_goes_too(provider: str) -> None:
    assert forwarded(f'{{"provider":{provider},"model":"m"}}', constraints=True) == '{"model":"m"}'


def test_empty_tool_calls_are_taken_out_of_each_message() -> None:
    assert forwarded(calls=True) == (
        '{"model":"m","provider":{"order":["x"],"aci_verified":true,"only":1.0},"messages":'
        '[{"role":"user","content":"hé é"},{"role":"assistant","content":"a"}],'
        '"seed":1e2,"temperature":0.50}'
    )


@pytest.mark.parametrize("calls", ["null", '[{"id":"c"}]', "[ {} ]"])
def test_tool_calls_that_are_not_empty_stay(calls: str) -> None:
    body = f'{{"messages":[{{"role":"assistant","tool_calls":{calls}}}]}}'
    assert forwarded(body, calls=True) == body.replace(" ", "")


def test_what_is_rewritten_is_escaped_no_more_than_needed() -> None:
    body = r'{"provider":{"aci_verified":true},"a":"\u00e9\/\ud83d\ude00","b":"\"\\\u0001\n, : ","c\u00e9":1}'
    assert forwarded(body, constraints=True) == r'{"a":"é/😀","b":"\"\\\u0001\n, : ","cé":1}'


def test_fetched_messages_take_the_place_of_those_that_came() -> None:
    given = b'[{"role":"user","content":"x","tool_calls":[]}]'
    assert forwarded('{"messages":[1],"model":"m"}', messages=given) == f'{{"messages":{given.decode()},"model":"m"}}'
    assert forwarded('{"messages":[1],"model":"m"}', messages=given, calls=True) == (
        '{"messages":[{"role":"user","content":"x"}],"model":"m"}'
    )


def test_everything_at_once() -> None:
    messages = b'[{"role":"user","content":"y","tool_calls":[]}]'
    result: dict[str, Any] = json.loads(forwarded(constraints=True, calls=True, messages=messages))
    assert list(result) == ["model", "provider", "messages", "seed", "temperature"]
    assert result["provider"] == {"order": ["x"], "only": 1.0}
    assert result["messages"] == [{"role": "user", "content": "y"}]
