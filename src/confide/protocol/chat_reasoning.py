"""How much a model may think, said in up to three members that must agree (wire contract 2.2, reasoning rules)."""

from typing import Annotated, Literal

import msgspec

from confide.protocol.chat_errors import RuleBroken

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS = "none, minimal, low, medium, high, xhigh or max"


class ReasoningMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The member `reasoning`, as sent."""

    effort: Effort | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """What the three members say together. None: not said, the model's own default stands.

    `asked_by`: the member that a refusal of reasoning has to name.
    """

    effort: Effort | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    exclude: bool = False  # leave the reasoning text out of the answer, not out of the token counts
    asked_by: Literal["reasoning", "reasoning_effort"] = "reasoning"


NOT_SAID = Reasoning()


def combine(member: ReasoningMember | None, effort: Effort | None, include: bool | None) -> Reasoning:
    """One statement from `reasoning`, `reasoning_effort` and `include_reasoning`. Raises RuleBroken."""
    if member is None and effort is None and include is None:
        return NOT_SAID
    sent = member or ReasoningMember()
    is_outer = effort is not None and sent.effort is None and sent.enabled is None
    effort = _agreed_effort(sent.effort, effort)
    if effort is not None and sent.max_tokens is not None:
        raise RuleBroken("reasoning.max_tokens", "cannot be combined with an effort: send one of them")
    if sent.exclude is not None and sent.exclude is include:
        raise RuleBroken("reasoning.exclude", "contradicts include_reasoning: send one of them")
    return Reasoning(
        effort=effort,
        max_tokens=sent.max_tokens,
        enabled=_agreed_enabled(sent, effort),
        exclude=bool(sent.exclude) or include is False,
        asked_by="reasoning_effort" if is_outer else "reasoning",
    )


def _agreed_effort(inner: Effort | None, outer: Effort | None) -> Effort | None:
    if inner is not None and outer is not None and inner != outer:
        raise RuleBroken("reasoning.effort", "differs from reasoning_effort: send one of them")
    return outer if inner is None else inner


def _agreed_enabled(sent: ReasoningMember, effort: Effort | None) -> bool | None:
    if effort is None and sent.max_tokens is None:
        return sent.enabled
    implied = effort != "none"
    if sent.enabled is not None and sent.enabled is not implied:
        raise RuleBroken("reasoning.enabled", "contradicts the effort or the token budget: leave it out")
    return implied
