"""The embedded models of one service: loaded in one child process, each with a socket of its own.

Chat and embedding models live side by side. When the process dies it takes all of them along, and all start again.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec

from confide.config import Config, Model
from confide.engine import catalogue, gguf
from confide.engine.catalogue import Installed
from confide.engine.shaping import EngineFacts, special_pattern
from confide.engine.slots import Slots
from confide.engine.supervisor import Supervisor, default_threads, new_api_key, socket_directory
from confide.engine.wordpiece import WordPiece
from confide.engine.worker import Settings
from confide.errors import ConfigError
from confide.telemetry.logs import Log
from confide.upstream.base import Upstream
from confide.upstream.channel import Channel, Timeouts, UnixAddress
from confide.upstream.images import ImageFetcher
from confide.upstream.kinds.embedded import EmbeddedUpstream
from confide.upstream.kinds.embedded_embeddings import AT_A_TIME, EmbeddedEmbeddings

HERMES = Path(__file__).parent.parent / "engine" / "hermes.jinja"
# None is reused: llama.cpp closes a connection after two requests, unannounced, and a request would race with that.
ENGINE_IDLE_CONNECTIONS = 0
CHATML_OPEN = "<|im_start|>"
WORDPIECE = "bert"  # tokenizer.ggml.model


class Loaded(msgspec.Struct, frozen=True):
    """One model as it is to be loaded."""

    model: Model
    installed: Installed
    metadata: gguf.GgufMetadata
    settings: Settings


@contextlib.asynccontextmanager
async def open_engines(
    config: Config, home: Path, images: ImageFetcher, log: Log
) -> AsyncIterator[dict[str, Upstream]]:
    """The upstream of each embedded model, by the model's id; supervised, and unloaded on exit. No process for none.

    Raises ConfigError for weights that are not here or of another kind, VerificationError for other bytes.
    """
    models = [model for model in config.model if config.is_embedded(model)]
    if not models:
        yield {}
        return
    directory = socket_directory(home)
    loaded = [described(model, config, home, directory) for model in models]
    supervisor = Supervisor(
        [each.settings for each in loaded],
        before_start=lambda: check_weights([each.installed for each in loaded]),
        log=log,
    )
    channels = {each.model.id: channel_to(each, config) for each in loaded}
    try:
        await supervisor.start()
        yield {each.model.id: upstream(each, config, channels, supervisor, images) for each in loaded}
    finally:
        for channel in channels.values():
            await channel.close()
        await supervisor.stop()


def described(model: Model, config: Config, home: Path, directory: Path) -> Loaded:
    """What the worker and the gateway need for it. Raises ConfigError."""
    installed = catalogue.find(home, model.weights)
    metadata = gguf.read_metadata(installed.path)
    is_embedding = model.kind == "embeddings"
    check_kind(model, metadata)
    context = min(config.engine.context_length, metadata.context_length or config.engine.context_length)
    settings = Settings(
        model_path=str(installed.path),
        socket_path=str(directory / f"engine-{os.urandom(4).hex()}.sock"),
        api_key=new_api_key(),
        slots=config.engine.slots,
        context_length=context,
        batch=context if is_embedding else config.engine.batch,
        threads=config.engine.threads or default_threads(os.cpu_count()),
        template=None if is_embedding else template_for(installed, metadata),
        projector_path=model.projector,
        alias=model.id,
        is_embedding=is_embedding,
    )
    return Loaded(model, installed, metadata, settings)


def check_kind(model: Model, metadata: gguf.GgufMetadata) -> None:
    """Raise ConfigError where the weights do not make what the model is configured to make."""
    found = "embeddings" if metadata.makes_vectors else "chat"
    if model.kind != found:
        raise ConfigError(
            f'[[model]] {model.id}: got kind = "{model.kind}", and the weights {model.weights} are of kind "{found}"',
            remedy=f'Set kind = "{found}", or name other weights in upstream_model.',
        )


def check_weights(installed: Sequence[Installed]) -> None:
    """Runs before every start of the engine: flipped bytes load silently and generate garbage."""
    for each in installed:
        catalogue.verify_weights(each)


def channel_to(loaded: Loaded, config: Config) -> Channel:
    return Channel(
        UnixAddress(loaded.settings.socket_path),
        timeouts=Timeouts(first_byte_s=config.limits.first_byte_timeout_s, idle_s=config.limits.idle_timeout_s),
        max_connections=config.engine.slots * 2,
        max_idle=ENGINE_IDLE_CONNECTIONS,
    )


def upstream(
    loaded: Loaded, config: Config, channels: Mapping[str, Channel], supervisor: Supervisor, images: ImageFetcher
) -> Upstream:
    """What serves one loaded model."""
    model, metadata, settings, limits = loaded.model, loaded.metadata, loaded.settings, config.limits
    description = f"{loaded.installed.weights.id}, embedded"
    if model.kind == "embeddings":
        return EmbeddedEmbeddings(
            channel=channels[model.id],
            engine=supervisor,
            slots=Slots(AT_A_TIME, queue=limits.queue, timeout_s=limits.queue_timeout_s),
            api_key=settings.api_key,
            tokenizer=tokenizer_of(loaded),
            context_length=settings.context_length,
            vector_length=metadata.embedding_length or 0,
            token_count=metadata.token_count,
            description=description,
        )
    takes_images = "image" in model.modalities
    return EmbeddedUpstream(
        channel=channels[model.id],
        engine=supervisor,
        slots=Slots(config.engine.slots, queue=limits.queue, timeout_s=limits.queue_timeout_s),
        facts=EngineFacts(special_pattern(metadata.special_tokens), takes_images=takes_images),
        api_key=settings.api_key,
        max_n=limits.max_n,
        context_length=settings.context_length,
        description=description,
        images=images if takes_images else None,
    )


def tokenizer_of(loaded: Loaded) -> WordPiece | None:
    """Our own where the model's is WordPiece; None leaves texts to the engine."""
    if loaded.metadata.tokenizer_model != WORDPIECE:
        return None
    return WordPiece(gguf.read_tokens(loaded.installed.path))


def template_for(installed: Installed, metadata: gguf.GgufMetadata) -> str | None:
    """Our template where the catalogue says so, or the file brings none and speaks ChatML; else the file's own."""
    has_own = metadata.chat_template is not None
    if installed.weights.template == "hermes" or (not has_own and CHATML_OPEN in metadata.special_tokens):
        return HERMES.read_text()
    return None
