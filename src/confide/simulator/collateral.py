"""Collateral of the SIMULATED TDX platform: what Intel's provisioning service would serve. Windows of 30 days."""

import json
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from confide.simulator.certificates import FMSPC, PCE_ID, PCE_SVN, SGX_COMPONENTS, VALID_FROM, Identity
from confide.simulator.tdx_fault import TdxFault

COLLATERAL_WINDOW = timedelta(days=30)

# What the quote must agree with.
TEE_TCB_SVN = bytes.fromhex("06010300000000000000000000000000")  # [0] module SVN, [1] names the identity "TDX_01"
MODULE_SIGNER = bytes(48)
QE_SIGNER = sha256(b"Simulated TD quoting enclave: signer").digest()
QE_PRODUCT_ID = 2
QE_SVN = 4
TCB_EVALUATION_DATA_NUMBER = 17
SIMULATED_ADVISORY = "SIMULATED-SA-00001"
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


def intel_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def revocation_list(issuer: Identity, moment: datetime, revoked: tuple[x509.Certificate, ...] = ()) -> str:
    """The issuer's CRL as DER in hex. The binding demands next update, CRL number and authority key identifier."""
    builder = (
        x509.CertificateRevocationListBuilder(
            issuer_name=issuer.certificate.subject, last_update=moment, next_update=moment + COLLATERAL_WINDOW
        )
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder(certificate.serial_number, moment).build()
        )
    return builder.sign(issuer.key, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER).hex()


def tcb_level(tcb: dict[str, object], status: str) -> dict[str, object]:
    level: dict[str, object] = {"tcb": tcb, "tcbDate": intel_time(VALID_FROM), "tcbStatus": status}
    return level if status == "UpToDate" else level | {"advisoryIDs": [SIMULATED_ADVISORY]}


def window(moment: datetime, fault: TdxFault | None) -> dict[str, object]:
    return {
        "issueDate": intel_time(moment),
        "nextUpdate": intel_time(moment + COLLATERAL_WINDOW),
        "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER - (fault is TdxFault.EVALUATION),
    }


def compact(document: dict[str, object]) -> str:
    """The text that is signed and served, byte for byte."""
    return json.dumps(document, separators=(",", ":"))


def tcb_info(moment: datetime, status: str, fault: TdxFault | None = None) -> str:
    """TCB info version 3 whose only level, with this status, is the platform's own."""
    module = {
        "mrsigner": MODULE_SIGNER.hex().upper(),
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
    }
    identity = {"id": f"TDX_{TEE_TCB_SVN[1]:02X}", "tcbLevels": [tcb_level({"isvsvn": TEE_TCB_SVN[0]}, "UpToDate")]}
    own_tcb: dict[str, object] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in SGX_COMPONENTS],
        "pcesvn": PCE_SVN + (fault is TdxFault.NO_LEVEL),
        "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
    }
    fmspc = bytes(6) if fault is TdxFault.FMSPC else FMSPC
    return compact(
        {"id": "TDX", "version": 3, "fmspc": fmspc.hex().upper(), "pceId": PCE_ID.hex(), "tcbType": 0}
        | window(moment, fault)
        | {
            "tdxModule": module,
            "tdxModuleIdentities": [module | identity],
            "tcbLevels": [tcb_level(own_tcb, status)],
        }
    )


def qe_identity(moment: datetime, fault: TdxFault | None = None) -> str:
    """The identity of the simulated quoting enclave."""
    return compact(
        {"id": "TD_QE", "version": 2}
        | window(moment, fault)
        | {
            "miscselect": "00" * 4,
            "miscselectMask": "FF" * 4,
            "attributes": "11" + "00" * 15,
            "attributesMask": "FBFFFFFFFFFFFFFF" + "00" * 8,
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": QE_PRODUCT_ID,
            "tcbLevels": [tcb_level({"isvsvn": QE_SVN}, "UpToDate")],
        }
    )
