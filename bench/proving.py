"""The floor of what proves: `python -m bench.proving SOCKET_OR_PORT`. The raw relay, and the least that a proof takes.

It decodes the body once (model and stream), hashes request and response with SHA-256, and signs a receipt of the
service's size before the last byte leaves. The receipt is kept in memory: nothing is durable here, nobody is asked for
a key, and everything else that the raw relay leaves out is left out too.
"""

import sys
import time
from hashlib import sha256
from itertools import count

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.floor import Client, Engines, Upstream, main

RECEIPT = (
    '{"api_version":"aci/1","chat_id":"chatcmpl-engine","endpoint":"/v1/chat/completions","event_log":['
    '{"body_hash":"sha256:%s","type":"request.received"},{"body_hash":"sha256:%s","type":"request.forwarded"},'
    '{"body_hash":"sha256:%s","type":"response.returned"},{"outcome":"complete","type":"response.outcome"}],'
    '"key_id":"receipt-1","method":"POST","model":"%s","receipt_id":"rcpt-%024x","served_at":%d%s,'
    '"workload_keyset_digest":"sha256:' + "0" * 64 + '"}'
)
SIGNATURE = ',"signature":"%s"'


class Asked(msgspec.Struct):
    """What must be known of a request."""

    model: str
    stream: bool = False


decode = msgspec.json.Decoder(Asked).decode


class Proving(Upstream):
    """One connection to the engine, and the proof of what comes over it."""

    key = Ed25519PrivateKey.generate()
    numbers = count()
    receipts: dict[int, str] = {}  # noqa: RUF012 - of the process, which is what keeps them

    def start(self, body: bytes, client: Client) -> None:
        self._asked = decode(body)
        self._received = sha256(body).hexdigest()
        self._returned = sha256()
        super().start(body, client)

    def on_body(self, data: bytes) -> None:
        self._returned.update(data)
        super().on_body(data)

    def on_message_complete(self) -> None:
        number = next(self.numbers)
        self.receipts[number] = self._receipt(number, int(time.time()))
        super().on_message_complete()

    def _receipt(self, number: int, served_at: int) -> str:
        received, returned = self._received, self._returned.hexdigest()
        told = (received, received, returned, self._asked.model, number, served_at)
        signature = self.key.sign((RECEIPT % (*told, "")).encode()).hex()
        return RECEIPT % (*told, SIGNATURE % signature)


if __name__ == "__main__":
    uvloop.run(main(Engines(sys.argv[1], Proving)))
