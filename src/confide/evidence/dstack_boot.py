"""What a dstack guest logged of its boot, by the names that dstack gives its events (tee-evidence 3.5).

On entry: a well-formed event log. On exit: its boot events, each with a payload as long as it has to be. NOT shown:
that the log is a quote's (`evidence.dstack`, 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from confide.evidence.event_log import INIT_SCRIPT_HASH, EventLog, LogError, unhexed
from confide.evidence.result import quoted
from confide.protocol.canonical import DocumentError, parse_document, typed

APP_ID, COMPOSE_HASH, INSTANCE_ID = "app-id", "compose-hash", "instance-id"
OS_IMAGE_HASH, MR_KMS, PROVIDER_EVENT, GPU_POLICY_HASH = "os-image-hash", "mr-kms", "key-provider", "gpu-policy-hash"

# Boot events whose payload has a fixed length: the lengths in bytes. A guest without an instance id logs an empty one.
LENGTHS: Mapping[str, tuple[int, ...]] = {
    APP_ID: (20,),
    COMPOSE_HASH: (32,),
    INSTANCE_ID: (0, 20),
    OS_IMAGE_HASH: (32,),
    MR_KMS: (32,),
    GPU_POLICY_HASH: (32,),
    INIT_SCRIPT_HASH: (32,),
}
MAX_PROVIDER_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class MeasuredBoot:
    """What the guest logged before its application ran, once the log was shown to be a verified quote's.

    `app_id`: 20 bytes. `compose_hash`: 32. `instance_id`: 20, empty or None. `os_image_hash`: 32, no proof of an image.
    `key_provider`: the event's payload as it is. Members of events that were not there are None.
    """

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes | None
    os_image_hash: bytes | None
    mr_kms: bytes | None
    gpu_policy_hash: bytes | None
    key_provider: bytes | None
    init_script_hashes: tuple[bytes, ...]


class Provider(msgspec.Struct, frozen=True):
    """The payload of the key-provider event. `id`: hex."""

    name: str
    id: str


def read_boot(log: EventLog) -> MeasuredBoot:
    """The boot events by name. Raises LogError when one is missing, doubled, or of a wrong length."""
    for event in log.boot_events:
        lengths = LENGTHS.get(event.name, (len(event.payload),))
        if len(event.payload) not in lengths:
            raise LogError(f"the {event.name} event has {len(event.payload)} bytes, expected {lengths[-1]}")
    named = {event.name: event.payload for event in log.boot_events if event.name != INIT_SCRIPT_HASH}
    return MeasuredBoot(
        app_id=log.payload(APP_ID),
        compose_hash=log.payload(COMPOSE_HASH),
        instance_id=named.get(INSTANCE_ID),
        os_image_hash=named.get(OS_IMAGE_HASH),
        mr_kms=named.get(MR_KMS),
        gpu_policy_hash=named.get(GPU_POLICY_HASH),
        key_provider=named.get(PROVIDER_EVENT),
        init_script_hashes=tuple(event.payload for event in log.boot_events if event.name == INIT_SCRIPT_HASH),
    )


def read_provider(payload: bytes) -> Provider:
    """Name and id (lower-case hex) in a key-provider event. Raises LogError."""
    try:
        document = parse_document(payload, what="the key-provider event", most_bytes=MAX_PROVIDER_BYTES)
        provider = typed(document, Provider, what="the key-provider event")
        return Provider(provider.name, unhexed(provider.id).hex())
    except (DocumentError, LogError) as error:
        raise LogError(f"the key-provider event cannot be read: {quoted(error)}") from None
