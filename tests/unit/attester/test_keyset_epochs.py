"""Which keyset stands when: it follows from the keys and the clock alone, and changes in time before it expires."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.attester.epochs import Epoch, KeysetEpochs
from confide.attester.keys import WorkloadKeys
from confide.protocol.keyset import TlsKey, parse_keyset

KEYS = WorkloadKeys.derive(bytes(range(32)))
MONTH_S = 2_592_000
LIFETIMES = st.integers(10, 31_622_400)
TIMES = st.integers(0, 4_000_000_000)


def epochs(lifetime_s: int = MONTH_S, *, keys: WorkloadKeys = KEYS, tls_keys: tuple[TlsKey, ...] = ()) -> KeysetEpochs:
    return KeysetEpochs(keys, lifetime_s=lifetime_s, subject=None, tls_keys=tls_keys)


@given(LIFETIMES, TIMES)
def test_the_keyset_that_stands_has_a_fifth_of_its_life_left_at_least(lifetime_s: int, now: int) -> None:
    epoch = epochs(lifetime_s).at(now)
    assert epoch.begins_at <= now < epoch.ends_at
    assert epoch.keyset.not_after == epoch.begins_at + lifetime_s
    assert epoch.keyset.not_after - epoch.ends_at >= lifetime_s / 5


@given(LIFETIMES, TIMES)
def test_the_next_keyset_begins_in_the_second_in_which_this_one_ends(lifetime_s: int, now: int) -> None:
    clock = epochs(lifetime_s)
    epoch = clock.at(now)
    assert clock.at(epoch.ends_at - 1) is epoch
    following = clock.at(epoch.ends_at)
    assert (following.number, following.begins_at) == (epoch.number + 1, epoch.ends_at)


def test_a_rotation_changes_the_receipt_key_and_the_digest() -> None:
    clock = epochs()
    first = clock.at(1_790_000_000)
    second = clock.at(first.ends_at)
    assert first.digest != second.digest
    assert first.signer.key_id != second.signer.key_id
    assert first.signer.public_key_hex != second.signer.public_key_hex
    assert first.keyset.receipt_signing_keys != second.keyset.receipt_signing_keys


def test_the_tls_key_stays_through_all_epochs() -> None:
    """Clients hold connections, and pins, for longer than an epoch."""
    listed = (TlsKey(KEYS.tls.spki_sha256.hex(), "api.example.com"),)
    clock = epochs(tls_keys=listed)
    for now in (0, 1_790_000_000, 1_790_000_000 + MONTH_S):
        assert clock.at(now).keyset.tls_public_keys == listed


@given(TIMES)
def test_another_process_on_the_same_seed_agrees(now: int) -> None:
    """A restart, a worker, a process that was killed: no state decides."""
    ours = epochs().at(now)
    theirs = epochs(keys=WorkloadKeys.derive(bytes(range(32)))).at(now)
    assert (ours.number, ours.digest, ours.keyset) == (theirs.number, theirs.digest, theirs.keyset)


def test_another_seed_and_other_settings_give_another_keyset() -> None:
    now = 1_790_000_000
    digests = {
        epochs().at(now).digest,
        epochs(keys=WorkloadKeys.derive(bytes(32))).at(now).digest,
        epochs(MONTH_S + 5).at(now).digest,
        epochs(tls_keys=(TlsKey("ab" * 32),)).at(now).digest,
        epochs(tls_keys=(TlsKey("ab" * 32, "api.example.com"),)).at(now).digest,
    }
    assert len(digests) == 5


@given(TIMES)
def test_a_verifier_reads_the_keyset_and_finds_the_key_that_signs(now: int) -> None:
    epoch: Epoch = epochs(tls_keys=(TlsKey(KEYS.tls.spki_sha256.hex()),)).at(now)
    keyset, digest = parse_keyset(epoch.keyset.document())  # refuses a key with two roles
    assert digest == epoch.digest
    assert keyset.receipt_key(epoch.signer.key_id) == bytes.fromhex(epoch.signer.public_key_hex)


def test_a_clock_that_was_set_back_gives_the_earlier_keyset_again() -> None:
    clock = epochs()
    first = clock.at(1_790_000_000)
    later = clock.at(first.ends_at)
    assert clock.at(1_790_000_000).digest == first.digest != later.digest


@pytest.mark.parametrize("lifetime_s", [9, 0, -1])
def test_a_lifetime_in_which_nobody_could_verify_is_refused(lifetime_s: int) -> None:
    with pytest.raises(ValueError, match="10 s at least"):
        epochs(lifetime_s)
