"""From an Anthropic Messages request to the members of the chat request it becomes (wire contract 2, 3.5).

What chat has no member for is said in its own means, never dropped, with these exceptions, none of which a model can
see: `cache_control`, which is a hint; the signature of a thinking block, and sealed thinking, which only the service
that made them can read; `eager_input_streaming`, as arguments are streamed in any case.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Raw

from confide.protocol.messages_blocks import (
    AssistantMessage,
    ImageBlock,
    Message,
    OnlyText,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserBlock,
    UserMessage,
    is_absent,
)
from confide.protocol.messages_body import (
    AnyChoice,
    MessagesBody,
    NoneChoice,
    PromptBody,
    ThinkingDisabled,
    ThinkingEnabled,
    Tool,
    ToolChoice,
)

Members = dict[str, object]

ERROR = "Error"  # before the result of a call that failed: chat has no other place to say so
FORMAT_NAME = "output"  # chat wants a name of a schema, which Messages does not have
TIERS = {"auto": "auto", "standard_only": "default"}


def prompt_members(sent: PromptBody) -> Members:
    """Model, messages, tools and form of the answer."""
    members: Members = {"model": sent.model, "messages": [*system_message(sent), *chat_messages(sent.messages)]}
    if sent.tools:
        members["tools"] = [chat_tool(tool) for tool in sent.tools]
        members.update(tool_choice(sent))
    if sent.output_config is not None and sent.output_config.format is not None:
        schema = {"name": FORMAT_NAME, "strict": True, "schema": sent.output_config.format.schema}
        members["response_format"] = {"type": "json_schema", "json_schema": schema}
    if reasoning := reasoning_members(sent):
        members["reasoning"] = reasoning
    if not is_absent(sent.provider):
        members["provider"] = sent.provider
    return members


def answer_members(sent: MessagesBody) -> Members:
    """How the answer is drawn and sent."""
    members: Members = {"max_tokens": sent.max_tokens, "stream": bool(sent.stream)}
    if sent.stream:
        members["stream_options"] = {"include_usage": True}
    stated: Members = {
        "temperature": sent.temperature,
        "top_p": sent.top_p,
        "top_k": sent.top_k,
        "stop": sent.stop_sequences or None,
        "user": None if sent.metadata is None else sent.metadata.user_id,
        "service_tier": None if sent.service_tier is None else TIERS[sent.service_tier],
    }
    return members | {name: value for name, value in stated.items() if value is not None}


def system_message(sent: PromptBody) -> Iterator[Members]:
    if sent.system is not None:
        yield {"role": "system", "content": text_content(sent.system)}


def chat_messages(messages: Iterable[Message]) -> Iterator[Members]:
    for message in messages:
        if isinstance(message, UserMessage):
            yield from user_messages(message.content)
        elif isinstance(message, AssistantMessage):
            yield assistant_message(message)
        else:
            yield {"role": "system", "content": text_content(message.content)}


def user_messages(content: str | tuple[UserBlock, ...]) -> Iterator[Members]:
    """The results of calls first, one message each, then one with the rest: chat takes images from the user only, so
    those of a result come there too, in order.
    """
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    results = [block for block in content if isinstance(block, ToolResultBlock)]
    for result in results:
        texts = [block.text for block in result_blocks(result) if isinstance(block, TextBlock)]
        yield {"role": "tool", "tool_call_id": result.tool_use_id, "content": result_content(result, texts)}
    shown = [block for result in results for block in result_blocks(result) if isinstance(block, ImageBlock)]
    rest = [*shown, *(block for block in content if not isinstance(block, ToolResultBlock))]
    if rest:
        yield {"role": "user", "content": user_content(rest)}


def result_blocks(result: ToolResultBlock) -> tuple[TextBlock | ImageBlock, ...]:
    if result.content is None:
        return ()
    return (TextBlock(text=result.content),) if isinstance(result.content, str) else result.content


def result_content(result: ToolResultBlock, texts: list[str]) -> object:
    if result.is_error:
        texts = [f"{ERROR}: {texts[0]}", *texts[1:]] if texts else [ERROR]
    return joined(texts)


def user_content(blocks: Sequence[TextBlock | ImageBlock]) -> object:
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock):
        return blocks[0].text
    return [
        text_part(block.text)
        if isinstance(block, TextBlock)
        else {"type": "image_url", "image_url": {"url": block.source.address}}
        for block in blocks
    ]


def assistant_message(message: AssistantMessage) -> Members:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts = [block.text for block in message.content if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in message.content if isinstance(block, ThinkingBlock)]
    calls = [chat_call(block) for block in message.content if isinstance(block, ToolUseBlock)]
    members: Members = {"role": "assistant", "content": joined(texts) if texts or not calls else None}
    if thoughts:
        members["reasoning_content"] = "\n".join(thoughts)
    if calls:
        members["tool_calls"] = calls
    return members


def chat_call(call: ToolUseBlock) -> Members:
    """The arguments are the text of the input as it was sent."""
    function = {"name": call.name, "arguments": str(memoryview(call.input), "utf-8")}
    return {"id": call.id, "type": "function", "function": function}


def text_content(content: str | tuple[OnlyText, ...]) -> object:
    return content if isinstance(content, str) else joined([block.text for block in content])


def joined(texts: list[str]) -> object:
    """One text is a string, which every engine takes; several stay apart: joining them is its own matter."""
    if len(texts) > 1:
        return [text_part(text) for text in texts]
    return texts[0] if texts else ""


def text_part(text: str) -> Members:
    return {"type": "text", "text": text}


def chat_tool(tool: Tool) -> Members:
    function: dict[str, str | bool | Raw] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def tool_choice(sent: PromptBody) -> Members:
    choice = sent.tool_choice
    if choice is None:
        return {}
    if isinstance(choice, NoneChoice):
        return {"tool_choice": "none"}
    serial: Members = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if isinstance(choice, ToolChoice):
        return {"tool_choice": {"type": "function", "function": {"name": choice.name}}, **serial}
    return {"tool_choice": "required" if isinstance(choice, AnyChoice) else "auto", **serial}


def reasoning_members(sent: PromptBody) -> Members:
    """What is said of reasoning; adaptive thinking is what a model does of which nothing is said.

    Thinking that is asked for as a summary is given whole: there is no other model here that could sum it up.
    """
    members: Members = {}
    if sent.output_config is not None and sent.output_config.effort is not None:
        members["effort"] = sent.output_config.effort
    if sent.thinking is None:
        return members
    if isinstance(sent.thinking, ThinkingDisabled):
        return {"enabled": False}
    if isinstance(sent.thinking, ThinkingEnabled):
        members["max_tokens"] = sent.thinking.budget_tokens
    if sent.thinking.display == "omitted":
        members["exclude"] = True
    return members
