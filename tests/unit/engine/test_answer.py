"""From the engine's events to deltas: where text, calls and log probabilities begin, and how each answer ends."""

import json
from collections.abc import Iterator

import pytest

from confide.engine.answer import (
    CallArguments,
    CallOpened,
    Choice,
    Content,
    Delta,
    EngineChoice,
    EngineDelta,
    EngineEvent,
    EngineLogprob,
    EngineLogprobs,
    EngineUsage,
    LeftGrammar,
    Mode,
    ReasoningText,
    overlap,
)
from confide.engine.grammar import (
    Adherence,
    Function,
    auto_grammar,
    call_grammar,
    compile_grammar,
    json_grammar,
)

FUNCTIONS = [Function("f", {"type": "object"}), Function("g", None)]
FORM = {
    Mode.ARGUMENTS: json_grammar({"type": "object"}),
    Mode.CALL: call_grammar(FUNCTIONS),
    Mode.AUTO: auto_grammar(FUNCTIONS, parallel=True),
}


def held_to(mode: Mode) -> Adherence | None:
    return compile_grammar(FORM[mode], param="tools").adherence() if mode in FORM else None


def choice(mode: Mode = Mode.TEXT, *, must_complete: bool = True, keep_reasoning: bool = True) -> Choice:
    ids = (f"call-{number}" for number in range(100))
    return Choice(
        0,
        mode=mode,
        adherence=held_to(mode),
        must_complete=must_complete,
        new_call_id=lambda: next(ids),
        named="f" if mode is Mode.ARGUMENTS else None,
        keep_reasoning=keep_reasoning,
    )


def event(text: str | None = None, *, finish: str | None = None, logprobs: EngineLogprobs | None = None) -> EngineEvent:
    return EngineEvent(choices=[EngineChoice(EngineDelta(content=text), finish, logprobs)])


def read(answer: Choice, *texts: str, finish: str = "stop") -> list[Delta]:
    events: Iterator[EngineEvent] = iter([*(event(text) for text in texts), event(finish=finish)])
    return [delta for one in events for delta in answer.step(one)]


def test_text_leaves_as_it_comes() -> None:
    answer = choice()
    assert read(answer, "Hello", " you") == [Content("Hello"), Content(" you")]
    assert answer.finish_reason == "stop"


def test_the_named_functions_text_is_its_arguments() -> None:
    answer = choice(Mode.ARGUMENTS)
    assert read(answer, '{"a"', ":1}") == [
        CallOpened(0, "call-0", "f"),
        CallArguments(0, '{"a"'),
        CallArguments(0, ":1}"),
    ]
    assert answer.finish_reason == "tool_calls"


def test_a_named_call_that_was_cut_before_its_first_token_is_still_opened() -> None:
    answer = choice(Mode.ARGUMENTS)
    assert read(answer, finish="length") == [CallOpened(0, "call-0", "f")]
    assert answer.finish_reason == "length"


def test_a_required_calls_arguments_leave_without_the_calls_own_brace() -> None:
    answer = choice(Mode.CALL)
    deltas = read(answer, '{"name":"', 'f","argu', 'ments":{"a":{}', "}", "}")
    assert deltas == [CallOpened(0, "call-0", "f"), CallArguments(0, '{"a":{}'), CallArguments(0, "}")]
    assert answer.finish_reason == "tool_calls"


def test_braces_quotes_and_markers_in_strings_end_nothing() -> None:
    arguments = {"a": '}]{"\\', "b": "</tool_call>", "c": '\\"}'}
    text = f'<tool_call>\n{{"name":"f","arguments":{json.dumps(arguments, separators=(",", ":"))}}}\n</tool_call>'
    assert call_texts(read(choice(Mode.AUTO), *text)) == [arguments]


def call_texts(deltas: list[Delta]) -> list[object]:
    """What the arguments of each call parse to."""
    opened = [delta.call for delta in deltas if isinstance(delta, CallOpened)]
    texts = {
        call: "".join(d.text for d in deltas if isinstance(d, CallArguments) and d.call == call) for call in opened
    }
    return [json.loads(texts[call]) for call in opened]


def test_several_calls_have_numbers_and_ids_of_their_own_and_no_text_between() -> None:
    one = '<tool_call>\n{"name":"%s","arguments":{}}\n</tool_call>'
    answer = choice(Mode.AUTO)
    deltas = read(answer, "Let me see. ", one % "f", "\n", one % "g")
    assert deltas == [
        Content("Let me see. "),
        CallOpened(0, "call-0", "f"),
        CallArguments(0, "{}"),
        CallOpened(1, "call-1", "g"),
        CallArguments(1, "{}"),
    ]
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize("text", ["a < b", "<tool", "<tool_call>", "<<<", "a <tool_call> b", "<tool_<tool_call>"])
def test_text_that_only_resembles_the_marker_stays_text(text: str) -> None:
    answer = choice(Mode.AUTO)
    deltas = read(answer, *text)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Content)) == text
    assert len(deltas) == sum(isinstance(delta, Content) for delta in deltas)
    assert answer.finish_reason == "stop"


CALL = 'Hm. <tool_call>\n{"name":"f","arguments":{"a":[{"b":"}"}]}}\n</tool_call>'
ARGUMENTS = '{"a":[{"b":"}"}]}'


@pytest.mark.parametrize("length", range(len(CALL) + 1))
def test_an_answer_cut_at_any_character_keeps_all_of_its_arguments(length: int) -> None:
    answer, begin = choice(Mode.AUTO), CALL.index(ARGUMENTS)
    deltas = read(answer, *CALL[:length], finish="length")
    arguments = "".join(delta.text for delta in deltas if isinstance(delta, CallArguments))
    assert arguments == CALL[begin : max(begin, min(length, begin + len(ARGUMENTS)))]
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("length", range(len(CALL) + 1))
def test_an_answer_cut_at_any_character_shows_no_whole_marker(length: int) -> None:
    deltas = read(choice(Mode.AUTO), *CALL[:length], finish="length")
    content = "".join(delta.text for delta in deltas if isinstance(delta, Content))
    assert content == ("Hm. " if length >= CALL.index("{") else CALL[:length])


@pytest.mark.parametrize("length", range(len('{"name":"f","arguments":{"a":{}}}')))
def test_a_required_call_cut_at_any_character_keeps_all_of_its_arguments(length: int) -> None:
    text = '{"name":"f","arguments":{"a":{}}}'
    begin = text.index('{"a"')
    deltas = read(choice(Mode.CALL), *text[:length], finish="length")
    assert "".join(d.text for d in deltas if isinstance(d, CallArguments)) == text[begin : min(length, len(text) - 1)]


def test_an_answer_that_stops_inside_its_form_has_failed() -> None:
    with pytest.raises(LeftGrammar):
        read(choice(Mode.CALL), '{"name":"f","arguments":{"a"', finish="stop")


def test_an_answer_outside_its_form_fails_before_a_delta_leaves() -> None:
    answer = choice(Mode.CALL)
    with pytest.raises(LeftGrammar):
        answer.step(event("Sure! "))


def test_a_stop_text_of_the_clients_may_end_a_form_early_and_then_it_is_no_whole_call() -> None:
    answer = choice(Mode.ARGUMENTS, must_complete=False)
    assert read(answer, '{"a":"x')[-1] == CallArguments(0, '{"a":"x')
    assert answer.finish_reason == "stop"


def test_reasoning_is_kept_apart_or_left_out() -> None:
    thinking = EngineEvent(choices=[EngineChoice(EngineDelta(reasoning_content="hm"))])
    assert choice().step(thinking) == [ReasoningText("hm")]
    assert choice(keep_reasoning=False).step(thinking) == []


def test_usage_is_kept_and_an_event_without_choices_is_worth_nothing() -> None:
    answer = choice()
    assert answer.step(EngineEvent(usage=EngineUsage(3, 2))) == []
    assert answer.usage == EngineUsage(3, 2)


def probability(token: str) -> EngineLogprobs:
    other = EngineLogprob("other", -2.0, [111])
    return EngineLogprobs(content=[EngineLogprob(token, -0.5, list(token.encode()), [other])])


def tokens(deltas: list[Delta]) -> list[object]:
    return [entry["token"] for delta in deltas if isinstance(delta, Content) for entry in delta.logprobs or []]


def test_each_token_of_text_has_its_log_probability_once() -> None:
    answer = choice()
    (delta,) = answer.step(event("Hi", logprobs=probability("Hi")))
    assert isinstance(delta, Content)
    assert delta.logprobs == [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [{"token": "other", "logprob": -2.0, "bytes": [111]}],
        }
    ]


def test_log_probabilities_wait_for_text_that_is_held_back() -> None:
    answer, pieces = choice(Mode.AUTO), ["a ", "<", "tool", "_x", " b <"]
    deltas = [delta for piece in pieces for delta in answer.step(event(piece, logprobs=probability(piece)))]
    deltas += answer.step(event(finish="stop"))
    assert tokens(deltas) == pieces


def test_the_tokens_of_a_call_have_no_log_probabilities() -> None:
    answer = choice(Mode.AUTO)
    pieces = ["See: ", "<tool_call>", "\n", '{"name":"f","arguments":', "{}", "}\n</tool_call>"]
    deltas = [delta for piece in pieces for delta in answer.step(event(piece, logprobs=probability(piece)))]
    deltas += answer.step(event(finish="stop"))
    assert tokens(deltas) == ["See: "]


@pytest.mark.parametrize(("text", "length"), [("", 0), ("x", 0), ("a<", 1), ("<to", 3), ("<tool_call>", 0), ("<<", 1)])
def test_an_overlap_is_the_longest_beginning_of_the_marker(text: str, length: int) -> None:
    assert overlap(text, "<tool_call>") == length
