"""One JSON object a line on standard error. A field outside ALLOWED is not written: a new field is a reviewed line.

No field may hold a prompt, an answer, a key, a header or a client's own text: ids are ours, models are configured ids.
A line that cannot be written is lost: a full disk or a closed pipe under the log never fails a request.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TextIO

import msgspec

ALLOWED = frozenset(
    {
        "changes",
        "completion_tokens",
        "endpoint",
        "error",
        "exit_status",
        "id",
        "key_id",
        "model",
        "name",
        "ms",
        "not_after",
        "number",
        "outcome",
        "pid",
        "prompt_tokens",
        "reason",
        "receipt",
        "restarts",
        "session",
        "simulated",
        "status",
        "stream",
        "wait_ms",
        "worker",
    }
)
Value = str | int | float | bool | None

encode = msgspec.json.Encoder().encode


class Log:
    """Writes events to `stream`; `now` gives Unix seconds. `worker`: the number of this process, where it has one."""

    def __init__(
        self, stream: TextIO | None = None, *, now: Callable[[], float] = time.time, worker: int | None = None
    ) -> None:
        self._stream = stream
        self._now = now
        self._always: dict[str, Value] = {} if worker is None else {"worker": worker}

    def write(self, event: str, **fields: Value) -> None:
        """One line; fields outside ALLOWED are dropped."""
        line = encode({"at": round(self._now(), 3), "event": event, **self._always, **keep_allowed(fields)}).decode()
        stream = self._stream if self._stream is not None else sys.stderr
        with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that went away, a closed file
            stream.write(line + "\n")
            stream.flush()


def keep_allowed(fields: dict[str, Value]) -> dict[str, Value]:
    """The fields that may be written."""
    return {name: value for name, value in fields.items() if name in ALLOWED}
