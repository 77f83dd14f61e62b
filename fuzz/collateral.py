"""Fuzz collateral: answers of the vendors' services, bundles and cache entries are refused with their own errors or
read, and no changed collateral makes the honest quote say anything else.
"""

import json
import sys
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
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from fuzz._bytes import patched

NOW = 1_800_000_000
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
    """One input: as every answer, and as a change to collateral, an entry of the cache, and a bundle."""
    answered(data)
    for text in (data, patched(ENTRY, data)):
        entry(text)
    for text in (data, patched(TEXT.encode(), data)):
        collateral(text)
    for text in (data, patched(BUNDLE, data)):
        bundle(text)


def answered(body: bytes) -> None:
    """Whatever a service answers, with whatever in its headers: it is CannotTell or what was asked for."""
    chain = "".join(character for character in body[:4096].decode("latin-1") if character.isprintable())
    names = ("SGX-PCK-CRL-Issuer-Chain", "TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain")
    headers = [(name.encode(), chain.encode("latin-1")) for name in names]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=body, headers=headers)

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        fetcher = Fetcher(http)
        with suppress(CannotTell):
            TdxCollateralSource(fetcher, MemoryCache(), pcs=Pcs.at("https://x")).collateral(QUOTE, now=NOW)
        with suppress(CannotTell):
            SnpCollateralSource(fetcher, MemoryCache(), base="https://x").collateral(REPORT, now=NOW)
        with suppress(CannotTell):
            NrasKeySource(fetcher, MemoryCache(), url="https://x", simulated=True).keys(now=NOW)


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


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
