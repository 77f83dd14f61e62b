"""What a verifier needs besides the report, got from elsewhere than the peer (tee-evidence 4; RFC 9334: endorsements).

    the report has it         nobody is asked
    a collateral file has it  it is taken from there
    neither                   the vendor's service is asked, unless offline; its answer is kept while it is good

All of it ends in the policy's anchors, wherever it came from. NVIDIA's key set does not: it is an anchor itself, and
comes from NVIDIA's own address or from the file that is named for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from confide import config
from confide.collateral.bundle import MAX_BUNDLE_BYTES, CollateralBundle, bundle_of, read_bundle, write_bundle
from confide.collateral.cache import Cache, FileCache
from confide.collateral.fetch import Fetcher, fetcher_for, require_base
from confide.collateral.jwks import NrasKeySource
from confide.collateral.kds import AMD_KDS, SnpCollateral, SnpCollateralSource, chip_of
from confide.collateral.nras import NVIDIA_NRAS, NrasSource
from confide.collateral.pcs import INTEL_PCS, Pcs, TdxCollateralSource
from confide.collateral.supply import Malformed, missing
from confide.collateral.tdx import TdxCollateral
from confide.errors import CannotTell, ConfigError
from confide.evidence.gpu_payload import PayloadError, parse_payload
from confide.evidence.nras import NrasError, parse_answer
from confide.evidence.nras_keys import MAX_KEY_SET_BYTES, KeySetError, NrasKeys, read_key_set
from confide.evidence.quote import QuoteError, TdxQuote, parse_quote
from confide.evidence.result import quoted
from confide.evidence.snp_report import SnpReport, SnpReportError, parse_snp_report
from confide.protocol.canonical import DocumentError
from confide.protocol.report import Evidence, parse_report
from confide.verifier.policy import Policy

TDX, SEV_SNP = "tdx", "sev_snp"
JWKS_PATH = "/.well-known/jwks.json"

PathLike = str | os.PathLike[str]
Asks = Iterator[tuple[str, Callable[[], Any]]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Supplied:
    """What was got for one report. None: not needed, or not to be had, and then `lacking` says why.

    `nras`: the answer of NVIDIA's remote service as it came. `nras_keys`: those that it may be signed with.
    """

    tdx: TdxCollateral | None = None
    snp: SnpCollateral | None = None
    nras: bytes | None = None
    nras_keys: NrasKeys | None = None
    lacking: tuple[CannotTell, ...] = ()

    def bundle_text(self, *, created_at: int) -> str | None:
        """What travels with a proof, so that it can be checked again offline (tee-evidence 4.4); None for nothing.

        `created_at`: Unix seconds.
        """
        nras = (
            self.nras if self.nras is not None and is_answer(self.nras) else None
        )  # what cannot be read proves nothing
        if self.tdx is None and self.snp is None and nras is None:
            return None
        bundle = bundle_of(
            created_at=created_at,
            tdx=() if self.tdx is None else (self.tdx,),
            snp=() if self.snp is None else (self.snp,),
            nras_response=nras,
        )
        return write_bundle(bundle).decode()


NOTHING = Supplied()


class HeldCollateral:
    """What files hold, and nothing else: no socket is opened. Threads may share it."""

    def __init__(self, bundles: tuple[CollateralBundle, ...] = (), nras_keys: NrasKeys | None = None) -> None:
        """`bundles`: the first that has something for a platform counts. `nras_keys`: NVIDIA's, as somebody vouches."""
        self._bundles = bundles
        self._pinned_keys = nras_keys

    def beside(self, bundle: CollateralBundle | None) -> "HeldCollateral":
        """What travels with a proof, and then what these files hold; nothing else."""
        return HeldCollateral(self._bundles if bundle is None else (bundle, *self._bundles), self._pinned_keys)

    def is_wanted(self, raw: bytes, policy: Policy) -> bool:
        """Whether a report as it came lacks something that the policy needs; False for one that cannot be read."""
        return any(True for _ in self._asks(raw, policy, 0))

    def supply(self, raw: bytes, policy: Policy, now: int) -> Supplied:
        """What the report lacks, good at `now` (Unix seconds). May block; never raises for what is not to be had."""
        found: dict[str, Any] = {}
        lacking = []
        for name, ask in self._asks(raw, policy, now):
            try:
                found[name] = ask()
            except CannotTell as error:
                lacking.append(error)
        supplied = Supplied(**found, lacking=tuple(lacking))
        if supplied.nras is None:
            return supplied
        try:
            return replace(supplied, nras_keys=self.keys_for(supplied.nras, now))
        except CannotTell as error:
            return replace(supplied, lacking=(*lacking, error))

    def for_quote(self, quote: bytes, now: int) -> TdxCollateral:
        """The collateral of the platform that made a TDX quote. Raises CannotTell."""
        parsed = read_quote(quote)
        return from_any(self._bundles, lambda bundle: bundle.tdx_for(parsed, now=now), "collateral for this quote")

    def for_report(self, report: bytes, now: int, given: Evidence) -> SnpCollateral:
        """Certificates and revocation list for an SNP report that came with `given`. Raises CannotTell."""
        parsed = read_report(report)
        return from_any(self._bundles, lambda bundle: bundle.snp_for(parsed), "the certificates of this chip")

    def verdict(self, payload: str) -> bytes:
        """What NVIDIA's remote service said of this GPU evidence (wire contract 6.4). Raises CannotTell."""
        answers = (bundle.nras_response for bundle in self._bundles)
        found = next((answer for answer in answers if answer is not None and is_about(answer, payload)), None)
        if found is None:
            raise missing("a verdict of NVIDIA's remote service on this evidence")
        return found

    def keys_for(self, verdict: bytes, now: int) -> NrasKeys:
        """The keys that a verdict may be signed with. Raises CannotTell."""
        if self._pinned_keys is None:
            raise missing("the key set of NVIDIA's remote service")
        return self._pinned_keys

    def _asks(self, raw: bytes, policy: Policy, now: int) -> Asks:
        """What is lacking, by its member of Supplied, and how to get it."""
        try:
            report = parse_report(raw)
        except DocumentError:
            return
        evidence, payload = report.evidence, report.evidence.nvidia_payload
        if report.tee_type == TDX and evidence.collateral is None:
            yield "tdx", lambda: self.for_quote(report.quote, now)
        if report.tee_type == SEV_SNP and lacks_snp(evidence, policy):
            yield "snp", lambda: self.for_report(report.quote, now, evidence)
        if payload is not None and policy.gpu.require_nras:
            yield "nras", lambda: self.verdict(payload)


NOTHING_HELD = HeldCollateral()


class Collateral(HeldCollateral):
    """Files first, then the vendors' services. Nothing is opened before something is lacking. Threads may share it."""

    def __init__(
        self,
        *,
        offline: bool = False,
        file: PathLike | None = None,
        nras_jwks: PathLike | None = None,
        cache: PathLike | None = None,
        pccs_url: str = INTEL_PCS,
        kds_url: str = AMD_KDS,
        nras_url: str = NVIDIA_NRAS,
    ) -> None:
        """`offline`: no vendor is asked, and no socket is opened; what was kept still counts. `file`: a collateral
        bundle, or the DCAP collateral of one platform. `nras_jwks`: NVIDIA's key set, in place of fetching it. `cache`:
        a directory; by default one below the state directory. `pccs_url`, `kds_url`, `nras_url`: other services than
        Intel's, AMD's and NVIDIA's, https or on this machine.

        Raises ConfigError for a file that cannot be used and for another address.
        """
        super().__init__(
            () if file is None else (read_file(Path(file)),),
            None if nras_jwks is None else pinned_keys(Path(nras_jwks)),
        )
        self._is_offline = offline
        self._directory = None if cache is None else Path(cache)
        self._pcs = Pcs.at(pccs_url)
        self._kds_url, self._nras_url = require_base(kds_url, "kds_url"), require_base(nras_url, "nras_url")

    def for_quote(self, quote: bytes, now: int) -> TdxCollateral:
        """The same, asking Intel's service for what no file has. Blocks. Raises CannotTell."""
        try:
            return super().for_quote(quote, now)
        except CannotTell:
            return self._intel.collateral(read_quote(quote), now=now)

    def for_report(self, report: bytes, now: int, given: Evidence) -> SnpCollateral:
        """The same, asking AMD's service for what no file has and did not come along. Blocks. Raises CannotTell."""
        try:
            return super().for_report(report, now, given)
        except CannotTell:
            parsed = read_report(report)
        if given.vcek is None or given.cert_chain is None:
            return self._amd.collateral(parsed, now=now)
        product = chip_of(parsed, None).product
        crl = self._amd.crl(product, now=now)
        return SnpCollateral(product=product, vcek=given.vcek, cert_chain=given.cert_chain, crl=crl)

    def verdict(self, payload: str) -> bytes:
        """The same, asking NVIDIA's remote service. Blocks. Raises CannotTell."""
        try:
            return super().verdict(payload)
        except CannotTell:
            return self._nras.verdict(payload)

    def keys_for(self, verdict: bytes, now: int) -> NrasKeys:
        """The same, from NVIDIA's own address where no file was named. Blocks. Raises CannotTell."""
        if self._pinned_keys is not None:
            return self._pinned_keys
        return self._nras_keys.keys(now=now, kid=key_id_of(verdict))

    def _cache(self) -> Cache:
        return FileCache(self._directory or config.locate_home() / "collateral")

    def _fetcher(self, base: str) -> Fetcher | None:
        return None if self._is_offline else fetcher_for(base)

    @cached_property
    def _intel(self) -> TdxCollateralSource:
        return TdxCollateralSource(self._fetcher(self._pcs.base), self._cache(), pcs=self._pcs)

    @cached_property
    def _amd(self) -> SnpCollateralSource:
        return SnpCollateralSource(self._fetcher(self._kds_url), self._cache(), base=self._kds_url)

    @cached_property
    def _nras(self) -> NrasSource:
        return NrasSource(self._fetcher(self._nras_url), base=self._nras_url)

    @cached_property
    def _nras_keys(self) -> NrasKeySource:
        return NrasKeySource(
            self._fetcher(self._nras_url),
            self._cache(),
            url=self._nras_url + JWKS_PATH,
            simulated=self._nras_url.startswith("http://"),  # on this machine, where NVIDIA's is not
        )


def from_any(bundles: tuple[CollateralBundle, ...], ask: Callable[[CollateralBundle], T], what: str) -> T:
    """From the first bundle that has it. Raises CannotTell."""
    for bundle in bundles:
        with suppress(CannotTell):
            return ask(bundle)
    raise missing(what)


def read_quote(raw: bytes) -> TdxQuote:
    """Raises CannotTell: whose collateral it needs is not known."""
    try:
        return parse_quote(raw)
    except QuoteError as error:
        raise CannotTell(f"whose collateral the quote needs cannot be read: {quoted(error)}") from error


def read_report(raw: bytes) -> SnpReport:
    """Raises CannotTell: whose certificates it needs is not known."""
    try:
        return parse_snp_report(raw)
    except SnpReportError as error:
        raise CannotTell(f"whose certificates the SNP report needs cannot be read: {quoted(error)}") from error


def is_about(answer: bytes, payload: str) -> bool:
    """Whether a verdict names the nonce of this evidence. Its own word: what it proves is checked with the rest."""
    try:
        named = parse_answer(answer).main.claims.get("eat_nonce")
        return isinstance(named, str) and named.lower() == parse_payload(payload).nonce.lower()
    except (NrasError, PayloadError):
        return False


def is_answer(answer: bytes) -> bool:
    """Whether it has the form of an answer of NVIDIA's remote service."""
    try:
        parse_answer(answer)
    except NrasError:
        return False
    return True


def key_id_of(verdict: bytes) -> str | None:
    """The key that its main token names, None where that cannot be read."""
    try:
        named = parse_answer(verdict).main.header.get("kid")
    except NrasError:
        return None
    return named if isinstance(named, str) else None


def lacks_snp(evidence: Evidence, policy: Policy) -> bool:
    """Whether an SNP report came without its certificates, or without the list that the policy demands."""
    lacks_certificates = evidence.vcek is None or evidence.cert_chain is None
    return lacks_certificates or (policy.snp.require_crl and evidence.crl is None)


def read_file(path: Path) -> CollateralBundle:
    """A collateral file: a bundle, or the DCAP collateral of one platform. Raises ConfigError."""
    raw = read_bounded(path, MAX_BUNDLE_BYTES, "the collateral file")
    try:
        return bundle_of(created_at=0, tdx=(TdxCollateral.parse(raw),))
    except Malformed:
        return read_bundle(raw)


def pinned_keys(path: Path) -> NrasKeys:
    """NVIDIA's key set as somebody fetched it who vouches for it. Raises ConfigError."""
    try:
        return read_key_set(read_bounded(path, MAX_KEY_SET_BYTES, "the key set"), simulated=False)
    except KeySetError as error:
        raise ConfigError(
            f"{path}: {error}", remedy=f"Name what {NVIDIA_NRAS}{JWKS_PATH} answered when you asked it."
        ) from error


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The file's bytes. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be read: {error.strerror}", remedy="Name a file that this user may read."
        ) from error
    if len(raw) > limit:
        raise ConfigError(f"{what} {path} has more than {limit} bytes", remedy="Name another file.")
    return raw
