"""`confide evidence`: one quote, report or GPU payload by itself, without any service. Only `fetch` needs a network."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from confide.cli import results
from confide.cli.trust import AsJson, At, KdsUrl, PccsUrl, in_a_directory, same_status
from confide.client import verdict
from confide.client.proof import write_private
from confide.collateral.bundle import read_bundle
from confide.collateral.kds import AMD_KDS
from confide.collateral.pcs import INTEL_PCS
from confide.errors import ConfigError, VerificationError
from confide.evidence.piece import MAX_PIECE_BYTES, Piece, PieceError, describe, recognise, root_der, verify_piece
from confide.evidence.policy import Anchors, GpuPolicy, SnpPolicy, TdxPolicy
from confide.evidence.result import Verification, failed
from confide.protocol.report import Evidence
from confide.verifier.collateral import Collateral, HeldCollateral, Supplied

app = typer.Typer(
    help="Inspect and verify one piece of TEE evidence, offline; fetch what that takes.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Raw bytes, hex, a dstack GetQuote answer, a GPU payload.")]
HEX_DIGITS = "0123456789abcdefABCDEF"
UNREADABLE = "evidence"


@app.command()
def inspect(file: File, as_json: AsJson = False) -> None:
    """Print every field. Nothing is verified: all of it is what the file says."""
    try:
        fields = describe(piece_in(file))
    except PieceError as error:
        raise unreadable(file, error) from error
    if as_json:
        results.print_json(fields)
        return
    table = Table("field", "value", box=None, header_style="bold", title_justify="left")
    table.columns[1].overflow = "fold"
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.print(Text("\n".join(f"{name}  {value}" for name, value in fields.items())))
        return
    for name, value in fields.items():
        table.add_row(Text(name), Text(str(value)))
    console.print(table, soft_wrap=False)


@app.command()
def verify(
    file: File,
    collateral: Annotated[
        Path | None,
        typer.Option(
            "--collateral",
            metavar="F",
            help="DCAP collateral (JSON) of a quote; certificates (PEM) of a report; a collateral bundle.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="PEM-or-DER", help="Also trust this root: a vendor's, or a SIMULATED one."),
    ] = None,
    at: At = None,
    accept_tcb: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-tcb", metavar="STATUS", parser=same_status, help="Accept this TCB status besides UpToDate."
        ),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(
            "--nonce",
            metavar="HEX",
            help="What GPUs should have answered; default: what they name, which shows nothing of when (PARTIAL).",
        ),
    ] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", metavar="HEX", help="The 64 bytes that a quote should hold.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify one piece of evidence by itself. Exit status: 0 it passes, 1 it does not.

    What it is evidence of (whose key, which nonce) is not asked: `confide verify` checks a service.
    """
    anchors = Anchors.default() if root is None else pinned(root)
    asked = None if nonce is None else digits("--nonce", nonce, 32)
    expected = None if report_data is None else digits("--report-data", report_data, 64)
    content, given = read(file), None if collateral is None else read(collateral)
    now = int(time.time()) if at is None else at
    try:
        piece = recognise(content)
        given, crl = (given, None) if given is None or not is_bundle(given) else unpacked(given, piece, now)
        result = verify_piece(
            piece,
            collateral=given,
            crl=crl,
            anchors=anchors,
            now=now,
            tdx=TdxPolicy(accepted_tcb=frozenset({"UpToDate", *(accept_tcb or ())})),
            snp=SnpPolicy(),
            gpu=GpuPolicy(),
            nonce=asked,
            report_data=expected,
        )
    except PieceError as error:
        result = Verification(now, (failed(UNREADABLE, str(error)),), required=frozenset({UNREADABLE}))
    if as_json:
        results.print_json(document(result))
    else:
        results.show(result)
    require_piece(result)


@app.command()
def fetch(
    file: File,
    out: Annotated[
        Path, typer.Option("--out", metavar="F", callback=in_a_directory, help="Where to write the collateral bundle.")
    ],
    pccs_url: PccsUrl = INTEL_PCS,
    kds_url: KdsUrl = AMD_KDS,
) -> None:
    """Ask the vendors for what verifies a quote or a report, and write it to a file that needs no network later.

    For `--collateral` of `confide evidence verify`, `confide verify` and `confide audit`. Exit status: 0 it is written,
    3 it is not to be had.
    """
    try:
        piece = piece_in(file)
    except PieceError as error:
        raise unreadable(file, error) from error
    source, now = Collateral(pccs_url=pccs_url, kds_url=kds_url), int(time.time())
    if piece.kind == "nvidia":
        raise ConfigError(
            "GPU evidence needs no collateral: its certificates come along", remedy="Name a quote or a report."
        )
    if piece.kind == "tdx":
        supplied = Supplied(tdx=source.for_quote(piece.raw, now))
    else:
        supplied = Supplied(snp=source.for_report(piece.raw, now, Evidence()))
    text = supplied.bundle_text(created_at=now)
    assert text is not None
    write_private(out, text.encode())
    print(f"wrote {out}")


def is_bundle(content: bytes) -> bool:
    """Whether a file is a collateral bundle, rather than the collateral of one platform in its vendor's form."""
    return content.lstrip()[:1] == b"{" and b'"version"' in content and b'"created_at"' in content


def unpacked(content: bytes, piece: Piece, now: int) -> tuple[bytes | None, bytes | None]:
    """What a bundle has for this piece: collateral or certificates, and a revocation list. Raises ConfigError, and
    CannotTell for a bundle that is of other platforms.
    """
    held = HeldCollateral((read_bundle(content),))
    if piece.kind == "tdx":
        return held.for_quote(piece.raw, now).text.encode(), None
    if piece.kind == "snp":
        found = held.for_report(piece.raw, now, Evidence())
        return (found.vcek + found.cert_chain).encode(), found.crl_der
    return None, None


def require_piece(result: Verification) -> None:
    """Return when it passes. Raises VerificationError naming the check that decided."""
    if result.ok:
        return
    is_unread = any(check.name == UNREADABLE for check in result.checks)
    remedy = "Name a quote, a report or a GPU payload." if is_unread else "Do not rely on this evidence."
    raise verdict.refusal(result, "not verified", remedy)


def document(result: Verification) -> dict[str, object]:
    """The result for a program: pass or fail, the platform's TCB status where there is one, and the root it ends in."""
    return {
        **results.document(result),
        "verdict": "pass" if result.ok else "fail",
        "tcb_status": result.facts.get("tdx.tcb_status"),
        "anchor": result.anchors[0].name if result.anchors else None,
    }


def piece_in(file: Path) -> Piece:
    """What the file holds. Raises PieceError, ConfigError."""
    return recognise(read(file))


def read(file: Path) -> bytes:
    """The file's bytes, bounded. Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_PIECE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}", remedy="Name a file that this user may read."
        ) from error


def pinned(root: Path) -> Anchors:
    """The vendors' roots and this one. Raises ConfigError."""
    try:
        return Anchors.default().pinning(root_der(read(root)))
    except ValueError as error:
        raise ConfigError(f"the root {root}: {error}", remedy="Name a certificate, PEM or DER.") from error


def digits(option: str, text: str, length: int) -> bytes:
    """So many bytes from hex. Raises typer.BadParameter."""
    if len(text) != 2 * length or not all(digit in HEX_DIGITS for digit in text):
        raise typer.BadParameter(f"expected {2 * length} hex digits", param_hint=option)
    return bytes.fromhex(text)


def unreadable(file: Path, error: PieceError) -> VerificationError:
    return VerificationError(f"{file}: {error}", check=UNREADABLE, remedy="Name a quote, a report or a GPU payload.")
