"""The response object (wire contract 3.4): what was asked for, the output, and what it took."""

import msgspec

from confide.protocol.chat_answer import CompletionDetails, PromptDetails, Usage
from confide.protocol.responses_output import Document
from confide.protocol.responses_request import ResponsesRequest
from confide.protocol.translation import Untranslatable

# Why an answer of chat ended: whole, or what is missing in it. An engine may leave it out of a stream.
COMPLETE = frozenset({None, "stop", "tool_calls", "function_call"})
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}

NO_DETAILS = PromptDetails(), CompletionDetails()


class ResponseObject:
    """The response to one request. `id`: `resp_` and 32 hex digits. `created`: Unix seconds. `model`: as it was asked
    for.

    Of the request only what is echoed is kept: it may be megabytes, and an answer may take minutes.
    """

    def __init__(self, request: ResponsesRequest, *, id: str, created: int, model: str) -> None:
        self._members: Document = {
            "id": id,
            "object": "response",
            "created_at": created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **echoed(request),
        }

    def begun(self) -> Document:
        """It, before there is any output."""
        return self._members

    def ended(self, output: list[Document], finish_reason: str | None, usage: Usage | None) -> Document:
        """It, with all of its output. `finish_reason`: see `is_complete`."""
        status = "completed" if is_complete(finish_reason) else "incomplete"
        details = None if is_complete(finish_reason) else {"reason": INCOMPLETE[finish_reason or ""]}
        end: Document = {"status": status, "incomplete_details": details, "output": output, "usage": counted(usage)}
        return self._members | end


def is_complete(finish_reason: str | None) -> bool:
    """Whether an answer of chat that ended so is whole. Raises Untranslatable for a reason that chat does not have."""
    if finish_reason not in COMPLETE and finish_reason not in INCOMPLETE:
        raise Untranslatable("finish_reason: not one of chat's")
    return finish_reason in COMPLETE


def counted(usage: Usage | None) -> Document | None:
    """The tokens as this surface has them, None where the engine did not count both kinds."""
    if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    given = usage.prompt_tokens_details or NO_DETAILS[0]
    made = usage.completion_tokens_details or NO_DETAILS[1]
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": given.cached_tokens or 0,
            "cache_write_tokens": given.cache_write_tokens or 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": made.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def echoed(request: ResponsesRequest) -> Document:
    """What the response says of the request. Who asks (`user` and the like) is not among it (wire contract 2.2)."""
    sent = request.sent
    choice = sent.tool_choice or "auto"
    text = sent.text and sent.text.format
    return {
        "instructions": sent.instructions,
        "max_output_tokens": sent.max_output_tokens,
        "metadata": sent.metadata or {},
        "parallel_tool_calls": sent.parallel_tool_calls is not False,
        "reasoning": {
            "effort": sent.reasoning and sent.reasoning.effort,
            "summary": sent.reasoning and sent.reasoning.summary,
        },
        "temperature": sent.temperature,
        "text": {
            "format": msgspec.to_builtins(text) if text else {"type": "text"},
            **({"verbosity": sent.text.verbosity} if sent.text and sent.text.verbosity else {}),
        },
        "tool_choice": choice if isinstance(choice, str) else msgspec.to_builtins(choice),
        "tools": [msgspec.to_builtins(tool) for tool in request.tools],
        "top_p": sent.top_p,
    }
