"""Where the JSON text of an object ends that comes in pieces. The text is taken to be JSON: nothing is checked."""


class JsonObject:
    """Finds where the text of a JSON object ends, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def end_in(self, piece: str) -> int | None:
        """The index behind its last brace in `piece`, which follows all that came before, or None."""
        for index, character in enumerate(piece):
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = not self._in_string
            elif not self._in_string and character in "{[":
                self._depth += 1
            elif not self._in_string and character in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None
