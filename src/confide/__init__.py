"""Confide: an OpenAI-compatible inference service that proves what it did, and the client that checks the proof.

    client = OpenAI(base_url=URL, api_key=KEY, http_client=confide.Client(policy=confide.Policy(…)))
    answer = client.chat.completions.create(…)     # raises confide.VerificationError instead of an unproven answer
    confide.proof(answer).bundle("answer.json")    # everything that is needed to check it again, without a network

The names below are the public ones. Each is imported when it is first used, so that `import confide` costs nothing.
"""

import importlib

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself would be most of what the import costs
if TYPE_CHECKING:
    from confide.client.auditing import verify_bundle as verify_bundle
    from confide.client.http import AsyncClient as AsyncClient
    from confide.client.http import Client as Client
    from confide.client.proof import Proof as Proof
    from confide.client.proof import proof as proof
    from confide.client.service import verify_service as verify_service
    from confide.errors import CannotTell as CannotTell
    from confide.errors import ConfideError as ConfideError
    from confide.errors import ConfigError as ConfigError
    from confide.errors import VerificationError as VerificationError
    from confide.evidence.result import Check as Check
    from confide.evidence.result import Verdict as Verdict
    from confide.evidence.result import Verification as Verification
    from confide.verifier.collateral import Collateral as Collateral
    from confide.verifier.policy import Policy as Policy

__version__ = "0.1.0"

# name: where it is
PUBLIC = {
    "AsyncClient": "confide.client.http",
    "CannotTell": "confide.errors",
    "Check": "confide.evidence.result",
    "Client": "confide.client.http",
    "Collateral": "confide.verifier.collateral",
    "ConfideError": "confide.errors",
    "ConfigError": "confide.errors",
    "Policy": "confide.verifier.policy",
    "Proof": "confide.client.proof",
    "Verdict": "confide.evidence.result",
    "Verification": "confide.evidence.result",
    "VerificationError": "confide.errors",
    "proof": "confide.client.proof",
    "verify_bundle": "confide.client.auditing",
    "verify_service": "confide.client.service",
}

__all__ = [*PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'confide' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
