"""What request members hold that their structs leave undecoded, or that a struct's own rules narrow further."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from confide.gateway.openapi.schemas import NULL, Either, ListOf, Overrides, Required, Schema
from confide.protocol import (
    chat,
    chat_body,
    chat_messages,
    completions,
    embeddings,
    messages_blocks,
    messages_body,
    responses_body,
    responses_items,
)

OBJECT_OR_NULL: Schema = {"type": ["object", "null"]}
FALSE_OR_NULL: Schema = {"enum": [False, None]}
EMPTY_OR_NULL: Schema = {"enum": [[], None]}
OBJECT_SCHEMA: Schema = {"type": "object", "properties": {"type": {"const": "object"}}}
IMAGE_URL: Schema = {"type": "string", "pattern": r"^(https?://[^\s/]|data:image/[a-z0-9.+-]+;base64,)"}
ITEMS = Either(
    responses_items.MessageItem,
    responses_items.FunctionCallItem,
    responses_items.FunctionCallOutputItem,
    responses_items.ReasoningItem,
)
TextParts = Annotated[tuple[chat_messages.TextPart, ...], Meta(min_length=1)]
Said = Annotated[tuple[responses_items.InputText | responses_items.OutputText, ...], Meta(min_length=1)]


def texts(most: int) -> Schema:
    """One text or many, as words or as token ids (`text_inputs.read_texts`)."""
    token: Schema = {"type": "integer", "minimum": 0, "maximum": chat_body.MAX_TOKEN_ID}
    tokens: Schema = {"type": "array", "items": token, "minItems": 1}
    words: Schema = {"type": "string", "minLength": 1}
    many = [{"type": "array", "items": each, "minItems": 1, "maxItems": most} for each in (words, tokens)]
    return {"anyOf": [words, many[0], tokens, many[1]]}


def refused(unsupported: Mapping[str, str], body: type[msgspec.Struct]) -> dict[str, object]:
    """Of a member that is refused only null is taken."""
    names = {field.encode_name for field in msgspec.structs.fields(body)}
    return {name: NULL for name in unsupported if name in names}


def nullable(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


OVERRIDES: Overrides = {
    chat_body.ChatBody: {
        **refused(chat.UNSUPPORTED, chat_body.ChatBody),
        "modalities": {"enum": [["text"], None]},
    },
    chat_messages.SystemMessage: {"content": str | TextParts},
    chat_messages.DeveloperMessage: {"content": str | TextParts},
    chat_messages.AssistantMessage: {"content": str | TextParts | None},
    chat_messages.ToolMessage: {"content": str | TextParts},
    chat_messages.ImageUrl: {"url": IMAGE_URL},
    chat_messages.Function: {"parameters": nullable(OBJECT_SCHEMA)},
    completions.CompletionBody: {
        "prompt": texts(completions.MOST_CHOICES),
        "suffix": {"enum": ["", None]},
    },
    responses_body.ResponsesBody: {
        **refused(responses_body.UNSUPPORTED, responses_body.ResponsesBody),
        "input": ListOf(ITEMS, least=1, most=responses_body.MOST_ITEMS, or_a={"type": "string"}),
        "tools": ListOf(responses_body.FunctionTool, most=128, or_a=NULL),
        "background": FALSE_OR_NULL,
        "provider": OBJECT_OR_NULL,
    },
    responses_body.FunctionTool: {"parameters": nullable(OBJECT_SCHEMA)},
    responses_body.StreamOptions: {"include_obfuscation": FALSE_OR_NULL},
    responses_items.InputImage: {"image_url": Required(IMAGE_URL), "file_id": NULL},
    responses_items.MessageItem: {"phase": NULL},
    responses_items.FunctionCallItem: {"caller": NULL, "namespace": NULL, "async": NULL, "async_": NULL},
    responses_items.FunctionCallOutputItem: {"output": str | Said, "caller": NULL, "namespace": NULL},
    responses_items.ReasoningItem: {"encrypted_content": NULL},
    embeddings.EmbeddingsBody: {"input": texts(embeddings.MAX_ENTRIES), "provider": OBJECT_OR_NULL},
    messages_body.MessagesBody: {
        **refused(messages_body.UNSUPPORTED, messages_body.MessagesBody),
        "provider": OBJECT_OR_NULL,
    },
    messages_body.PromptBody: {
        **refused(messages_body.UNSUPPORTED, messages_body.PromptBody),
        "provider": OBJECT_OR_NULL,
    },
    messages_body.Tool: {"input_schema": OBJECT_SCHEMA, "input_examples": NULL, "defer_loading": FALSE_OR_NULL},
    messages_body.JsonFormat: {"schema": {"type": "object"}},
    messages_blocks.TextBlock: {"citations": EMPTY_OR_NULL},
    messages_blocks.OnlyText: {"citations": EMPTY_OR_NULL},
    messages_blocks.RemoteImage: {"url": {"type": "string", "pattern": r"^https?://[^\s/]"}},
    messages_blocks.ToolUseBlock: {
        "input": {"type": "object"},
        "caller": {"enum": [{"type": "direct"}, None]},
        "toolset_name": NULL,
    },
    messages_blocks.ToolResultBlock: {"toolset_name": NULL},
}
