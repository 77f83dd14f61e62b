"""The SIMULATED vendors' services, for machines that do not exist (tee-evidence 5.2): one ASGI application.

    Intel's PCS or a PCCS   /sgx/certification/v4/{pckcrl,rootcacrl}, /tdx/certification/v4/{tcb,qe/identity}
    AMD's KDS               /vcek/v1/{Product}/{<chip id>,cert_chain,crl}
    NVIDIA's NRAS           /.well-known/jwks.json, /v3/attest/gpu

Each is there for the machines that were given. What it serves is good from `now`; a `PccsFault` is what is wrong.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from hashlib import sha256
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from confide.simulator.certificates import FMSPC
from confide.simulator.nras import SimulatedNras
from confide.simulator.snp import PRODUCTS, SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform

EXPIRED_S = 40 * 24 * 60 * 60
DRIP_S = 0.05  # between two bytes of a slow answer
ENDLESS_PART = bytes(64 * 1024)
RETRY_AFTER_S = 120
SPL = {"blSPL": "bootloader", "teeSPL": "tee", "snpSPL": "snp", "ucodeSPL": "microcode", "fmcSPL": "fmc"}


class PccsFault(StrEnum):
    """What is wrong with every answer."""

    SLOW = "slow"  # one byte after the other
    HUNG = "hung"  # nothing comes
    CUT = "cut"  # half of the body comes
    MALFORMED = "malformed"
    ENDLESS = "endless"
    ENCODED = "encoded"  # compressed, though nobody asked for it
    NOT_FOUND = "not found"
    FAILING = "failing"  # status 500
    LIMITED = "limited"  # status 429, and when to come back
    ELSEWHERE = "elsewhere"  # a redirect to another host
    CIRCLE = "circle"  # a redirect to itself
    NO_CHAIN = "no chain"  # without the header
    EXPIRED = "expired"
    WRONG_CHAIN = "wrong chain"  # all of it is another platform's


class SimulatedPccs:
    """Services that do not exist. `seen`: path and query of every request. `now` and `fault` may be changed."""

    def __init__(
        self,
        platform: SimulatedTdxPlatform | None = None,
        *,
        now: int,
        snp: SimulatedSnpPlatform | None = None,
        nras: SimulatedNras | None = None,
        fault: PccsFault | None = None,
        root_crl_as_der: bool = False,
    ) -> None:
        """`now`: Unix seconds. `root_crl_as_der`: as Intel's own service has it, not as hex text."""
        self.now = now
        self.fault = fault
        self.nras = nras
        self.seen: list[str] = []
        self._platform = platform
        self._snp = snp
        self._root_crl_as_der = root_crl_as_der

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        sgx, tdx = "/sgx/certification/v4", "/tdx/certification/v4"
        answers: dict[str, Callable[[Request], Response]] = {}
        if self._platform is not None:
            answers |= {
                f"{sgx}/pckcrl": self.pck_crl,
                f"{sgx}/rootcacrl": self.root_crl,
                f"{tdx}/tcb": self.tcb,
                f"{tdx}/qe/identity": self.qe_identity,
            }
        if self._snp is not None:
            answers |= {
                "/vcek/v1/{product}/cert_chain": self.cert_chain,
                "/vcek/v1/{product}/crl": self.snp_crl,
                "/vcek/v1/{product}/{chip}": self.vcek,
            }
        if self.nras is not None:
            answers["/.well-known/jwks.json"] = self.jwks
        routes = [Route(path, self._endpoint(answer)) for path, answer in answers.items()]
        if self.nras is not None:
            routes.append(Route("/v3/attest/gpu", self._endpoint(self.attest_gpus), methods=["POST"]))
        return Starlette(routes=routes)

    # Intel.

    def pck_crl(self, request: Request) -> Response:
        """The list of the Platform CA as DER; there is no other CA."""
        if request.query_params.get("ca") != "platform":
            return not_found()
        collateral = self._collateral()
        headers = {"SGX-PCK-CRL-Issuer-Chain": quote(collateral["pck_crl_issuer_chain"])}
        return Response(bytes.fromhex(collateral["pck_crl"]), headers=headers)

    def root_crl(self, _: Request) -> Response:
        """The root's list, as hex text or as DER."""
        text = self._collateral()["root_ca_crl"]
        return Response(bytes.fromhex(text)) if self._root_crl_as_der else PlainTextResponse(text)

    def tcb(self, request: Request) -> Response:
        """The TCB info of the one machine type that there is."""
        if request.query_params.get("fmspc", "").upper() != FMSPC.hex().upper():
            return not_found()
        return self._signed("tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain")

    def qe_identity(self, _: Request) -> Response:
        """The identity of the quoting enclave."""
        return self._signed("enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain")

    def _signed(self, member: str, name: str, header: str) -> Response:
        collateral = self._collateral()
        # By hand: the inner text is what was signed, byte for byte.
        body = f'{{"{member}":{collateral[name]},"signature":"{collateral[f"{name}_signature"]}"}}'
        headers = {header: quote(collateral[f"{name}_issuer_chain"])}
        return Response(body, media_type="application/json", headers=headers)

    def _collateral(self) -> dict[str, str]:
        assert self._platform is not None
        if self.fault is PccsFault.WRONG_CHAIN:
            other = sha256(self._platform.root_der).digest()
            return SimulatedTdxPlatform(other, now=self.now).collateral(self.now)
        return self._platform.collateral(self.now - (EXPIRED_S if self.fault is PccsFault.EXPIRED else 0))

    # AMD.

    def vcek(self, request: Request) -> Response:
        """The certificate of the one chip, at the TCB that it reports, as DER."""
        assert self._snp is not None
        report = self._snp.report(bytes(64))
        product = request.path_params["product"].lower()
        layout = PRODUCTS[product].tcb_bytes if product in PRODUCTS else {}
        asked = {SPL.get(name, name): level for name, level in request.query_params.items()}
        reported = {part: str(report[0x180 + place]) for part, place in layout.items()}
        chip = report[0x1A0 : 0x1A0 + (PRODUCTS[product].chip_bytes if layout else 64)]
        if asked != reported or request.path_params["chip"] != chip.hex():
            return not_found()
        return Response(self._snp.vcek_der)

    def cert_chain(self, _: Request) -> Response:
        """ASK, then ARK, as PEM."""
        assert self._snp is not None
        return PlainTextResponse(self._snp.chain_pem)

    def snp_crl(self, _: Request) -> Response:
        """The ARK's list as DER."""
        assert self._snp is not None
        return Response(self._snp.crl(self.now - (EXPIRED_S if self.fault is PccsFault.EXPIRED else 0)))

    # NVIDIA.

    def jwks(self, _: Request) -> Response:
        """The key set that signs now."""
        assert self.nras is not None
        return Response(self.nras.jwks(), media_type="application/json")

    def attest_gpus(self, request: Request) -> Response:
        """The verdict about a payload; 400 for what is no evidence of devices that it knows."""
        assert self.nras is not None
        try:
            answer = self.nras.attest(request.state.body.decode(), now=self.now)
        except (ValueError, KeyError, TypeError):
            return Response(status_code=400)
        return Response(answer, media_type="application/json")

    # What is wrong.

    def _endpoint(self, answer: Callable[[Request], Response]) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            self.seen.append(str(request.url).removeprefix(str(request.base_url).rstrip("/")))
            request.state.body = await request.body()
            if self.fault is PccsFault.HUNG:
                await asyncio.Event().wait()
            return self._spoilt(answer(request), request)

        return endpoint

    def _spoilt(self, honest: Response, request: Request) -> Response:
        """The answer with the fault."""
        headers = {
            name: value for name, value in honest.headers.items() if name not in ("content-length", "content-type")
        }
        body = bytes(honest.body)
        path = request.url.path
        match self.fault:
            case PccsFault.SLOW:
                return StreamingResponse(dripping(body), headers=headers)
            case PccsFault.CUT:
                return Response(body[: len(body) // 2], headers=headers)
            case PccsFault.MALFORMED:
                return Response(b"{" + body[1:] + b"?", headers=headers)
            case PccsFault.ENDLESS:
                return StreamingResponse(endless(), headers=headers)
            case PccsFault.ENCODED:
                return Response(body, headers=headers | {"content-encoding": "gzip"})
            case PccsFault.NOT_FOUND:
                return not_found()
            case PccsFault.FAILING:
                return Response(status_code=500)
            case PccsFault.LIMITED:
                return Response(status_code=429, headers={"retry-after": str(RETRY_AFTER_S)})
            case PccsFault.ELSEWHERE:
                return Response(status_code=302, headers={"location": f"http://elsewhere.invalid{path}"})
            case PccsFault.CIRCLE:
                return Response(status_code=302, headers={"location": str(request.url)})
            case PccsFault.NO_CHAIN:
                return Response(body)
            case _:
                return honest


def not_found() -> Response:
    return Response(status_code=404)


async def dripping(body: bytes) -> AsyncIterator[bytes]:
    for byte in body:
        yield bytes((byte,))
        await asyncio.sleep(DRIP_S)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield ENDLESS_PART
        await asyncio.sleep(0)
