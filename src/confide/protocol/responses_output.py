"""The output of one response, item by item, and the events that tell how it came to be (wire contract 3.4).

Fed with what an answer of chat says, piece by piece or all at once. One item is open at a time, reasoning, a message or
a call, and what belongs to another closes it. An event here lacks its `sequence_number`: that is the stream's to count.
"""

from collections.abc import Iterator
from typing import Literal, Protocol

from confide.protocol.chat_answer import Call, CalledFunction, Said
from confide.protocol.translation import Untranslatable

Document = dict[str, object]
Status = Literal["in_progress", "completed", "incomplete"]
Kind = Literal["output_text", "refusal", "reasoning_text"]

NOTHING = CalledFunction()


class OpenItem(Protocol):
    """An item that is being made."""

    def closed(self, status: Status) -> Iterator[Document]:
        """The events of its end, `response.output_item.done` aside."""

    def document(self, status: Status) -> Document:
        """It, as far as it is made."""


class Part:
    """A text in an item's content."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.pieces: list[str] = []

    @property
    def member(self) -> str:
        """What its text is called."""
        return "refusal" if self.kind == "refusal" else "text"

    def document(self) -> Document:
        more: Document = {"annotations": []} if self.kind == "output_text" else {}
        return {"type": self.kind, self.member: "".join(self.pieces), **more}


class Texts:
    """A message or a reasoning item: content that is made of texts."""

    def __init__(self, type: Literal["message", "reasoning"], id: str, output_index: int) -> None:
        self.type = type
        self._id = id
        self._output_index = output_index
        self._parts: list[Part] = []

    def add(self, kind: Kind, text: str) -> Iterator[Document]:
        """The events of a piece of text."""
        if not self._parts or self._parts[-1].kind != kind:
            yield from self._part_closed()
            self._parts.append(Part(kind))
            yield {"type": "response.content_part.added", **self._place(), "part": self._parts[-1].document()}
        self._parts[-1].pieces.append(text)
        yield {"type": f"response.{kind}.delta", **self._place(), "delta": text, **logprobs(kind)}

    def closed(self, status: Status) -> Iterator[Document]:
        """See OpenItem.closed."""
        yield from self._part_closed()

    def document(self, status: Status) -> Document:
        """See OpenItem.document."""
        content = [part.document() for part in self._parts]
        if self.type == "reasoning":
            return {"type": self.type, "id": self._id, "summary": [], "content": content, "status": status}
        return {"type": self.type, "id": self._id, "role": "assistant", "status": status, "content": content}

    def _part_closed(self) -> Iterator[Document]:
        if not self._parts:
            return
        part = self._parts[-1]
        text = {part.member: "".join(part.pieces)}
        yield {"type": f"response.{part.kind}.done", **self._place(), **text, **logprobs(part.kind)}
        yield {"type": "response.content_part.done", **self._place(), "part": part.document()}

    def _place(self) -> Document:
        return {"item_id": self._id, "output_index": self._output_index, "content_index": len(self._parts) - 1}


def logprobs(kind: Kind) -> Document:
    """The official SDK's type of an event about text has them; this surface has none."""
    return {"logprobs": []} if kind == "output_text" else {}


class FunctionCall:
    """A call. Engines may give its name in pieces, so it is not told of before its arguments begin, or its end."""

    type = "function_call"

    def __init__(self, first: Call, id: str, call_id: str, output_index: int) -> None:
        """`call_id`: for an engine that gives none."""
        self._first = first
        self._id = id
        self._call_id = first.id or call_id
        self._output_index = output_index
        self._name = ""
        self._arguments: list[str] = []
        self._is_told = False

    def add(self, call: Call) -> Iterator[Document]:
        """The events of a piece of it."""
        function = call.function or NOTHING
        if not self._is_told:
            self._take_name(function.name or "")
        elif function.name not in (None, "", self._name):
            raise Untranslatable("tool_calls: a name that changes")
        if function.arguments:
            yield from self._told()
            self._arguments.append(function.arguments)
            yield {
                "type": "response.function_call_arguments.delta",
                "item_id": self._id,
                "output_index": self._output_index,
                "delta": function.arguments,
            }

    def is_continued_by(self, call: Call) -> bool:
        """Whether that is a piece of this. Some engines do not count their calls, and some count them all as the first,
        but then each has its id.
        """
        is_counted = call.index is not None and self._first.index is not None
        if is_counted and call.index != self._first.index:
            return False
        return not call.id or call.id == self._first.id

    def closed(self, status: Status) -> Iterator[Document]:
        """See OpenItem.closed."""
        yield from self._told()
        yield {
            "type": "response.function_call_arguments.done",
            "item_id": self._id,
            "output_index": self._output_index,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def document(self, status: Status) -> Document:
        """See OpenItem.document."""
        return {
            "type": "function_call",
            "id": self._id,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
            "status": status,
        }

    def _take_name(self, piece: str) -> None:
        """Some engines give it in pieces, and some give all of it again and again."""
        if piece != self._name:
            self._name += piece

    def _told(self) -> Iterator[Document]:
        if self._is_told:
            return
        if not self._name:
            raise Untranslatable("tool_calls: a call without a name")
        self._is_told = True
        yield item_added(self._output_index, self.document("in_progress"))


class Output:
    """All items of one response. `own`: 32 hex digits of the response's id, from which the items have theirs."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._closed: list[Document] = []
        self._open: OpenItem | None = None
        self._call_ids: set[str] = set()

    @property
    def documents(self) -> list[Document]:
        """The items that are closed."""
        return self._closed

    def add(self, said: Said) -> Iterator[Document]:
        """The events that this is worth. Raises Untranslatable."""
        if said.thought:
            yield from self._text("reasoning", "reasoning_text", said.thought)
        if said.content:
            yield from self._text("message", "output_text", said.content)
        if said.refusal:
            yield from self._text("message", "refusal", said.refusal)
        for call in said.tool_calls or ():
            yield from self._call(call)

    def close(self, status: Status) -> Iterator[Document]:
        """The events of the open item's end. Raises Untranslatable."""
        if self._open is None:
            return
        yield from self._open.closed(status)
        item = self._open.document(status)
        yield {"type": "response.output_item.done", "output_index": len(self._closed), "item": item}
        self._closed.append(item)
        self._open = None

    def _text(self, type: Literal["message", "reasoning"], kind: Kind, text: str) -> Iterator[Document]:
        item = self._open
        if not isinstance(item, Texts) or item.type != type:
            yield from self.close("completed")
            item = Texts(type, self._id("msg" if type == "message" else "rs"), len(self._closed))
            self._open = item
            yield item_added(len(self._closed), item.document("in_progress"))
        yield from item.add(kind, text)

    def _call(self, call: Call) -> Iterator[Document]:
        item = self._open
        if not isinstance(item, FunctionCall) or not item.is_continued_by(call):
            yield from self.close("completed")
            if call.id in self._call_ids:
                raise Untranslatable("tool_calls: a call that is gone back to")
            item = FunctionCall(call, self._id("fc"), self._id("call"), len(self._closed))
            self._open = item
            self._call_ids |= {call.id} if call.id else set()
        yield from item.add(call)

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._own}{len(self._closed):02x}"


def item_added(output_index: int, item: Document) -> Document:
    return {"type": "response.output_item.added", "output_index": output_index, "item": item}
