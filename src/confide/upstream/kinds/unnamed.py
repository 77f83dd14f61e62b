"""An engine's answer, without what names the engine: the model is called what the client called it, where an alias
differs; `system_fingerprint` is null and `provider` is taken out (wire contract 2.6). Everything else keeps its bytes.
"""

import msgspec

from confide.protocol.splice import Edit, Member, NamedTwice, members_of, spliced, without

MODEL, FINGERPRINT, PROVIDER = "model", "system_fingerprint", "provider"


class Unnamed:
    """For one answer. `model`: what the client calls it, None where the engine calls it the same. `inside`: the member
    of an event of its stream that holds the answer, where it has one.

    Events of a stream begin alike, up to the model at least. So what was changed in one is changed in the next without
    looking for members again, when it begins with the same bytes and nothing after these names the engine.
    """

    def __init__(self, model: str | None, *, inside: str | None = None) -> None:
        self._inside = inside
        self._model = None if model is None else msgspec.json.encode(model)
        self._beginning, self._changed = b"\0", b""

    @property
    def is_aliased(self) -> bool:
        return self._model is not None

    def body(self, body: bytes) -> bytes:
        """A buffered answer. Raises ValueError for what is no JSON object, or names a member twice."""
        return spliced(body, self._edits(body)) if self._is_to_change(body) else body

    def event(self, raw: bytes, data: bytes) -> bytes:
        """The bytes of one event, for those that came and the data in them. Raises ValueError as `body` does."""
        if not self._is_to_change(data):
            return raw
        if data.startswith(self._beginning):
            rest = data[len(self._beginning) :]
            if not is_telling(rest):
                return with_data(raw, data, self._changed + rest)
        edits = self._edits(data)
        if not edits:
            return raw
        end = max(edit.end for edit in edits)
        self._beginning, self._changed = data[:end], spliced(data[:end], edits)
        return with_data(raw, data, self._changed + data[end:])

    def _is_to_change(self, data: bytes) -> bool:
        return self._model is not None or is_telling(data)

    def _edits(self, data: bytes) -> list[Edit]:
        try:
            members = members_of(data)
            inner = members.get(self._inside or "")
            if inner is None or not inner.of(data).startswith(b"{"):
                return self._edits_of(members)
            within = self._edits_of(members_of(inner.of(data)))
        except (msgspec.DecodeError, NamedTwice) as error:
            raise ValueError("an answer that is no JSON object") from error
        shifted = [Edit(edit.start + inner.value, edit.end + inner.value, edit.text) for edit in within]
        return self._edits_of(members) + shifted

    def _edits_of(self, members: dict[str, Member]) -> list[Edit]:
        edits = without(members, {PROVIDER})
        if self._model is not None and MODEL in members:
            edits.append(Edit(members[MODEL].value, members[MODEL].end, self._model))
        if FINGERPRINT in members:
            edits.append(Edit(members[FINGERPRINT].value, members[FINGERPRINT].end, b"null"))
        return edits


def is_telling(data: bytes) -> bool:
    """Whether a member may be there that names the engine; in a JSON text the quotes are escaped, so these can only be
    names. It is asked of every event, and so has no loop.
    """
    return b'"system_fingerprint"' in data or b'"provider"' in data


def with_data(raw: bytes, data: bytes, changed: bytes) -> bytes:
    """The event with other data. Data that came on several lines goes out on one: line ends are spaces in JSON."""
    if b"\n" not in data:
        return raw.replace(data, changed, 1)
    lines = [line for line in raw.splitlines() if line and not line.startswith(b"data")]
    return b"\n".join([*lines, b"data: " + changed.replace(b"\n", b" "), b"", b""])
