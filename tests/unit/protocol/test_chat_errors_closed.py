"""Members that a closed object does not take: named where the name is an API's, never where it may be text."""

import msgspec
import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat_errors import RuleBroken, refusal
from confide.protocol.chat_messages import ClosedStruct


class Inner(ClosedStruct, frozen=True):
    size: int = 0


class Outer(ClosedStruct, frozen=True):
    inner: Inner = Inner()


def refused(body: bytes, *, at: str = "") -> InvalidRequest:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(body, type=Outer)
    return refusal(raised.value, {}, at=at)


def test_an_unknown_member_is_named() -> None:
    assert refused(b'{"colour":1}').param == "colour"
    assert refused(b'{"inner":{"colour":1}}').param == "inner.colour"
    assert "leave it out" in refused(b'{"inner":{"colour":1}}').message


def test_a_name_that_may_be_text_is_not_repeated() -> None:
    failure = refused(b'{"inner":{"My secret is 42":1}}')
    assert failure.param == "inner"
    assert "secret" not in failure.message


def test_where_the_value_stands_comes_first() -> None:
    assert refused(b'{"inner":{"size":"x"}}', at="tools[0]").param == "tools[0].inner.size"
    assert refused(b'{"inner":{"colour":1}}', at="tools[0]").param == "tools[0].inner.colour"
    assert refused(b"[]", at="tools[0]").param == "tools[0]"
    assert refusal(RuleBroken("name", "must be unique"), {}, at="tools[0]").param == "tools[0].name"
    assert refusal(RuleBroken("", "must be unique"), {}, at="tools[0]").param == "tools[0]"
