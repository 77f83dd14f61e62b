"""What a relying party asks of a service before it trusts an answer (wire contract 9.3; RFC 9334: appraisal policy).

    Policy()                                                    real hardware, over TLS that ends in it
    Policy(trust_roots=("intel", "amd", "simulator/root.pem"))  and the simulator with this very root
    Policy(compose_hashes={"…"}, requirements=(AnyOf(Source(repo_url="…"), Source(image_digests={"…"})),))

A requirement is a small object with one method, combined by AllOf and AnyOf. What it needs and is not there has failed:
a requirement never skips.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.errors import ConfigError
from confide.evidence.policy import Anchors, DstackPolicy, GpuPolicy, SnpPolicy, TdxPolicy
from confide.evidence.result import Check, Status, failed, passed, quoted
from confide.protocol.canonical import BARE_DIGEST
from confide.protocol.report import Report

TrustRoot = str | os.PathLike[str]
HARDWARE_ROOTS = ("intel", "amd")

LONGEST_KEYSET_S = 366 * 24 * 60 * 60  # a leap year; a keyset that lives longer is no promise to renew anything

CLAIMS = frozenset(
    {
        "tee_attested",
        "gpu_attested",
        "tcb_up_to_date",
        "os_known_good",
        "serving_software_known_good",
        "model_weights_provenance",
    }
)


@dataclass(frozen=True, kw_only=True)
class Attested:
    """What requirements look at, once the quote was checked. `report`: its words are claims.

    `compose_hash`: measured, 64 lower-case hex digits; None where nothing was measured that verified. `claims`: the
    claims of wire contract 7.8 that hold, each with its reason. `now`: Unix seconds.
    """

    report: Report
    now: int
    compose_hash: str | None
    claims: Mapping[str, str]


class Requirement(Protocol):
    """One thing that must hold. `name` is that of its check."""

    @property
    def name(self) -> str: ...

    def check(self, attested: Attested) -> Check:
        """PASS or FAIL, the reason in the form got … expected …."""


@dataclass(frozen=True)
class KeysetAge:
    """The keyset expires within `most_s` seconds from now: absurdly distant ones promise nothing (7.1)."""

    most_s: int
    name: str = "policy-keyset-age"

    def check(self, attested: Attested) -> Check:
        left_s = attested.report.keyset.not_after - attested.now
        if left_s > self.most_s:
            return failed(self.name, f"got a keyset that lives {left_s} s longer, expected at most {self.most_s} s")
        return passed(self.name, f"the keyset expires in {left_s} s")


@dataclass(frozen=True)
class ComposeHash:
    """The measured application is one of these. `allowed`: SHA-256 of app_compose, 64 lower-case hex digits each."""

    allowed: Collection[str]
    name: str = "policy-compose"

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed", hashes("compose_hashes", self.allowed))

    def check(self, attested: Attested) -> Check:
        return one_of(self.name, "compose hash", attested.compose_hash, self.allowed)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The report says that it was built from this. A label of the service's own: believe it as far as measurements,
    ComposeHash for example, back it. `repo_commits`: full commits. Empty: any.
    """

    repo_url: str | None = None
    repo_commits: Collection[str] = ()
    image_digests: Collection[str] = ()
    name: str = "policy-source"

    def __post_init__(self) -> None:
        for name in ("repo_commits", "image_digests"):
            object.__setattr__(self, name, frozenset(several(name, getattr(self, name))))

    def check(self, attested: Attested) -> Check:
        found = attested.report.provenance
        if found is None or not found.is_acceptable:
            return failed(self.name, "got no source that is named in full, expected repository and commit, or image")
        if self.repo_url is not None and found.repo_url != self.repo_url:
            return failed(self.name, f"got repo_url {quoted(found.repo_url)}, expected {self.repo_url}")
        if self.repo_commits and found.repo_commit not in self.repo_commits:
            return one_of(self.name, "repo_commit", found.repo_commit, self.repo_commits)
        if self.image_digests and found.image_digest not in self.image_digests:
            return one_of(self.name, "image_digest", found.image_digest, self.image_digests)
        return passed(self.name, f"the report names {quoted(found.repo_commit or found.image_digest)}")


@dataclass(frozen=True)
class Claims:
    """These claims of wire contract 7.8 hold, each as far as the evidence shows it."""

    wanted: Collection[str]
    name: str = "policy-claims"

    def __post_init__(self) -> None:
        object.__setattr__(self, "wanted", frozenset(several("claims", self.wanted)))
        unknown = frozenset(self.wanted) - CLAIMS
        if unknown:
            raise ConfigError(
                f"claims: got {', '.join(sorted(unknown))}, expected some of {', '.join(sorted(CLAIMS))}",
                remedy="Name claims of the open specification.",
            )

    def check(self, attested: Attested) -> Check:
        missing = sorted(frozenset(self.wanted) - attested.claims.keys())
        if missing:
            return failed(self.name, f"got no proof of {', '.join(missing)}, expected it asserted")
        return passed(self.name, "; ".join(f"{name}: {attested.claims[name]}" for name in sorted(self.wanted)))


@dataclass(frozen=True)
class Serving:
    """Inference runs in the attested workload itself ("direct"), not behind a second hop ("aggregator")."""

    mode: str = "direct"
    name: str = "policy-serving"

    def check(self, attested: Attested) -> Check:
        return one_of(self.name, "serving", attested.report.serving, {self.mode})


class AllOf:
    """Every one of these. The reason is that of the first one which does not hold."""

    def __init__(self, *requirements: Requirement, name: str = "policy-all") -> None:
        self.requirements = requirements
        self.name = name

    def check(self, attested: Attested) -> Check:
        checks = [each.check(attested) for each in self.requirements]
        wrong = [check for check in checks if check.status is not Status.PASS]
        if wrong:
            return failed(self.name, wrong[0].reason)
        return passed(self.name, "; ".join(check.reason for check in checks) or "nothing was asked for")


class AnyOf:
    """At least one of these; with none at all nothing holds."""

    def __init__(self, *requirements: Requirement, name: str = "policy-any") -> None:
        self.requirements = requirements
        self.name = name

    def check(self, attested: Attested) -> Check:
        checks = [each.check(attested) for each in self.requirements]
        held = [check for check in checks if check.status is Status.PASS]
        if held:
            return passed(self.name, held[0].reason)
        return failed(self.name, "; ".join(check.reason for check in checks) or "there is nothing that could hold")


def one_of(name: str, what: str, found: str | None, allowed: Iterable[str]) -> Check:
    """Whether `found` is one of the allowed values; nothing found is not."""
    if found is None:
        return failed(name, f"got no {what} that is proven, expected {listed(allowed)}")
    if found not in allowed:
        return failed(name, f"got {what} {quoted(found)}, expected {listed(allowed)}")
    return passed(name, f"{what} {quoted(found)}")


def listed(values: Iterable[str]) -> str:
    return "one of " + ", ".join(sorted(values))


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What must hold before an answer is believed. Without arguments: real hardware, up to date, over attested TLS.

    `trust_roots`: "intel", "amd", or paths of PEM files; a root from a file that is no vendor's is a simulator's, and
    is named as simulated in every result. `require_channel`: the connection itself ends in the TEE; without it plain
    HTTP will do, and the verdict is PARTIAL. `accepted_tcb`, `denied_advisories`: see TdxPolicy. `claims`,
    `compose_hashes`, `source`: see the requirements of this module; empty asks for nothing. `session_ids`: the only
    sessions of a second hop that may serve, 64 lower-case hex digits each. `max_keyset_age_s`: seconds that a keyset
    may still have to its expiry. `requirements`: more of them, besides those made of the members above. `snp`, `gpu`,
    `dstack`: what is asked of these kinds of evidence (`confide.evidence.policy`). Raises ConfigError for what is no
    such value.
    """

    trust_roots: Iterable[TrustRoot] = HARDWARE_ROOTS
    require_channel: bool = True
    accepted_tcb: Iterable[str] = ("UpToDate",)
    denied_advisories: Iterable[str] = ()
    claims: Iterable[str] = ()
    compose_hashes: Iterable[str] = ()
    source: Source | None = None
    session_ids: Iterable[str] = ()
    max_keyset_age_s: int = LONGEST_KEYSET_S
    requirements: tuple[Requirement, ...] = ()
    snp: SnpPolicy = field(default_factory=SnpPolicy)
    gpu: GpuPolicy = field(default_factory=GpuPolicy)
    dstack: DstackPolicy = field(default_factory=DstackPolicy)
    anchors: Anchors = field(init=False, repr=False)
    tdx: TdxPolicy = field(init=False, repr=False)
    appraised: tuple[Requirement, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._fix("trust_roots", several("trust_roots", self.trust_roots, str | os.PathLike))
        for name in ("accepted_tcb", "denied_advisories", "claims"):
            self._fix(name, several(name, getattr(self, name)))
        for name in ("compose_hashes", "session_ids"):
            self._fix(name, tuple(sorted(hashes(name, getattr(self, name)))))
        self._fix("anchors", anchors_of(tuple(self.trust_roots)))
        try:
            tdx = TdxPolicy(
                accepted_tcb=frozenset(self.accepted_tcb), denied_advisories=frozenset(self.denied_advisories)
            )
        except ValueError as error:
            raise ConfigError(f"accepted_tcb: {error}") from error
        self._fix("tdx", tdx)
        self._fix("appraised", tuple(self._appraised()))

    @property
    def pins_dstack(self) -> bool:
        """Whether it asks for something that only dstack's measurements show."""
        return self.dstack.pins_application or self.dstack.pins_os_image or bool(self.dstack.key_providers)

    def _fix(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass fills in what follows from its arguments

    def _appraised(self) -> Iterable[Requirement]:
        yield KeysetAge(self.max_keyset_age_s)
        if self.compose_hashes:
            yield ComposeHash(tuple(self.compose_hashes))
        if self.source is not None:
            yield self.source
        if self.claims:
            yield Claims(tuple(self.claims))
        yield from self.requirements


def several(name: str, given: object, kind: type | UnionType = str) -> tuple[Any, ...]:
    """The values of an argument that takes several. Raises ConfigError for a text alone: not its letters were meant."""
    if isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable):
        raise ConfigError(f"{name}: got one value, expected several", remedy=f"Write {name}=(…,).")
    values = tuple(given)
    wrong = [type(value).__name__ for value in values if not isinstance(value, kind)]
    if wrong:
        raise ConfigError(f"{name}: got a {wrong[0]}, expected texts", remedy=f'Write {name}=("…",).')
    return values


def hashes(name: str, given: object) -> frozenset[str]:
    """SHA-256 hashes that a policy lists. Raises ConfigError for one that no service could ever have."""
    values = several(name, given)
    wrong = next((value for value in values if BARE_DIGEST.fullmatch(value) is None), None)
    if wrong is not None:
        raise ConfigError(
            f"{name}: got {quoted(wrong)}, expected 64 lower-case hex digits",
            remedy="Give the SHA-256 alone, without sha256: before it.",
        )
    return frozenset(values)


def anchors_of(trust_roots: tuple[TrustRoot, ...]) -> Anchors:
    """The roots that these names and files stand for, and NVIDIA's for GPUs. Raises ConfigError."""
    named = (root for root in trust_roots if isinstance(root, str) and root in HARDWARE_ROOTS)
    anchors = Anchors.of("nvidia", *named)  # it vouches for GPUs alone, which are evidence beside a TEE's
    for root in trust_roots:
        if root not in HARDWARE_ROOTS:
            anchors = with_file(anchors, Path(root))
    return anchors


def with_file(anchors: Anchors, path: Path) -> Anchors:
    """These anchors and the simulated root in a PEM file. Raises ConfigError."""
    try:
        return anchors.pinning(read_root(path))
    except ValueError as error:
        raise ConfigError(f"the trust root {path}: {error}", remedy="Name the root of a simulator.") from error


def read_root(path: Path) -> bytes:
    """The certificate in a PEM file, as DER. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except OSError as error:
        raise ConfigError(
            f"the trust root {path} cannot be read: {error.strerror}",
            remedy=f"Name one of {', '.join(HARDWARE_ROOTS)}, or a PEM file.",
        ) from error
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise ConfigError(
            f"the trust root {path} is no PEM certificate",
            remedy="A simulated service writes its own to <CONFIDE_HOME>/simulator/root.pem.",
        ) from error
