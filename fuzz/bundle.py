"""Fuzz the bundle: any bytes are refused with DocumentError or read, with no body but the one that its hash names."""

import json
import sys
from base64 import b64decode, b64encode
from hashlib import sha256

from confide.protocol.bundle import AnswerProof, ServiceProof, parse_bundle, write_bundle
from confide.protocol.canonical import DocumentError
from fuzz._documents import changed, read

BODY = b"body"
SERVICE = ServiceProof(url="https://a", nonce="cd" * 32, verified_at=1, spki_sha256="c0" * 32, report="{}")
ANSWER = AnswerProof(
    endpoint="/v1/chat/completions",
    receipt="{}",
    request_sha256=sha256(BODY).hexdigest(),
    response_sha256=sha256(BODY).hexdigest(),
    receipt_id="rcpt-1",
    chat_id=None,
    status=200,
    request_b64=b64encode(BODY).decode(),
    response_b64=b64encode(BODY).decode(),
    sessions=("{}",),
)
HONEST = json.loads(write_bundle(SERVICE, [ANSWER]))


def fuzz_one(data: bytes) -> None:
    """One input: as a bundle, and as changes to an honest one."""
    read(data)
    parse(data)
    parse(json.dumps(changed(HONEST, iter(data))).encode())


def parse(raw: bytes) -> None:
    """A bundle keeps its promises, and is read again as it was written."""
    try:
        bundle = parse_bundle(raw)
    except DocumentError:
        return
    for answer in bundle.answers:
        for body, digest in (
            (answer.request_b64, answer.request_sha256),
            (answer.response_b64, answer.response_sha256),
        ):
            if body is not None and sha256(b64decode(body, validate=True)).hexdigest() != digest:
                raise AssertionError("a body came through that was not hashed")
    if parse_bundle(write_bundle(bundle.service, bundle.answers)) != bundle:
        raise AssertionError("a bundle is read otherwise than it was written")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
