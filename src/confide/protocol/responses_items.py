"""The items of a Responses request's `input`, as decoded (wire contract 3.4).

A conversation is sent back as it was answered, so whatever member an answer of ours or the official SDK puts on an item
is taken. What only says how the item was made (`id`, `status`, `annotations`) changes nothing here.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Raw

from confide.protocol.chat_errors import RuleBroken
from confide.protocol.chat_messages import IMAGE_URL, ClosedStruct
from confide.protocol.responses_body import ABSENT, NOT_DONE, is_given, refuse_given

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class InputText(ClosedStruct, frozen=True, tag_field="type", tag="input_text"):
    """What was said to the model."""

    text: str


class OutputText(ClosedStruct, frozen=True, tag_field="type", tag="output_text"):
    """What the model said."""

    text: str
    annotations: Raw = ABSENT
    logprobs: Raw = ABSENT
    parsed: Raw = ABSENT  # what the official SDK's `parse` adds


class Refusal(ClosedStruct, frozen=True, tag_field="type", tag="refusal"):
    """What the model would not do, in its words."""

    refusal: str


class InputImage(ClosedStruct, frozen=True, tag_field="type", tag="input_image"):
    """An image by its URL, https, http or a base64 data URL whose payload is not looked at here."""

    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    file_id: Raw = ABSENT

    def __post_init__(self) -> None:
        refuse_given(self, {"file_id": "is not supported: no files are kept here, send image_url"})
        if self.image_url is None:
            raise RuleBroken("image_url", "is required")
        if IMAGE_URL.match(self.image_url) is None:
            raise RuleBroken("image_url", "must start with https://, http:// or data:image/<type>;base64,")


Part = InputText | OutputText | Refusal | InputImage
Content: TypeAlias = str | Annotated[tuple[Part, ...], Meta(min_length=1)]


def _only(kinds: tuple[type[Part], ...], parts: tuple[Part, ...], member: str, whose: str) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, kinds):
            raise RuleBroken(f"{member}[{index}].type", f"is not one that {whose} takes")


class MessageItem(ClosedStruct, frozen=True):
    """What somebody said. `refusal` is the assistant's to say, `input_image` the user's to show."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    type: Literal["message"] | None = None
    id: str | None = None
    status: Status | None = None
    phase: Raw = ABSENT

    def __post_init__(self) -> None:
        if is_given(self.phase):
            raise RuleBroken("phase", NOT_DONE)
        if isinstance(self.content, str):  # nearly always in a long conversation, and there may be a million of them
            return
        match self.role:
            case "assistant":
                _only((InputText, OutputText, Refusal), self.content, "content", "an assistant's message")
            case "user":
                _only((InputText, OutputText, InputImage), self.content, "content", "a user's message")
            case _:
                _only((InputText, OutputText), self.content, "content", "an instruction")


class FunctionCallItem(ClosedStruct, frozen=True, rename={"asynchronous": "async"}):
    """A call of an earlier answer. `arguments` is JSON text as the model wrote it, so it need not parse."""

    type: Literal["function_call"]
    call_id: Annotated[str, Meta(min_length=1)]
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: Raw = ABSENT
    namespace: Raw = ABSENT
    asynchronous: Raw = ABSENT
    async_: Raw = ABSENT  # its name in what the official SDK's model_dump() gives
    parsed_arguments: Raw = ABSENT  # what the official SDK's `parse` adds

    def __post_init__(self) -> None:
        refuse_given(self, {"caller": NOT_DONE, "namespace": NOT_DONE, "async_": NOT_DONE})
        if is_given(self.asynchronous):
            raise RuleBroken("async", NOT_DONE)


class FunctionCallOutputItem(ClosedStruct, frozen=True):
    """The result of one call. Text only."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Meta(min_length=1)]
    output: Content
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    caller: Raw = ABSENT
    namespace: Raw = ABSENT

    def __post_init__(self) -> None:
        refuse_given(self, {"caller": NOT_DONE, "namespace": NOT_DONE})
        if not isinstance(self.output, str):
            _only((InputText, OutputText), self.output, "output", "a function's output")


class SummaryText(ClosedStruct, frozen=True):
    """A piece of a summary."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(ClosedStruct, frozen=True):
    """A piece of the reasoning itself."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(ClosedStruct, frozen=True):
    """How the model came to its answer. Encrypted reasoning is another service's and cannot be read here."""

    type: Literal["reasoning"]
    summary: tuple[SummaryText, ...] = ()
    content: tuple[ReasoningText, ...] | None = None
    id: str | None = None
    status: Status | None = None
    encrypted_content: Raw = ABSENT

    def __post_init__(self) -> None:
        refuse_given(self, {"encrypted_content": "is not supported: it cannot be read here, leave it out"})

    @property
    def text(self) -> str:
        """The reasoning, or its summary where that is all there is; "" for neither."""
        return "\n".join(part.text for part in self.content or self.summary)


Item: TypeAlias = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


class Typed(msgspec.Struct, frozen=True):
    """An item or a tool of any kind. A message need not say that it is one."""

    type: str | None = None


DECODERS: Mapping[str, msgspec.json.Decoder[Item]] = {
    "message": msgspec.json.Decoder(MessageItem),
    "function_call": msgspec.json.Decoder(FunctionCallItem),
    "function_call_output": msgspec.json.Decoder(FunctionCallOutputItem),
    "reasoning": msgspec.json.Decoder(ReasoningItem),
}
decode_type = msgspec.json.Decoder(Typed).decode


def decode_item(raw: Raw) -> Item:
    """One item. Raises msgspec's errors and RuleBroken, whose places are those inside the item."""
    kind = decode_type(raw).type or "message"
    if (decoder := DECODERS.get(kind)) is None:
        raise RuleBroken("type", "must be message, function_call, function_call_output or reasoning")
    return decoder.decode(raw)


# What members take that are a choice or are bounded, by path without indices.
EXPECTED: Mapping[str, str] = {
    "input[].role": "user, assistant, system or developer",
    "input[].content[].type": "input_text, input_image, output_text or refusal",
    "input[].content[].detail": "auto, low or high",
    "input[].output[].type": "input_text or output_text",
    "input[].summary[].type": "summary_text",
    "input[].status": "in_progress, completed or incomplete",
}
