"""What is handed to inference is what came, in compact form, but for what was consumed and only that."""

import json
import re
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from aci_strategies import json_values
from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.serving import forwarded_body, parse_constraints

ID = "95" * 32

spaces = st.sampled_from(["", " ", "\n\t", "  "])
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc", "Cs"]), max_size=5)
numbers = st.sampled_from(["1", "-0", "1.50", "1e2", "12345678901234567890", "0.1E-7"])
atoms = numbers | st.sampled_from(["null", "true", '"\\u00e9"', '"é"', '"\\/"', "[ ]", "{ }"])
COMPACT = {'"\\u00e9"': '"é"', '"\\/"': '"/"', "[ ]": "[]", "{ }": "{}"}
raw_values = st.recursive(
    atoms,
    lambda below: st.builds(
        lambda space, parts: f"[{space}{f'{space},'.join(parts)}{space}]", spaces, st.lists(below, max_size=3)
    ),
    max_leaves=5,
)
OUTSIDE_TEXTS = re.compile(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*\Z)')  # no text in these values holds a quote
OURS = {"aci_verified": "true", "aci_session_ids": f'["{ID}"]'}


@st.composite
def objects(draw: st.DrawFn, members: dict[str, str]) -> list[tuple[str, str]]:
    """Members of an object as texts: these, and others of the caller's, in any order."""
    others = draw(st.dictionaries(names.filter(lambda name: name not in members), raw_values, max_size=4))
    return draw(st.permutations(list((others | members).items())))


def spaced(members: list[tuple[str, str]], space: str) -> str:
    pairs = (f'{space}"{name}"{space}:{space}{value}{space}' for name, value in members)
    return "{" + ",".join(pairs) + "}"


def compact(members: list[tuple[str, str]]) -> str:
    """Numbers in their digits; white space goes, and escapes that no text needs."""
    return "{" + ",".join(f'"{name}":{dense(value)}' for name, value in members) + "}"


def dense(value: str) -> str:
    for spelt, shortest in COMPACT.items():
        value = value.replace(spelt, shortest)
    return OUTSIDE_TEXTS.sub("", value)


@given(st.data(), spaces, st.sets(st.sampled_from(sorted(OURS)), min_size=1))
def test_constraints_go_and_every_other_member_keeps_its_place_and_its_digits(
    data: st.DataObject, space: str, stated: set[str]
) -> None:
    provider = data.draw(objects({name: OURS[name] for name in stated}))
    body = data.draw(objects({"provider": spaced(provider, space)}))
    rest = [(name, value) for name, value in provider if name not in OURS]
    expected = [(name, compact(rest) if name == "provider" else value) for name, value in body]
    if not rest:
        expected = [(name, value) for name, value in expected if name != "provider"]
    got = forwarded_body(spaced(body, space).encode(), drop_constraints=True, drop_empty_tool_calls=False)
    assert got.decode() == compact(expected)


@given(st.data(), spaces, st.lists(st.sampled_from(["[]", "[ ]", "null", '[{"id": 1}]', ""]), max_size=4))
def test_empty_tool_calls_go_and_every_other_member_keeps_its_place_and_its_digits(
    data: st.DataObject, space: str, calls: list[str]
) -> None:
    messages = [data.draw(objects({"tool_calls": each} if each else {})) for each in calls]
    body = data.draw(objects({"messages": f"[{','.join(spaced(each, space) for each in messages)}]"}))
    kept = [
        compact([(name, value) for name, value in each if name != "tool_calls" or value not in ("[]", "[ ]")])
        for each in messages
    ]
    expected = [(name, f"[{','.join(kept)}]" if name == "messages" else value) for name, value in body]
    got = forwarded_body(spaced(body, space).encode(), drop_constraints=False, drop_empty_tool_calls=True)
    assert got.decode() == compact(expected)


message = st.sampled_from(
    [
        {"role": "user", "content": "hé😀"},
        {"role": "assistant", "content": "a", "tool_calls": []},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ]
)


@given(
    st.lists(message, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["seed", "n", "stop", "user", "unknown", "temperature"]), json_values, max_size=3),
    st.dictionaries(st.sampled_from(["aci_verified", "aci_session_ids", "order"]), json_values | st.just([ID])),
)
def test_inference_gets_the_same_request_without_the_constraints(
    messages: list[Any], members: dict[str, Any], provider: dict[str, Any]
) -> None:
    body = json.dumps({"model": "m", "messages": messages, **members, "provider": provider}).encode()
    try:
        request = parse_chat(body)
        constraints = parse_constraints(request.provider)
    except InvalidRequest:
        return
    handed = parse_chat(
        forwarded_body(body, drop_constraints=constraints.stated, drop_empty_tool_calls=request.had_empty_tool_calls)
    )
    rest = {name: value for name, value in (request.provider or {}).items() if not name.startswith("aci_")}
    assert (handed.provider or {}) == rest
    assert not handed.had_empty_tool_calls
    assert len(handed.messages) == len(request.messages)
    same = dict.fromkeys(("provider", "messages"))
    assert msgspec.structs.replace(handed, **same) == msgspec.structs.replace(request, **same)


@given(st.dictionaries(st.sampled_from(["aci_verified", "aci_session_ids", "aci_x", "order"]), json_values))
def test_any_provider_is_taken_or_refused(provider: dict[str, Any]) -> None:
    try:
        constraints = parse_constraints(provider)
    except InvalidRequest:
        return
    assert "aci_x" not in provider
    assert constraints.required == (provider.get("aci_verified") is True or "aci_session_ids" in provider)
    assert constraints.stated == bool({"aci_verified", "aci_session_ids"} & set(provider))
