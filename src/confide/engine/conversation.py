"""Messages and tools as the engine's template reads them, every text of the client's made harmless. Pure functions."""

import re
from collections.abc import Sequence

import msgspec

from confide.engine.facts import EngineFacts
from confide.engine.grammar import NO_PARAMETERS
from confide.engine.special import neutralise, neutralised
from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest
from confide.protocol.chat_messages import Tool


def messages(request: ChatRequest, facts: EngineFacts) -> list[object]:
    """The messages as the template reads them, every text of the client's made harmless."""
    shaped: list[object] = []
    for index, message in enumerate(request.messages):
        members = msgspec.to_builtins(message)
        content = shaped_content(members.get("content"), facts, f"messages[{index}].content")
        kept: dict[str, object] = {"role": members["role"], "content": content}
        if members.get("tool_calls"):
            kept["tool_calls"] = [shaped_call(call, facts.special) for call in members["tool_calls"]]
        if members.get("tool_call_id"):
            kept["tool_call_id"] = neutralised(members["tool_call_id"], facts.special)
        shaped.append(kept)
    return shaped


def shaped_call(call: dict[str, dict[str, str]], special: re.Pattern[str]) -> object:
    """An earlier call. Its arguments go as JSON, because the engine decodes them before the template sees them.

    So a special token spelled with escapes would come alive there: what is decoded is made harmless here. Arguments
    that do not decode were cut; the engine refuses those, and takes them as a JSON string.
    """
    arguments = call["function"]["arguments"]
    try:
        decoded = neutralised(msgspec.json.decode(arguments), special)
    except (msgspec.DecodeError, RecursionError):
        decoded = neutralise(arguments, special)
    function = {
        "name": neutralise(call["function"]["name"], special),
        "arguments": msgspec.json.encode(decoded).decode(),
    }
    return {"id": neutralise(str(call["id"]), special), "type": "function", "function": function}


def shaped_content(content: object, facts: EngineFacts, param: str) -> object:
    """Text as one string; with images, the list of parts that the engine takes. Raises InvalidRequest at a part."""
    if content is None or isinstance(content, str):
        return neutralise(content or "", facts.special)
    assert isinstance(content, Sequence)
    parts: list[dict[str, object]] = []
    for index, part in enumerate(content):
        shaped = shaped_part(part, facts, f"{param}[{index}]")
        if parts and parts[-1]["type"] == shaped["type"] == "text":
            parts[-1] = {"type": "text", "text": f"{parts[-1]['text']}\n{shaped['text']}"}
        else:
            parts.append(shaped)
    if [part["type"] for part in parts] == ["text"]:
        return neutralise(str(parts[0]["text"]), facts.special)
    return [
        {**part, "text": neutralise(str(part["text"]), facts.special)} if part["type"] == "text" else part
        for part in parts
    ]


def shaped_part(part: object, facts: EngineFacts, param: str) -> dict[str, object]:
    """One content part. Remote images were fetched before; what is still remote is refused."""
    assert isinstance(part, dict)
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image_url":
        raise InvalidRequest("this model takes text" + (" and images" if facts.takes_images else ""), param=param)
    if not facts.takes_images:
        raise InvalidRequest("this model takes text only, got an image", param=param)
    url = part["image_url"]["url"]
    if url[:5].lower() != "data:":
        raise InvalidRequest("remote images are switched off here; send the image as a data: URL", param=param)
    return {"type": "image_url", "image_url": {"url": "data:" + url[5:]}}


def described(tool: Tool, special: re.Pattern[str]) -> dict[str, object]:
    """A tool as the template shows it."""
    function = {
        name: value
        for name, value in (
            ("name", tool.function.name),
            ("description", tool.function.description),
            ("parameters", tool.function.parameters or NO_PARAMETERS),
        )
        if value is not None
    }
    return {"type": "function", "function": neutralised(function, special)}
