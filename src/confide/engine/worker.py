"""The child process that holds the models: `python -m confide.engine.worker`.

One line of JSON on standard input, an array of Settings, then the pipe stays open: when it closes, the parent is gone
and so is this process. Each model has a server and a socket of its own. When all are loaded it prints one line `ready`;
on failure one line `failed <model> <reason>`, and exits with status 1.
Standard error is thrown away by the parent, because llama.cpp prints fragments of a client's grammar there.

What must hold (measured, see the engine's facts in docs/engine.md): the HTTP server of llama.cpp cannot be switched
off, so it listens on a unix socket in a private directory and wants a key; the prompt cache is off, because a hit is
visible in time across tenants; a slot's context is its own, because a shared one lets one long request end all others.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the worker needs for one model; lengths in tokens. `template` None means the model file's own chat template.

    `is_embedding`: it makes vectors, and a text must fit into one batch.
    """

    model_path: str
    socket_path: str
    api_key: str
    slots: int
    context_length: int
    batch: int
    threads: int
    template: str | None = None
    projector_path: str | None = None
    alias: str = "model"
    is_embedding: bool = False


def main() -> None:
    """Load, say so, and stay until the parent's end of the pipe closes."""
    models = msgspec.json.decode(sys.stdin.buffer.readline(), type=list[Settings])
    os.umask(0o077)
    keep_no_core()
    servers = []
    for settings in models:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(settings.socket_path)
        try:
            servers.append(serve(settings))
        except Exception as error:  # noqa: BLE001 - entry of the child process: the parent needs one line, whatever it was
            say(f"failed {settings.alias} {type(error).__name__}")
            os._exit(1)
    say("ready")
    while sys.stdin.buffer.read(4096):
        pass
    # A clean unload waits for running generations; nobody is left to read them.
    for settings in models:
        Path(settings.socket_path).unlink(missing_ok=True)
    del servers
    os._exit(0)


def keep_no_core() -> None:
    """A crash leaves no image of the prompts behind. One byte: a core that is piped to a program ignores zero."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if most == resource.RLIM_INFINITY or most >= 1 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def serve(settings: Settings) -> object:
    """Start llama.cpp's server on the unix socket; raises RuntimeError where the model does not load."""
    import xllamacpp  # here, so that only the child pays for loading the engine

    params = xllamacpp.CommonParams()
    params.model.path = settings.model_path
    params.model_alias = {settings.alias}
    params.n_parallel = settings.slots
    params.kv_unified = True
    params.n_ctx = settings.slots * settings.context_length
    params.kv_unified_per_slot = settings.context_length
    params.n_batch = params.n_ubatch = settings.batch  # a cancelled prefill runs to the end of its batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.flash_attn_type = 1
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.endpoint_slots = False
    params.endpoint_metrics = True  # counters only, behind the key; the supervisor and tests read them
    params.endpoint_props = False
    params.ui = False
    params.n_threads_http = settings.slots * 2 + 4
    params.verbosity = -1
    params.hostnames = [settings.socket_path]
    params.api_keys = [settings.api_key]
    params.embedding = settings.is_embedding  # pooled as the model's file says, and of length 1
    if settings.template is not None:
        params.chat_template = settings.template
    if settings.projector_path is not None:
        params.mmproj.path = settings.projector_path
        params.mmproj_use_gpu = False
    return xllamacpp.Server(params)


def say(line: str) -> None:
    """One line to the parent."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
