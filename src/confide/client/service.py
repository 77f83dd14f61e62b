"""Verify a service by its address, without asking it anything else."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import httpx2

from confide.client.asking import environment_proxy, parse_base_url
from confide.client.known_service import KnownService
from confide.client.party import RelyingParty
from confide.client.proof import write_private
from confide.client.sending import Destination, cause, document_request, now_s
from confide.client.steps import Fetch, Fetched, drive
from confide.client.transport import Line, fetched
from confide.errors import CannotTell
from confide.protocol.bundle import write_bundle
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.collateral import Collateral, HeldCollateral
from confide.verifier.policy import Policy


def verify_service(
    url: str,
    policy: Policy | None = None,
    *,
    now: Callable[[], int] = now_s,
    collateral: HeldCollateral | None = None,
) -> ServiceVerification:
    """Ask the service at `url` for a report with a fresh nonce, and check it (wire contract 9.3).

    `url`: with or without `/v1` at its end. `collateral`: where to get what the report lacks; None for
    `confide.Collateral()`, which asks the vendors then. The result says what held and what did not; it is not raised.
    Raises ConfigError for what is no address, CannotTell when the service cannot be reached or has no report.
    """
    root = parse_base_url(url)
    destination = Destination(root.copy_with(path=root.path.rstrip("/") + "/v1/"))
    service = KnownService(destination.root, destination.host)
    party = RelyingParty(policy or Policy(), now=now, draw=secrets.token_bytes, collateral=collateral or Collateral())
    line = Line(service, {"proxy": environment_proxy(root)})

    def fetch(wanted: Fetch) -> Fetched:
        with line.first_connection() as transport:
            return fetched(transport.handle_request(document_request(service, wanted, None)))

    try:
        return drive(party.appraise(service), fetch)
    except httpx2.TransportError as error:
        raise CannotTell(
            f"{service.root} cannot be reached, or broke off: {cause(error)}",
            remedy="Check the address; `confide serve` starts a service on this machine.",
        ) from error


def write_bundle_of(verified: ServiceVerification, path: str | os.PathLike[str]) -> Path | None:
    """Write what was shown of the service, for better or worse, to a bundle without answers (docs/bundle.md).

    Whole or not at all, 0600. None where there is no report to keep. Raises ConfigError and OSError where it cannot be
    written.
    """
    if verified.proof is None:
        return None
    return write_private(Path(path), write_bundle(verified.proof, ()))
