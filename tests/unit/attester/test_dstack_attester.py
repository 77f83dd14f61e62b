"""The dstack attester: keys by path, evidence that verifies with its custody chain, and none at all otherwise."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_socket import Switchboard, switchboard
from confide.attester.base import MAX_WAITING
from confide.attester.dstack import KEYS, RECEIPT, DstackAttester
from confide.attester.dstack_agent import Endpoint, GuestAgent
from confide.attester.epochs import KeysetEpochs
from confide.attester.keys import ReleasedSecret, WorkloadKeys
from confide.attester.own_output import tdx_report_data
from confide.errors import ConfigError, InternalError, NotReady
from confide.evidence.custody import verify_custody
from confide.evidence.dstack import DstackEvidence, verify_dstack
from confide.evidence.policy import Anchors, DstackPolicy, TdxPolicy
from confide.evidence.result import Status, Verdict
from confide.evidence.tdx import verify_tdx
from confide.protocol.signature import Algo
from confide.simulator.guest_agent import Members, SimulatedGuestAgent, serving
from confide.simulator.kms import SimulatedKms
from confide.simulator.measurements import APP_ID
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
SEED = bytes(range(32))
PLATFORM = SimulatedTdxPlatform(SEED, now=NOW)
KMS = SimulatedKms(SEED)
REPORT_DATA = bytes(range(64))

Change = Callable[[dict[str, object]], dict[str, object]]


class ScriptedAgent(SimulatedGuestAgent):
    """The honest agent, with answers that a test changes by method."""

    def __init__(self, *, log_as_list: bool = False, **changes: Change) -> None:
        super().__init__(PLATFORM, KMS, log_as_list=log_as_list)
        self.changes = changes

    def get_quote(self, asked: Members) -> dict[str, object]:
        return self.changed("quote", super().get_quote(asked))

    def info(self, asked: Members) -> dict[str, object]:
        return self.changed("info", dict(super().info(asked)))

    def get_key(self, asked: Members) -> dict[str, object]:
        return self.changed("key", super().get_key(asked))

    def changed(self, method: str, answer: dict[str, object]) -> dict[str, object]:
        change = self.changes.get(method)
        return answer if change is None else change(answer)


def refusing(_: dict[str, object]) -> dict[str, object]:
    raise ValueError("the platform refuses")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switchboard]:
    with switchboard(tmp_path_factory.mktemp("agent")) as board:
        yield board


def client_of(board: Switchboard, agent: SimulatedGuestAgent, *, simulated: bool = False) -> GuestAgent:
    board.connect(agent.app)
    return GuestAgent(Endpoint(str(board.path), simulated=simulated))


async def opened(board: Switchboard, agent: SimulatedGuestAgent, **options: Any) -> DstackAttester:
    return await DstackAttester.open(client_of(board, agent), **options)


async def refused(board: Switchboard, agent: SimulatedGuestAgent) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        await opened(board, agent)
    assert caught.value.remedy
    return caught.value


async def test_its_evidence_verifies_down_to_application_and_root(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent())
    assert (attester.kind, attester.tee_type, attester.simulated) == ("dstack", "tdx", False)
    evidence = await attester.attest(REPORT_DATA)
    epoch = KeysetEpochs(attester.workload_keys, lifetime_s=3600, subject=None, tls_keys=()).at(NOW)
    members = json.loads(json.dumps(evidence.aci_members(epoch.signer.public_key_hex)))
    assert not {"collateral", "simulated"} & set(members)
    tdx = verify_tdx(
        bytes.fromhex(members["quote"]),
        collateral=json.dumps(PLATFORM.collateral(NOW)),
        anchors=Anchors.default().with_simulated(PLATFORM.root_der),
        policy=TdxPolicy(),
        now=NOW,
        expected_report_data=REPORT_DATA,
    )
    assert tdx.ok
    shown = DstackEvidence(
        event_log=members["event_log"], app_compose=members["app_compose"], vm_config=members["vm_config"]
    )
    guest = verify_dstack(tdx, shown, DstackPolicy())
    assert guest.verdict is Verdict.VERIFIED
    assert guest.boot is not None
    (custody,) = verify_custody(
        members["key_custody"],
        keyset=epoch.keyset,
        app_id=guest.boot.app_id,
        kms_roots=frozenset({KMS.root_public_key}),
    )
    assert (custody.name, custody.status) == ("custody.receipt", Status.PASS)


async def test_each_epoch_has_a_key_of_its_own_under_the_same_chain(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent())
    evidence = await attester.attest(REPORT_DATA)
    epochs = KeysetEpochs(attester.workload_keys, lifetime_s=3600, subject=None, tls_keys=())
    for now in (NOW, NOW + 3600):
        epoch = epochs.at(now)
        custody = evidence.aci_members(epoch.signer.public_key_hex)["key_custody"]
        roots = frozenset({KMS.root_public_key})
        app_id = bytes.fromhex(str(PLATFORM.info["app_id"]))
        (check,) = verify_custody(custody, keyset=epoch.keyset, app_id=app_id, kms_roots=roots)
        assert check.status is Status.PASS
    other = evidence.aci_members("ab" * 32)["key_custody"]
    (check,) = verify_custody(other, keyset=epoch.keyset, app_id=app_id, kms_roots=roots)
    assert check.status is Status.FAIL


async def test_a_report_that_is_about_no_keyset_has_no_custody(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent())
    assert "key_custody" not in (await attester.attest(REPORT_DATA)).aci_members()


async def test_keys_are_the_same_on_every_start_and_no_two_alike(board: Switchboard) -> None:
    client = client_of(board, ScriptedAgent())
    first, second = await DstackAttester.open(client), await DstackAttester.open(client)
    for algo in Algo:
        assert first.keys.address(algo) == second.keys.address(algo)
    assert first.workload_keys.tls.spki_sha256 == second.workload_keys.tls.spki_sha256
    assert first.workload_keys.receipt(1).public_key_hex == second.workload_keys.receipt(1).public_key_hex
    assert first.keys.check_seal(b"record", second.keys.seal_record(b"record"))
    assert len({key.path for key in KEYS}) == len({key.purpose for key in KEYS}) == len(KEYS)


async def test_legacy_keys_are_the_released_secrets_themselves(board: Switchboard) -> None:
    client = client_of(board, ScriptedAgent())
    attester = await DstackAttester.open(client)
    released = await client.key("aci/legacy-ecdsa/v1", "aci.legacy.ecdsa.v1")
    x = attester.keys.public_key_hex(Algo.ECDSA)[:64]
    assert released.secret.kms_public_key_hex[2:] == x


async def test_an_agent_that_the_environment_names_is_labelled(board: Switchboard) -> None:
    client = client_of(board, ScriptedAgent(), simulated=True)
    attester = await DstackAttester.open(client)
    evidence = await attester.attest(REPORT_DATA)
    assert attester.simulated
    assert evidence.aci_members()["simulated"] is True


@pytest.mark.parametrize("log_as_list", [False, True])
async def test_the_log_travels_as_text(board: Switchboard, log_as_list: bool) -> None:
    attester = await opened(board, ScriptedAgent(log_as_list=log_as_list))
    first, second = await attester.attest(REPORT_DATA), await attester.attest(REPORT_DATA)
    assert first.event_log == second.event_log
    assert json.loads(first.event_log) == json.loads(PLATFORM.event_log)


@pytest.mark.parametrize(
    "change",
    [
        {"signature_chain": []},
        {"signature_chain": ["00" * 65]},
        {"signature_chain": ["00" * 64] * 2},
        {"signature_chain": ["", ""]},
    ],
    ids=str,
)
async def test_without_a_chain_nothing_is_published_about_it(board: Switchboard, change: dict[str, object]) -> None:
    attester = await opened(board, ScriptedAgent(key=lambda answer: answer | change))
    assert (await attester.attest(REPORT_DATA)).key_custody is None


@pytest.mark.parametrize("info", ['{"name":"local-sgx","id":""}', "{", 5, None, "{}"])
async def test_without_a_kms_nothing_is_published_about_it(board: Switchboard, info: object) -> None:
    agent = ScriptedAgent(info=lambda answer: answer | {"key_provider_info": info})
    attester = await opened(board, agent)
    assert (await attester.attest(REPORT_DATA)).key_custody is None


async def test_one_secret_for_two_paths_is_refused_at_start(board: Switchboard) -> None:
    fixed = KMS.app_keys(bytes(20)).release(RECEIPT.path, RECEIPT.purpose)
    assert "two paths" in (await refused(board, ScriptedAgent(key=lambda _: fixed))).message


async def test_a_platform_without_tdx_quotes_is_refused_at_start(board: Switchboard) -> None:
    agent = ScriptedAgent(quote=lambda answer: answer | {"quote": "", "attestation": "0003"})
    error = await refused(board, agent)
    assert "no TDX quote" in error.message
    assert "configfs" in str(error.remedy)


@pytest.mark.parametrize("method", ["info", "key", "quote"])
async def test_an_agent_that_refuses_is_a_clear_refusal_at_start(board: Switchboard, method: str) -> None:
    agent = ScriptedAgent()
    agent.changes[method] = refusing
    assert "status 400: the platform refuses" in (await refused(board, agent)).message


@pytest.mark.parametrize("text", ["x", "[]", "{", "[" * 5000])
async def test_an_application_that_cannot_be_read_is_refused_at_start(board: Switchboard, text: str) -> None:
    """Later it would break every report."""
    error = await refused(board, ScriptedAgent(info=lambda answer: answer | {"tcb_info": text}))
    assert "tcb_info" in error.message


async def test_an_agent_that_names_no_application_leaves_it_out(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent(info=lambda answer: answer | {"tcb_info": ""}))
    assert "app_compose" not in (await attester.attest(REPORT_DATA)).aci_members()


async def test_an_absent_agent_is_a_clear_refusal_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ConnectError"):
        await DstackAttester.open(GuestAgent(Endpoint(str(tmp_path / "missing.sock"))))


def over_other_data(answer: dict[str, object]) -> dict[str, object]:
    return answer | {"quote": PLATFORM.quote(b"\x01" * 64).hex()}


def claiming_other_data(answer: dict[str, object]) -> dict[str, object]:
    return answer | {"report_data": "01" * 64}


@pytest.mark.parametrize("change", [over_other_data, claiming_other_data, lambda answer: answer | {"quote": "0400"}])
async def test_a_quote_over_other_data_is_never_served(board: Switchboard, change: Change) -> None:
    agent = ScriptedAgent()
    attester = await opened(board, agent)
    agent.changes["quote"] = change
    with pytest.raises(InternalError, match="other report data"):
        await attester.attest(REPORT_DATA)
    assert "other report data" in (await refused(board, ScriptedAgent(quote=change))).message


async def test_an_agent_may_leave_the_report_data_out(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent(quote=lambda answer: answer | {"report_data": ""}))
    assert (await attester.attest(REPORT_DATA)).report_data == REPORT_DATA


async def test_an_agent_that_refuses_later_is_our_fault_and_its_words_stay_here(board: Switchboard) -> None:
    agent = ScriptedAgent()
    attester = await opened(board, agent)
    agent.changes["quote"] = refusing
    with pytest.raises(InternalError) as caught:
        await attester.attest(REPORT_DATA)
    assert "refuses" not in caught.value.message


async def test_an_agent_that_goes_away_may_come_back(tmp_path: Path) -> None:
    app = ScriptedAgent().app
    with serving(app, tmp_path / "dstack.sock") as path:
        attester = await DstackAttester.open(GuestAgent(Endpoint(str(path))))
    with pytest.raises(NotReady) as caught:
        await attester.attest(REPORT_DATA)
    assert caught.value.retry_after_s
    with serving(app, path):
        assert (await attester.attest(REPORT_DATA)).quote


async def test_many_requests_get_each_their_own_quote(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent())
    asked = [bytes([number]) * 64 for number in range(12)]
    evidence = await asyncio.gather(*(attester.attest(report_data) for report_data in asked))
    assert [tdx_report_data(each.quote) for each in evidence] == asked


@pytest.mark.parametrize(("most", "options"), [(MAX_WAITING, {}), (2, {"max_waiting": 2})])
async def test_too_many_requests_are_told_to_come_back(board: Switchboard, most: int, options: dict[str, int]) -> None:
    attester = await opened(board, ScriptedAgent(), **options)
    waiting = [asyncio.create_task(attester.attest(REPORT_DATA)) for _ in range(most)]
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="too many"):
        await attester.attest(REPORT_DATA)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await attester.attest(REPORT_DATA)).quote  # and afterwards there is room again


async def test_nobody_waits_beyond_the_deadline(board: Switchboard) -> None:
    attester = await opened(board, ScriptedAgent(), deadline_s=0)
    with pytest.raises(NotReady, match="within 0 s"):
        await attester.attest(REPORT_DATA)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
async def test_report_data_has_64_bytes(board: Switchboard, length: int) -> None:
    attester = await opened(board, ScriptedAgent())
    with pytest.raises(ValueError, match=f"got {length}"):
        await attester.attest(b"r" * length)


def test_report_data_is_read_out_of_both_versions() -> None:
    quote = PLATFORM.quote(REPORT_DATA)
    assert tdx_report_data(quote) == REPORT_DATA
    newer = b"\x05\x00" + quote[2:48] + (2).to_bytes(2, "little") + (584).to_bytes(4, "little") + quote[48:]
    assert tdx_report_data(newer) == REPORT_DATA
    for other in (b"", b"\x03\x00" + quote[2:], quote[:4] + bytes(4) + quote[8:]):
        assert tdx_report_data(other) is None


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ReleasedSecret(b"s" * length)


def test_a_released_secret_does_not_leave_its_object() -> None:
    secret = ReleasedSecret(SEED)
    assert SEED.hex() not in repr(secret)
    with pytest.raises(TypeError, match="private keys stay"):
        secret.__reduce_ex__(2)


def test_keys_from_released_secrets_have_one_role_each() -> None:
    one, other = ReleasedSecret(SEED), ReleasedSecret(bytes(31) + b"\x01")
    keys: Any = WorkloadKeys.released(receipt=one, tls=other)
    assert keys.receipt(0).public_key_hex == WorkloadKeys.derive(SEED).receipt(0).public_key_hex
    assert keys.tls.spki_sha256 != WorkloadKeys.derive(SEED).tls.spki_sha256


async def test_the_platforms_name_of_the_application_is_told_and_none_is_made_up(board: Switchboard) -> None:
    assert (await opened(board, ScriptedAgent())).app_id == APP_ID.hex()
    for stated in ("", None, 7):
        nameless = ScriptedAgent(info=lambda answer, stated=stated: {**answer, "app_id": stated})  # type: ignore[misc]
        assert (await opened(board, nameless)).app_id is None
