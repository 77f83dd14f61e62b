"""A plain reader of the Responses surface, to hold what we write against: its events, and what they say as chat.

It reads whole streams only and shares nothing with the code that it checks.
"""

import json
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events, each framed as the contract has it: two lines, the type in both, and a blank line."""
    assert stream.endswith(b"\n\n")
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        if not block:  # the blank line before an error
            continue
        name, data = block.split("\n")
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert data == "data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def checked_by_the_sdk(events: list[dict[str, Any]]) -> None:
    """Every event is one of the official SDK's, member by member."""
    for event in events:
        EVENTS.validate_python(event, strict=True)


def response_checked_by_the_sdk(response: dict[str, Any]) -> Response:
    return Response.model_validate(response, strict=True)


def told(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response of the last event, which is what the events before it tell: every item from its deltas."""
    items: list[dict[str, Any]] = []
    begun, progress, *middle, last = events
    assert (begun["type"], progress["type"]) == ("response.created", "response.in_progress")
    assert begun["response"] == progress["response"]
    assert begun["response"]["status"] == "in_progress"
    for event in middle:
        tell(items, event)
    assert all(item.pop("is_done") for item in items)
    assert last["response"]["output"] == items
    return last["response"]  # type: ignore[no-any-return]  # JSON


def tell(items: list[dict[str, Any]], event: dict[str, Any]) -> None:
    kind, index = event["type"].removeprefix("response."), event["output_index"]
    if kind == "output_item.added":
        assert index == len(items)
        assert all(item["is_done"] for item in items)
        assert event["item"]["status"] == "in_progress"
        items.append({**event["item"], "is_done": False})
        return
    item = items[index]
    assert index == len(items) - 1
    assert not item["is_done"]
    if kind == "output_item.done":
        open_item = {**item, "status": event["item"]["status"]}
        del open_item["is_done"]
        assert event["item"] == open_item
        items[index] = {**event["item"], "is_done": True}
        return
    assert event["item_id"] == item["id"]
    if kind == "content_part.added":
        assert event["content_index"] == len(item["content"])
        item["content"].append(event["part"])
    elif kind == "content_part.done":
        assert event["part"] == item["content"][event["content_index"]]
    elif kind == "function_call_arguments.delta":
        item["arguments"] += event["delta"]
    elif kind == "function_call_arguments.done":
        assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
    else:
        part_kind, _, step = kind.rpartition(".")
        part = item["content"][event["content_index"]]
        member = "refusal" if part_kind == "refusal" else "text"
        assert part["type"] == part_kind
        if step == "delta":
            assert event["delta"]
            part[member] += event["delta"]
        else:
            assert (step, event[member]) == ("done", part[member])


def in_chat(response: dict[str, Any]) -> dict[str, Any]:
    """What the response says, as chat says it: the inverse of the translation."""
    message: dict[str, Any] = {"content": "", "refusal": "", "reasoning_content": "", "tool_calls": []}
    for item in response["output"]:
        if item["type"] == "function_call":
            message["tool_calls"].append((item["call_id"], item["name"], item["arguments"]))
        for part in item.get("content", ()):
            member = {"output_text": "content", "refusal": "refusal", "reasoning_text": "reasoning_content"}[
                part["type"]
            ]
            message[member] += part["refusal" if member == "refusal" else "text"]
    if response["status"] == "incomplete":
        reason = REASONS[response["incomplete_details"]["reason"]]
    else:
        assert (response["status"], response["incomplete_details"]) == ("completed", None)
        reason = "tool_calls" if message["tool_calls"] else "stop"
    usage = response["usage"]
    counts = None if usage is None else (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"])
    return {"message": message, "finish_reason": reason, "usage": counts}
