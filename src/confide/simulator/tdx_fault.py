"""What can be wrong with a SIMULATED TDX platform, one thing at a time (tee-evidence 5.1), and how its quotes are laid
out.
"""

from enum import StrEnum


class QuoteForm(StrEnum):
    """Version of a quote, and of the TD report in it."""

    V4 = "version 4, TD report 1.0"
    V5_REPORT_10 = "version 5, TD report 1.0"
    V5_REPORT_15 = "version 5, TD report 1.5"

    @property
    def version(self) -> int:
        return 4 if self is QuoteForm.V4 else 5

    @property
    def body_type(self) -> int:
        """As version 5 states it: 2 is TD report 1.0, 3 is 1.5."""
        return 3 if self is QuoteForm.V5_REPORT_15 else 2


class TdxFault(StrEnum):
    """What is wrong. Everything else about the platform is as it should be."""

    # With the guest or the TDX module.
    SEPT_VE = "SEPT_VE_DISABLE is off"
    RESERVED_ATTRIBUTE = "a reserved attribute bit is set"
    MIGRATABLE = "the MIGRATABLE attribute is set"
    PERFMON = "the PERFMON attribute is set"
    SERVICE_TD = "a migration TD is bound"  # only a TD report 1.5 can say so
    MODULE_SIGNER = "the TDX module has another signer"

    # With the quote.
    VENDOR = "another QE vendor"
    SIGNATURE = "another key than the attestation key signed"
    ATTESTATION_KEY = "the QE vouches for another attestation key"
    QE_REPORT = "another key than the PCK key signed the QE report"
    QE_TOO_OLD = "the quoting enclave is older than every level"
    QE_DEBUG = "the quoting enclave is in debug mode"
    QE_SIGNER = "the quoting enclave has another signer"
    CERTIFICATION_TYPE = "the outer certification type is another"
    APPENDED = "text follows the quote"

    # With the collateral.
    PCK_CA_REVOKED = "the PCK CA is revoked"
    TCB_SIGNER_REVOKED = "the TCB signer is revoked"
    EMPTY_CRL = "the PCK CRL has no bytes"
    OTHER_CRL = "the PCK CRL is another issuer's"
    ROOT_CRL_EXPIRED = "the root CRL has expired"
    EXPIRED = "all of it has expired"
    FUTURE = "all of it was issued in the future"
    FMSPC = "the TCB info is another machine type's"
    NO_LEVEL = "the platform is below every level"
    TCB_INFO = "the TCB info was tampered with"
    QE_IDENTITY = "the QE identity was tampered with"
    TCB_SIGNER = "the TCB signer is under another root"
    EVALUATION = "it is from before a TCB recovery"
