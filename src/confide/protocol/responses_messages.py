"""From the items of a Responses request to the messages of a chat request (wire contract 3.4, 2.3).

The model's turn comes as several items, its reasoning, its message and its calls, and is one message of chat. Reasoning
that no message or call of the model follows has no place in chat and is left out.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from confide.protocol.chat_messages import PromptStruct
from confide.protocol.responses_items import (
    Content,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputText,
    Item,
    MessageItem,
    OutputText,
    Part,
    ReasoningItem,
    Refusal,
)

Message = dict[str, object]

# What comes after `messages[0]` in the place of a part of its content.
OF_CONTENT = re.compile(r"\.content(\[\d+\](?:\.image_url)?)?")


class Origin(NamedTuple):
    """Where a message came from. `path`: the request's member. `content`: the member of it that is the content; "" when
    places inside the message have none in the request.
    """

    path: str
    content: str = ""

    def place(self, rest: str) -> str:
        """Where in the request that is which stands at `rest` in the message (".content[1].image_url.url")."""
        found = OF_CONTENT.match(rest)
        return f"{self.path}.{self.content}{found[1] or ''}" if found and self.content else self.path


class Conversation(PromptStruct, frozen=True):
    """Messages of chat, and where each came from."""

    messages: tuple[Message, ...]
    origins: tuple[Origin, ...]


def conversation(instructions: str | None, given: str | Iterable[Item]) -> Conversation:
    """The messages for `instructions`, which come first, and `given`: the user's only text, or items."""
    told = Telling()
    if instructions is not None:
        told.add({"role": "system", "content": instructions}, Origin("instructions"))
    if isinstance(given, str):
        told.add({"role": "user", "content": given}, Origin("input"))
    else:
        for index, item in enumerate(given):
            told.take(item, f"input[{index}]")
    return Conversation(messages=tuple(told.messages), origins=tuple(told.origins))


class Telling:
    """Puts messages together, item by item."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.origins: list[Origin] = []
        self._turn: Message | None = None  # the model's, as long as its items come
        self._reasoning: list[str] = []  # before the turn that it belongs to

    def take(self, item: Item, path: str) -> None:
        match item:
            case ReasoningItem():
                self._turn = None
                self._reasoning += [item.text] if item.text else []
            case FunctionCallItem():
                self._call(item, path)
            case MessageItem(role="assistant"):
                self._said(item, path)
            case MessageItem():
                self.add({"role": item.role, "content": chat_content(item.content)}, Origin(path, "content"))
            case FunctionCallOutputItem():
                result: Message = {"role": "tool", "tool_call_id": item.call_id, "content": chat_content(item.output)}
                self.add(result, Origin(path, "output"))

    def add(self, message: Message, origin: Origin) -> None:
        """A message that is not the model's, or opens its turn."""
        self._turn = None
        self._reasoning = []
        self.messages.append(message)
        self.origins.append(origin)

    def _open(self, path: str) -> Message:
        turn: Message = {"role": "assistant", "content": None}
        if self._reasoning:
            turn["reasoning_content"] = "\n".join(self._reasoning)
        self.add(turn, Origin(path))
        self._turn = turn
        return turn

    def _said(self, item: MessageItem, path: str) -> None:
        turn = self._turn if self._turn is not None and self._turn["content"] is None else self._open(path)
        parts: tuple[Part, ...] = (OutputText(text=item.content),) if isinstance(item.content, str) else item.content
        turn["content"] = "".join(part.text for part in parts if isinstance(part, InputText | OutputText))
        if refusal := "".join(part.refusal for part in parts if isinstance(part, Refusal)):
            turn["refusal"] = refusal

    def _call(self, item: FunctionCallItem, path: str) -> None:
        turn = self._open(path) if self._turn is None else self._turn
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        calls = turn.get("tool_calls")
        turn["tool_calls"] = [*calls, call] if isinstance(calls, list) else [call]


def chat_content(content: Content) -> str | list[Message]:
    """What chat takes for content: a text alone as a string, which every engine reads, or parts."""
    if isinstance(content, str):
        return content
    parts = [chat_part(part) for part in content]
    alone = parts[0].get("text") if len(parts) == 1 else None
    return alone if isinstance(alone, str) else parts


def chat_part(part: Part) -> Message:
    match part:
        case InputImage():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}
        case Refusal():
            return {"type": "text", "text": part.refusal}
        case _:
            return {"type": "text", "text": part.text}
