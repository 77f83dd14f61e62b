"""An HTTP server that behaves like a package index, a model hub or its storage, and misbehaves where a test says so."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Resource:
    """One path. `cuts`: how many body bytes the next answers send before the connection breaks, one entry each."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # statuses of the next answers, one entry each
    has_ranges: bool = True
    before_body: Callable[[], object] = lambda: None


@dataclass
class Seen:
    """One request as the server saw it."""

    path: str
    headers: Message


class WeightsServer:
    """`resources` by path; `seen` in order of arrival, with `arrived` notified of each."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.seen: list[Seen] = []
        self.arrived = threading.Condition()
        self.address = ""

    def put(self, path: str, resource: Resource) -> Resource:
        self.resources[path] = resource
        return resource

    def url(self, path: str) -> str:
        return self.address + path

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every request for `path`."""
        return [seen.headers["Range"] for seen in self.seen if seen.path == path]

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]


@contextmanager
def serving() -> Iterator[WeightsServer]:
    """A server on a free loopback port."""
    state = WeightsServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(state)) as http:
        state.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()


def handler_for(state: WeightsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            with state.arrived:
                state.seen.append(Seen(self.path, self.headers))
                state.arrived.notify_all()
            resource = state.resources.get(self.path, Resource(status=404))
            answer(self, resource)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: pytest shows what matters."""

    return Handler


def answer(handler: BaseHTTPRequestHandler, resource: Resource) -> None:
    status, begin = resource.failures.pop(0) if resource.failures else resource.status, 0
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    same = handler.headers["If-Range"] in (None, resource.headers.get("ETag"))
    if status == 200 and asked and resource.has_ranges and same:
        status, begin = (206, int(asked[1])) if int(asked[1]) < len(resource.body) else (416, len(resource.body))
    body = resource.body[begin:]
    handler.send_response(status)
    for name, value in resource.headers.items():
        handler.send_header(name, value)
    if status == 206:
        handler.send_header("Content-Range", f"bytes {begin}-{len(resource.body) - 1}/{len(resource.body)}")
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    resource.before_body()
    send(handler, body[: resource.cuts.pop(0)] if resource.cuts and status in (200, 206) else body)


def send(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    try:
        handler.wfile.write(body)
    except ConnectionError:
        """The client has heard enough."""
