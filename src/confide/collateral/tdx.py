"""DCAP quote collateral as values: for which platform it is, and when it is good (tee-evidence 4.1). No verifier.

It authenticates itself under the verifier's anchor, so it may come from anyone; what is read here says only whether it
is worth keeping or passing on.
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Literal

import dcap_qvl
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from confide.collateral.supply import Malformed
from confide.evidence.quote import TdxQuote
from confide.evidence.result import quoted

Ca = Literal["platform", "processor"]

MAX_COLLATERAL_BYTES = 1024 * 1024

# What `cryptography` raises on certificates and lists that it cannot read; its warnings too, where they are errors.
UNREADABLE = (ValueError, TypeError, UserWarning, UnsupportedAlgorithm, x509.InvalidVersion)


@dataclass(frozen=True)
class TdxPlatform:
    """A kind of machine, as the PCK chain of a quote names it: claims, until the quote is verified.

    `fmspc`: 12 upper-case hex digits. `root_sha256`: of the DER of the root at the chain's end, lower-case hex.
    """

    fmspc: str
    ca: Ca
    root_sha256: str

    def __str__(self) -> str:
        return f"FMSPC {self.fmspc}, {self.ca} CA"


def platform_of(quote: TdxQuote) -> TdxPlatform:
    """Which platform's collateral a quote needs. Raises Malformed when its PCK certificate cannot be read."""
    try:
        parsed = dcap_qvl.parse_quote(quote.trimmed)
        fmspc, ca = parsed.fmspc(), parsed.ca()
    except ValueError as error:
        raise Malformed(f"the quote's PCK certificate cannot be read: {quoted(error)}") from error
    return TdxPlatform(str(fmspc).upper(), "processor" if ca == "processor" else "platform", digest(quote.chain[-1]))


def digest(der: bytes) -> str:
    return sha256(der).hexdigest()


class Window(msgspec.Struct, frozen=True, rename="camel"):
    """What counts of TCB info and QE identity here."""

    issue_date: datetime
    next_update: datetime
    fmspc: str | None = None


class TdxCollateral(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The members of DCAP quote collateral version 3. Chains: PEM, leaf first. CRLs and signatures: hex. `tcb_info`
    and `qe_identity`: the exact text that Intel signed. `pck_certificate_chain` is carried, and no verifier of ours
    looks at it.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None

    @classmethod
    def parse(cls, text: str | bytes) -> "TdxCollateral":
        """From JSON text. Raises Malformed."""
        if len(text) > MAX_COLLATERAL_BYTES:
            raise Malformed(f"{len(text)} bytes of collateral, expected at most {MAX_COLLATERAL_BYTES}")
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Malformed(f"it is no quote collateral: {quoted(error)}") from error

    @property
    def members(self) -> dict[str, str]:
        """As `Evidence.collateral` and `verify_tdx` (as JSON text) take it."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    @property
    def text(self) -> str:
        """JSON text."""
        return msgspec.json.encode(self.members).decode()

    def platform(self) -> TdxPlatform:
        """Which platform it says that it is for. Raises Malformed."""
        fmspc = window("TCB info", self.tcb_info).fmspc
        if fmspc is None:
            raise Malformed("the TCB info names no FMSPC")
        try:
            issuer = revocation_list("PCK CRL", self.pck_crl).issuer.rfc4514_string()
        except UNREADABLE as error:
            raise Malformed(f"the PCK CRL's issuer cannot be read: {quoted(error)}") from error
        roots = {certificates(name, chain)[-1] for name, chain in self.chains.items()}
        if len(roots) != 1:
            raise Malformed(f"its chains end in {len(roots)} different roots")
        root_sha256 = digest(roots.pop().public_bytes(Encoding.DER))
        return TdxPlatform(fmspc.upper(), "processor" if "Processor" in issuer else "platform", root_sha256)

    @property
    def chains(self) -> dict[str, str]:
        """The three issuer chains by what they are of."""
        return {
            "PCK CRL": self.pck_crl_issuer_chain,
            "TCB info": self.tcb_info_issuer_chain,
            "QE identity": self.qe_identity_issuer_chain,
        }

    def validity(self) -> tuple[int, int]:
        """From when, and until before when, all of its parts are good: Unix seconds. Raises Malformed."""
        windows = [window("TCB info", self.tcb_info), window("QE identity", self.qe_identity)]
        lists = [revocation_list("root CRL", self.root_ca_crl), revocation_list("PCK CRL", self.pck_crl)]
        issuers = [each for name, chain in self.chains.items() for each in certificates(name, chain)]
        try:
            begin = [each.issue_date.timestamp() for each in windows]
            begin += [each.last_update_utc.timestamp() for each in lists]
            begin += [each.not_valid_before_utc.timestamp() for each in issuers]
            end = [each.next_update.timestamp() for each in windows]
            end += [each.next_update_utc.timestamp() for each in lists if each.next_update_utc is not None]
            end += [each.not_valid_after_utc.timestamp() for each in issuers]
        except (ValueError, OverflowError) as error:
            raise Malformed(f"a date of it cannot be read: {quoted(error)}") from error
        return int(max(begin)), int(min(end))


def window(name: str, text: str) -> Window:
    """The dates in signed JSON text. Raises Malformed; times without a zone are none."""
    try:
        found = msgspec.json.decode(text, type=Window)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Malformed(f"the {name} cannot be read: {quoted(error)}") from error
    if found.issue_date.tzinfo is None or found.next_update.tzinfo is None:
        raise Malformed(f"the {name} has dates without a time zone")
    return found


def revocation_list(name: str, der_hex: str) -> x509.CertificateRevocationList:
    """A CRL in hex. Raises Malformed, also for one without an end."""
    try:
        found = x509.load_der_x509_crl(bytes.fromhex(der_hex))
        has_end = found.next_update_utc is not None
    except UNREADABLE as error:
        raise Malformed(f"the {name} cannot be read: {quoted(error)}") from error
    if not has_end:
        raise Malformed(f"the {name} does not say when the next one comes")
    return found


def certificates(name: str, pem: str) -> list[x509.Certificate]:
    """The certificates of an issuer chain, leaf first, at least one. Raises Malformed."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except UNREADABLE as error:
        raise Malformed(f"the issuer chain of the {name} cannot be read: {quoted(error)}") from error
