"""Anchors come from the caller alone, and a policy with a typing error is refused when it is made."""

from hashlib import sha256

import pytest

from confide.evidence.policy import INTEL_SGX_ROOT_SHA256, Anchors, TdxPolicy
from confide.simulator.tdx import SimulatedTdxPlatform


def test_only_intels_root_is_built_in() -> None:
    (root,) = Anchors.default().roots.values()
    assert (root.anchor.name, root.anchor.simulated) == ("intel-sgx-root", False)
    assert root.anchor.sha256 == "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


def test_a_pinned_root_is_named_and_marked_as_simulated(platform: SimulatedTdxPlatform) -> None:
    root = Anchors.default().with_simulated(platform.root_der).matching(platform.root_der)
    assert root is not None
    assert root.der == platform.root_der
    assert root.anchor.simulated
    assert root.anchor.name == f"sim:{sha256(platform.root_der).hexdigest()}"


def test_pinning_leaves_the_other_anchors_as_they_were(platform: SimulatedTdxPlatform) -> None:
    before = Anchors.default()
    after = before.with_simulated(platform.root_der)
    assert before.matching(platform.root_der) is None
    assert INTEL_SGX_ROOT_SHA256 in after.roots


def test_a_root_with_one_byte_more_is_another_root(platform: SimulatedTdxPlatform, anchors: Anchors) -> None:
    assert anchors.matching(platform.root_der + b"\x00") is None


@pytest.mark.parametrize("encode", [lambda p: p.root_pem.encode(), lambda p: b"", lambda p: p.root_der[:-1]])
def test_something_else_than_a_der_certificate_cannot_be_pinned(encode, platform: SimulatedTdxPlatform) -> None:  # type: ignore[no-untyped-def]  # three one-line encoders
    with pytest.raises(ValueError, match="not a certificate in DER form; convert PEM to DER first"):
        Anchors.default().with_simulated(encode(platform))


def test_a_misspelt_tcb_status_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown TCB status uptodate; choose from .*UpToDate"):
        TdxPolicy(accepted_tcb=frozenset({"uptodate"}))


def test_a_revoked_platform_cannot_be_accepted_by_policy() -> None:
    with pytest.raises(ValueError, match="unknown TCB status Revoked"):
        TdxPolicy(accepted_tcb=frozenset({"UpToDate", "Revoked"}))


def test_the_default_policy_accepts_up_to_date_only() -> None:
    assert TdxPolicy().accepted_tcb == {"UpToDate"}
