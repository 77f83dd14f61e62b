"""Somebody on the way to the real program over plain HTTP, who alters one byte of an answer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import confide
from man_in_the_middle import Relay, between
from running import Running

NAMED = re.compile(rb'"model":"vendor/\w+(?=")')  # stands in every answer, in the first event of every stream


@dataclass(frozen=True)
class Plain:
    """A service that whoever is on the way can read."""

    port: int
    tls: bool = False


class Adversary:
    """Changes one byte of the first answer that passes: a letter of the model's name. `changed`: how often it did."""

    def __init__(self, relay: Relay, root: Path) -> None:
        self.url = relay.url
        self.policy = confide.Policy(trust_roots=(root,), require_channel=False)
        self.changed = 0
        self._relay = relay

    def begin(self) -> None:
        """From now on; before that the service is verified as it is."""
        self._relay.to_client = self._change

    def _change(self, data: bytes) -> bytes:
        if self.changed:
            return data
        altered, self.changed = NAMED.subn(lambda found: found[0][:-1] + b"_", data, count=1)
        return altered


@contextmanager
def before(service: Running) -> Iterator[Adversary]:
    """One in front of this service, which serves plain HTTP."""
    port = urlsplit(service.url).port
    assert port is not None
    with between(Plain(port)) as relay:
        yield Adversary(relay, root_of(service))


def root_of(service: Running) -> Path:
    """Of its simulated TEE."""
    return service.home / "simulator" / "root.pem"
