"""Anchors come from the caller alone, and a policy with a typing error is refused when it is made."""

from hashlib import sha256

import pytest

from confide.evidence.policy import AMD_ARK_MILAN_SHA256, INTEL_SGX_ROOT_SHA256, Anchors, TdxPolicy
from confide.simulator.tdx import SimulatedTdxPlatform
from shared_data import TEE


def test_the_vendors_roots_are_built_in_and_no_others() -> None:
    """By SHA-256 of the DER, as the vendors publish them."""
    built_in = {root.anchor.name: (root.anchor.sha256, root.platform) for root in Anchors.default().roots.values()}
    assert built_in == {
        "intel-sgx-root": ("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3", "tdx"),
        "amd-ark-milan": ("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd", "snp"),
        "amd-ark-genoa": ("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1", "snp"),
        "amd-ark-turin": ("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a", "snp"),
        "nvidia-device-root": ("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48", "nvidia"),
    }
    assert not any(root.anchor.simulated for root in Anchors.default().roots.values())


def test_only_the_named_vendors_are_trusted() -> None:
    assert {root.platform for root in Anchors.of("intel", "amd").roots.values()} == {"tdx", "snp"}
    assert Anchors.of().roots == {}


def test_a_product_can_be_dropped() -> None:
    dropped = Anchors.default().without(AMD_ARK_MILAN_SHA256)
    assert AMD_ARK_MILAN_SHA256 not in dropped.roots
    assert len(dropped.roots) == len(Anchors.default().roots) - 1


def intels_root() -> bytes:
    path = TEE / "tdx" / "intel_sgx_root_ca.der"
    if not path.exists():
        pytest.skip("the shared TEE samples are not beside this checkout")
    return path.read_bytes()


def test_a_vendors_root_vouches_for_its_own_platform_alone() -> None:
    anchors = Anchors.default()
    assert anchors.matching(intels_root(), "tdx") is not None
    assert anchors.matching(intels_root(), "snp") is None
    assert anchors.matching(intels_root(), "nvidia") is None


def test_a_vendors_root_in_a_file_is_taken_for_what_it_is(platform: SimulatedTdxPlatform) -> None:
    (root,) = Anchors.of().pinning(intels_root()).roots.values()
    assert (root.anchor.name, root.anchor.simulated) == ("intel-sgx-root", False)
    (pinned,) = Anchors.of().pinning(platform.root_der).roots.values()
    assert pinned.anchor.simulated


def test_a_pinned_root_is_named_and_marked_as_simulated(platform: SimulatedTdxPlatform) -> None:
    root = Anchors.default().with_simulated(platform.root_der).matching(platform.root_der, "tdx")
    assert root is not None
    assert root.der == platform.root_der
    assert root.anchor.simulated
    assert root.anchor.name == f"sim:{sha256(platform.root_der).hexdigest()}"


def test_pinning_leaves_the_other_anchors_as_they_were(platform: SimulatedTdxPlatform) -> None:
    before = Anchors.default()
    after = before.with_simulated(platform.root_der)
    assert before.matching(platform.root_der, "tdx") is None
    assert INTEL_SGX_ROOT_SHA256 in after.roots


def test_a_root_with_one_byte_more_is_another_root(platform: SimulatedTdxPlatform, anchors: Anchors) -> None:
    assert anchors.matching(platform.root_der + b"\x00", "tdx") is None


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
