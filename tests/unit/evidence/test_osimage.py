"""Which image booted: by a list of registers, or by an image's own material that leads to them."""

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256, sha384
from typing import Any

import pytest

from cbor_writer import encoded
from confide.evidence.osimage import ImageError, VmConfig, check_os_image, read_vm_config
from confide.evidence.policy import DstackPolicy, OsImage
from confide.evidence.quote import TdxQuote
from confide.evidence.result import Check, Status
from dstack_builders import QUOTE_OF_PLATFORM, Document

KERNEL, CMDLINE, INITRD = (sha384(what).digest() for what in (b"kernel", b"cmdline", b"initrd"))
MR_TD = sha384(b"firmware").digest()
EVENT = bytes(range(32))


def register(*digests: bytes) -> bytes:
    value = bytes(48)
    for digest in digests:
        value = sha384(value + digest).digest()
    return value


ACTIONS = [
    sha384(action).digest()
    for action in (
        b"Calling EFI Application from Boot Option",
        bytes(4),
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
    )
]
QUOTE = replace(QUOTE_OF_PLATFORM, mr_td=MR_TD, rtmr1=register(KERNEL, *ACTIONS), rtmr2=register(CMDLINE, INITRD))
PINNED = OsImage(QUOTE.mr_td.hex(), QUOTE.rtmr1.hex(), QUOTE.rtmr2.hex())

MEASUREMENT: Document = {
    "version": 3,
    "image": {"cmdline_sha384": CMDLINE, "initrd_sha384": INITRD, "kernel_authenticode": KERNEL},
    "tdvf": {"ovmf": "some", "mrtd": {"single_pass": bytes(48), "two_pass": MR_TD}, "td_hob": b""},
}
NAME = "measurement.tdx.cbor"


def material(
    measurement: object = MEASUREMENT, *, checksums: bytes | None = None, raw: bytes | None = None
) -> Document:
    """`vm_config` with an image's material that is right in itself."""
    raw = encoded(measurement) if raw is None else raw  # type: ignore[arg-type]  # odd shapes are what some tests are about
    if checksums is None:
        checksums = f"{'ab' * 32}  rootfs.img\n{sha256(raw).hexdigest()}  {NAME}\n".encode()
    shown = {"checksum_file": b64encode(checksums).decode(), "measurement": b64encode(raw).decode()}
    return {"os_image_hash": sha256(checksums).hexdigest(), "tdx_measurement": shown}


HONEST = material()
PROVEN = str(HONEST["os_image_hash"])


def check(
    config: object = None,
    policy: DstackPolicy | None = None,
    *,
    quote: TdxQuote = QUOTE,
    event: bytes | None = EVENT,
    genuine: bool = True,
) -> Check:
    opened = read_vm_config(None if config is None else json.dumps(config))
    return check_os_image(quote, opened, event, policy or DstackPolicy(), genuine=genuine)[0]


def status(*args: Any, **options: Any) -> Status:
    return check(*args, **options).status


def test_without_a_list_nothing_is_said() -> None:
    assert status() is Status.SKIP
    assert status({"os_image_hash": "ab" * 32}) is Status.SKIP
    found = check(HONEST)
    assert found.status is Status.SKIP
    assert PROVEN in found.reason


def test_registers_on_the_list_pass() -> None:
    policy = DstackPolicy(os_images=frozenset({PINNED}))
    assert status(None, policy) is Status.PASS
    assert status(HONEST, policy) is Status.PASS


@pytest.mark.parametrize("name", ["mr_td", "rtmr1", "rtmr2"])
def test_another_register_is_another_image(name: str) -> None:
    policy = DstackPolicy(os_images=frozenset({PINNED}))
    other: dict[str, Any] = {name: bytes(48)}
    assert status(None, policy, quote=replace(QUOTE, **other)) is Status.FAIL


def test_rtmr0_counts_where_it_is_pinned() -> None:
    for rtmr0, expected in ((QUOTE.rtmr0.hex(), Status.PASS), ("00" * 48, Status.FAIL)):
        assert status(None, DstackPolicy(os_images=frozenset({replace(PINNED, rtmr0=rtmr0)}))) is expected


def test_an_image_proves_its_hash() -> None:
    policy = DstackPolicy(os_image_hashes=frozenset({PROVEN}))
    assert status(HONEST, policy) is Status.PASS
    assert status(HONEST, DstackPolicy(os_image_hashes=frozenset({"ab" * 32}))) is Status.FAIL
    _, facts = check_os_image(QUOTE, read_vm_config(json.dumps(HONEST)), EVENT, policy, genuine=True)
    assert facts == {
        "dstack.os_image_hash_event": EVENT.hex(),
        "dstack.os_image_hash_claimed": PROVEN,
        "dstack.os_image_hash_proven": PROVEN,
    }


def test_a_hash_that_is_merely_claimed_is_none() -> None:
    """The host writes `vm_config`, and an image that lies logs what it likes."""
    policy = DstackPolicy(os_image_hashes=frozenset({PROVEN}))
    assert status({"os_image_hash": PROVEN}, policy, event=bytes.fromhex(PROVEN)) is Status.FAIL
    assert status(None, policy) is Status.FAIL


def test_the_event_counts_on_top_and_never_alone() -> None:
    event = frozenset({EVENT.hex()})
    assert status(HONEST, DstackPolicy(os_image_events=event)) is Status.SKIP
    both = DstackPolicy(os_image_events=event, os_image_hashes=frozenset({PROVEN}))
    assert status(HONEST, both) is Status.PASS
    assert status(HONEST, both, event=bytes(32)) is Status.FAIL
    assert status(HONEST, both, event=None) is Status.FAIL


@pytest.mark.parametrize("name", ["mr_td", "rtmr1", "rtmr2"])
def test_material_of_another_image_fails(name: str) -> None:
    other: dict[str, Any] = {name: bytes(47) + b"\x01"}
    found = check(HONEST, quote=replace(QUOTE, **other))
    assert found.status is Status.FAIL
    assert name.upper().replace("_", "") in found.reason


def test_a_quote_that_did_not_verify_proves_no_image() -> None:
    policy = DstackPolicy(os_images=frozenset({PINNED}))
    assert status(HONEST, policy, genuine=False) is Status.SKIP
    assert status(HONEST, policy, quote=QUOTE_OF_PLATFORM, genuine=False) is Status.FAIL


def changed(change: Callable[[Document], object]) -> Document:
    measurement = {name: dict(value) if isinstance(value, dict) else value for name, value in MEASUREMENT.items()}
    change(measurement)
    return measurement


@pytest.mark.parametrize(
    "config",
    [
        HONEST | {"os_image_hash": "ab" * 32},
        HONEST | {"os_image_hash": None},
        HONEST | {"tdx_measurement": HONEST["tdx_measurement"] | {"measurement": "!"}},
        HONEST | {"tdx_measurement": HONEST["tdx_measurement"] | {"measurement": b64encode(b"\x00").decode()}},
        material(checksums=b"\xff"),
        material(checksums=b""),
        material(checksums=f"{'ab' * 32}  other\n".encode()),
        material(checksums=(f"{sha256(encoded(MEASUREMENT)).hexdigest()}  {NAME}\n" * 2).encode()),
        material(checksums=f"{sha256(encoded(MEASUREMENT)).hexdigest()}  {NAME}\nno checksum\n".encode()),
        material(raw=b"\xff"),
        material(0),
        material({}),
        material(changed(lambda m: m.pop("image"))),
        material(changed(lambda m: m["image"].pop("initrd_sha384"))),
        material(changed(lambda m: m["image"].update(initrd_sha384=bytes(47)))),
        material(changed(lambda m: m["image"].update(initrd_sha384="text"))),
        material(changed(lambda m: m["tdvf"].update(mrtd=5))),
        material(changed(lambda m: m["tdvf"].update(mrtd={}))),
        material(changed(lambda m: m["tdvf"].update(mrtd={"a": 5}))),
        material(changed(lambda m: m.update(tdvf=b""))),
    ],
)
def test_material_that_contradicts_itself_fails(config: Document) -> None:
    assert status(config) is Status.FAIL
    assert status(config, DstackPolicy(os_images=frozenset({PINNED}))) is Status.FAIL


@pytest.mark.parametrize(
    "text", ["", "[]", "\ud800", '{"os_image_hash":5}', '{"tdx_measurement":{}}', '{"tdx_measurement":"x"}']
)
def test_an_odd_vm_config_fails(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_vm_config(text)
    assert check_os_image(QUOTE, caught.value, None, DstackPolicy(), genuine=True)[0].status is Status.FAIL


def test_a_vm_config_may_hold_anything_else() -> None:
    assert read_vm_config('{"cpu_count":2,"sev_snp_measurement":"{}"}') == VmConfig()
    assert read_vm_config(None) == VmConfig()
