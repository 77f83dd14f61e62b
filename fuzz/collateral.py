"""Fuzz collateral: answers of the vendors' services, bundles and cache entries are refused with their own errors or
read, and no changed collateral makes the honest quote say anything else.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress

import httpx2
import msgspec

from confide.collateral.bundle import bundle_of, read_bundle, write_bundle
from confide.collateral.cache import Kept, MemoryCache, read_entry
from confide.collateral.fetch import Fetcher
from confide.collateral.jwks import NrasKeySource
from confide.collateral.kds import SnpCollateral, SnpCollateralSource
from confide.collateral.pcs import Pcs, TdxCollateralSource, read_for
from confide.collateral.supply import Malformed
from confide.collateral.tdx import TdxCollateral, platform_of
from confide.errors import CannotTell, ConfigError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import parse_quote
from confide.evidence.snp_report import Product, parse_snp_report
from confide.evidence.tdx import verify_tdx
from confide.simulator.nras import SimulatedNras
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from fuzz._bytes import patched

Headers = tuple[tuple[bytes, bytes], ...]

NOW = 1_800_000_000
BASE = "https://x"
SEED = b"\x11" * 32
PLATFORM, CHIP = SimulatedTdxPlatform(SEED, now=NOW), SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True)
QUOTE, REPORT = parse_quote(PLATFORM.quote(bytes(64))), parse_snp_report(CHIP.report(bytes(64)))
MEMBERS = PLATFORM.collateral(NOW)
TEXT = json.dumps(MEMBERS)
ANCHORS = Anchors.of().with_simulated(PLATFORM.root_der)
FACTS = verify_tdx(QUOTE.trimmed, collateral=TEXT, anchors=ANCHORS, policy=TdxPolicy(), now=NOW).facts
SNP = SnpCollateral(product=Product.MILAN, vcek=CHIP.vcek_pem, cert_chain=CHIP.chain_pem, crl=CHIP.crl(NOW).hex())
ENTRY = msgspec.json.encode(Kept(name="tdx", source="https://x", fetched_at=NOW, content="{}"))
BUNDLE = write_bundle(bundle_of(created_at=NOW, tdx=(TdxCollateral.parse(TEXT),), snp=(SNP,), nras_response=b"[]"))


def fuzz_one(data: bytes) -> None:
    """One input: as a change to an answer, to collateral, to an entry of the cache, and to a bundle."""
    answered(data)
    for text in (data, patched(ENTRY, data)):
        entry(text)
    for text in (data, patched(TEXT.encode(), data)):
        collateral(text)
    for text in (data, patched(BUNDLE, data)):
        bundle(text)


def answered(data: bytes) -> None:
    """Whatever a service answers, or says in its headers: it is CannotTell or what was asked for."""
    place, choices = data[0] if data else 0, data[1:]
    (vendor, path), in_headers = PATHS[place % len(PATHS)], place > 127

    def answer(request: httpx2.Request) -> httpx2.Response:
        body, headers = RECORDED[request.url.raw_path]
        if request.url.raw_path == path and in_headers:
            headers = tuple((name, patched(value, choices)) for name, value in headers)
        elif request.url.raw_path == path:
            body = patched(body, choices)
        return httpx2.Response(200, content=body, headers=headers)

    ask(answer, vendor)
    redirected = httpx2.MockTransport(lambda _: httpx2.Response(302, headers=[(b"location", choices)]))
    with httpx2.Client(transport=redirected) as http, suppress(CannotTell):
        Fetcher(http).get(BASE, what="it", limit=1024)


def ask(answer: Callable[[httpx2.Request], httpx2.Response], vendor: str) -> None:
    """Have a vendor's collateral fetched from whoever answers."""
    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http, suppress(CannotTell):
        fetcher, cache = Fetcher(http), MemoryCache()
        if vendor == "intel":
            collateral(TdxCollateralSource(fetcher, cache, pcs=Pcs.at(BASE)).collateral(QUOTE, now=NOW).text.encode())
        elif vendor == "amd":
            SnpCollateralSource(fetcher, cache, base=BASE).collateral(REPORT, now=NOW)
        else:
            NrasKeySource(fetcher, cache, url=f"{BASE}/.well-known/jwks.json", simulated=True).keys(now=NOW)


def recorded(vendor: str) -> dict[bytes, tuple[bytes, Headers]]:
    """What the simulated services answer to all that is asked of a vendor: body, and the headers that hold a chain."""
    services = SimulatedPccs(PLATFORM, now=NOW, snp=CHIP, nras=SimulatedNras(SEED)).app
    kept: dict[bytes, tuple[bytes, Headers]] = {}

    async def fetched(request: httpx2.Request) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(services)) as http:
            return await http.get(request.url)

    def answer(request: httpx2.Request) -> httpx2.Response:
        found = asyncio.run(fetched(request))
        if found.status_code != 200:
            raise AssertionError(f"the services have no {request.url.path}")
        headers = tuple((name, value) for name, value in found.headers.raw if name.lower().endswith(b"-chain"))
        kept[request.url.raw_path] = found.content, headers
        return httpx2.Response(200, content=found.content, headers=headers)

    ask(answer, vendor)
    return kept


def collateral(text: bytes) -> None:
    """Changed collateral is refused, or the quote says what it says."""
    with suppress(Malformed):
        kept = Kept(name="tdx", source="", fetched_at=NOW, content=text.decode(errors="replace"))
        item = read_for(platform_of(QUOTE), kept)
        given = item.value.text
        result = verify_tdx(QUOTE.trimmed, collateral=given, anchors=ANCHORS, policy=TdxPolicy(), now=NOW)
        if not result.rejected and result.facts != FACTS:
            raise AssertionError("changed collateral was accepted, and the quote says something else")


def entry(data: bytes) -> None:
    """A file of the cache holds the entry that it is named after, or none."""
    kept = read_entry(data, "tdx")
    if kept is not None and kept.name != "tdx":
        raise AssertionError("an entry was read under another's name")


def bundle(data: bytes) -> None:
    """A bundle is refused in words, or what it gives can be looked for."""
    try:
        read = read_bundle(data)
    except ConfigError as error:
        if not error.message.isprintable():
            raise AssertionError("a reason is not fit for a terminal") from error
        return
    if read_bundle(write_bundle(read)) != read:
        raise AssertionError("a bundle does not come back")
    with suppress(CannotTell):
        read.tdx_for(QUOTE, now=NOW)
    with suppress(CannotTell):
        read.snp_for(REPORT)


BY_VENDOR = {vendor: recorded(vendor) for vendor in ("intel", "amd", "nvidia")}
RECORDED = {path: answer for answers in BY_VENDOR.values() for path, answer in answers.items()}
PATHS = tuple((vendor, path) for vendor, answers in BY_VENDOR.items() for path in answers)


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
