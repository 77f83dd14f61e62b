"""What the host fixed before the guest started: `mr_config_id` of TDX, `HOST_DATA` of SNP (tee-evidence 3.5).

dstack puts a commitment to the application there, in one of three forms; the third is the hash of a document, which is
believed for nothing but its bytes until that hash stands in a VERIFIED quote or report.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import msgspec

from confide.evidence.result import quoted
from confide.protocol.canonical import DocumentError, parse_document, typed
from confide.protocol.signature import keccak256

MR_CONFIG_ID_BYTES = 48
DOCUMENT_DOMAIN = b"dstack-mr-config-v3:\0"
DOCUMENT_VERSION = 3
MAX_DOCUMENT_BYTES = 64 * 1024

# The byte of form 2 for each name that a key-provider event may have, and the name that form 3 has for it.
KEY_PROVIDER_KINDS = {"none": 0, "local-sgx": 1, "kms": 2, "tpm": 3}
LOCAL, LOCAL_SGX = "local", "local-sgx"

OptionalHex = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-fA-F]{2})*\Z")]


class MrConfigError(ValueError):
    """The document is none that dstack writes. The text is for people."""


class Members(msgspec.Struct, frozen=True):
    """The document's members that we read; byte members are hex, and absent ones are empty."""

    compose_hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]
    version: int = DOCUMENT_VERSION
    app_id: OptionalHex = ""
    key_provider: str = ""
    key_provider_id: OptionalHex = ""
    instance_id: OptionalHex = ""
    gpu_policy_hash: OptionalHex = ""
    init_script_hashes: tuple[OptionalHex, ...] | None = None


@dataclass(frozen=True)
class MrConfigDocument:
    """A document of form 3. Byte members are empty when absent, as `key_provider` is; `key_provider` is the name in the
    event log. `init_script_hashes`: None when the document does not speak of init scripts.
    """

    compose_hash: bytes
    app_id: bytes
    key_provider: str
    key_provider_id: bytes
    instance_id: bytes
    gpu_policy_hash: bytes
    init_script_hashes: tuple[bytes, ...] | None


def document_sha256(document: str) -> bytes:
    """The 32 bytes that commit to a document: over its text exactly as supplied. They are an SNP report's `HOST_DATA`.

    Raises MrConfigError for a text that has no bytes in UTF-8.
    """
    try:
        return sha256(DOCUMENT_DOMAIN + document.encode()).digest()
    except UnicodeEncodeError:
        raise MrConfigError("the mr_config document holds half of a surrogate pair") from None


def read_document(document: str) -> MrConfigDocument:
    """What the document says, up to 64 KiB. Raises MrConfigError."""
    try:
        raw = document.encode(errors="surrogatepass")
        parsed = parse_document(raw, what="the mr_config document", most_bytes=MAX_DOCUMENT_BYTES)
        members = typed(parsed, Members, what="the mr_config document")
    except DocumentError as error:
        raise MrConfigError(quoted(error)) from None
    if members.version != DOCUMENT_VERSION:
        raise MrConfigError(f"the mr_config document has version {members.version}, expected {DOCUMENT_VERSION}")
    scripts = members.init_script_hashes
    return MrConfigDocument(
        compose_hash=bytes.fromhex(members.compose_hash),
        app_id=bytes.fromhex(members.app_id),
        key_provider=LOCAL_SGX if members.key_provider == LOCAL else members.key_provider,
        key_provider_id=bytes.fromhex(members.key_provider_id),
        instance_id=bytes.fromhex(members.instance_id),
        gpu_policy_hash=bytes.fromhex(members.gpu_policy_hash),
        init_script_hashes=None if scripts is None else tuple(bytes.fromhex(each) for each in scripts),
    )


def register(form: int, commitment: bytes) -> bytes:
    """The 48 bytes of `mr_config_id` for a commitment of 32 bytes."""
    return (bytes((form,)) + commitment).ljust(MR_CONFIG_ID_BYTES, b"\0")


def form_1(compose_hash: bytes) -> bytes:
    """The register that names the application alone."""
    return register(1, compose_hash)


def form_2(compose_hash: bytes, app_id: bytes, key_provider: str, key_provider_id: bytes) -> bytes:
    """The register that names the key provider too. Raises MrConfigError for a name without a number."""
    kind = KEY_PROVIDER_KINDS.get(key_provider)
    if kind is None:
        known = ", ".join(KEY_PROVIDER_KINDS)
        raise MrConfigError(f"got the key provider {quoted(key_provider)}, expected one of {known}")
    return register(2, keccak256(compose_hash + app_id + bytes((kind,)) + key_provider_id))


def form_3(document: str) -> bytes:
    """The register that commits to a document. Raises MrConfigError."""
    return register(3, document_sha256(document))
