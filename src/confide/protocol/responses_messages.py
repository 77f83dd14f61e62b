"""From the items of a Responses request to the messages of a chat request (wire contract 3.4, 2.3).

The model's turn comes as several items, its reasoning, its message and its calls, and is one message of chat. Reasoning
that no message or call of the model follows has no place in chat and is left out.
"""

from collections.abc import Iterable

from confide.protocol.responses_items import (
    Content,
    FunctionCallItem,
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


def chat_messages(instructions: str | None, given: str | Iterable[Item]) -> tuple[Message, ...]:
    """The messages for `instructions`, which come first, and `given`: the user's only text, or items."""
    telling = Telling()
    if instructions is not None:
        telling.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        telling.add({"role": "user", "content": given})
    else:
        for item in given:
            telling.take(item)
    return tuple(telling.messages)


class Telling:
    """Puts messages together, item by item."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._turn: Message | None = None  # the model's, as long as its items come
        self._calls: list[Message] = []  # of that turn
        self._reasoning: list[str] = []  # before the turn that it belongs to

    def take(self, item: Item) -> None:
        """One more item."""
        match item:
            case MessageItem():
                if item.role == "assistant":
                    self._said(item)
                else:
                    self.add({"role": item.role, "content": chat_content(item.content)})
            case ReasoningItem():
                self._turn = None
                self._reasoning += [item.text] if item.text else []
            case FunctionCallItem():
                self._call(item)
            case _:
                self.add({"role": "tool", "tool_call_id": item.call_id, "content": chat_content(item.output)})

    def add(self, message: Message) -> None:
        """A message that is not the model's, or opens its turn."""
        self._turn = None
        if self._reasoning:
            self._reasoning = []
        self.messages.append(message)

    def _open(self) -> Message:
        turn: Message = {"role": "assistant", "content": None}
        if self._reasoning:
            turn["reasoning_content"] = "\n".join(self._reasoning)
        self.add(turn)
        self._turn, self._calls = turn, []
        return turn

    def _said(self, item: MessageItem) -> None:
        turn = self._turn if self._turn is not None and self._turn["content"] is None else self._open()
        parts: tuple[Part, ...] = (OutputText(text=item.content),) if isinstance(item.content, str) else item.content
        turn["content"] = "".join(part.text for part in parts if isinstance(part, InputText | OutputText))
        if refusal := "".join(part.refusal for part in parts if isinstance(part, Refusal)):
            turn["refusal"] = refusal

    def _call(self, item: FunctionCallItem) -> None:
        turn = self._open() if self._turn is None else self._turn
        if not self._calls:
            turn["tool_calls"] = self._calls
        function: Message = {"name": item.name, "arguments": item.arguments}
        self._calls.append({"id": item.call_id, "type": "function", "function": function})


def chat_content(content: Content) -> str | list[Message]:
    """What chat takes for content: a text alone as a string, which every engine reads, or parts."""
    if isinstance(content, str):
        return content
    parts = [chat_part(part) for part in content]
    alone = parts[0].get("text") if len(parts) == 1 else None
    return alone if isinstance(alone, str) else parts


def chat_part(part: Part) -> Message:
    if isinstance(part, InputImage):
        detail = {} if part.detail is None else {"detail": part.detail}
        return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}
    return {"type": "text", "text": part.refusal if isinstance(part, Refusal) else part.text}
