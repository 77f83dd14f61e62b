"""`confide verify`: is this the service that it says it is, in a TEE?"""

from typing import Annotated

import httpx2
import typer

from confide.cli import results
from confide.cli.trust import AsJson, At, BundleFile, OnlineTrust, trusting
from confide.client import verdict
from confide.client.asking import is_loopback, parse_base_url
from confide.client.sending import now_s
from confide.client.service import verify_service, write_bundle_of
from confide.errors import ConfideError, VerificationError
from confide.evidence.result import Status, Verification
from confide.evidence.tdx import ROOT
from confide.verifier.appraisal import CHANNEL

Url = Annotated[str, typer.Argument(metavar="URL", help="Address of the service, such as https://HOST.")]


@trusting
def verify(
    url: Url,
    trust: OnlineTrust,
    bundle: BundleFile = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Verify a service by a fresh report: its TEE, its keys, and that the connection ends in it.

    Nothing else is asked of it. Exit status: 0 verified, 1 not, 3 could not find out.
    """
    address = parse_base_url(url)
    verified = verify_service(url, trust.policy(), now=now_s if at is None else lambda: at, collateral=trust.sources())
    written = None if bundle is None else write_bundle_of(verified, bundle)
    if as_json:
        results.print_json(results.document(verified))
    else:
        results.show(verified, pinned=trust.pinned, bundle=written)
    try:
        verdict.require(verified)
    except VerificationError as failure:
        raise with_way_on(failure, verified, address) from failure


def with_way_on(failure: VerificationError, verified: Verification, address: httpx2.URL) -> ConfideError:
    """On this machine most failures are options that were not given: then the remedy names them."""
    wrong = {check.name for check in verified.checks if check.status is Status.FAIL}
    missing = []
    if ROOT in wrong:
        missing.append("--allow-simulated to accept this machine's simulated TEE")
    if CHANNEL in wrong and address.scheme == "http":
        missing.append("--no-require-channel to accept plain HTTP, which does not leave this machine")
    if not missing or not is_loopback(address):
        return failure
    remedy = f"If you started this service yourself, add {' and '.join(missing)}."
    return VerificationError(failure.message, check=failure.check, remedy=remedy)
