"""Policies: what each requirement asks, and arguments that mean nothing."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from aci_service import PROVENANCE, AciService, epoch_at, simulated
from confide.errors import ConfigError
from confide.evidence.policy import Anchors, Root
from confide.evidence.result import Check, Status, TrustAnchor, failed, passed, skipped
from confide.protocol.report import SourceProvenance, parse_report
from confide.verifier import policy as policies
from confide.verifier.policy import (
    AllOf,
    AnyOf,
    Attested,
    Claims,
    ComposeHash,
    KeysetAge,
    Policy,
    Requirement,
    Serving,
    Source,
)
from proof_builders import NOW

COMPOSE = "11" * 32
IMAGE = "sha256:" + "22" * 32

Trusting = Callable[..., Policy]


def attested(service: AciService | None = None, **changes: Any) -> Attested:
    report = parse_report((service or AciService()).report())
    members: dict[str, Any] = {"report": report, "now": NOW, "compose_hash": COMPOSE, "claims": {"tee_attested": "yes"}}
    return Attested(**(members | changes))


def built_from(**members: str | None) -> Attested:
    return attested(AciService().but(provenance=SourceProvenance(**members)))


def reason(requirement: Requirement, found: Attested) -> str:
    """Why it does not hold: what was got, and what was expected."""
    check = requirement.check(found)
    assert (check.name, check.status) == (requirement.name, Status.FAIL)
    assert "got " in check.reason
    assert "expected " in check.reason
    return check.reason


def holds(requirement: Requirement, found: Attested) -> bool:
    check = requirement.check(found)
    assert check.name == requirement.name
    return check.status is Status.PASS


def test_a_keyset_that_outlives_what_the_policy_allows_is_refused() -> None:
    left_s = epoch_at().keyset.not_after - NOW
    assert holds(KeysetAge(left_s), attested())
    assert reason(KeysetAge(left_s - 1), attested()) == (
        f"got a keyset that lives {left_s} s longer, expected at most {left_s - 1} s"
    )


def test_the_measured_application_is_one_of_those_that_are_listed() -> None:
    assert holds(ComposeHash({COMPOSE, "33" * 32}), attested())
    assert COMPOSE in reason(ComposeHash({"33" * 32}), attested())
    assert "no compose hash that is proven" in reason(ComposeHash({COMPOSE}), attested(compose_hash=None))


def test_the_source_is_the_one_that_was_asked_for() -> None:
    commit, url = PROVENANCE.repo_commit, PROVENANCE.repo_url
    assert commit is not None
    assert holds(Source(), attested())
    assert holds(Source(repo_url=url, repo_commits=[commit]), attested())
    assert holds(Source(image_digests={IMAGE}), built_from(image_digest=IMAGE))
    assert "got repo_url" in reason(Source(repo_url="https://git.example.com/b"), attested())
    assert "got repo_commit" in reason(Source(repo_commits={"cd" * 20}), attested())
    assert "got no image_digest" in reason(Source(image_digests={IMAGE}), attested())


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"repo_url": "https://git.example.com/a"},
        {"repo_url": "https://git.example.com/a", "repo_commit": "abc1234"},
        {"repo_commit": "ab" * 20},
        {"image_digest": "latest"},
    ],
)
def test_a_source_that_is_not_named_in_full_is_none(members: dict[str, str]) -> None:
    assert "named in full" in reason(Source(), built_from(**members))


def test_claims_hold_each_for_a_reason_of_its_own() -> None:
    found = attested(claims={"tee_attested": "the quote", "tcb_up_to_date": "the status"})
    check = Claims(("tee_attested", "tcb_up_to_date")).check(found)
    assert check == passed("policy-claims", "tcb_up_to_date: the status; tee_attested: the quote")
    assert "gpu_attested" in reason(Claims({"gpu_attested", "tee_attested"}), found)


def test_serving_asks_where_inference_runs() -> None:
    behind = attested(AciService().but(serving="aggregator"))
    assert holds(Serving(), attested())
    assert holds(Serving("aggregator"), behind)
    assert reason(Serving(), behind) == "got serving aggregator, expected one of direct"


class Fixed:
    """A requirement of somebody's own."""

    def __init__(self, check: Check) -> None:
        self._check = check

    @property
    def name(self) -> str:
        return self._check.name

    def check(self, _: Attested) -> Check:
        return self._check


YES, NO, PERHAPS = (Fixed(make("mine", each)) for make, each in ((passed, "yes"), (failed, "no"), (skipped, "perhaps")))


def test_all_of_holds_when_each_does_and_says_which_does_not() -> None:
    assert AllOf(YES, YES).check(attested()) == passed("policy-all", "yes; yes")
    assert AllOf(YES, NO, PERHAPS).check(attested()) == failed("policy-all", "no")
    assert AllOf(YES, PERHAPS).check(attested()) == failed("policy-all", "perhaps")
    assert AllOf().check(attested()) == passed("policy-all", "nothing was asked for")


def test_any_of_holds_when_one_does_and_says_why_none_does() -> None:
    assert AnyOf(NO, YES, name="either").check(attested()) == passed("either", "yes")
    assert AnyOf(NO, PERHAPS).check(attested()) == failed("policy-any", "no; perhaps")
    assert AnyOf().check(attested()).status is Status.FAIL


def test_combinations_combine() -> None:
    assert holds(AllOf(YES, AnyOf(NO, AllOf(YES, YES))), attested())
    assert not holds(AllOf(YES, AnyOf(NO, AllOf(YES, NO))), attested())


@pytest.mark.parametrize("check", [failed("mine", "no"), skipped("mine", "perhaps"), passed("another", "yes")])
def test_a_requirement_of_ones_own_that_does_not_pass_under_its_name_refuses(
    trusting: Trusting, service: AciService, check: Check
) -> None:
    class Mine:
        name = "mine"

        def check(self, _: Attested) -> Check:
            return check

    assert service.verified(trusting(requirements=(YES,))).ok
    assert not service.verified(trusting(requirements=(Mine(),))).ok


def test_without_arguments_real_hardware_over_attested_tls_is_asked_for() -> None:
    policy = Policy()
    assert policy.anchors.roots == Anchors.of("intel", "amd", "nvidia").roots
    assert policy.require_channel
    assert policy.tdx.accepted_tcb == {"UpToDate"}
    assert [each.name for each in policy.appraised] == ["policy-keyset-age"]


def test_each_argument_that_asks_for_something_is_a_check_of_its_own(trusting: Trusting) -> None:
    mine = Serving()
    policy = trusting(claims=["tee_attested"], compose_hashes={COMPOSE}, source=Source(), requirements=(mine,))
    assert [each.name for each in policy.appraised] == [
        "policy-keyset-age",
        "policy-compose",
        "policy-source",
        "policy-claims",
        "policy-serving",
    ]


def test_a_root_from_a_file_is_named_as_simulated(root: Path) -> None:
    simulator = sha256(simulated().root_der).hexdigest()
    for given in (root, str(root)):
        policy = Policy(trust_roots=("intel", "amd", given))
        assert policy.anchors.roots.keys() == {*Anchors.of("intel", "amd", "nvidia").roots, simulator}
        assert policy.anchors.roots[simulator].anchor.simulated
    assert {each.platform for each in Policy(trust_roots=("amd",)).anchors.roots.values()} == {"snp", "nvidia"}
    assert {each.platform for each in Policy(trust_roots=()).anchors.roots.values()} == {"nvidia"}


def test_a_vendors_root_in_a_file_is_not_called_simulated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(simulated().root_der).hexdigest()
    vendors = Root(TrustAnchor("some-vendor", digest, simulated=False), None, "tdx")
    monkeypatch.setattr(
        "confide.evidence.policy.VENDOR_ROOTS", {"intel": (), "amd": (), "nvidia": (), "some": (vendors,)}
    )
    assert Policy(trust_roots=(root,)).anchors.roots == {digest: vendors}


def test_a_root_that_cannot_be_read_says_what_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        Policy(trust_roots=("intle",))
    assert caught.value.remedy == "Name one of intel, amd, or a PEM file."
    with pytest.raises(ConfigError, match="cannot be read"):
        Policy(trust_roots=(tmp_path,))
    (tmp_path / "root.der").write_bytes(simulated().root_der)
    with pytest.raises(ConfigError, match="no PEM certificate"):
        Policy(trust_roots=(tmp_path / "root.der",))


@pytest.mark.parametrize(
    "name", ["trust_roots", "accepted_tcb", "denied_advisories", "claims", "compose_hashes", "session_ids"]
)
@pytest.mark.parametrize("value", ["intel", b"intel", Path("root.pem"), 5, None, [5], [None]], ids=repr)
def test_what_is_no_list_of_texts_is_refused_and_not_taken_apart(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Policy(**{name: value})  # type: ignore[arg-type]  # a caller without a type checker


@pytest.mark.parametrize("name", ["compose_hashes", "session_ids"])
@pytest.mark.parametrize("value", ["", "sha256:" + COMPOSE, "AB" * 32, COMPOSE[:-1], COMPOSE + "\n"])
def test_a_hash_that_no_service_can_have_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got .*, expected 64 lower-case hex digits"):
        Policy(**{name: [value]})  # type: ignore[arg-type]  # mypy does not look into the mapping


def test_arguments_of_requirements_are_no_texts_alone_either() -> None:
    for make in (
        lambda: Source(repo_commits="ab" * 20),
        lambda: Source(image_digests=IMAGE),
        lambda: ComposeHash(COMPOSE),
        lambda: Claims("tee_attested"),
    ):
        with pytest.raises(ConfigError, match="got one value, expected several"):
            make()


def test_claims_and_statuses_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="tee_attestd") as caught:
        Policy(claims=("tee_attestd",))
    assert "tee_attested" in caught.value.message
    with pytest.raises(ConfigError, match="accepted_tcb: unknown TCB status Uptodate"):
        Policy(accepted_tcb=("Uptodate",))


def test_the_claims_of_the_specification_are_known() -> None:
    assert {
        "tee_attested",
        "gpu_attested",
        "tcb_up_to_date",
        "os_known_good",
        "serving_software_known_good",
        "model_weights_provenance",
    } == policies.CLAIMS
