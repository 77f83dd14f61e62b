"""`confide ask`: one question, its answer, and what was checked about it."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from confide.cli import results
from confide.cli.trust import AsJson, At, BundleFile, OnlineTrust, Trust, trusting
from confide.client import asking, verdict
from confide.client.answer import Answer, Question
from confide.client.sending import now_s
from confide.errors import CannotTell, ConfigError, VerificationError
from confide.evidence.result import Verification
from confide.protocol.signature import Algo
from confide.verifier import legacy
from confide.verifier.collateral import Collateral
from confide.verifier.policy import Policy

DEFAULT_BASE_URL = "http://127.0.0.1:8080"

# A model writes what it likes; a terminal obeys some of it.
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@trusting
def ask(
    prompt: Annotated[str, typer.Argument(help="The question.")],
    trust: OnlineTrust,
    base_url: Annotated[
        str, typer.Option("--base-url", envvar="CONFIDE_BASE_URL", help="Address of the service.")
    ] = DEFAULT_BASE_URL,
    model: Annotated[str | None, typer.Option("--model", help="Model id; default: the service's first.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer as it is written.")] = True,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    bundle: BundleFile = None,
    bodies: Annotated[
        bool, typer.Option("--bodies", help="The bundle also holds question and answer, in clear.")
    ] = False,
    signature: Annotated[
        Algo | None,
        typer.Option("--signature", help="Check the older request signature by this key instead of the receipt."),
    ] = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question and verify the answer. The API key is read from CONFIDE_API_KEY.

    A service on a loopback address may have this machine's simulated TEE, and may be reached over plain HTTP.
    """
    results.show_anything()
    url = asking.parse_base_url(base_url)
    api_key = asking.parse_api_key(os.environ.get("CONFIDE_API_KEY", ""))
    if asking.is_loopback(url):
        trust = trust.on_this_machine(is_plain=url.scheme == "http")
    check_combination(trust, signature, bundle, bodies)
    policy, collateral, screen = trust.policy(), trust.sources(), Screen(as_json, trust.pinned)
    now = now_s if at is None else lambda: at
    verifying = policy if signature is None else None
    with asking.connected(
        url, api_key, policy=verifying, now=now, keep_bodies=bodies, collateral=collateral
    ) as service:

        def question() -> Question:
            return Question(prompt, model or service.first_model(), stream, max_tokens)

        if signature is None:
            answer = by_receipt(service, question, screen, bundle, now)
        else:
            answer = by_signature(service, question, screen, policy, signature, now, collateral)
    if answer.broken is not None:
        raise CannotTell(f"the answer broke off: {answer.broken}", remedy="Ask again.")


def by_receipt(
    service: asking.Service,
    question: Callable[[], Question],
    screen: "Screen",
    bundle: Path | None,
    now: Callable[[], int],
) -> Answer:
    """The answer, proven by its receipt and shown. Raises VerificationError, CannotTell."""
    try:
        answer, proof = asking.prove(service, question(), screen.show_text)
    except VerificationError as failure:
        screen.show(verdict.shown(failure, now()), None)
        raise verdict.told(failure) from failure
    screen.show(proof, answer.id or None, None if bundle is None else proof.bundle(bundle))
    return answer


def by_signature(
    service: asking.Service,
    question: Callable[[], Question],
    screen: "Screen",
    policy: Policy,
    algo: Algo,
    now: Callable[[], int],
    collateral: Collateral,
) -> Answer:
    """The answer, proven by the older request signature and shown. Raises VerificationError, CannotTell."""
    asked = asking.ask(
        service,
        question(),
        algo=algo,
        anchors=policy.anchors,
        policy=policy.tdx,
        now=now,
        on_text=screen.show_text,
        collateral=collateral,
    )
    screen.show(asked.verification, asked.answer.id)
    legacy.require(asked.verification)
    return asked.answer


@dataclass
class Screen:
    """What the person, or the program, gets to see."""

    as_json: bool
    pinned: tuple[Path, ...]
    texts: list[str] = field(default_factory=list)

    def show_text(self, text: str) -> None:
        """A piece of the answer, at once, with nothing in it that a terminal would obey."""
        self.texts.append(text)
        if not self.as_json:
            sys.stdout.write(text.translate(CONTROLS))
            sys.stdout.flush()

    def show(self, result: Verification, answer_id: str | None, bundle: Path | None = None) -> None:
        """What was checked, below the answer."""
        if self.as_json:
            results.print_json({"answer": "".join(self.texts), "id": answer_id, **results.document(result)})
            return
        if self.texts:
            print("\n")
        results.show(result, pinned=self.pinned, bundle=bundle)


def check_combination(trust: Trust, signature: Algo | None, bundle: Path | None, bodies: bool) -> None:
    """Raise ConfigError for options that could not be kept to: they must not be taken for demanded."""
    if bodies and bundle is None:
        raise ConfigError("--bodies: there is no bundle to hold them", remedy="Name its file with --bundle.")
    given = {
        "--bundle": bundle,
        "--compose-hash": trust.compose_hash,
        "--claim": trust.claim,
        "--max-keyset-age": trust.max_keyset_age,
    }
    unknown = [name for name, value in given.items() if value]
    if signature is not None and unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: the request signature of --signature proves no such thing",
            remedy="Leave out --signature: the receipt does.",
        )
