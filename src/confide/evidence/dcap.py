"""dcap-qvl, the library that verifies TDX quotes: what a verification asks it, and its answers (tee-evidence 3.2).

It is given what the caller trusts and no clock or network: `now`, a root, collateral. What its answers mean for the
caller, and what it does not look at, is decided in `evidence.tdx`.
"""

from typing import TypeAlias

import dcap_qvl
import msgspec

from confide.evidence.policy import Root
from confide.evidence.quote import TD_REPORT_15, QuoteError, TdxQuote
from confide.evidence.result import quoted

Collateral: TypeAlias = dcap_qvl.QuoteCollateralV3


class NotGenuine(ValueError):
    """A quote does not verify. The text is for people."""


class TcbClaims(msgspec.Struct, frozen=True):
    """The merged TCB status of platform, TDX module and quoting enclave."""

    status: str
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class TcbLevel(msgspec.Struct, frozen=True, rename="camel"):
    """The level of the TCB info that the platform reached."""

    tcb_date: str


class PckClaims(msgspec.Struct, frozen=True):
    """From the PCK certificate. Bytes are lists of integers here; the flags are the texts "True" and "False"."""

    fmspc: tuple[int, ...]
    dynamic_platform: str | None = None
    cached_keys: str | None = None
    smt_enabled: str | None = None


class PlatformClaims(msgspec.Struct, frozen=True):
    """The machine."""

    tcb_level: TcbLevel
    pck: PckClaims


class QeClaims(msgspec.Struct, frozen=True):
    """The quoting enclave."""

    tcb_eval_data_number: int


class Claims(msgspec.Struct, frozen=True):
    """What dcap-qvl says of a quote that it verified; the members that we read. Dates: Unix seconds."""

    tcb: TcbClaims
    platform: PlatformClaims
    qe: QeClaims
    earliest_expiration_date: int
    qe_iden_earliest_expiration_date: int

    @property
    def eval_data_number(self) -> int:
        """The older of TCB info and QE identity."""
        return min(self.tcb.eval_data_number, self.qe.tcb_eval_data_number)

    @property
    def expires_at(self) -> int:
        """When the first part of the collateral expires."""
        return min(self.earliest_expiration_date, self.qe_iden_earliest_expiration_date)


def require_same_reading(quote: TdxQuote) -> None:
    """Raise QuoteError unless dcap-qvl, whose parser decides what is verified, reads the same fields as ours."""
    try:
        theirs = dcap_qvl.parse_quote(quote.trimmed)
    except ValueError as error:
        raise QuoteError(f"dcap-qvl does not parse it: {quoted(error)}") from error
    for name in TD_REPORT_15:
        ours = getattr(quote, name)
        if ours and ours != getattr(theirs.report, name.replace("rtmr", "rt_mr"), None):
            raise QuoteError(f"two parsers disagree about {name}")


def read_collateral(text: str) -> Collateral:
    """The nine members without the optional PCK chain, which would be verified in place of the quote's own.

    `text`: JSON. Raises ValueError.
    """
    collateral = Collateral.from_json(text)
    return Collateral(
        collateral.pck_crl_issuer_chain,
        collateral.root_ca_crl,
        collateral.pck_crl,
        collateral.tcb_info_issuer_chain,
        collateral.tcb_info,
        collateral.tcb_info_signature,
        collateral.qe_identity_issuer_chain,
        collateral.qe_identity,
        collateral.qe_identity_signature,
    )


def claims_of(quote: TdxQuote, root: Root, collateral: Collateral, now: int) -> Claims:
    """What the library says of the trimmed quote, once it verified without any policy. `now`: Unix seconds.

    Raises NotGenuine.
    """
    try:
        claims_json = (
            dcap_qvl.QuoteVerifier(root.der)
            .verify_with_policy(quote.trimmed, collateral, now, dcap_qvl.QuotePolicy.claims_only(now))
            .to_json()
        )
        return msgspec.json.decode(claims_json, type=Claims)
    except ValueError as error:  # msgspec's too: claims that we cannot read are no claims
        raise NotGenuine(reason_of_failure(quote, root, collateral, now) or quoted(error)) from error


def reason_of_failure(quote: TdxQuote, root: Root, collateral: Collateral, now: int) -> str | None:
    """Why the quote failed, in full: `verify_with_policy` drops the cause (0.7.0), the older call tells it.

    Only words come out of here. The quote has failed already, whatever this second call says.
    """
    try:
        if root.der is None:
            dcap_qvl.verify(quote.trimmed, collateral, now)
        else:
            dcap_qvl.verify_with_root_ca(quote.trimmed, collateral, root.der, now)
    except ValueError as error:
        return quoted(error)
    return None
