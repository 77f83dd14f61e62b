"""The dstack verifier: the honest guest, and what each check finds in one that is not."""

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.evidence import mr_config
from confide.evidence.dstack import DSTACK_REQUIRED, NAMES, DstackEvidence, DstackResult, mr_aggregated, verify_dstack
from confide.evidence.policy import DstackPolicy, KeyProvider, OsImage
from confide.evidence.quote import TdxQuote
from confide.evidence.result import Status, Verdict, failed
from confide.evidence.tdx import PARSE, TdxResult
from dstack_builders import (
    APP_ID,
    COMPOSE,
    COMPOSE_HASH,
    INSTANCE_ID,
    NOW,
    PROVIDER,
    PROVIDER_ID,
    Document,
    boot_log,
    judged,
    quote_of,
    runtime,
)

BOOT = boot_log()


def run(
    log: object = BOOT,
    policy: DstackPolicy | None = None,
    *,
    quote: TdxQuote | None = None,
    genuine: bool = True,
    **shown: Any,
) -> DstackResult:
    """Verify the log against a quote of its own, unless another is given."""
    if quote is None:
        quote = quote_of(log if isinstance(log, list) else BOOT)
    evidence = DstackEvidence(event_log=log, **({"app_compose": COMPOSE} | shown))
    return verify_dstack(judged(quote, genuine=genuine), evidence, policy or DstackPolicy())


def statuses(result: DstackResult) -> dict[str, Status]:
    assert tuple(check.name for check in result.checks) == NAMES
    return {check.name.removeprefix("dstack."): check.status for check in result.checks}


def failures(result: DstackResult) -> set[str]:
    return {name for name, status in statuses(result).items() if status is Status.FAIL}


def reason(result: DstackResult, name: str) -> str:
    return next(check.reason for check in result.checks if check.name == f"dstack.{name}")


def status(result: DstackResult, name: str) -> Status:
    return statuses(result)[name]


def test_an_honest_guest_is_verified() -> None:
    result = run()
    assert result.verdict is Verdict.VERIFIED
    assert result.required == DSTACK_REQUIRED
    assert {name for name, found in statuses(result).items() if found is Status.PASS} == {"replay", "events", "compose"}
    assert result.boot is not None
    assert (result.boot.app_id, result.boot.compose_hash) == (APP_ID, COMPOSE_HASH)
    assert (result.boot.instance_id, result.boot.key_provider) == (INSTANCE_ID, PROVIDER)
    assert result.now == NOW
    json.dumps(result.facts)


def test_the_log_may_be_text() -> None:
    assert run(json.dumps(BOOT), quote=quote_of(BOOT)).ok


def test_without_a_quote_nothing_can_be_said() -> None:
    tdx = TdxResult(NOW, (failed(PARSE, "no quote"),))
    result = verify_dstack(tdx, DstackEvidence(event_log=BOOT, app_compose=COMPOSE), DstackPolicy())
    assert set(statuses(result).values()) == {Status.SKIP}
    assert result.boot is None
    assert not result.ok


def test_a_quote_that_did_not_verify_proves_nothing() -> None:
    config = mr_config.form_1(COMPOSE_HASH)
    quote = quote_of(BOOT, mr_config_id=config)
    sums = mr_aggregated(quote).hex()
    everything = DstackPolicy(
        compose_hashes=frozenset({COMPOSE_HASH.hex()}),
        key_providers=frozenset({KeyProvider("kms", PROVIDER_ID.hex())}),
        os_images=frozenset({OsImage(quote.mr_td.hex(), quote.rtmr1.hex(), quote.rtmr2.hex())}),
    )
    assert set(statuses(run(BOOT, everything, quote=quote, genuine=True, mr_aggregated=sums)).values()) == {Status.PASS}
    result = run(BOOT, everything, quote=quote, genuine=False, mr_aggregated=sums)
    assert set(statuses(result).values()) == {Status.SKIP}
    assert result.boot is None
    assert "dstack.app_id" not in result.facts


@pytest.mark.parametrize("imr", range(4))
@pytest.mark.parametrize("genuine", [True, False])
def test_a_log_of_another_boot_does_not_replay(imr: int, genuine: bool) -> None:
    other: dict[str, Any] = {f"rtmr{imr}": bytes(48)}
    result = run(quote=replace(quote_of(BOOT), **other), genuine=genuine)
    assert failures(result) == {"replay"}
    assert f"RTMR{imr}" in reason(result, "replay")
    assert result.boot is None


def test_a_log_that_is_absent_or_unreadable() -> None:
    absent = run(None)
    assert statuses(absent)["replay"] is statuses(absent)["events"] is Status.SKIP
    assert absent.verdict is Verdict.PARTIAL
    unreadable = run("{")
    assert failures(unreadable) == {"replay"}
    assert status(unreadable, "events") is Status.SKIP


@pytest.mark.parametrize("missing", ["app-id", "compose-hash", "system-ready"])
def test_what_a_boot_has_to_log(missing: str) -> None:
    result = run(boot_log(without=missing))
    assert failures(result) == {"events"}
    assert missing in reason(result, "events")


@pytest.mark.parametrize("absent", ["instance-id", "key-provider"])
def test_what_a_boot_may_leave_out(absent: str) -> None:
    assert run(boot_log(without=absent)).ok


@pytest.mark.parametrize(
    "payloads",
    [
        {"app_id": bytes(19)},
        {"compose_hash": bytes(33)},
        {"instance_id": bytes(1)},
        {"os_image_hash": b""},
        {"mr_kms": bytes(31)},
        {"gpu_policy_hash": bytes(1)},
        {"init_script_hash": bytes(1)},
    ],
    ids=str,
)
def test_payloads_have_their_lengths(payloads: dict[str, Any]) -> None:
    assert failures(run(boot_log(**payloads))) == {"events"}


def test_a_guest_may_have_no_instance_id() -> None:
    result = run(boot_log(instance_id=b""))
    assert result.boot is not None
    assert result.boot.instance_id == b""


def test_events_stand_once_and_only_scripts_may_repeat() -> None:
    doubled = [*BOOT[:-1], runtime("app-id", APP_ID), BOOT[-1]]
    assert failures(run(doubled)) == {"events"}
    scripts = [runtime("init-script-hash", bytes((number,)) * 32) for number in range(2)]
    result = run([*BOOT[:-1], *scripts, BOOT[-1]])
    assert result.boot is not None
    assert result.boot.init_script_hashes == (bytes(32), b"\x01" * 32)


def test_the_application_cannot_speak_for_dstack() -> None:
    later = [*BOOT, runtime("compose-hash", bytes(32)), runtime("os-image-hash", bytes(32))]
    result = run(later)
    assert result.ok
    assert result.boot is not None
    assert result.boot.os_image_hash is None
    assert result.facts["dstack.application_events"] == 2


def test_another_application_is_found() -> None:
    for shown in (COMPOSE + " ", "", "{}"):
        result = run(app_compose=shown)
        assert failures(result) == {"compose"}
    assert failures(run(app_compose="\ud800")) == {"compose"}
    assert status(run(app_compose=None), "compose") is Status.SKIP
    assert run(app_compose=None).verdict is Verdict.PARTIAL


COMPOSE_HEX, APP_HEX, GPU_HEX, OTHER = COMPOSE_HASH.hex(), APP_ID.hex(), "55" * 32, "66" * 32


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, Status.SKIP),
        ({"compose_hashes": [COMPOSE_HEX, OTHER]}, Status.PASS),
        ({"compose_hashes": [OTHER]}, Status.FAIL),
        ({"app_ids": [APP_HEX]}, Status.PASS),
        ({"app_ids": ["66" * 20]}, Status.FAIL),
        ({"app_ids": [APP_HEX], "compose_hashes": [OTHER]}, Status.FAIL),
        ({"gpu_policy_hashes": [GPU_HEX]}, Status.PASS),
        ({"gpu_policy_hashes": [OTHER]}, Status.FAIL),
    ],
    ids=str,
)
def test_the_application_is_compared_with_the_policy(policy: dict[str, list[str]], expected: Status) -> None:
    members: dict[str, Any] = {name: frozenset(values) for name, values in policy.items()}
    chosen = DstackPolicy(**members)
    result = run(boot_log(gpu_policy_hash=bytes.fromhex(GPU_HEX)), chosen)
    assert status(result, "compose-policy") is expected
    assert ("dstack.compose-policy" in result.required) is bool(policy)


def test_a_gpu_policy_that_was_not_measured_is_not_the_pinned_one() -> None:
    result = run(BOOT, DstackPolicy(gpu_policy_hashes=frozenset({GPU_HEX})))
    assert failures(result) == {"compose-policy"}


DOCUMENT: Document = {
    "version": 3,
    "app_id": APP_HEX,
    "compose_hash": COMPOSE_HEX,
    "instance_id": INSTANCE_ID.hex(),
    "key_provider": "kms",
    "key_provider_id": PROVIDER_ID.hex(),
}


def config_status(
    register: bytes, log: object = BOOT, *, measured: list[Document] | None = None, genuine: bool = True, **shown: Any
) -> Status:
    quote = quote_of(measured or (log if isinstance(log, list) else BOOT), mr_config_id=register)
    return status(run(log, quote=quote, genuine=genuine, **shown), "mr-config")


def test_a_register_that_is_not_used_says_nothing() -> None:
    assert config_status(bytes(48)) is Status.SKIP


@pytest.mark.parametrize("register", [b"\x00" * 47 + b"\x01", b"\x04" + bytes(47), b"\xff" * 48])
def test_another_form_is_refused(register: bytes) -> None:
    assert config_status(register) is Status.FAIL


def test_form_1_names_the_application() -> None:
    register = mr_config.form_1(COMPOSE_HASH)
    assert config_status(register) is Status.PASS
    assert config_status(register, None) is Status.PASS  # the shown text alone will do
    assert config_status(register, None, app_compose=None) is Status.SKIP
    assert config_status(register, None, app_compose="other") is Status.FAIL
    assert config_status(register, None, app_compose="\ud800") is Status.SKIP
    assert config_status(mr_config.form_1(bytes(32))) is Status.FAIL
    assert config_status(register[:-1] + b"\x01") is Status.FAIL
    assert config_status(register, genuine=False) is Status.SKIP


def test_form_2_names_the_key_provider_too() -> None:
    register = mr_config.form_2(COMPOSE_HASH, APP_ID, "kms", PROVIDER_ID)
    assert config_status(register) is Status.PASS
    assert config_status(mr_config.form_2(COMPOSE_HASH, APP_ID, "tpm", PROVIDER_ID)) is Status.FAIL
    assert config_status(register, None) is Status.SKIP
    assert config_status(register, boot_log(without="key-provider")) is Status.SKIP
    assert config_status(register, boot_log(key_provider=b"{")) is Status.FAIL
    assert config_status(register, boot_log(key_provider=b'{"name":"other","id":""}')) is Status.FAIL


def test_form_3_commits_to_a_document() -> None:
    text = json.dumps(DOCUMENT)
    register = mr_config.form_3(text)
    assert config_status(register, mr_config=text) is Status.PASS
    assert config_status(register, vm_config=json.dumps({"mr_config": text})) is Status.PASS
    assert config_status(register, None, mr_config=text) is Status.PASS
    assert config_status(register, None, mr_config=text, app_compose=None) is Status.PASS
    assert config_status(register) is Status.SKIP
    assert config_status(register, vm_config="{") is Status.SKIP
    assert config_status(register, mr_config=text + " ") is Status.FAIL
    assert config_status(mr_config.form_3("{}"), mr_config="{}") is Status.FAIL
    assert config_status(register, mr_config="\ud800") is Status.FAIL


@pytest.mark.parametrize(
    "change",
    [
        {"app_id": "66" * 20},
        {"compose_hash": OTHER},
        {"instance_id": "66" * 20},
        {"gpu_policy_hash": GPU_HEX},
        {"key_provider": "local"},
        {"key_provider_id": "66"},
        {"init_script_hashes": [OTHER]},
        {"version": 4},
    ],
    ids=str,
)
def test_the_document_has_to_agree_with_what_was_measured(change: Document) -> None:
    text = json.dumps(DOCUMENT | change)
    assert config_status(mr_config.form_3(text), mr_config=text) is Status.FAIL


@pytest.mark.parametrize("absent", ["app_id", "instance_id", "key_provider", "key_provider_id", "version"])
def test_the_document_may_leave_most_things_out(absent: str) -> None:
    text = json.dumps({name: value for name, value in DOCUMENT.items() if name != absent})
    assert config_status(mr_config.form_3(text), mr_config=text) is Status.PASS


def test_the_document_is_compared_with_scripts_and_without_a_provider() -> None:
    text = json.dumps(DOCUMENT | {"init_script_hashes": [OTHER]})
    log = boot_log(init_script_hash=bytes.fromhex(OTHER))
    assert config_status(mr_config.form_3(text), log, mr_config=text) is Status.PASS
    assert config_status(mr_config.form_3(text), boot_log(without="key-provider"), mr_config=text) is Status.FAIL
    bare = json.dumps(DOCUMENT)
    assert config_status(mr_config.form_3(bare), boot_log(without="key-provider"), mr_config=bare) is Status.PASS


def test_a_document_of_another_application_than_the_shown_one_fails_without_a_log_too() -> None:
    text = json.dumps(DOCUMENT)
    assert config_status(mr_config.form_3(text), None, mr_config=text, app_compose="other") is Status.FAIL


@pytest.mark.parametrize("optional", [{}, {"mr_config_id": mr_config.form_1(COMPOSE_HASH)}, {"mr_owner": b"\x01" * 48}])
def test_the_sum_is_compared(optional: dict[str, bytes]) -> None:
    quote = quote_of(BOOT, **optional)
    measured = quote.mr_td + quote.rtmr0 + quote.rtmr1 + quote.rtmr2 + quote.rtmr3
    if optional:
        measured += quote.mr_config_id + quote.mr_owner + quote.mr_owner_config
    stated = sha256(measured).hexdigest()
    assert status(run(quote=quote, mr_aggregated=stated), "mr-aggregated") is Status.PASS
    assert status(run(quote=quote, mr_aggregated=stated.upper()), "mr-aggregated") is Status.PASS
    assert status(run(quote=quote, mr_aggregated="00" * 32), "mr-aggregated") is Status.FAIL
    assert status(run(quote=quote), "mr-aggregated") is Status.SKIP


KMS = KeyProvider("kms", PROVIDER_ID.hex())


@pytest.mark.parametrize(
    ("log", "pinned", "expected"),
    [
        (BOOT, {KMS}, Status.PASS),
        (BOOT, {KeyProvider("local-sgx", PROVIDER_ID.hex())}, Status.FAIL),
        (BOOT, {KeyProvider("kms", "00")}, Status.FAIL),
        (BOOT, set(), Status.SKIP),
        (boot_log(without="key-provider"), {KMS}, Status.FAIL),
        (boot_log(without="key-provider"), set(), Status.SKIP),
        (boot_log(key_provider=b"[]"), set(), Status.FAIL),
        (boot_log(key_provider=b'{"name":"kms"}'), {KMS}, Status.FAIL),
        (boot_log(key_provider=b'{"name":"kms","id":"0 0"}'), set(), Status.FAIL),
        (boot_log(key_provider=b'{"name":"kms","id":"' + b"00" * 4096 + b'"}'), set(), Status.FAIL),
        (boot_log(key_provider=PROVIDER.replace(PROVIDER_ID.hex().encode(), PROVIDER_ID.hex().upper().encode())), {KMS},
         Status.PASS),
    ],
)  # fmt: skip
def test_the_key_provider_is_compared(log: list[Document], pinned: set[KeyProvider], expected: Status) -> None:
    result = run(log, DstackPolicy(key_providers=frozenset(pinned)))
    assert status(result, "key-provider") is expected


def test_the_image_is_required_where_one_is_pinned() -> None:
    quote = quote_of(BOOT)
    image = OsImage(quote.mr_td.hex(), quote.rtmr1.hex(), quote.rtmr2.hex())
    result = run(BOOT, DstackPolicy(os_images=frozenset({image})))
    assert result.verdict is Verdict.VERIFIED
    assert "dstack.os-image" in result.required
    other = DstackPolicy(os_images=frozenset({replace(image, rtmr2="00" * 48)}))
    assert failures(run(BOOT, other)) == {"os-image"}


def test_a_broken_vm_config_fails_the_image_alone() -> None:
    assert failures(run(vm_config="{")) == {"os-image"}


@pytest.mark.parametrize(
    "values",
    [
        {"compose_hashes": {"AB" * 32}},
        {"compose_hashes": {"0x" + "ab" * 31}},
        {"app_ids": {"ab"}},
        {"gpu_policy_hashes": {""}},
        {"os_image_hashes": {"ab" * 31}},
        {"os_image_events": {"zz" * 32}},
        {"kms_roots": {"ab" * 32}},
    ],
    ids=str,
)
def test_a_policy_with_a_value_of_another_form_is_refused(values: dict[str, set[str]]) -> None:
    members: dict[str, Any] = {name: frozenset(each) for name, each in values.items()}
    with pytest.raises(ValueError, match="lower-case hex"):
        DstackPolicy(**members)


def test_registers_and_ids_in_a_policy_are_hex() -> None:
    with pytest.raises(ValueError, match="96 lower-case hex digits"):
        OsImage("ab" * 48, "ab" * 48, "ab")
    with pytest.raises(ValueError, match="got 'xyz', expected lower-case hex, without"):
        KeyProvider("kms", "xyz")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.none() | st.text(max_size=20) | JSON.map(json.dumps)


@given(JSON | TEXT, TEXT, TEXT, TEXT, st.none() | st.text(), st.binary(min_size=48, max_size=48))
def test_a_verifier_returns_for_any_evidence(
    log: object,
    compose: str | None,
    vm_config: str | None,
    document: str | None,
    aggregated: str | None,
    register: bytes,
) -> None:
    evidence = DstackEvidence(
        event_log=log, app_compose=compose, vm_config=vm_config, mr_config=document, mr_aggregated=aggregated
    )
    result = verify_dstack(judged(quote_of(BOOT, mr_config_id=register)), evidence, DstackPolicy())
    assert not result.ok
    assert all(check.reason for check in result.checks)
