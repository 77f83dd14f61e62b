"""Fuzz answers of the remote service and its key sets: no input raises, and only the honest tokens verify."""

import json
import sys
from base64 import b64encode

from confide.evidence.nras import NrasError, parse_answer, verify_nras
from confide.evidence.nras_keys import KeySetError, read_key_set
from confide.evidence.quote import read_chain
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from confide.simulator.nras import SimulatedNras
from fuzz._documents import changed

NOW = 1_800_000_000
NONCE = bytes(range(32))
SERVICE = SimulatedNras(bytes(32))
KEYS = read_key_set(SERVICE.jwks(), simulated=True)
LEAF = read_chain(SimulatedGpu(bytes(32)).chain_pem.encode())[0]  # a certificate of a key on P-384
ANSWER = SERVICE.attest(gpu_payload([SimulatedGpu(bytes(32))], NONCE), now=NOW)
HONEST = parse_answer(ANSWER)


def fuzz_one(data: bytes) -> None:
    """One input: as an answer, as a key set, as a change to the honest text, and as changes to its
    documents and to the certificate of a key.
    """
    judge(data)
    key_set(data)
    judge(patched(ANSWER.encode(), data))
    main, tokens = json.loads(ANSWER)
    altered = changed({"main": main, "tokens": tokens}, iter(data))
    judge(json.dumps([altered.get("main"), altered.get("tokens")]).encode())
    key_set(json.dumps(changed(json.loads(SERVICE.jwks()), iter(data))).encode())
    key_set(
        json.dumps({"keys": [{"kty": "EC", "kid": "a", "x5c": [b64encode(patched(LEAF, data)).decode()]}]}).encode()
    )


def patched(honest: bytes, data: bytes) -> bytes:
    """The honest bytes with others written over them at the place that the first two name."""
    offset = int.from_bytes(data[:2], "little") % (len(honest) + 1)
    return honest[:offset] + data[2:] + honest[offset + len(data[2:]) :]


def judge(answer: bytes) -> None:
    """Whatever verifies says what the honest answer says."""
    result = verify_nras(answer, nonce=NONCE, keys=KEYS, gpus=1, now=NOW)
    if result.ok is not is_honest(answer):
        raise AssertionError(f"the answer is {result.verdict}")


def is_honest(answer: bytes) -> bool:
    """Whether it has the honest tokens under their names, however it is written."""
    try:
        return parse_answer(answer) == HONEST
    except NrasError:
        return False


def key_set(jwks: bytes) -> None:
    """A key set is refused with its own error, or holds keys."""
    try:
        keys = read_key_set(jwks, simulated=True)
    except KeySetError:
        return
    if not keys.keys:
        raise AssertionError("an empty key set")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
