"""What becomes of each member of a request, for models of the embedded engine.

Read off the tables that decide it: the structs that requests are parsed with, what they refuse (`UNSUPPORTED`), what
they take as long as it asks for nothing (`LIMITED`), and what the engine honours (`SUPPORTED`, `NOT_HONOURED`).
`tests/gateway/test_members.py` sends each of them. An upstream that judges requests itself has its own rules.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from confide.engine.completing import COMPLETION_SUPPORTED
from confide.engine.facts import NOT_HONOURED, REASONING, SUPPORTED
from confide.protocol import (
    chat,
    chat_body,
    completions,
    embeddings,
    messages_body,
    messages_request,
    responses_body,
    responses_request,
)
from confide.upstream.kinds.embedded_embeddings import EMBEDDINGS_SUPPORTED

SERVICE = frozenset({"model", "messages", "prompt", "input", "provider"})  # read by the service, or what is asked


class Effect(Enum):
    """What becomes of a member."""

    HONOURED = "honoured"
    BY_SOME = "honoured by models that reason"
    LIMITED = "taken as long as it asks for nothing"
    WITHOUT_EFFECT = "taken, without effect"
    REFUSED = "refused"

    @property
    def sentence(self) -> str:
        """As a sentence begins with it."""
        return self.value.capitalize()


class Member(NamedTuple):
    """One member at the top of a request. `takes`: what it holds, in words, where its schema does not say it as well.
    `note`: what is said of it when it is refused, or what limits it.
    """

    name: str
    effect: Effect
    required: bool
    takes: str | None
    note: str | None


class Table(NamedTuple):
    """The members of one surface. `counterparts`: what a member becomes in chat where that is called otherwise, and
    where in the member that stands; nothing for one that only shares its name with a member of chat.
    """

    title: str
    endpoint: str
    page: str | None
    body: type[msgspec.Struct]
    supported: frozenset[str]
    unsupported: Mapping[str, str]
    limited: Mapping[str, str]
    expected: Mapping[str, str]
    counterparts: Mapping[str, Mapping[str, str]]
    not_honoured: Mapping[str, str] = NOT_HONOURED
    by_some: frozenset[str] = REASONING

    @property
    def refuses_unknown(self) -> bool:
        """Whether a member that is not in the table is refused by its name. Otherwise it is ignored."""
        return self.body.__struct_config__.forbid_unknown_fields

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them: those that have to be there first, those that are refused last."""
        fields = msgspec.structs.fields(self.body)
        members = [self._member(field.encode_name, field.required) for field in fields]
        order = list(Effect)
        return tuple(sorted(members, key=lambda each: (not each.required, order.index(each.effect), each.name)))

    def _member(self, name: str, is_required: bool) -> Member:
        takes = self.expected.get(name)
        if name in self.unsupported:
            return Member(name, Effect.REFUSED, is_required, takes, self.unsupported[name])
        becomes = self.counterparts.get(name, {name: name})
        note = self.limited.get(name) or self._not_honoured(name, becomes)
        if not self.supported.union(SERVICE).isdisjoint(becomes):
            effect = Effect.HONOURED
        elif not self.by_some.isdisjoint(becomes):
            effect = Effect.BY_SOME
        else:
            effect = Effect.WITHOUT_EFFECT if note is None else Effect.LIMITED
        return Member(name, effect, is_required, takes, note)

    def _not_honoured(self, name: str, becomes: Mapping[str, str]) -> str | None:
        """What the engine says where it is asked for that which it does not do."""
        for of_chat, ours in becomes.items():
            if of_chat in self.not_honoured:
                said = self.not_honoured[of_chat]
                if of_chat in self.by_some:
                    said = f"others refuse it: {said}"
                return said if ours == name else f"`{ours.removeprefix(f'{name}.')}` by models that reason; {said}"
        return None


def counterparts(renamed: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """From a table of how chat's members are called on a surface: what each member of the surface becomes in chat."""
    tops = {ours.partition(".")[0] for ours in renamed.values()}
    return {top: {of_chat: ours for of_chat, ours in renamed.items() if ours.partition(".")[0] == top} for top in tops}


CHAT = Table(
    title="Chat completions",
    endpoint="/v1/chat/completions",
    page=None,
    body=chat_body.ChatBody,
    supported=SUPPORTED,
    unsupported=chat.UNSUPPORTED,
    limited=chat.LIMITED,
    expected=chat_body.EXPECTED,
    counterparts={},
)
COMPLETIONS = Table(
    title="Text completions",
    endpoint="/v1/completions",
    page=None,
    body=completions.CompletionBody,
    supported=COMPLETION_SUPPORTED,
    unsupported=completions.UNSUPPORTED,
    limited=completions.LIMITED,
    expected=chat_body.EXPECTED,
    counterparts={},
)
RESPONSES = Table(
    title="Responses",
    endpoint="/v1/responses",
    page="responses.md",
    body=responses_body.ResponsesBody,
    supported=SUPPORTED,
    unsupported=responses_body.UNSUPPORTED,
    limited=responses_body.LIMITED,
    expected=responses_body.EXPECTED,
    counterparts={
        **counterparts(responses_request.RENAMED),
        "instructions": {"messages": "instructions"},
        "stream_options": {},
        "top_logprobs": {},
    },
)
MESSAGES = Table(
    title="Messages",
    endpoint="/v1/messages",
    page="messages.md",
    body=messages_body.MessagesBody,
    supported=SUPPORTED,
    unsupported=messages_body.UNSUPPORTED,
    limited={},
    expected=messages_body.EXPECTED,
    counterparts={
        **counterparts(messages_request.RENAMED),
        "system": {"messages": "system"},
        "tool_choice": {"tool_choice": "tool_choice"},
    },
)
COUNT_TOKENS = MESSAGES._replace(
    title="Counting tokens",
    endpoint="/v1/messages/count_tokens",
    body=messages_body.PromptBody,
    supported=frozenset({"tools", "tool_choice"}),  # what a model is shown besides the messages
)
EMBEDDINGS = Table(
    title="Embeddings",
    endpoint="/v1/embeddings",
    page="embeddings.md",
    body=embeddings.EmbeddingsBody,
    supported=EMBEDDINGS_SUPPORTED,
    unsupported={},
    limited=embeddings.LIMITED,
    expected=embeddings.EXPECTED,
    counterparts={},
)
TABLES = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS, EMBEDDINGS)
