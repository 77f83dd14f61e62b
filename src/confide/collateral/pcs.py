"""Intel's provisioning service, or a cache of it (PCCS): collateral for TDX quotes (tee-evidence 4.1).

Four GETs. TCB info and QE identity are kept as the exact text that was signed: it is cut out of the answer, never
written anew. What comes back is checked for shape, for the platform, its root and its dates, so that nothing useless
is kept for a month; whether it is genuine the verifier says.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import unquote

from confide.collateral.cache import Cache, Kept
from confide.collateral.fetch import Answer, Fetcher, NotKnown, Unavailable, require_base
from confide.collateral.supply import Failed, Item, Malformed, Supply, Wanted, unheard
from confide.collateral.tdx import TdxCollateral, TdxPlatform, platform_of
from confide.evidence.quote import TdxQuote
from confide.evidence.result import quoted

INTEL_PCS = "https://api.trustedservices.intel.com"
PHALA_PCCS = "https://pccs.phala.network"
# Intel's own service has no route for the root's CRL: this is the distribution point that its root names.
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

DUE_AFTER_S = 24 * 60 * 60  # a month is how long it is good; a day is how soon a revocation should be known
MAX_CRL_BYTES = 1024 * 1024
MAX_JSON_BYTES = 256 * 1024
MAX_CHAIN_CHARACTERS = 32 * 1024

PCK_CRL_CHAIN = ("SGX-PCK-CRL-Issuer-Chain",)
TCB_CHAIN = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
IDENTITY_CHAIN = ("SGX-Enclave-Identity-Issuer-Chain",)

HEX = re.compile(rb"(?:[0-9a-fA-F]{2})+")
SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")


@dataclass(frozen=True)
class Pcs:
    """A provisioning service. `base`: its address without a path. `root_crl`: where the CRL of the root is."""

    base: str
    root_crl: str

    @classmethod
    def at(cls, base: str = INTEL_PCS) -> "Pcs":
        """The service at this address. Raises ConfigError unless it is https, or loopback."""
        base = require_base(base, "the provisioning service")
        return cls(base, INTEL_ROOT_CRL if base == INTEL_PCS else f"{base}/sgx/certification/v4/rootcacrl")

    def fetch(self, fetcher: Fetcher, platform: TdxPlatform) -> TdxCollateral:
        """All collateral of a platform. Raises Unavailable, NotKnown for a platform that the service does not have."""
        try:
            return self._fetch(fetcher, platform)
        except NotKnown as error:
            raise NotKnown(
                f"the service does not know the platform {platform}: {error.message}",
                remedy="Ask the service of the platform's vendor; a simulated platform has its own.",
            ) from error
        except Malformed as error:
            raise Unavailable(f"collateral for {platform}: the service's answer cannot be used: {error}") from error

    def _fetch(self, fetcher: Fetcher, platform: TdxPlatform) -> TdxCollateral:
        sgx, tdx = f"{self.base}/sgx/certification/v4", f"{self.base}/tdx/certification/v4"
        pck_crl = fetcher.get(f"{sgx}/pckcrl?ca={platform.ca}&encoding=der", what="PCK CRL", limit=2 * MAX_CRL_BYTES)
        tcb = fetcher.get(f"{tdx}/tcb?fmspc={platform.fmspc}&update=standard", what="TCB info", limit=MAX_JSON_BYTES)
        identity = fetcher.get(f"{tdx}/qe/identity?update=standard", what="QE identity", limit=MAX_JSON_BYTES)
        root_crl = fetcher.get(self.root_crl, what="root CRL", limit=2 * MAX_CRL_BYTES)
        tcb_info, tcb_info_signature = signed_text(tcb.body, "tcbInfo")
        qe_identity, qe_identity_signature = signed_text(identity.body, "enclaveIdentity")
        return TdxCollateral(
            pck_crl_issuer_chain=chain(pck_crl, PCK_CRL_CHAIN),
            root_ca_crl=der_hex(root_crl.body),
            pck_crl=der_hex(pck_crl.body),
            tcb_info_issuer_chain=chain(tcb, TCB_CHAIN),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_info_signature,
            qe_identity_issuer_chain=chain(identity, IDENTITY_CHAIN),
            qe_identity=qe_identity,
            qe_identity_signature=qe_identity_signature,
        )


class TdxCollateralSource:
    """Collateral for TDX quotes: kept while it is good, asked for daily. Threads may share it.

    `offline`, or no fetcher: no socket is opened, and what is not kept is a CannotTell. `failed`: see Supply.
    """

    def __init__(
        self,
        fetcher: Fetcher | None,
        cache: Cache,
        *,
        pcs: Pcs | None = None,
        offline: bool = False,
        failed: Failed = unheard,
    ) -> None:
        self._supply = Supply(None if offline else fetcher, cache, failed=failed)
        self._pcs = pcs or Pcs.at()

    def collateral(self, quote: TdxQuote, *, now: int) -> TdxCollateral:
        """Collateral for the platform of this quote, good at `now` (Unix seconds).

        Raises CannotTell where there is none to be had, ValueError when the quote names no platform.
        """
        platform = platform_of(quote)

        def fetch(fetcher: Fetcher) -> Kept:
            found = self._pcs.fetch(fetcher, platform)
            return Kept(name=name, source=self._pcs.base, fetched_at=now, content=found.text)

        def read(kept: Kept) -> Item[TdxCollateral]:
            return read_for(platform, kept)

        name = entry_name(platform, self._pcs.base)
        return self._supply.get(Wanted(name, self._pcs.base, f"collateral for {platform}", fetch, read), now=now)


def entry_name(platform: TdxPlatform, base: str) -> str:
    """Of the entry. Another service, or another root, has entries of its own."""
    origin = sha256(base.encode()).hexdigest()[:8]
    return f"tdx-{platform.fmspc.lower()}-{platform.ca}-{platform.root_sha256[:16]}-{origin}"


def read_for(platform: TdxPlatform, kept: Kept) -> Item[TdxCollateral]:
    """The collateral in an entry, which must be this platform's. Raises Malformed."""
    found = TdxCollateral.parse(kept.content)
    if (other := found.platform()) != platform:
        got, expected = (str(other), str(platform))
        if got == expected:
            got, expected = f"a chain to the root {other.root_sha256}", f"the root of the quote, {platform.root_sha256}"
        raise Malformed(f"got collateral for {quoted(got)}, expected {expected}")
    good_from, good_until = found.validity()
    left_s = max(0, good_until - kept.fetched_at)  # one that a cache gave shortly before its end is due before that
    return Item(found, good_from, good_until, kept.fetched_at + min(DUE_AFTER_S, left_s // 2))


def chain(answer: Answer, names: tuple[str, ...]) -> str:
    """The issuer chain in a header: URL-encoded PEM, leaf first. Raises Malformed."""
    found = next((answer.headers[name] for name in names if name in answer.headers), None)
    if found is None:
        raise Malformed(f"there is no header {names[0]}")
    if len(found) > MAX_CHAIN_CHARACTERS:
        raise Malformed(f"the header {names[0]} has {len(found)} characters, expected at most {MAX_CHAIN_CHARACTERS}")
    pem = unquote(found, errors="replace")
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise Malformed(f"the header {names[0]} holds no certificate")
    return pem


def der_hex(body: bytes) -> str:
    """A CRL as DER in lower-case hex, whether it came as DER or as hex text. Raises Malformed."""
    if body[:1] == b"\x30":  # a SEQUENCE; as hex text it begins with the digit "3", which is another byte
        return body.hex()
    text = body.strip().strip(b'"')
    if HEX.fullmatch(text) is None:
        raise Malformed("a CRL is neither DER nor hex")
    return text.decode().lower()


def signed_text(body: bytes, member: str) -> tuple[str, str]:
    """The exact text of the object under `member`, and the signature over it in hex. Raises Malformed.

    The object's own text is what is signed: it is found by its place, not by decoding and encoding it again.
    """
    try:
        text = body.decode()
        document = json.loads(text)
        start = member_value(text, member)
        inner, stop = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the answer with {member} is not JSON: {quoted(error)}") from error
    if not isinstance(document, dict) or not isinstance(inner, dict) or document.get(member) != inner:
        raise Malformed(f"the answer has no object {member}")
    signature = document.get("signature")
    if not isinstance(signature, str) or SIGNATURE.fullmatch(signature) is None:
        raise Malformed(f"the signature over {member} is not 128 hex digits")
    return text[start:stop], signature.lower()


def member_value(text: str, member: str) -> int:
    """Where the value of a member of the outermost object begins. Raises ValueError."""
    decoder, offset = json.JSONDecoder(), skip_space(text, 0)
    if text[offset : offset + 1] != "{":
        raise ValueError("it is no object")
    offset = skip_space(text, offset + 1)
    while text[offset : offset + 1] == '"':
        name, offset = decoder.raw_decode(text, offset)
        offset = skip_space(text, skip_space(text, offset) + 1)  # over the colon, which json.loads has seen
        if name == member:
            return offset
        _, offset = decoder.raw_decode(text, offset)
        offset = skip_space(text, skip_space(text, offset) + 1)  # over the comma
    raise ValueError(f"there is no member {member}")


def skip_space(text: str, offset: int) -> int:
    while text[offset : offset + 1] in (" ", "\t", "\r", "\n"):
        offset += 1
    return offset
