"""What did a dstack guest measure, and is it what it shows? (tee-evidence 3.5)

On entry: a TDX quote that `evidence.tdx` has judged, and what came along with it. What must be shown, in this order:

1. dstack.replay          the event log is the one behind all four registers of the quote
2. dstack.events          before `system-ready` each name stands once, and application and app id are named
3. dstack.compose         the shown `app_compose` is the measured one
4. dstack.compose-policy  application, app id and GPU policy are ones that the caller accepts
5. dstack.mr-config       what the host fixed at launch agrees with what the guest measured
6. dstack.mr-aggregated   the sum that the agent states is the sum of the registers (for operators)
7. dstack.os-image        the registers are those of an image that the caller accepts (`evidence.osimage`)
8. dstack.key-provider    the keys come from a provider that the caller accepts

On exit: with 1 and 2 passed, `DstackResult.boot` is what dstack's own code in the guest measured. That this code is
dstack's is 7: an image of somebody else's may log what it likes. NOT shown: who released the keys (`evidence.custody`),
and whatever the caller's lists leave open.

A check that reads the quote or the log passes only when the quote verified; before that anybody may have written them.
"""

from dataclasses import dataclass
from hashlib import sha256

from confide.evidence import mr_config
from confide.evidence.dstack_boot import (
    APP_ID,
    COMPOSE_HASH,
    GPU_POLICY_HASH,
    INSTANCE_ID,
    PROVIDER_EVENT,
    MeasuredBoot,
    read_boot,
    read_provider,
)
from confide.evidence.event_log import INIT_SCRIPT_HASH, EventLog, LogError, read_event_log
from confide.evidence.mr_config import MrConfigError
from confide.evidence.osimage import OS_IMAGE, ImageError, VmConfig, check_os_image, read_vm_config
from confide.evidence.policy import DstackPolicy, KeyProvider
from confide.evidence.quote import TdxQuote
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped
from confide.evidence.tdx import QUOTE, TdxResult

REPLAY, EVENTS, COMPOSE = "dstack.replay", "dstack.events", "dstack.compose"
COMPOSE_POLICY, MR_CONFIG, MR_AGGREGATED = "dstack.compose-policy", "dstack.mr-config", "dstack.mr-aggregated"
KEY_PROVIDER = "dstack.key-provider"
NAMES = (REPLAY, EVENTS, COMPOSE, COMPOSE_POLICY, MR_CONFIG, MR_AGGREGATED, OS_IMAGE, KEY_PROVIDER)

# The checks without which no application was measured. The policy adds those that it has an opinion on.
DSTACK_REQUIRED = frozenset({REPLAY, EVENTS, COMPOSE})


@dataclass(frozen=True, kw_only=True)
class DstackEvidence:
    """What came along with the quote, all of it claims.

    `event_log`: JSON text or the array in it. `app_compose`: the text exactly as served. `vm_config`: JSON text.
    `mr_config`: the document that form 3 of `mr_config_id` commits to; without it the one in `vm_config` serves.
    `mr_aggregated`: what `Info` states, 64 hex digits. Each None when absent.
    """

    event_log: object = None
    app_compose: str | None = None
    vm_config: str | None = None
    mr_config: str | None = None
    mr_aggregated: str | None = None


@dataclass(frozen=True)
class DstackResult(Verification):
    """The checks, and what was measured: None unless log and events passed for a quote that verified."""

    boot: MeasuredBoot | None = None


def verify_dstack(tdx: TdxResult, evidence: DstackEvidence, policy: DstackPolicy) -> DstackResult:
    """Check what a guest shows against its quote. Offline; returns for any evidence, never raises on bad evidence."""
    required = required_by(policy)
    quote = tdx.quote
    if quote is None:
        skips = tuple(skipped(name, "there is no quote to compare with") for name in NAMES)
        return DstackResult(tdx.now, skips, required=required)
    genuine = tdx.has_passed({QUOTE})
    log = opened_log(evidence.event_log)
    config = opened_config(evidence.vm_config)
    replay = check_replay(log, quote, genuine=genuine)
    events, boot = check_events(log, replay)
    image, image_facts = check_os_image(quote, config, boot.os_image_hash if boot else None, policy, genuine=genuine)
    checks = (
        replay,
        events,
        check_compose(evidence.app_compose, boot),
        check_compose_policy(boot, policy),
        check_mr_config(quote, evidence, config, boot, genuine=genuine),
        check_mr_aggregated(quote, evidence.mr_aggregated, genuine=genuine),
        image,
        check_key_provider(boot, policy),
    )
    facts = image_facts | quote_facts(quote, genuine=genuine) | boot_facts(quote, log, boot)
    return DstackResult(tdx.now, checks, tdx.anchors, facts, required=required, boot=boot)


def required_by(policy: DstackPolicy) -> frozenset[str]:
    """The checks without which this policy is not met."""
    opinions = {
        COMPOSE_POLICY: policy.pins_application,
        OS_IMAGE: policy.pins_os_image,
        KEY_PROVIDER: bool(policy.key_providers),
    }
    return DSTACK_REQUIRED | {name for name, pins in opinions.items() if pins}


def opened_log(log: object) -> EventLog | LogError | None:
    """The log, or why it cannot be read; None when there is none."""
    if log is None:
        return None
    try:
        return read_event_log(log)
    except LogError as error:
        return error


def opened_config(text: str | None) -> VmConfig | ImageError:
    try:
        return read_vm_config(text)
    except ImageError as error:
        return error


def check_replay(log: EventLog | LogError | None, quote: TdxQuote, *, genuine: bool) -> Check:
    """(1) All four: a log that is right about RTMR3 alone is not this guest's boot."""
    if log is None:
        return skipped(REPLAY, "the evidence has no event log")
    if isinstance(log, LogError):
        return failed(REPLAY, str(log))
    expected = (quote.rtmr0, quote.rtmr1, quote.rtmr2, quote.rtmr3)
    for index, (found, wanted) in enumerate(zip(log.registers, expected, strict=True)):
        if found != wanted:
            return failed(REPLAY, f"the event log replays to {found.hex()}, expected {wanted.hex()} in RTMR{index}")
    if not genuine:
        return skipped(REPLAY, "the quote did not verify, so its registers prove nothing")
    return passed(REPLAY, f"{len(log.events)} entries replay to the four registers of the quote")


def check_events(log: EventLog | LogError | None, replay: Check) -> tuple[Check, MeasuredBoot | None]:
    """(2) What the boot log says, if it is the quote's; and that it says it once."""
    if not isinstance(log, EventLog):
        return skipped(EVENTS, "there is no event log to read"), None
    try:
        boot = read_boot(log)
    except LogError as error:
        return failed(EVENTS, str(error)), None
    if replay.status is not Status.PASS:
        return skipped(EVENTS, "the event log is not shown to be the quote's"), None
    return passed(EVENTS, f"the app {boot.app_id.hex()} and its {len(log.boot_events)} boot events, each once"), boot


def check_compose(app_compose: str | None, boot: MeasuredBoot | None) -> Check:
    """(3) Over the bytes exactly as served: another spelling of the same JSON is another application."""
    if app_compose is None:
        return skipped(COMPOSE, "the evidence shows no app_compose")
    found = text_sha256(app_compose)
    if found is None:
        return failed(COMPOSE, "app_compose holds half of a surrogate pair")
    if boot is None:
        return skipped(COMPOSE, "no measured compose hash to compare with")
    if found != boot.compose_hash:
        return failed(COMPOSE, f"got app_compose with SHA-256 {found.hex()}, measured was {boot.compose_hash.hex()}")
    return passed(COMPOSE, f"the shown app_compose is the measured one, SHA-256 {found.hex()}")


def check_compose_policy(boot: MeasuredBoot | None, policy: DstackPolicy) -> Check:
    """(4) Against the caller's lists. An app id is no prefix of the compose hash where the app was upgraded."""
    if boot is None:
        return skipped(COMPOSE_POLICY, "no measured application to compare with")
    wanted = (
        ("compose hash", boot.compose_hash, policy.compose_hashes),
        ("app id", boot.app_id, policy.app_ids),
        ("GPU policy hash", boot.gpu_policy_hash, policy.gpu_policy_hashes),
    )
    for what, found, accepted in wanted:
        if accepted and (found is None or found.hex() not in accepted):
            return failed(
                COMPOSE_POLICY, f"got the {what} {found.hex() if found else found}, which is not on the policy's list"
            )
    named = [f"{what} {found.hex()}" for what, found, accepted in wanted if accepted and found is not None]
    if not named:
        return skipped(COMPOSE_POLICY, f"the policy names no application to compare with {boot.compose_hash.hex()}")
    return passed(COMPOSE_POLICY, f"on the policy's list: {', '.join(named)}")


def check_mr_config(
    quote: TdxQuote,
    evidence: DstackEvidence,
    config: VmConfig | ImageError,
    boot: MeasuredBoot | None,
    *,
    genuine: bool,
) -> Check:
    """(5) By the form that the register's first byte names. Form 1 needs no log: the shown text will do."""
    form, found = quote.mr_config_id[0], quote.mr_config_id
    if not any(found):
        return skipped(MR_CONFIG, "mr_config_id is zero: the host fixed no application at launch")
    document = evidence.mr_config or (config.mr_config if isinstance(config, VmConfig) else None)
    try:
        expected = expected_mr_config(form, evidence.app_compose, document, boot)
        if expected is None:
            return skipped(MR_CONFIG, f"form {form} of mr_config_id commits to something that the evidence lacks")
        if found != expected:
            return failed(MR_CONFIG, f"got {found.hex()} in mr_config_id, expected {expected.hex()}")
        if form == 3 and document is not None:
            require_agreement(mr_config.read_document(document), evidence.app_compose, boot)
    except (MrConfigError, LogError) as error:
        return failed(MR_CONFIG, str(error))
    if not genuine:
        return skipped(MR_CONFIG, "the quote did not verify, so its mr_config_id proves nothing")
    return passed(MR_CONFIG, f"form {form} of mr_config_id commits to what was measured")


def expected_mr_config(
    form: int, app_compose: str | None, document: str | None, boot: MeasuredBoot | None
) -> bytes | None:
    """The register for what is known; None when too little is. Raises MrConfigError or LogError."""
    if form == 1:
        shown = None if app_compose is None else text_sha256(app_compose)
        compose_hash = boot.compose_hash if boot else shown
        return None if compose_hash is None else mr_config.form_1(compose_hash)
    if form == 2:
        if boot is None or boot.key_provider is None:
            return None
        provider = read_provider(boot.key_provider)
        return mr_config.form_2(boot.compose_hash, boot.app_id, provider.name, bytes.fromhex(provider.id))
    if form == 3:
        return None if document is None else mr_config.form_3(document)
    raise MrConfigError(f"got mr_config_id of form {form}, expected 1, 2 or 3")


def require_agreement(document: mr_config.MrConfigDocument, app_compose: str | None, boot: MeasuredBoot | None) -> None:
    """Raise MrConfigError where the document names something else than was measured or shown. Empty members name
    nothing.
    """
    known: dict[str, tuple[object, object]] = {}
    if app_compose is not None:
        known["app_compose"] = (document.compose_hash, text_sha256(app_compose))
    if boot is not None:
        known |= {
            COMPOSE_HASH: (document.compose_hash, boot.compose_hash),
            APP_ID: (document.app_id, boot.app_id),
            INSTANCE_ID: (document.instance_id, boot.instance_id),
            GPU_POLICY_HASH: (document.gpu_policy_hash, boot.gpu_policy_hash),
        }
        if document.init_script_hashes is not None:
            known[INIT_SCRIPT_HASH] = (document.init_script_hashes, boot.init_script_hashes)
        if boot.key_provider is not None:
            provider = read_provider(boot.key_provider)
            known[PROVIDER_EVENT] = (document.key_provider, provider.name)
            known["key provider's id"] = (document.key_provider_id.hex(), provider.id)
    for what, (stated, measured) in known.items():
        if stated not in (b"", "", measured):
            raise MrConfigError(f"the mr_config document names another {what} than was measured or shown")


def check_mr_aggregated(quote: TdxQuote, stated: str | None, *, genuine: bool) -> Check:
    """(6) Proves nothing that the registers do not; an agent that states another sum is broken."""
    if stated is None:
        return skipped(MR_AGGREGATED, "the evidence states no mr_aggregated")
    found = mr_aggregated(quote).hex()
    if stated.lower() != found:
        return failed(MR_AGGREGATED, f"got mr_aggregated {quoted(stated)}, expected {found}")
    if not genuine:
        return skipped(MR_AGGREGATED, "the quote did not verify, so its registers prove nothing")
    return passed(MR_AGGREGATED, f"the stated mr_aggregated is the sum of the registers, {found}")


def check_key_provider(boot: MeasuredBoot | None, policy: DstackPolicy) -> Check:
    """(8) Who could have given the guest's keys to somebody else too."""
    if boot is None:
        return skipped(KEY_PROVIDER, "no measured key provider to look at")
    provider = None
    if boot.key_provider is not None:
        try:
            provider = read_provider(boot.key_provider)
        except LogError as error:
            return failed(KEY_PROVIDER, str(error))
    found = "no key provider" if provider is None else f"{quoted(provider.name)} {provider.id}"
    if not policy.key_providers:
        return skipped(KEY_PROVIDER, f"the policy names no key provider to compare with: {found}")
    if provider is None or KeyProvider(provider.name, provider.id) not in policy.key_providers:
        return failed(KEY_PROVIDER, f"got {found}, which is not on the policy's list")
    return passed(KEY_PROVIDER, f"{found} is on the policy's list")


def mr_aggregated(quote: TdxQuote) -> bytes:
    """dstack's sum over all measurements, 32 bytes. The last three registers count when one of them is set."""
    optional = quote.mr_config_id + quote.mr_owner + quote.mr_owner_config
    registers = quote.mr_td + quote.rtmr0 + quote.rtmr1 + quote.rtmr2 + quote.rtmr3
    return sha256(registers + (optional if any(optional) else b"")).digest()


def mr_system(quote: TdxQuote, key_provider: bytes | None) -> bytes:
    """dstack's sum over the system without the application, 32 bytes. `key_provider`: the event's payload."""
    provider = bytes(32) if key_provider is None else sha256(key_provider).digest()
    return sha256(quote.mr_td + quote.rtmr0 + quote.rtmr1 + quote.rtmr2 + provider).digest()


def text_sha256(text: str) -> bytes | None:
    """SHA-256 of the text in UTF-8, None where it has no such form."""
    try:
        return sha256(text.encode()).digest()
    except UnicodeEncodeError:
        return None


def quote_facts(quote: TdxQuote, *, genuine: bool) -> dict[str, object]:
    return {"dstack.mr_aggregated": mr_aggregated(quote).hex()} if genuine else {}


def boot_facts(quote: TdxQuote, log: EventLog | LogError | None, boot: MeasuredBoot | None) -> dict[str, object]:
    """JSON-ready facts of a boot that was shown to be the quote's; byte values in lower-case hex."""
    if boot is None or not isinstance(log, EventLog):
        return {}
    return {
        "dstack.app_id": boot.app_id.hex(),
        "dstack.compose_hash": boot.compose_hash.hex(),
        "dstack.instance_id": None if boot.instance_id is None else boot.instance_id.hex(),
        "dstack.gpu_policy_hash": None if boot.gpu_policy_hash is None else boot.gpu_policy_hash.hex(),
        "dstack.mr_kms": None if boot.mr_kms is None else boot.mr_kms.hex(),
        "dstack.mr_system": mr_system(quote, boot.key_provider).hex(),
        "dstack.key_provider": None
        if boot.key_provider is None
        else quoted(boot.key_provider.decode(errors="replace")),
        "dstack.application_events": len(log.later_events),
    }
