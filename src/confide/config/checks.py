"""What one key of a configuration cannot know by itself."""

from collections.abc import Sequence

from confide.config.kinds import DESCRIBED, NONCE
from confide.config.sections import DIRECT_KINDS, EMBEDDED, Attester, Config, Model, Server
from confide.config.upstream_checks import check_upstream
from confide.errors import ConfigError


def check(config: Config) -> None:
    """What one key cannot know by itself. Raises ConfigError."""
    server = config.server
    try:
        server.host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(
            f"[server] host {server.host}: not a host name", remedy="Use 127.0.0.1 or one of this machine's addresses."
        ) from error
    check_tls(server)
    check_gpu(config.attester)
    check_models(config.model)
    check_upstreams(config)


def check_tls(server: Server) -> None:
    """Which of the TLS keys go together. Raises ConfigError."""
    if server.tls == "attested":
        if server.tls_key is not None:
            raise ConfigError(
                '[server] tls_key: got a key file with tls = "attested", where the attester makes the key',
                remedy="Leave tls_key out; tls_cert may name a chain issued for the request of `confide tls csr`.",
            )
        return
    if server.domain is not None:
        raise ConfigError(
            '[server] domain: it lists the attested TLS key for one host, and tls is not "attested"',
            remedy='Set tls = "attested", or leave domain out.',
        )
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError(
            "[server] tls_cert and tls_key: got one of them, expected both or neither",
            remedy="Name the PEM files of the certificate and of its private key.",
        )


def check_gpu(attester: Attester) -> None:
    """The source of GPU evidence has what it needs, and nothing is set for another one. Raises ConfigError."""
    given: dict[str, Sequence[str]] = {
        "command": attester.gpu_command,
        "url": (attester.gpu_url,) if attester.gpu_url is not None else (),
        "file": (attester.gpu_file,) if attester.gpu_file is not None else (),
    }
    for source, texts in given.items():
        if bool(texts) != (attester.gpu == source):
            raise ConfigError(
                f'[attester] gpu: got "{attester.gpu}", and gpu = "{source}" goes together with gpu_{source}',
                remedy=f"Set both or neither. {DESCRIBED}",
            )
        if texts and not any(NONCE in text for text in texts):
            raise ConfigError(
                f"[attester] gpu_{source}: there is no {NONCE} in it",
                remedy=f"Put {NONCE} where the 64 hex digits of the nonce go: evidence for no nonce proves nothing.",
            )


def check_models(models: tuple[Model, ...]) -> None:
    """Each name means one model. Raises ConfigError."""
    if not models:
        raise ConfigError("[[model]]: got none, expected at least one", remedy="Leave it out for the embedded model.")
    seen: set[str] = set()
    for number, model in enumerate(models, start=1):
        if model.upstream == EMBEDDED and model.upstream_model is None:
            raise ConfigError(
                f"[[model]] number {number}: the key upstream_model is missing",
                remedy="Name an entry of `confide models list`, or an upstream.",
            )
        for name in (model.id, *model.aliases):
            if name in seen:
                raise ConfigError(
                    f"[[model]] {name}: the same id or alias is given twice", remedy="Give each model names of its own."
                )
            seen.add(name)


def check_upstreams(config: Config) -> None:
    """Each upstream has what its kind needs, each model names some that exist, and there are no two modes of serving.

    Raises ConfigError.
    """
    for upstream in config.upstream:
        check_upstream(upstream)
    names = [upstream.name for upstream in config.upstream]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"[[upstream]] {twice}: the same name is given twice", remedy="Give each a name of its own.")
    for model in config.model:
        check_choices(model, config)
    named = {choice.name for model in config.model for choice in model.choices}
    unused = next((name for name in names if name not in named), None)
    if unused is not None:
        raise ConfigError(
            f"[[upstream]] {unused}: no model names it",
            remedy=f'Set upstream = "{unused}" in a [[model]], or take it out.',
        )
    kinds = {config.upstreams[name].kind for name in named}
    direct, behind = sorted(kinds.intersection(DIRECT_KINDS)), sorted(kinds.difference(DIRECT_KINDS))
    if direct and behind:
        raise ConfigError(
            f"[[model]]: got upstreams of kind {', '.join(direct)} (inside this workload) beside {', '.join(behind)} "
            "(behind a second hop); a service is one or the other, and its attestation report says which",
            remedy="Run two services.",
        )


def check_choices(model: Model, config: Config) -> None:
    """Raises ConfigError."""
    names = [choice.name for choice in model.choices]
    for name in names:
        if name not in config.upstreams:
            known = ", ".join(config.upstreams)
            raise ConfigError(
                f"[[model]] {model.id}: got upstream {name!r}, expected one of: {known}",
                remedy=f"Describe it in an [[upstream]] with this name. {DESCRIBED}",
            )
        if names.count(name) > 1:
            raise ConfigError(f"[[model]] {model.id}: upstream {name} is given twice", remedy="Name each once.")
    if config.is_embedded(model) and model.upstream_model is None:
        raise ConfigError(
            f"[[model]] {model.id}: the key upstream_model is missing", remedy="Name an entry of `confide models list`."
        )
    if config.is_embedded(model) and model.supported_parameters is not None:
        raise ConfigError(
            f"[[model]] {model.id}: supported_parameters is for models behind an upstream; of the embedded engine they "
            "are known",
            remedy="Leave it out.",
        )
    is_relayed = any(config.upstreams[name].kind != "embedded" for name in names)
    if ("image" in model.modalities) != (model.projector is not None) and not (is_relayed and model.projector is None):
        raise ConfigError(
            f'[[model]] {model.id}: modality "image" and projector go together; got only one of them',
            remedy='Set modalities = ["text", "image"] and projector = "FILE.gguf", or neither.',
        )
    check_vectors(model, config)
    unattested = [name for name in names if config.upstreams[name].kind == "openai"]
    if (model.tee_only or config.server.tee_only) and len(unattested) == len(names):
        raise ConfigError(
            f"[[model]] {model.id}: tee_only is set, and every upstream that it names is of kind openai",
            remedy="Name an attested upstream, or leave tee_only out.",
        )


def check_vectors(model: Model, config: Config) -> None:
    """What goes together with the kind of a model. Raises ConfigError."""
    if model.kind == "chat":
        if model.vector_length is not None:
            raise ConfigError(
                f'[[model]] {model.id}: vector_length is for kind = "embeddings"',
                remedy="Leave it out, or set the kind.",
            )
        return
    if model.modalities != ("text",):
        raise ConfigError(
            f"[[model]] {model.id}: an embedding model takes text alone", remedy="Leave modalities and projector out."
        )
    for name in (choice.name for choice in model.choices):
        upstream = config.upstreams[name]
        if upstream.kind != "embedded" and "embeddings" not in upstream.surfaces:
            raise ConfigError(
                f'[[model]] {model.id}: got kind = "embeddings", and upstream {name} does not have this surface',
                remedy='Put "embeddings" among its surfaces, or name another upstream.',
            )
