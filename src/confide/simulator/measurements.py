"""What the SIMULATED guest measured while it booted: event log, registers, and dstack's `Info` (tee-evidence 3.5, 5.3).

Nothing was launched and nothing was measured. The firmware, kernel and image are fixed names, so that every simulated
guest of this version shows the same MRTD and RTMR0 to RTMR2; RTMR3 differs by instance and key provider.
"""

import json
from dataclasses import dataclass, field
from hashlib import sha256, sha384

RUNTIME_EVENT = 0x08000001  # dstack's event type in RTMR3; everything else is a boot entry
EV_EVENT_TAG = 6  # TCG PC Client: a measured blob with a name

MR_TD = sha384(b"Simulated TD: initial memory").digest()
OS_IMAGE_HASH = sha256(b"Simulated OS image").digest()
NO_OWNER = bytes(48)

COMPOSE_FILE = """\
# SIMULATED TEE: nothing was launched from this file, and nothing protects what runs.
services:
  confide:
    image: confide-simulated
    command: serve
"""
APP_COMPOSE = json.dumps(
    {
        "manifest_version": 2,
        "name": "confide-simulated",
        "runner": "docker-compose",
        "docker_compose_file": COMPOSE_FILE,
        "simulated": True,
    }
)
COMPOSE_HASH = sha256(APP_COMPOSE.encode()).digest()
APP_ID = COMPOSE_HASH[:20]
MR_CONFIG_ID = b"\x01" + COMPOSE_HASH + bytes(15)  # form 01, the one that legacy verifiers know

VM_CONFIG = json.dumps(
    {"os_image_hash": OS_IMAGE_HASH.hex(), "cpu_count": 2, "memory_size": 2 * 1024**3, "simulated": True}
)


@dataclass(frozen=True, kw_only=True)
class LogStyle:
    """How a guest logs; versions of dstack differ. `version`: the form of runtime digests, 1 or 2. `empty_digests`:
    they are left out of the log. `application_event`: the application logged something after `system-ready`.
    """

    version: int = 1
    empty_digests: bool = False
    application_event: bool = False


@dataclass(frozen=True)
class Event:
    """One entry of the event log: a digest that extended register `imr` (0 to 3). `version`: of a runtime digest."""

    imr: int
    event_type: int
    digest: bytes
    name: str
    payload: bytes
    version: int = 1

    @classmethod
    def boot(cls, imr: int, what: str) -> "Event":
        """A boot entry: the digest of a blob, without a name."""
        return cls(imr, EV_EVENT_TAG, sha384(what.encode()).digest(), "", what.encode())

    @classmethod
    def runtime(cls, name: str, payload: bytes = b"", version: int = 1) -> "Event":
        """A runtime event of RTMR3 with its digest in form 1 or 2 (tee-evidence 3.5)."""
        content = RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
        if version == 2:
            members = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT}
            content = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()
        return cls(3, RUNTIME_EVENT, sha384(content).digest(), name, payload, version)

    def document(self, style: LogStyle) -> dict[str, object]:
        """The entry as dstack writes it; byte fields are lower-case hex."""
        is_runtime = self.event_type == RUNTIME_EVENT
        members: dict[str, object] = {
            "imr": self.imr,
            "event_type": self.event_type,
            "digest": "" if is_runtime and style.empty_digests else self.digest.hex(),
            "event": self.name,
            "event_payload": self.payload.hex(),
        }
        return members | ({"version": 2} if self.version == 2 else {})


@dataclass(frozen=True)
class SimulatedBoot:
    """One simulated guest. `instance_id`: 20 bytes. `device_id`: 32 bytes. `key_provider_id`: SPKI DER of the KMS."""

    instance_id: bytes
    device_id: bytes
    key_provider_id: bytes
    style: LogStyle = field(default_factory=LogStyle)

    @property
    def key_provider_info(self) -> str:
        """JSON text `{name, id}`, the payload of the key-provider event."""
        return json.dumps({"name": "kms", "id": self.key_provider_id.hex()})

    @property
    def events(self) -> tuple[Event, ...]:
        """The log in the order of a real boot."""
        boot = (
            Event.boot(0, "Simulated firmware configuration"),
            Event.boot(1, "Simulated kernel"),
            Event.boot(2, "Simulated kernel command line"),
        )
        return boot + tuple(Event.runtime(name, payload, self.style.version) for name, payload in self._runtime_events)

    @property
    def _runtime_events(self) -> tuple[tuple[str, bytes], ...]:
        later = (("an-event-of-the-application", b"simulated"),) if self.style.application_event else ()
        return (
            ("system-preparing", b""),
            ("app-id", APP_ID),
            ("compose-hash", COMPOSE_HASH),
            ("instance-id", self.instance_id),
            ("boot-mr-done", b""),
            ("key-provider", self.key_provider_info.encode()),
            ("system-ready", b""),
            *later,
        )

    @property
    def event_log(self) -> str:
        """The log as JSON text."""
        return json.dumps(self.documents)

    @property
    def documents(self) -> list[dict[str, object]]:
        """The entries of the log, as JSON members."""
        return [event.document(self.style) for event in self.events]

    @property
    def rtmrs(self) -> tuple[bytes, ...]:
        """RTMR0 to RTMR3, 48 bytes each: the log, replayed."""
        registers = [bytes(48)] * 4
        for event in self.events:
            registers[event.imr] = sha384(registers[event.imr] + event.digest).digest()
        return tuple(registers)

    @property
    def mr_aggregated(self) -> bytes:
        """32 bytes over all measurements, as dstack sums them up."""
        return sha256(b"".join((MR_TD, *self.rtmrs, MR_CONFIG_ID, NO_OWNER, NO_OWNER))).digest()

    def info(self, app_cert: str) -> dict[str, object]:
        """dstack's `Info` (wire contract 6.1). `app_cert`: PEM."""
        return self._identity() | {
            "app_id": APP_ID.hex(),
            "instance_id": self.instance_id.hex(),
            "app_name": "confide-simulated",
            "app_cert": app_cert,
            "key_provider_info": self.key_provider_info,
            "vm_config": VM_CONFIG,
            "tcb_info": self.tcb_info,
        }

    @property
    def tcb_info(self) -> str:
        """JSON text: the registers, the log as an array, and the text of the compose document."""
        registers = {f"rtmr{index}": register.hex() for index, register in enumerate(self.rtmrs)}
        return json.dumps(
            {"mrtd": MR_TD.hex()}
            | registers
            | self._identity()
            | {"event_log": self.documents, "app_compose": APP_COMPOSE}
        )

    def _identity(self) -> dict[str, object]:
        return {
            "mr_aggregated": self.mr_aggregated.hex(),
            "os_image_hash": OS_IMAGE_HASH.hex(),
            "compose_hash": COMPOSE_HASH.hex(),
            "device_id": self.device_id.hex(),
        }
