"""The service under test, a process of its own: `python -m bench.service SOCKET HOME`.

All of it is real but the engine: uvicorn as `confide serve` runs it, an API key, the store on disk, a proof committed
before each last frame, the log. Only the limits are wider, so that 1,000 streams may be open.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

import uvloop

from bench.answers import MODEL
from confide.attester.simulated import SimulatedAttester
from confide.config import Config, Model, Server
from confide.engine.facts import EngineFacts
from confide.engine.slots import Slots
from confide.engine.special import special_pattern
from confide.gateway.app import Gateway
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.listening import bound_socket, run_server
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.service import known_keys
from confide.store.sqlite import open_store
from confide.telemetry.logs import Log
from confide.upstream.channel import Channel, Timeouts, UnixAddress
from confide.upstream.kinds.embedded import EmbeddedUpstream

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
MOST_STREAMS = 2048


class Ready:
    """An engine that is always there."""

    is_ready = True

    def check_ready(self) -> None:
        """It is."""


def upstream(path: str, closing: contextlib.AsyncExitStack) -> EmbeddedUpstream:
    """The scripted engine, spoken to like the embedded one."""
    channel = Channel(
        UnixAddress(path), timeouts=Timeouts(), max_connections=MOST_STREAMS, max_idle=0
    )  # as the service does
    closing.push_async_callback(channel.close)
    return EmbeddedUpstream(
        channel=channel,
        engine=Ready(),
        slots=Slots(MOST_STREAMS, queue=0, timeout_s=60),
        counting=Slots(1, queue=0, timeout_s=60),
        facts=EngineFacts(special_pattern(SPECIAL)),
        api_key="engine-key",
        max_n=16,
        context_length=4096,
        description="scripted",
    )


def announce(listener: socket.socket, key: str) -> None:
    """One line for the parent."""
    print(json.dumps({"port": listener.getsockname()[1], "key": key}), flush=True)


async def main(path: str, home: Path) -> None:
    """Serve until SIGTERM. The log is written, to where nothing is kept."""
    with Path(os.devnull).open("w") as log:
        await serve(path, home, Log(log))


async def serve(path: str, home: Path, log: Log) -> None:
    """As `confide serve` does, with the scripted engine in place of the supervised one."""
    config = Config(server=Server(port=0), model=(Model(id=MODEL, upstream_model="scripted"),))
    async with contextlib.AsyncExitStack() as closing:
        listener = closing.enter_context(bound_socket(config))
        store = open_store(None, home, config.store)
        closing.push_async_callback(store.close)
        _, key = await asyncio.to_thread(store.create_key, "bench")
        authenticator = await known_keys(store, config, closing)
        served = ServedModel.by(config.model[0], upstream(path, closing), created=1, simulated=True)
        lifecycle = Lifecycle()
        gateway = Gateway(
            config=config,
            attester=SimulatedAttester(home, lambda: int(time.time())),
            authenticator=authenticator,
            models_served=ModelTable([served]),
            store=store,
            lifecycle=lifecycle,
            log=log,
            now=time.time,
        )
        await run_server(gateway, config, listener, lifecycle, lambda: announce(listener, key))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2])))
