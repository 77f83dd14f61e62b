"""Verify evidence of NVIDIA GPUs and switches: are they genuine, and do they answer our nonce? (tee-evidence 3.4)

On entry: the caller drew `nonce` and decides `anchors`, `policy` and `now`. What must be shown, N counting from 0:

1. gpu.payload      the text can be read, names our nonce, and lists no device twice
2. gpu.N.chain      the device's certificates end in a root that the caller trusts (`evidence.device_chain`)
3. gpu.N.signature  its key signed the request and the response
4. gpu.N.nonce      the request holds OUR nonce; the one in the response is the device's own
5. gpu.N.fwid       the firmware identity in the report is the one that the certificate was issued to
6. gpu.policy       number, architectures and versions are acceptable

On exit: with all of them passed, genuine devices answered our nonce. NOT shown: that their firmware is good, or that
they are not revoked, which NVIDIA's remote service says (`evidence.nras`), and that they are in the machine of the
CPU TEE that sent them along: gpu.cpu-binding says so and never passes. An empty list is nobody's GPU: a skip.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from confide.evidence.device_chain import ChainError, DeviceChain, verify_chain
from confide.evidence.gpu_payload import Entry, Payload, PayloadError, decoded, parse_payload
from confide.evidence.nras import NRAS_REQUIRED
from confide.evidence.policy import ARCHITECTURES, GPU_ARCHITECTURES, Anchors, GpuPolicy
from confide.evidence.result import Check, Status, TrustAnchor, Verification, failed, passed, quoted, skipped
from confide.evidence.spdm import NONCE_BYTES, SpdmError, SpdmReport, parse_report

PAYLOAD, POLICY, CPU_BINDING = "gpu.payload", "gpu.policy", "gpu.cpu-binding"

# How the chips of an architecture are called in their certificates. Blackwell's has not been seen.
MODELS = {"HOPPER": "GH", "BLACKWELL": "GB", "LS10": "LS_10"}

NO_EVIDENCE = "no GPU evidence"
UNBOUND = skipped(CPU_BINDING, "nothing in the evidence of a GPU says that it is in the same machine as the CPU TEE")


@dataclass(frozen=True)
class Device:
    """One entry of the list after its checks. `chain` and `report` are None where they could not be used."""

    arch: str
    checks: tuple[Check, ...]
    chain: DeviceChain | None
    report: SpdmReport | None

    @property
    def is_genuine(self) -> bool:
        """It is NVIDIA's (or the pinned simulator's), and so is every field of its report."""
        return all(check.status is Status.PASS for check in self.checks[:2])

    @property
    def is_gpu(self) -> bool:
        return self.arch in GPU_ARCHITECTURES


@dataclass(frozen=True)
class GpuResult(Verification):
    """A verification and the devices it was about, in the order of the list."""

    devices: tuple[Device, ...] = ()

    @property
    def gpu_ueids(self) -> tuple[str, ...]:
        """The serial numbers of the GPUs that are genuine, decimal: what tokens of the remote service should name."""
        return tuple(each.chain.ueid for each in self.devices if each.is_gpu and each.is_genuine and each.chain)

    def with_nras(self, nras: Verification) -> "GpuResult":
        """This result and that of `evidence.nras.verify_nras` about the same devices, as one."""
        return replace(
            self,
            checks=(*(check for check in self.checks if check.name not in NRAS_REQUIRED), *nras.checks),
            anchors=(*self.anchors, *nras.anchors),
            facts=self.facts | nras.facts,
        )


def verify_gpu_payload(
    payload: str | bytes | None, *, nonce: bytes, anchors: Anchors, policy: GpuPolicy, now: int
) -> GpuResult:
    """Check `nvidia_payload` as it came. Offline, about 3 ms a device, never raises on bad evidence.

    `payload`: JSON text, None when the service sent none. `nonce`: our 32 bytes, else ValueError. `now`: Unix seconds.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"{NONCE_BYTES} bytes of nonce expected, got {len(nonce)}")
    opened = open_payload(payload)
    devices = tuple(
        check_device(f"gpu.{place}", entry, nonce=nonce, anchors=anchors, now=now)
        for place, entry in enumerate(() if isinstance(opened, Check) else opened.entries)
    )
    checks = (
        opened if isinstance(opened, Check) else check_payload(opened, devices, nonce),  # 1
        *(check for device in devices for check in device.checks),  # 2 to 5
        check_policy(devices, policy),  # 6
        UNBOUND,
        *(skipped(name, "no answer of NVIDIA's remote service was checked") for name in sorted(NRAS_REQUIRED)),
    )
    return GpuResult(now, checks, anchors_of(devices), facts(devices), *expectations(devices, policy), devices=devices)


def open_payload(payload: str | bytes | None) -> Payload | Check:
    """(1) The payload, or the check that says why there is none."""
    if payload is None:
        return skipped(PAYLOAD, NO_EVIDENCE)
    try:
        return parse_payload(payload)
    except PayloadError as error:
        return failed(PAYLOAD, str(error))


def check_payload(payload: Payload, devices: tuple[Device, ...], nonce: bytes) -> Check:
    """(1) Our nonce in full, and each device once: a second listing would count one GPU as two."""
    if payload.nonce.lower() != nonce.hex():
        return failed(PAYLOAD, f"got the nonce {quoted(payload.nonce)}, expected {nonce.hex()}")
    if not devices:
        return skipped(PAYLOAD, NO_EVIDENCE)
    seen: dict[bytes, int] = {}
    for place, device in enumerate(devices):
        first = seen.setdefault(device.chain.device_key, place) if device.chain else place
        if first != place:
            return failed(PAYLOAD, f"entries {first} and {place} are the same device")
    return passed(PAYLOAD, f"evidence of {len(devices)} devices for our nonce")


def check_device(name: str, entry: Entry, *, nonce: bytes, anchors: Anchors, now: int) -> Device:
    """(2 to 5) `name`: what its checks begin with."""
    chain = open_chain(entry, anchors, now)
    report = open_report(entry)
    chained = check_chain(f"{name}.chain", chain)
    signed = check_signature(f"{name}.signature", chain, report)
    device = Device(
        entry.arch,
        (chained, signed),
        chain if isinstance(chain, DeviceChain) else None,
        report if isinstance(report, SpdmReport) else None,
    )
    return replace(
        device,
        checks=(chained, signed, check_nonce(f"{name}.nonce", device, nonce), check_fwid(f"{name}.fwid", device)),
    )


def open_chain(entry: Entry, anchors: Anchors, now: int) -> DeviceChain | ChainError:
    """(2) The verified chain of a chip that the entry's architecture has, or what is wrong with it."""
    try:
        chain = verify_chain(decoded(entry.certificate, ChainError), anchors=anchors, now=now)
    except ChainError as error:
        return error
    if entry.arch not in ARCHITECTURES:
        return ChainError(
            f"got the architecture {quoted(entry.arch)}, expected one of {', '.join(sorted(ARCHITECTURES))}"
        )
    if not chain.model.startswith(MODELS[entry.arch]):
        return ChainError(f"the entry says {entry.arch}, and the certificate is that of a {chain.model}")
    return chain


def open_report(entry: Entry) -> SpdmReport | SpdmError:
    """(3) The parsed report, or what is wrong with it."""
    try:
        return parse_report(decoded(entry.evidence, SpdmError))
    except SpdmError as error:
        return error


def check_chain(name: str, chain: DeviceChain | ChainError) -> Check:
    """(2) Names the anchor and the device."""
    if isinstance(chain, ChainError):
        return failed(name, str(chain))
    simulated = " (SIMULATED ROOT, pinned)" if chain.root.anchor.simulated else ""
    return passed(name, f"{chain.model}, number {chain.ueid}, under {chain.root.anchor.name}{simulated}")


def check_signature(name: str, chain: DeviceChain | ChainError, report: SpdmReport | SpdmError) -> Check:
    """(3) ECDSA P-384 with SHA-384 over request and response, r‖s big endian."""
    if isinstance(report, SpdmError):
        return failed(name, f"the report cannot be read: {report}")
    if isinstance(chain, ChainError):
        return skipped(name, "the chain was not accepted, so there is no key to verify with")
    half = len(report.signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
    try:
        chain.key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return failed(name, "the key in the device's certificate did not sign this report")
    return passed(name, f"the device signed {len(report.blocks)} measurements")


def check_nonce(name: str, device: Device, nonce: bytes) -> Check:
    """(4) Every report has a nonce, and it must be ours in full; a recorded report has another."""
    if device.report is None:
        return skipped(name, "there is no report to read it from")
    if device.report.nonce != nonce:
        return failed(name, f"the report answers {device.report.nonce.hex()}, expected {nonce.hex()}")
    if not device.is_genuine:
        return skipped(name, "the report did not verify, so its nonce proves nothing")
    return passed(name, f"a genuine {device.arch} device answered our nonce, wherever it may be")


def check_fwid(name: str, device: Device) -> Check:
    """(5) Switches report none. Where there is one, the certificate must name the same."""
    if device.report is None or device.chain is None:
        return skipped(name, "there is no report under an accepted chain to read it from")
    fwid = device.report.fwid
    if fwid is None:
        return skipped(name, "the report holds no firmware identity (opaque field 20)")
    if fwid != device.chain.fwid:
        named = device.chain.fwid.hex() if device.chain.fwid else "none"
        return failed(name, f"the report names the firmware {quoted(fwid.hex())}, the certificate {named}")
    if not device.is_genuine:
        return skipped(name, "the report did not verify, so its firmware identity proves nothing")
    return passed(name, f"the certificate was issued to the firmware that reports, {fwid.hex()}")


def check_policy(devices: tuple[Device, ...], policy: GpuPolicy) -> Check:
    """(6) Over devices that are genuine, since others may say what they like."""
    if not all(device.is_genuine for device in devices):
        return skipped(POLICY, "not all of the evidence verified, so there is nothing to judge")
    for fault in policy_faults(devices, policy):
        return failed(POLICY, fault)
    if not devices:
        return skipped(POLICY, NO_EVIDENCE)
    return passed(POLICY, f"{number_of_gpus(devices)} GPUs, {len(devices) - number_of_gpus(devices)} switches")


def number_of_gpus(devices: tuple[Device, ...]) -> int:
    return sum(device.is_gpu for device in devices)


def policy_faults(devices: tuple[Device, ...], policy: GpuPolicy) -> Iterator[str]:
    """What the policy does not accept, in words. A version that is not reported is none of those allowed."""
    if number_of_gpus(devices) < policy.required_gpus:
        yield f"got {number_of_gpus(devices)} GPUs, expected at least {policy.required_gpus}"
    for place, device in enumerate(devices):
        if device.arch not in policy.accepted_architectures:
            yield f"got {device.arch} as device {place}, expected {listed(policy.accepted_architectures)}"
        if not device.is_gpu or device.report is None:
            continue
        reported = {
            "driver": (device.report.driver_version, policy.driver_versions),
            "VBIOS": (device.report.vbios_version, policy.vbios_versions),
        }
        for what, (version, allowed) in reported.items():
            if allowed and version not in allowed:
                yield f"got the {what} version {version or 'not reported'} on GPU {place}, expected {listed(allowed)}"


def listed(values: frozenset[str]) -> str:
    return f"one of {', '.join(sorted(values))}" if values else "none at all"


def expectations(devices: tuple[Device, ...], policy: GpuPolicy) -> tuple[frozenset[str], frozenset[str]]:
    """The names of what must have passed, and of what VERIFIED promises besides: switches report no firmware."""
    hardware = {check.name for device in devices for check in device.checks if not check.name.endswith(".fwid")}
    firmware = {device.checks[-1].name for device in devices if device.is_gpu}
    asked = NRAS_REQUIRED if policy.require_nras else frozenset()
    return frozenset({PAYLOAD, POLICY} | hardware | asked), frozenset(firmware)


def anchors_of(devices: tuple[Device, ...]) -> tuple[TrustAnchor, ...]:
    return tuple(dict.fromkeys(device.chain.root.anchor for device in devices if device.chain))


def facts(devices: tuple[Device, ...]) -> dict[str, object]:
    """Neutral facts, JSON-ready, of the devices that are genuine. Byte fields: lower-case hex."""
    genuine = tuple(device for device in devices if device.is_genuine)
    found: dict[str, object] = {"gpu.count": number_of_gpus(genuine)}
    for place, device in enumerate(devices):
        if device.is_genuine and device.chain and device.report:
            known = {"arch": device.arch, "model": device.chain.model, "ueid": device.chain.ueid}
            found |= {f"gpu.{place}.{name}": value for name, value in (known | device.report.fields()).items()}
    return found
