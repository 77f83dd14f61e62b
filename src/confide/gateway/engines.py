"""The embedded engine of a model: what it is started with, its child process, and the upstream that speaks to it.

One process has the child (`supervised`); any that knows the plan may speak to it (`reached`), which is how several
workers share one engine.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from confide.config import Config, Model
from confide.engine import catalogue, gguf
from confide.engine.catalogue import Installed
from confide.engine.shaping import EngineFacts, special_pattern
from confide.engine.slots import Slots
from confide.engine.supervisor import Supervisor, default_threads, new_api_key, socket_directory
from confide.engine.worker import Settings
from confide.telemetry.logs import Log
from confide.upstream.channel import Channel, Timeouts, UnixAddress
from confide.upstream.images import ImageFetcher
from confide.upstream.kinds.embedded import EmbeddedUpstream, EngineSlots, EngineState

HERMES = Path(__file__).parent.parent / "engine" / "hermes.jinja"
# None is reused: llama.cpp closes a connection after two requests, unannounced, and a request would race with that.
ENGINE_IDLE_CONNECTIONS = 0
CHATML_OPEN = "<|im_start|>"


@dataclass(frozen=True)
class EnginePlan:
    """What one model's engine is started with, socket and key included, and what its file says of it."""

    model: Model
    installed: Installed
    metadata: gguf.GgufMetadata
    settings: Settings


def engine_plan(model: Model, config: Config, home: Path) -> EnginePlan:
    """The plan for a configured model. Raises ConfigError, GgufError."""
    installed = catalogue.find(home, model.weights)
    metadata = gguf.read_metadata(installed.path)
    directory = socket_directory(home)
    settings = Settings(
        model_path=str(installed.path),
        socket_path=str(directory / f"engine-{os.urandom(4).hex()}.sock"),
        api_key=new_api_key(),
        slots=config.engine.slots,
        context_length=min(config.engine.context_length, metadata.context_length or config.engine.context_length),
        batch=config.engine.batch,
        threads=config.engine.threads or default_threads(os.cpu_count()),
        template=template_for(installed, metadata),
        projector_path=model.projector,
        alias=model.id,
    )
    return EnginePlan(model, installed, metadata, settings)


@contextlib.asynccontextmanager
async def embedded(
    model: Model, config: Config, home: Path, images: ImageFetcher, log: Log
) -> AsyncIterator[EmbeddedUpstream]:
    """A configured model, loaded and supervised; unloaded on exit."""
    plan = engine_plan(model, config, home)
    async with (
        supervised(plan, log) as supervisor,
        reached(plan, config, images, engine=supervisor, slots=slots_of(config)) as upstream,
    ):
        yield upstream


@contextlib.asynccontextmanager
async def supervised(plan: EnginePlan, log: Log) -> AsyncIterator[Supervisor]:
    """The child process, loaded and kept alive; ended on exit."""
    supervisor = Supervisor(plan.settings, before_start=lambda: check_weights(plan.installed), log=log)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop()


@contextlib.asynccontextmanager
async def reached(
    plan: EnginePlan, config: Config, images: ImageFetcher, *, engine: EngineState, slots: EngineSlots
) -> AsyncIterator[EmbeddedUpstream]:
    """The upstream that speaks to a planned engine, whoever keeps it alive."""
    channel = Channel(
        UnixAddress(plan.settings.socket_path),
        timeouts=Timeouts(first_byte_s=config.limits.first_byte_timeout_s, idle_s=config.limits.idle_timeout_s),
        max_connections=config.engine.slots * 2,
        max_idle=ENGINE_IDLE_CONNECTIONS,
    )
    takes_images = "image" in plan.model.modalities
    try:
        yield EmbeddedUpstream(
            channel=channel,
            engine=engine,
            slots=slots,
            facts=EngineFacts(special_pattern(plan.metadata.special_tokens), takes_images=takes_images),
            api_key=plan.settings.api_key,
            max_n=config.limits.max_n,
            context_length=plan.settings.context_length,
            description=f"{plan.installed.weights.id}, embedded",
            images=images if takes_images else None,
        )
    finally:
        await channel.close()


def slots_of(config: Config) -> Slots:
    """The slots of one engine."""
    return Slots(config.engine.slots, queue=config.limits.queue, timeout_s=config.limits.queue_timeout_s)


def check_weights(installed: Installed) -> None:
    """Runs before every start of the engine: flipped bytes load silently and generate garbage."""
    catalogue.verify_weights(installed)


def template_for(installed: Installed, metadata: gguf.GgufMetadata) -> str | None:
    """Our template where the catalogue says so, or the file brings none and speaks ChatML; else the file's own."""
    has_own = metadata.chat_template is not None
    if installed.weights.template == "hermes" or (not has_own and CHATML_OPEN in metadata.special_tokens):
        return HERMES.read_text()
    return None
