"""A collateral bundle: what verifies stored evidence offline, in one file (tee-evidence 4.4).

    {"version": 1, "created_at": <Unix seconds>,
     "tdx": [<DCAP quote collateral> …], "snp": [{"product", "vcek", "cert_chain", "crl"} …],
     "nras": {"response": [["JWT", <token>], {"GPU-0": <token>, …}]}}

All of it authenticates itself under the verifier's anchors, so a bundle may come from anyone, even from the peer.
NVIDIA's key set does not: it is an anchor, and a bundle that holds one is refused, not read past.
"""

import msgspec

from confide.collateral.kds import SnpCollateral
from confide.collateral.supply import Malformed, missing
from confide.collateral.tdx import TdxCollateral, platform_of
from confide.errors import ConfigError
from confide.evidence.quote import TdxQuote
from confide.evidence.result import quoted
from confide.evidence.snp_chain import SnpChainError, load_certificate, split_certificates
from confide.evidence.snp_report import SnpReport
from confide.evidence.snp_vcek import endorsement_faults, read_endorsement

VERSION = 1
MAX_BUNDLE_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 1024  # of each kind
KEY_SETS = frozenset({"jwks", "keys"})  # members under which one would come
SHAPE_REMEDY = "Pass a file as confide writes it: one JSON object with version, created_at, tdx, snp and nras."


class NrasPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`response`: the service's answer, as it came."""

    response: msgspec.Raw


class CollateralBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`created_at`: Unix seconds, what its maker says. Other members than these are refused."""

    version: int
    created_at: int
    tdx: tuple[TdxCollateral, ...] = ()
    snp: tuple[SnpCollateral, ...] = ()
    nras: NrasPart | None = None

    def tdx_for(self, quote: TdxQuote, *, now: int) -> TdxCollateral:
        """The collateral for this quote's platform: one that is good at `now` (Unix seconds), else the one that was
        good last, about which the verifier will say so. Raises CannotTell where there is none.
        """
        platform = platform_of(quote)
        fitting = [(reach(each, now), each) for each in self.tdx if is_for(each, platform)]
        if not fitting:
            raise missing(f"collateral for {platform}")
        return max(fitting, key=lambda pair: pair[0])[1]

    def snp_for(self, report: SnpReport) -> SnpCollateral:
        """The certificates for this report's chip and reported TCB. Raises CannotTell where there are none."""
        for each in self.snp:
            if endorses(each, report):
                return each
        raise missing(f"the VCEK of the chip {report.chip_id[:8].hex()}…")

    @property
    def nras_response(self) -> bytes | None:
        """The answer of NVIDIA's service as JSON text, for `verify_nras`."""
        return None if self.nras is None else bytes(self.nras.response)


def is_for(collateral: TdxCollateral, platform: object) -> bool:
    try:
        return collateral.platform() == platform
    except Malformed:
        return False


def reach(collateral: TdxCollateral, now: int) -> tuple[bool, int]:
    """Whether it is good at `now`, and until when."""
    try:
        good_from, good_until = collateral.validity()
    except Malformed:
        return False, 0
    return good_from <= now < good_until, good_until


def endorses(collateral: SnpCollateral, report: SnpReport) -> bool:
    product = report.cpuid.product if report.cpuid else collateral.product
    if product is not collateral.product:
        return False
    try:
        (der,) = split_certificates(collateral.vcek.encode())
        return not endorsement_faults(read_endorsement(load_certificate(der), product), report, product)
    except (SnpChainError, ValueError):  # ValueError: more than one certificate, or none
        return False


def read_bundle(data: bytes) -> CollateralBundle:
    """Read a bundle. Nothing in it is verified yet. Raises ConfigError in words for the person who passed the file."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise ConfigError(f"the collateral bundle has {len(data)} bytes, expected at most {MAX_BUNDLE_BYTES}")
    try:
        document = msgspec.json.decode(data)
        refuse_key_set(document)
        bundle = msgspec.json.decode(data, type=CollateralBundle)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"the collateral bundle cannot be read: {quoted(error)}", remedy=SHAPE_REMEDY) from error
    if bundle.version != VERSION:
        raise ConfigError(f"the collateral bundle has version {bundle.version}, expected {VERSION}")
    if max(len(bundle.tdx), len(bundle.snp)) > MAX_ENTRIES:
        raise ConfigError(f"the collateral bundle has more than {MAX_ENTRIES} entries of one kind")
    return bundle


def refuse_key_set(document: object) -> None:
    """Raise ConfigError for a bundle that brings NVIDIA's keys along; other unknown members get the decoder's words."""
    nras = document.get("nras") if isinstance(document, dict) else None
    for part in (document, nras):
        if isinstance(part, dict) and not part.keys().isdisjoint(KEY_SETS):
            raise ConfigError(
                "the collateral bundle holds a key set of NVIDIA's service, which is a trust anchor and proves nothing "
                "in a file that anyone may have written",
                remedy="Take it out, and use the key set that you fetched yourself.",
            )


def write_bundle(bundle: CollateralBundle) -> bytes:
    """The file's bytes. `read_bundle` gives an equal bundle back."""
    return msgspec.json.encode(bundle)


def bundle_of(
    *,
    created_at: int,
    tdx: tuple[TdxCollateral, ...] = (),
    snp: tuple[SnpCollateral, ...] = (),
    nras_response: bytes | None = None,
) -> CollateralBundle:
    """Put one together. `nras_response`: JSON text as the service answered. Raises ValueError for other text."""
    if nras_response is None:
        return CollateralBundle(version=VERSION, created_at=created_at, tdx=tdx, snp=snp)
    try:
        msgspec.json.decode(nras_response)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(f"the service's answer is not JSON: {quoted(error)}") from error
    nras = NrasPart(response=msgspec.Raw(nras_response))
    return CollateralBundle(version=VERSION, created_at=created_at, tdx=tdx, snp=snp, nras=nras)
