"""`confide ask`: one question, its answer, and what was checked about it."""

import io
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console
from rich.table import Table
from rich.text import Text

from confide import config
from confide.client import asking, verifier
from confide.client.answer import Question
from confide.errors import CannotTell, ConfigError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.result import Check, Status, Verification
from confide.protocol.signature import Algo

DEFAULT_BASE_URL = "http://127.0.0.1:8080"
SIMULATED = "SIMULATED TEE: no hardware protection"
STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIP: "yellow"}
LATEST_S = 253_402_300_799  # the last second of the year 9999, in Unix seconds
PIPED_WIDTH = 1000  # columns; a reason that is cut off is of no use to grep

# A model writes what it likes; a terminal obeys some of it.
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def ask(
    prompt: Annotated[str, typer.Argument(help="The question.")],
    base_url: Annotated[
        str, typer.Option("--base-url", envvar="CONFIDE_BASE_URL", help="Address of the service.")
    ] = DEFAULT_BASE_URL,
    model: Annotated[str | None, typer.Option("--model", help="Model id; default: the service's first.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer as it is written.")] = True,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    algo: Annotated[Algo, typer.Option("--algo", help="Which of the service's keys is to sign.")] = Algo.ECDSA,
    trust_root: Annotated[
        list[Path] | None,
        typer.Option("--trust-root", metavar="PEM", help="Root of a SIMULATED TEE to accept; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    at: Annotated[
        int | None,
        typer.Option("--at", metavar="UNIX", min=0, max=LATEST_S, help="Verify as of this Unix time; default: now."),
    ] = None,
) -> None:
    """Ask one question and verify the answer. The API key is read from CONFIDE_API_KEY."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what this terminal cannot show
    url = asking.parse_base_url(base_url)
    roots = tuple(trust_root or ()) or (local_root() if asking.is_loopback(url) else ())
    anchors = pinned(roots)
    with asking.connected(url, asking.parse_api_key(os.environ.get("CONFIDE_API_KEY", ""))) as service:
        asked = asking.ask(
            service,
            Question(prompt, model or service.first_model(), stream, max_tokens),
            algo=algo,
            anchors=anchors,
            policy=TdxPolicy(),
            now=lambda: int(time.time()) if at is None else at,
            on_text=(lambda _: None) if as_json else show_text,
        )
    if as_json:
        print(msgspec.json.encode(document(asked)).decode())
    else:
        show_checks(asked.verification, roots)
    verifier.require(asked.verification)
    if asked.answer.broken is not None:
        raise CannotTell(f"the answer broke off: {asked.answer.broken}", remedy="Ask again.")


def local_root() -> tuple[Path, ...]:
    """The root of the simulator of this machine, if there is one."""
    path = config.home() / "simulator" / "root.pem"
    return (path,) if path.exists() else ()


def pinned(roots: tuple[Path, ...]) -> Anchors:
    """The hardware roots, and these simulated ones. Raises ConfigError."""
    anchors = Anchors.default()
    for path in roots:
        try:
            anchors = anchors.with_simulated(read_root(path))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}", remedy="Name the root of a simulator.") from error
    return anchors


def read_root(path: Path) -> bytes:
    """The certificate in a PEM file, as DER. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except OSError as error:
        raise ConfigError(
            f"the root {path} cannot be read: {error.strerror}", remedy="Name a PEM file with --trust-root."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"the root {path} is no PEM certificate",
            remedy="A simulated service writes its own to <CONFIDE_HOME>/simulator/root.pem.",
        ) from error


def show_text(text: str) -> None:
    """A piece of the answer, at once, with nothing in it that a terminal would obey."""
    sys.stdout.write(text.translate(CONTROLS))
    sys.stdout.flush()


def show_checks(result: Verification, roots: tuple[Path, ...]) -> None:
    """The table, what it stands on, and the verdict. The label of a simulated TEE is the last line."""
    console = Console(highlight=False, soft_wrap=True)
    wide = console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)
    console.print("\n")
    wide.print(table(result.checks), soft_wrap=False)
    console.print()
    for path in roots:
        console.print(Text(f"pinned: {path}, the root of a simulator"))
    for anchor in result.anchors:
        console.print(
            Text(f"anchor: {anchor.name}{' (SIMULATED)' if anchor.simulated else ''}, sha256 {anchor.sha256}")
        )
    console.print(Text(verdict_line(result), style="bold"))
    if result.simulated:
        console.print(Text(SIMULATED, style="bold yellow"))


def table(checks: tuple[Check, ...]) -> Table:
    drawn = Table("check", "status", "reason", box=None, header_style="bold")
    for check in checks:
        drawn.add_row(check.name, Text(check.status.value, style=STYLES[check.status]), Text(check.reason))
    return drawn


def verdict_line(result: Verification) -> str:
    """The verdict, and whose root it rests on when that is a simulated one."""
    verdict = result.verdict.value
    simulated = [anchor.name for anchor in result.anchors if anchor.simulated]
    return f"{verdict} (SIMULATED ROOT {', '.join(simulated)})" if simulated else verdict


def document(asked: asking.Asked) -> dict[str, object]:
    """The result as JSON."""
    result = asked.verification
    return {
        "answer": asked.answer.text,
        "id": asked.answer.id,
        "verdict": result.verdict.value,
        "simulated": result.simulated,
        "checks": [msgspec.to_builtins(check) for check in result.checks],
        "anchors": [msgspec.to_builtins(anchor) for anchor in result.anchors],
    }
