"""What to trust, as the commands that verify take it: one set of options, and the policy that they make."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from confide import config
from confide.collateral.kds import AMD_KDS
from confide.collateral.nras import NVIDIA_NRAS
from confide.collateral.pcs import INTEL_PCS
from confide.errors import ConfigError
from confide.evidence.policy import TCB_STATUSES, DstackPolicy, GpuPolicy, SnpPolicy
from confide.verifier.collateral import Collateral
from confide.verifier.policy import HARDWARE_ROOTS, LONGEST_KEYSET_S, Policy

LATEST_S = 253_402_300_799  # the last second of the year 9999, in Unix seconds
DIGEST = re.compile(r"[0-9a-f]{64}")
KMS_ROOT = re.compile(r"0[23][0-9a-f]{64}")

At = Annotated[
    int | None,
    typer.Option("--at", metavar="UNIX", min=0, max=LATEST_S, help="Verify as of this Unix time; default: now."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


PccsUrl = Annotated[
    str, typer.Option("--pccs-url", metavar="URL", help="Intel's provisioning service, or a cache of it.")
]
KdsUrl = Annotated[str, typer.Option("--kds-url", metavar="URL", help="AMD's key distribution service.")]


def same_digest(text: str) -> str:
    """A SHA-256 as documents have it: 64 lower-case hex digits, without the name of the algorithm."""
    digest = text.lower().removeprefix("sha256:")
    if DIGEST.fullmatch(digest) is None:
        raise typer.BadParameter("expected the 64 hex digits of a SHA-256")
    return digest


def same_status(text: str) -> str:
    """A TCB status by its exact name."""
    if text not in TCB_STATUSES:
        raise typer.BadParameter(f"expected one of {', '.join(sorted(TCB_STATUSES))}")
    return text


def same_kms_root(text: str) -> str:
    """A secp256k1 key as documents have it: compressed, 66 lower-case hex digits."""
    key = text.lower().removeprefix("0x")
    if KMS_ROOT.fullmatch(key) is None:
        raise typer.BadParameter("expected the 66 hex digits of a compressed secp256k1 key")
    return key


def in_a_directory(path: Path | None) -> Path | None:
    """A file that can be there: found out before anything is asked, not after."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"expected a file in a directory that exists, got {path}")
    return path


BundleFile = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", callback=in_a_directory, help="Write the proof to this file."),
]


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The options, as the signature of each command that is `trusting` shows them."""

    trust_root: Annotated[
        list[Path] | None,
        typer.Option(metavar="PEM", help="Also accept a SIMULATED TEE under this root; may be repeated."),
    ] = None
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Also accept the SIMULATED TEE of this machine.")
    ] = False
    no_require_channel: Annotated[
        bool,
        typer.Option(
            "--no-require-channel", help="Accept a connection that is not shown to end in the TEE, such as plain HTTP."
        ),
    ] = False
    accept_tcb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            parser=same_status,
            help="Accept this TCB status besides UpToDate, such as SWHardeningNeeded; may be repeated.",
        ),
    ] = None
    compose_hash: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEX",
            parser=same_digest,
            help="Accept only an application with this measured compose hash; repeat it for several.",
        ),
    ] = None
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Demand proof of this claim, such as tcb_up_to_date; may be repeated."),
    ] = None
    kms_root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEX",
            parser=same_kms_root,
            help="Accept only keys that dstack's KMS with this root key released; repeat it for several.",
        ),
    ] = None
    require_gpus: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=1024, help="Demand evidence of this many NVIDIA GPUs; default: none."),
    ] = 0
    require_nras: Annotated[
        bool, typer.Option("--require-nras", help="Demand the verdict of NVIDIA's remote service on the GPUs.")
    ] = False
    require_crl: Annotated[
        bool, typer.Option("--require-crl", help="Demand AMD's revocation list for an SEV-SNP platform.")
    ] = False
    collateral: Annotated[
        Path | None,
        typer.Option(
            "--collateral",
            metavar="FILE",
            help="What the vendors say of the platform, where the service does not send it along.",
        ),
    ] = None
    nras_jwks: Annotated[
        Path | None,
        typer.Option(
            "--nras-jwks", metavar="FILE", help="The key set of NVIDIA's remote service, as you fetched it from there."
        ),
    ] = None
    max_keyset_age: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=1, help="Accept only a keyset that expires this soon; default: a year."),
    ] = None

    @property
    def pinned(self) -> tuple[Path, ...]:
        """The roots of simulators that count. Raises ConfigError."""
        return (*(self.trust_root or ()), *(local_roots() if self.allow_simulated else ()))

    def on_this_machine(self, *, is_plain: bool) -> Self:
        """The same for a service on a loopback address: the simulator of this machine counts unless another root was
        named, and plain HTTP, which never leaves the machine, will do.
        """
        named = self.trust_root or ([] if self.allow_simulated else existing_roots())
        return replace(self, trust_root=named, no_require_channel=self.no_require_channel or is_plain)

    def policy(self) -> Policy:
        """What has to hold. Raises ConfigError."""
        return Policy(
            trust_roots=(*HARDWARE_ROOTS, *self.pinned),
            require_channel=not self.no_require_channel,
            accepted_tcb=("UpToDate", *(self.accept_tcb or ())),
            claims=self.claim or (),
            compose_hashes=self.compose_hash or (),
            max_keyset_age_s=LONGEST_KEYSET_S if self.max_keyset_age is None else self.max_keyset_age,
            snp=SnpPolicy(require_crl=self.require_crl),
            gpu=GpuPolicy(required_gpus=self.require_gpus, require_nras=self.require_nras),
            dstack=DstackPolicy(kms_roots=frozenset(self.kms_root or ())),
        )

    def files(self) -> Collateral:
        """The files that have what a report lacks, and nobody to ask. Raises ConfigError."""
        return Collateral(offline=True, file=self.collateral, nras_jwks=self.nras_jwks)


@dataclass(frozen=True, kw_only=True)
class OnlineTrust(Trust):
    """Besides, whom to ask for what a service does not send along."""

    offline: Annotated[
        bool, typer.Option("--offline", help="Ask nobody but the service itself, whatever it does not send along.")
    ] = False
    pccs_url: PccsUrl = INTEL_PCS
    kds_url: KdsUrl = AMD_KDS
    nras_url: Annotated[str, typer.Option("--nras-url", metavar="URL", help="NVIDIA's remote attestation service.")] = (
        NVIDIA_NRAS
    )

    def sources(self) -> Collateral:
        """Where to get what a report lacks. Raises ConfigError."""
        return Collateral(
            offline=self.offline,
            file=self.collateral,
            nras_jwks=self.nras_jwks,
            pccs_url=self.pccs_url,
            kds_url=self.kds_url,
            nras_url=self.nras_url,
        )


def existing_roots() -> list[Path]:
    """What the simulators of this machine published: the root of its TEE, and that of its GPU where it has one."""
    directory = config.locate_home() / "simulator"
    return [path for path in (directory / "root.pem", directory / "gpu-root.pem") if path.exists()]


def local_roots() -> list[Path]:
    """The same. Raises ConfigError when there is no simulated TEE."""
    found = existing_roots()
    expected = config.locate_home() / "simulator" / "root.pem"
    if expected not in found:
        raise ConfigError(
            f"--allow-simulated: this machine has no simulated TEE, there is no {expected}",
            remedy="Start `confide serve` once, set CONFIDE_HOME to that of the service, or name its root with "
            "--trust-root.",
        )
    return found


def trusting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of Trust, or of the kind of it that its argument `trust` is, in its signature."""
    parameters = inspect.signature(command).parameters
    own, kind = [each for each in parameters.values() if each.name != "trust"], parameters["trust"].annotation
    named = inspect.signature(kind).parameters

    @functools.wraps(command)
    def called(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in named}
        command(**given, trust=kind(**chosen))

    options = [*own, *named.values()]
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect.signature looks at first
        sorted(
            (each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options),
            key=lambda each: each.name == "as_json",
        )
    )
    called.__annotations__ = {each.name: each.annotation for each in options}
    return called
