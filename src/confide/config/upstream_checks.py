"""What the keys of one upstream demand of each other."""

from urllib.parse import urlsplit

import msgspec

from confide.config.addresses import is_loopback
from confide.config.kinds import DESCRIBED
from confide.config.sections import ATTESTED_KINDS, EMBEDDED, Kind, Upstream
from confide.errors import ConfigError

VERIFICATION = (
    "trust_roots",
    "accepted_tcb",
    "denied_advisories",
    "compose_hashes",
    "claims",
    "kms_roots",
    "required_gpus",
    "accept_aggregator",
    "session_s",
)


def check_upstream(upstream: Upstream) -> None:
    """What the keys of one upstream demand of each other. Raises ConfigError."""
    where = f"[[upstream]] {upstream.name}"
    if upstream.kind == "embedded":
        given = msgspec.structs.replace(upstream, name=EMBEDDED)
        if given != Upstream(name=EMBEDDED, kind="embedded"):
            raise ConfigError(
                f"{where}: the embedded engine takes no keys here but name and kind",
                remedy="Set [engine] and [limits] instead.",
            )
        return
    if upstream.name == EMBEDDED:
        raise ConfigError(f"{where}: this name means the embedded engine", remedy="Choose another name.")
    if upstream.base_url is None:
        raise ConfigError(f"{where}: the key base_url is missing", remedy=DESCRIBED)
    if upstream.key_env is not None and upstream.key_file is not None:
        raise ConfigError(f"{where}: got key_env and key_file, expected one of them", remedy="Leave one out.")
    if upstream.key_header != "authorization" and upstream.key_env is None and upstream.key_file is None:
        raise ConfigError(
            f"{where}: key_header says where a key goes, and there is no key",
            remedy="Name one by key_env or key_file, or leave key_header out.",
        )
    check_address(where, upstream.kind, upstream.base_url)
    check_verification(where, upstream)


def check_address(where: str, kind: Kind, base_url: str) -> None:
    """Who may be in between. Raises ConfigError."""
    is_unix = base_url.startswith("unix:")
    try:
        url = urlsplit(base_url)
        host, _ = url.hostname or "", url.port
    except ValueError:
        host = ""
    if not host and not is_unix:
        raise ConfigError(f"{where}: base_url {base_url}: not a URL with a host and a port", remedy=DESCRIBED)
    is_near = is_unix or is_loopback(host)
    if kind == "local" and (not is_near or base_url.startswith("https:")):
        raise ConfigError(
            f"{where}: base_url {base_url}: an upstream of kind local is reached over loopback or a unix socket, "
            "inside this workload, and needs no TLS",
            remedy='Use http://127.0.0.1:PORT/v1 or unix:/PATH, or kind = "aci" for a service on another machine.',
        )
    if kind in ATTESTED_KINDS and not base_url.startswith("https:"):
        raise ConfigError(
            f"{where}: base_url {base_url}: an attested upstream is reached over TLS, whose key is what is verified",
            remedy="Use its https:// address.",
        )
    if kind == "openai" and not (is_near or base_url.startswith("https:")):
        raise ConfigError(
            f"{where}: base_url {base_url}: prompts and the key would go over the network in clear",
            remedy="Use its https:// address.",
        )


def check_verification(where: str, upstream: Upstream) -> None:
    """Raises ConfigError."""
    if (upstream.kind == "openai") != upstream.allow_unverified:
        if upstream.kind == "openai":
            raise ConfigError(
                f"{where}: an upstream of kind openai proves nothing, and allow_unverified is not true",
                remedy="Set allow_unverified = true to send it prompts all the same; receipts will say so.",
            )
        raise ConfigError(
            f"{where}: allow_unverified is for kind openai; one of kind {upstream.kind} needs no such leave",
            remedy="Leave allow_unverified out.",
        )
    defaults = Upstream(name=upstream.name, kind=upstream.kind)
    changed = [name for name in VERIFICATION if getattr(upstream, name) != getattr(defaults, name)]
    beyond = [name for name in changed if name in ("claims", "kms_roots", "required_gpus", "accept_aggregator")]
    if upstream.kind == "legacy-proxy" and beyond:
        raise ConfigError(
            f"{where}: {beyond[0]} asks for what the older report cannot show",
            remedy='Leave it out, or use kind = "aci" if the service has an aci/1 report.',
        )
    if changed and upstream.kind not in ATTESTED_KINDS:
        raise ConfigError(
            f"{where}: {changed[0]} is about attested upstreams, and this one is of kind {upstream.kind}",
            remedy="Leave it out.",
        )
