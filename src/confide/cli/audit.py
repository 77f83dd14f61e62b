"""`confide audit`: check a bundle again, from the file alone."""

from pathlib import Path
from typing import Annotated

import typer

from confide.cli import results
from confide.cli.trust import LATEST_S, AsJson, Trust, trusting
from confide.client import verdict
from confide.client.auditing import verify_bundle
from confide.client.sending import now_s
from confide.errors import VerificationError


@trusting
def audit(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that `--bundle` or Proof.bundle wrote.")],
    trust: Trust,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="UNIX", min=0, max=LATEST_S, help="Check as of this Unix time; default: the bundle's own."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every proof in a bundle again, as of the time it was made. Opens no connection.

    Exit status: 0 verified, 1 not, 2 the file cannot be read, 3 could not find out.
    """
    policy = trust.policy()
    try:
        verified = verify_bundle(bundle, policy, at=at, collateral=trust.files())
    except VerificationError as failure:  # it is no bundle
        unread = verdict.shown(failure, now_s())
        if as_json:
            results.print_json(results.document(unread))
        else:
            results.show(unread)
        raise
    if as_json:
        results.print_json(results.document(verified))
    else:
        results.show(verified, pinned=trust.pinned)
    verdict.require(verified)
