"""The SIMULATED guest agent: dstack's JSON over HTTP, before a platform and a KMS that do not exist (tee-evidence 5.3).

Methods and shapes are those of 2.1: `GetQuote`, `Info`, `GetKey`, `Version`, by POST with JSON or by GET with a query;
what is wrong with a request is told with status 400 and `{"error": "<text>"}`.
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha512

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from confide.simulator.kms import SimulatedKms
from confide.simulator.measurements import APP_ID
from confide.simulator.serving import serving
from confide.simulator.tdx import SimulatedTdxPlatform

__all__ = ["SimulatedGuestAgent", "serving"]

REPORT_DATA_BYTES = 64

Members = Mapping[str, object]


class SimulatedGuestAgent:
    """Answers for one guest. `log_as_list`: `GetQuote` gives the event log as an array, as some versions do.
    `quotes_other_data`: every quote is over other report data than was asked for.
    """

    def __init__(
        self,
        platform: SimulatedTdxPlatform,
        kms: SimulatedKms,
        *,
        log_as_list: bool = False,
        quotes_other_data: bool = False,
    ) -> None:
        self._platform = platform
        self._quotes_other_data = quotes_other_data
        self._app_keys = kms.app_keys(APP_ID)
        self._log_as_list = log_as_list

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        methods: dict[str, Callable[[Members], dict[str, object]]] = {
            "GetQuote": self.get_quote,
            "Info": self.info,
            "GetKey": self.get_key,
            "Version": self.version,
        }
        routes = [Route(f"/{name}", answering(method), methods=["GET", "POST"]) for name, method in methods.items()]
        return Starlette(routes=routes)

    def get_quote(self, asked: Members) -> dict[str, object]:
        """A quote over up to 64 bytes, zeros on the right. Raises ValueError."""
        report_data = bytes.fromhex(text(asked, "report_data"))
        if len(report_data) > REPORT_DATA_BYTES:
            raise ValueError(f"report data of {len(report_data)} bytes, at most {REPORT_DATA_BYTES} are allowed")
        report_data = report_data.ljust(REPORT_DATA_BYTES, b"\0")
        log = self._platform.event_log
        quoted = sha512(report_data).digest() if self._quotes_other_data else report_data
        return {
            "quote": self._platform.quote(quoted).hex(),
            "event_log": json.loads(log) if self._log_as_list else log,
            "report_data": report_data.hex(),
            "vm_config": self._platform.vm_config,
            "attestation": "",
        }

    def info(self, _: Members) -> dict[str, object]:
        """What the guest is."""
        return self._platform.info

    def get_key(self, asked: Members) -> dict[str, object]:
        """The secret of a path and the chain over its public key. Raises ValueError."""
        return self._app_keys.release(text(asked, "path"), text(asked, "purpose"), text(asked, "algorithm"))

    def version(self, _: Members) -> dict[str, object]:
        """A version that nobody can take for a release of dstack's."""
        return {"version": "0.5.7-simulated", "rev": "simulated"}


def answering(method: Callable[[Members], dict[str, object]]) -> Callable[[Request], object]:
    """The endpoint of one method."""

    async def endpoint(request: Request) -> JSONResponse:
        try:
            raw = await request.body()
            asked = json.loads(raw) if raw else dict(request.query_params)
            if not isinstance(asked, dict):
                raise ValueError("the request is no JSON object")  # noqa: TRY301, TRY004 - told to the caller below
            return JSONResponse(method(asked))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return endpoint


def text(asked: Members, name: str) -> str:
    """A member that is text, empty when absent. Raises ValueError."""
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")  # noqa: TRY004 - told to the caller as a bad request
    return value
