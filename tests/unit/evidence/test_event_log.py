"""dstack's event log: what it leads to, and every way in which it can be about something else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.evidence import event_log
from confide.evidence.event_log import LogError, read_event_log
from dstack_builders import COMPOSE_HASH, RUNTIME_EVENT, Document, boot_entry, boot_log, replayed, runtime

BOOT = boot_log()


def refused(log: object) -> str:
    with pytest.raises(LogError) as caught:
        read_event_log(log)
    return str(caught.value)


def boot_refused(log: list[Document]) -> str:
    with pytest.raises(LogError) as caught:
        _ = read_event_log(log).boot_events
    return str(caught.value)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_log_leads_to_four_registers(as_text: bool) -> None:
    log = read_event_log(json.dumps(BOOT) if as_text else BOOT)
    assert log.registers == tuple(replayed(BOOT, imr) for imr in range(4))
    assert [event.name for event in log.boot_events] == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "key-provider",
    ]
    assert log.payload("compose-hash") == COMPOSE_HASH
    assert log.later_events == ()


def test_an_empty_log_leads_to_zero_and_names_nothing() -> None:
    assert read_event_log([]).registers == (bytes(48),) * 4
    assert "no system-ready" in boot_refused([])


def test_a_short_boot_digest_is_padded_on_its_right() -> None:
    short = boot_entry(0) | {"digest": "ab" * 32}
    assert read_event_log([short]).registers[0] == replayed([short], 0)


@pytest.mark.parametrize("digest", ["", "ab" * 49])
def test_a_boot_entry_has_a_digest(digest: str) -> None:
    assert "boot entry has a digest of" in refused([boot_entry(0) | {"digest": digest}])


def test_names_and_payloads_of_boot_entries_are_not_looked_at() -> None:
    named = boot_entry(0) | {"event": "compose-hash", "event_payload": "00" * 32}
    log = read_event_log([named, *BOOT])
    assert log.payload("compose-hash") == COMPOSE_HASH


@pytest.mark.parametrize("digest", ["", None])
@pytest.mark.parametrize("version", [None, 1, 2])
def test_a_runtime_digest_is_recomputed_in_either_form(version: int | None, digest: str | None) -> None:
    event = runtime("compose-hash", COMPOSE_HASH, version=version)
    shown = event | {"digest": digest} if digest is not None else {k: v for k, v in event.items() if k != "digest"}
    assert read_event_log([shown]).registers[3] == replayed([event])


def test_form_2_hashes_the_name_as_it_is_and_the_payload_in_lower_case() -> None:
    event = runtime('é"\n', b"\xab", version=2)
    assert read_event_log([event | {"event_payload": "AB"}]).registers[3] == replayed([event])


@pytest.mark.parametrize("version", [1, 2])
def test_a_preimage_that_is_shown_has_to_be_the_one(version: int) -> None:
    event = runtime("app-id", b"\x01", version=version)
    content = (RUNTIME_EVENT.to_bytes(4, "little") + b":app-id:\x01").hex()
    if version == 2:
        text = '{"name":"app-id","payload":"01","type":134217729}'
        read_event_log([event | {"preimage": text}])
        content = text.encode().hex()
    for shown in (content, content.upper(), ""):
        read_event_log([event | {"preimage": shown}])
    assert "another preimage" in refused([event | {"preimage": content[:-2]}])


def test_an_event_with_anothers_digest_is_refused() -> None:
    """The payload says what the verifier hopes for; the digest, which was measured, does not."""
    measured = runtime("compose-hash", bytes(32))
    assert "another digest" in refused([measured | {"event_payload": COMPOSE_HASH.hex()}])
    assert "another digest" in refused([runtime("a", b"b", version=2) | {"version": 1}])


@pytest.mark.parametrize("version", [0, 3, -1])
def test_another_form_of_digest_is_refused(version: int) -> None:
    assert "digest form" in refused([runtime("a") | {"version": version}])


@pytest.mark.parametrize(
    "log",
    [
        None,
        5,
        {},
        "",
        "{",
        "{}",
        "[5]",
        '[{"imr":3}]',
        "\ud800",
        '["\ud800"]',
        [5],
        [{"imr": 3}],
        [BOOT[0] | {"imr": "3"}],
        [BOOT[0] | {"imr": 4}],
        [BOOT[0] | {"imr": -1}],
        [BOOT[0] | {"event_type": 2**32}],
        [BOOT[0] | {"event": None}],
        [BOOT[0] | {"event": "\ud800"}],
        [runtime("a") | {"version": "2"}],
        json.dumps(BOOT)[:-2],
        '[{"imr":0,"imr":3,"event_type":6,"digest":"00","event":"","event_payload":""}]',
        "[" * 300 + "]" * 300,
    ],
    ids=lambda log: repr(log)[:30],
)
def test_an_odd_log_is_refused(log: object) -> None:
    assert refused(log)


@pytest.mark.parametrize("member", ["digest", "event_payload"])
@pytest.mark.parametrize("digits", ["zz", "0", "0x00", "00 00", "٠٠"])
def test_a_log_that_is_not_hex_is_refused(member: str, digits: str) -> None:
    assert "hex" in refused([runtime("a") | {member: digits}])


def test_a_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "larger than" in refused(" " * (event_log.MAX_LOG_BYTES + 1))
    monkeypatch.setattr(event_log, "MAX_EVENTS", len(BOOT))
    read_event_log(BOOT)
    assert "at most" in refused([*BOOT, runtime("one more")])


def test_what_an_application_logs_later_means_nothing() -> None:
    """The application may log any name once it runs; whoever asks what booted must not be answered by it."""
    later = [runtime("compose-hash", bytes(32)), runtime("system-ready"), runtime("app-id", bytes(20))]
    log = read_event_log([*BOOT, *later])
    assert log.payload("compose-hash") == COMPOSE_HASH
    assert [event.name for event in log.later_events] == ["compose-hash", "system-ready", "app-id"]
    with pytest.raises(LogError, match="no gpu-policy-hash event"):
        read_event_log([*BOOT, runtime("gpu-policy-hash", bytes(32))]).payload("gpu-policy-hash")


def test_the_end_of_the_boot_cannot_be_hidden_behind_another_event_type() -> None:
    """The holder of the log calls the true `system-ready` a boot entry: its digest, and so the register, stay the same.
    Then the application's own events would count as dstack's.
    """
    forged = [runtime("compose-hash", bytes(32)), runtime("system-ready")]
    hidden = [BOOT[-1] | {"event_type": 6}]
    log = [*BOOT[:-1], *hidden, *forged]
    assert read_event_log(log).registers == read_event_log([*BOOT, *forged]).registers
    assert "no runtime event" in boot_refused(log)
    read_event_log([*BOOT, *hidden]).boot_events  # noqa: B018 - afterwards it may stand there


def test_a_name_cannot_be_hidden_in_the_payload_of_another() -> None:
    """In form 1 name and payload are joined by a colon, so one digest has as many readings as there are colons."""
    honest = runtime("key-provider", b'{"name":"kms"}')
    recut = runtime('key-provider:{"name"', b'"kms"}')
    assert honest["digest"] == recut["digest"]
    assert "colon" in boot_refused([recut, runtime("system-ready")])


def test_a_name_stands_once_before_system_ready() -> None:
    doubled = [*BOOT[:-1], runtime("compose-hash", COMPOSE_HASH), BOOT[-1]]
    assert "compose-hash stands 2 times" in boot_refused(doubled)
    scripts = [runtime("init-script-hash", bytes((number,)) * 32) for number in range(3)]
    assert len(read_event_log([*scripts, *BOOT]).boot_events) == 9


NAMES = st.sampled_from(["compose-hash", "app-id", "system-ready", "x"]) | st.text(max_size=8)
EVENTS = st.builds(
    lambda name, payload, version: runtime(name, payload, version=version),
    NAMES.filter(lambda name: name.isprintable()),
    st.binary(max_size=40),
    st.sampled_from([1, 2]),
)


@given(st.lists(EVENTS, max_size=8))
def test_every_log_with_right_digests_replays(events: list[Document]) -> None:
    log = read_event_log(json.dumps(events))
    assert log.registers[3] == replayed(events)
    stripped = [event | {"digest": ""} for event in events]
    assert read_event_log(stripped).registers == log.registers


@given(st.lists(EVENTS, min_size=1, max_size=5), st.data())
def test_a_changed_name_or_payload_is_another_register_or_refused(events: list[Document], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(events) - 1))
    member = data.draw(st.sampled_from(["event", "event_payload"]))
    changed = events[place][member] + "00"
    log = [*events[:place], events[place] | {member: changed, "digest": ""}, *events[place + 1 :]]
    assert read_event_log(log).registers[3] != replayed(events)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
    | st.text()
)
def test_no_value_does_more_than_be_refused(log: object) -> None:
    try:
        read_event_log(log)
    except LogError:
        return
    assert log == [] or (isinstance(log, str) and json.loads(log) == [])
