"""Fuzz what evidence says of its OS image: any `vm_config` is refused with ImageError or read, and only the image that
the registers hold is proven.
"""

import json
import sys
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256, sha384
from typing import Any

from confide.evidence.osimage import (
    BOOT_ACTIONS,
    ImageError,
    VmConfig,
    check_os_image,
    proven_hash,
    read_measurement,
    read_vm_config,
    replayed,
)
from confide.evidence.policy import DstackPolicy
from confide.evidence.result import Status
from fuzz._bytes import patched
from fuzz._documents import changed
from fuzz._dstack import QUOTE_OF_LOG
from fuzz.cbor import written

KERNEL, CMDLINE, INITRD, MR_TD = (sha384(what).digest() for what in (b"kernel", b"cmdline", b"initrd", b"firmware"))
QUOTE = replace(
    QUOTE_OF_LOG,
    mr_td=MR_TD,
    rtmr1=replayed(KERNEL, *(sha384(action).digest() for action in BOOT_ACTIONS)),
    rtmr2=replayed(CMDLINE, INITRD),
)
MEASUREMENT = written(
    {
        "version": 3,
        "image": {"cmdline_sha384": CMDLINE, "initrd_sha384": INITRD, "kernel_authenticode": KERNEL},
        "tdvf": {"ovmf": "some", "mrtd": {"single_pass": bytes(48), "two_pass": MR_TD}},
    }
)
OTHER_FILE = b"ab" * 32 + b"  rootfs.img\n"


def line(measurement: bytes) -> bytes:
    """What a list of checksums has for this file."""
    return f"{sha256(measurement).hexdigest()}  measurement.tdx.cbor\n".encode()


def material(checksums: bytes, measurement: bytes) -> dict[str, Any]:
    """`vm_config` with the hash that these checksums have."""
    shown = {"checksum_file": b64encode(checksums).decode(), "measurement": b64encode(measurement).decode()}
    return {"os_image_hash": sha256(checksums).hexdigest(), "tdx_measurement": shown}


CHECKSUMS = OTHER_FILE + line(MEASUREMENT)
HONEST = material(CHECKSUMS, MEASUREMENT)
PINNING = DstackPolicy(os_image_hashes=frozenset({HONEST["os_image_hash"]}))


def fuzz_one(data: bytes) -> None:
    """One input: as `vm_config`, as changes to an honest one, and to files whose hashes are made to fit."""
    judge(data.decode(errors="surrogateescape"))
    judge(json.dumps(changed(HONEST, iter(data))))
    judge(json.dumps(material(patched(CHECKSUMS, data), MEASUREMENT)))
    measurement = patched(MEASUREMENT, data)
    judge(json.dumps(material(OTHER_FILE + line(measurement), measurement)))


def judge(text: str) -> None:
    """What is read has its promises kept."""
    try:
        config = read_vm_config(text)
    except ImageError as error:
        if not str(error).isprintable():
            raise AssertionError("a reason is not fit for a terminal") from error
        return
    for genuine in (True, False):
        check, facts = check_os_image(QUOTE, config, None, PINNING, genuine=genuine)
        json.dumps(facts)
        if not check.reason.isprintable():
            raise AssertionError("a reason is not fit for a terminal")
        if check.status is Status.PASS and not (genuine and is_honest(config)):
            raise AssertionError("another image passed, or one that a quote does not show")
    if is_honest(config) and check_os_image(QUOTE, config, None, PINNING, genuine=True)[0].status is not Status.PASS:
        raise AssertionError("the honest image was not accepted")
    proven(config)


def is_honest(config: VmConfig) -> bool:
    return (config.os_image_hash, config.tdx_measurement) == HONEST_MEMBERS


HONEST_CONFIG = read_vm_config(json.dumps(HONEST))
HONEST_MEMBERS = (HONEST_CONFIG.os_image_hash, HONEST_CONFIG.tdx_measurement)


def proven(config: VmConfig) -> None:
    """An image that is proven without a list is that of the registers all the same."""
    try:
        found = proven_hash(QUOTE, config)
    except ImageError:
        return
    shown = config.tdx_measurement
    if shown is None:
        if found is not None:
            raise AssertionError("an image was proven without anything to prove it")
        return
    measurement = read_measurement(b64decode(shown.measurement))
    registers = (measurement.rtmr1, measurement.rtmr2) == (QUOTE.rtmr1, QUOTE.rtmr2)
    if not registers or MR_TD not in measurement.mr_tds or found != sha256(b64decode(shown.checksum_file)).digest():
        raise AssertionError("another image was proven than the registers hold")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
