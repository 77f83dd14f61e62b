"""The embedded models of one service: what each is started with, their one child process, and who speaks to them.

Chat and embedding models live side by side in that process, each with a socket of its own. When it dies it takes all of
them along, and all start again. One process has the child (`supervised`); any that knows the plans may speak to it
(`reached`).
"""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.config import Config, Model
from confide.engine import catalogue, gguf
from confide.engine.catalogue import Installed
from confide.engine.facts import THINKS, EngineFacts
from confide.engine.slots import Slots
from confide.engine.special import special_pattern
from confide.engine.supervisor import Supervisor, default_threads, new_api_key, socket_directory
from confide.engine.wordpiece import WordPiece
from confide.engine.worker import Settings
from confide.errors import ConfigError
from confide.telemetry.logs import Log
from confide.upstream.base import Upstream
from confide.upstream.channel import Channel, Timeouts, UnixAddress
from confide.upstream.images import ImageFetcher
from confide.upstream.kinds.embedded import EmbeddedUpstream, EngineSlots, EngineState
from confide.upstream.kinds.embedded_embeddings import AT_A_TIME, EmbeddedEmbeddings

HERMES = Path(__file__).parent.parent / "engine" / "hermes.jinja"
# None is reused: llama.cpp closes a connection after two requests, unannounced, and a request would race with that.
ENGINE_IDLE_CONNECTIONS = 0
COUNTS_AT_A_TIME = 1  # of tokens: a core is busy with each
CHATML_OPEN = "<|im_start|>"
WORDPIECE = "bert"  # tokenizer.ggml.model


@dataclass(frozen=True)
class EnginePlan:
    """What one model is started with, socket and key included, and what its file says of it."""

    model: Model
    installed: Installed
    metadata: gguf.GgufMetadata
    settings: Settings


def engine_plan(model: Model, config: Config, home: Path) -> EnginePlan:
    """The plan for a configured model. Raises ConfigError, GgufError."""
    installed = catalogue.find(home, model.weights)
    metadata = gguf.read_metadata(installed.path)
    check_kind(model, metadata)
    is_embedding = model.kind == "embeddings"
    context = min(config.engine.context_length, metadata.context_length or config.engine.context_length)
    settings = Settings(
        model_path=str(installed.path),
        socket_path=str(socket_directory(home) / f"engine-{os.urandom(4).hex()}.sock"),
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
    return EnginePlan(model, installed, metadata, settings)


def check_kind(model: Model, metadata: gguf.GgufMetadata) -> None:
    """Raise ConfigError where the weights do not make what the model is configured to make."""
    found = "embeddings" if metadata.makes_vectors else "chat"
    if model.kind != found:
        raise ConfigError(
            f'[[model]] {model.id}: got kind = "{model.kind}", and the weights {model.weights} are of kind "{found}"',
            remedy=f'Set kind = "{found}", or name other weights in upstream_model.',
        )


@contextlib.asynccontextmanager
async def open_engines(
    config: Config, home: Path, images: ImageFetcher, log: Log
) -> AsyncIterator[dict[str, Upstream]]:
    """The upstream of each embedded model, by the model's id; loaded and supervised, unloaded on exit.

    Raises ConfigError for weights that are not here or of another kind, VerificationError for other bytes.
    """
    plans = [engine_plan(model, config, home) for model in config.model if config.is_embedded(model)]
    async with contextlib.AsyncExitStack() as closing:
        if plans:
            supervisor = await closing.enter_async_context(supervised(plans, log))
            yield {
                plan.model.id: await closing.enter_async_context(
                    reached(plan, config, images, engine=supervisor, slots=slots_of(plan, config))
                )
                for plan in plans
            }
        else:
            yield {}


@contextlib.asynccontextmanager
async def supervised(plans: Sequence[EnginePlan], log: Log) -> AsyncIterator[Supervisor]:
    """The child process with all models, loaded and kept alive; ended on exit."""
    settings = [plan.settings for plan in plans]
    supervisor = Supervisor(settings, before_start=lambda: check_weights([plan.installed for plan in plans]), log=log)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop()


@contextlib.asynccontextmanager
async def reached(
    plan: EnginePlan, config: Config, images: ImageFetcher, *, engine: EngineState, slots: Mapping[str, EngineSlots]
) -> AsyncIterator[Upstream]:
    """The upstream that speaks to a planned model, whoever keeps its process alive. `slots`: see `turns_of`."""
    channel = Channel(
        UnixAddress(plan.settings.socket_path),
        timeouts=Timeouts(first_byte_s=config.limits.first_byte_timeout_s, idle_s=config.limits.idle_timeout_s),
        max_connections=config.engine.slots * 2,
        max_idle=ENGINE_IDLE_CONNECTIONS,
    )
    open_one = vectors_from if plan.model.kind == "embeddings" else text_from
    try:
        yield open_one(plan, config, images, channel=channel, engine=engine, slots=slots)
    finally:
        await channel.close()


def text_from(
    plan: EnginePlan,
    config: Config,
    images: ImageFetcher,
    *,
    channel: Channel,
    engine: EngineState,
    slots: Mapping[str, EngineSlots],
) -> Upstream:
    """The upstream of a model that generates text."""
    takes_images = "image" in plan.model.modalities
    template = plan.settings.template or plan.metadata.chat_template or ""
    facts = EngineFacts(
        special_pattern(plan.metadata.special_tokens), takes_images=takes_images, reasons=THINKS in template
    )
    return EmbeddedUpstream(
        channel=channel,
        engine=engine,
        slots=slots[plan.model.id],
        counting=slots[counts_of(plan)],
        facts=facts,
        api_key=plan.settings.api_key,
        max_n=config.limits.max_n,
        context_length=plan.settings.context_length,
        description=f"{plan.installed.weights.id}, embedded",
        images=images if takes_images else None,
    )


def vectors_from(
    plan: EnginePlan,
    _config: Config,
    _images: ImageFetcher,
    *,
    channel: Channel,
    engine: EngineState,
    slots: Mapping[str, EngineSlots],
) -> Upstream:
    """The upstream of a model that makes vectors."""
    return EmbeddedEmbeddings(
        channel=channel,
        engine=engine,
        slots=slots[plan.model.id],
        api_key=plan.settings.api_key,
        tokenizer=tokenizer_of(plan),
        context_length=plan.settings.context_length,
        vector_length=plan.metadata.embedding_length or 0,
        token_count=plan.metadata.token_count,
        description=f"{plan.installed.weights.id}, embedded",
    )


def slots_of(plan: EnginePlan, config: Config) -> Mapping[str, Slots]:
    """The slots of one model, as `turns_of` calls them."""
    queue, timeout_s = config.limits.queue, config.limits.queue_timeout_s
    return {name: Slots(count, queue=queue, timeout_s=timeout_s) for name, count in turns_of(plan, config).items()}


def turns_of(plan: EnginePlan, config: Config) -> Mapping[str, int]:
    """How much its engine does at a time, whoever asks: generations or batches, by the model's id, and counts."""
    if plan.model.kind == "embeddings":
        return {plan.model.id: AT_A_TIME}
    return {plan.model.id: config.engine.slots, counts_of(plan): COUNTS_AT_A_TIME}


def counts_of(plan: EnginePlan) -> str:
    """What its turns to count tokens are called; no model's id has a space in it."""
    return f"{plan.model.id} counts"


def check_weights(installed: Sequence[Installed]) -> None:
    """Runs before every start of the engine: flipped bytes load silently and generate garbage."""
    for each in installed:
        catalogue.verify_weights(each)


def tokenizer_of(plan: EnginePlan) -> WordPiece | None:
    """Our own where the model's is WordPiece; None leaves texts to the engine."""
    if plan.metadata.tokenizer_model != WORDPIECE:
        return None
    return WordPiece(gguf.read_tokens(plan.installed.path))


def template_for(installed: Installed, metadata: gguf.GgufMetadata) -> str | None:
    """Our template where the catalogue says so, or the file brings none and speaks ChatML; else the file's own."""
    has_own = metadata.chat_template is not None
    if installed.weights.template == "hermes" or (not has_own and CHATML_OPEN in metadata.special_tokens):
        return HERMES.read_text()
    return None
