"""From what a decoder or a rule objects to, to the 400 a caller can act on (wire contract 2.2, 4).

No message quotes the body: msgspec's texts name offending values and unknown members, so only their shape is used.
"""

import re
from collections.abc import Mapping

import msgspec

from confide.errors import InvalidRequest

# The end of a msgspec.ValidationError: " - at `$.messages[0].role`", or " - at `key` in `$.logit_bias`".
PLACE = re.compile(r"\A(?P<problem>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`\Z", re.DOTALL)
EXPECTED = re.compile(
    r"\AExpected `(?P<types>[a-z |]+)`(?P<bound>(?: of length)? [<>]=? [-0-9.]+)?(?:, got `(?P<got>\w+)`)?"
)
MISSING = re.compile(r"\AObject missing required field `(?P<member>\w+)`")
# A member that a closed object does not take is named where its name is of the kind that an API's members have: what is
# not may be the caller's own text.
UNKNOWN = re.compile(r"\AObject contains unknown field `(?P<member>[a-z][a-z0-9_]{0,39})`")
OFFSET = re.compile(r"\(byte \d+\)")
INDEX = re.compile(r"\[\d+\]")

TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
GOT_NAMES = TYPE_NAMES | {"bool": "a boolean", "float": "a number with a fraction or exponent", "null": "null"}


class RuleBroken(ValueError):
    """A value that decodes but breaks a rule. `member` is its path from where the rule stands; the text has no value.

    Raised inside a struct's `__post_init__`, msgspec wraps it and adds the struct's own path.
    """

    def __init__(self, member: str, expected: str) -> None:
        super().__init__(f"{member}: {expected}")
        self.member = member
        self.expected = expected


def refusal(error: Exception, expected: Mapping[str, str], *, at: str = "") -> InvalidRequest:
    """The 400 for what decoding a body raised: msgspec's errors, UnicodeDecodeError, RecursionError, RuleBroken.

    `expected` says what a member takes where msgspec's own words would quote a value (choices, patterns, closed
    objects). Its keys are paths without indices ("messages[].role"). `at`: where in the body the value stands that was
    decoded or that the rule is about, "" for all of it.
    """
    match error:
        case RuleBroken():
            return _refusal(_join(at, error.member), error.expected)
        case msgspec.ValidationError():
            return _misfit(error, expected, at)
        case UnicodeDecodeError():
            return InvalidRequest("The request body is not UTF-8.")
        case RecursionError():
            return InvalidRequest("The request body is nested too deeply.")
        case _:
            offset = OFFSET.search(str(error))
            return InvalidRequest(f"The request body is not valid JSON{f' {offset[0]}' if offset else ''}.")


def _refusal(param: str, problem: str) -> InvalidRequest:
    if not param:
        return InvalidRequest(f"The request body {problem}.")
    return InvalidRequest(f"{param} {problem}.", param=param)


def _misfit(error: msgspec.ValidationError, expected: Mapping[str, str], at: str) -> InvalidRequest:
    place = PLACE.match(str(error))
    problem, path = (place["problem"], _join(at, place["path"])) if place else (str(error), at)
    if isinstance(rule := error.__cause__, RuleBroken):
        return _refusal(_join(path, rule.member), rule.expected)
    if missing := MISSING.match(problem):
        return _refusal(_join(path, missing["member"]), "is required")
    param = path.partition("[...]")[0]  # members of a free-form object are the caller's words
    if known := expected.get(INDEX.sub("[]", param)):
        return _refusal(param, f"must be {known}")
    if unknown := UNKNOWN.match(problem):
        return _refusal(_join(param, unknown["member"]), "is not supported: leave it out")
    return _refusal(param, _in_words(problem))


def _join(path: str, member: str) -> str:
    between = "." if path and member and not member.startswith("[") else ""
    return f"{path}{between}{member}"


def _in_words(problem: str) -> str:
    """What msgspec expected, in JSON's words; null is left out because it means absent."""
    match = EXPECTED.match(problem)
    if match is None:
        if problem.startswith("Object contains unknown field"):
            return "has a member that is not supported: leave it out"
        return "has a number out of range" if "out of range" in problem else "has a value of the wrong kind"
    kinds = [name for kind in match["types"].split(" | ") if (name := TYPE_NAMES.get(kind))]
    bound = (match["bound"] or "").removesuffix(".0")
    got = f", got {GOT_NAMES[match['got']]}" if match["got"] in GOT_NAMES else ""
    return f"must be {' or '.join(kinds)}{bound}{got}"
