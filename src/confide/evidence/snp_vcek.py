"""What a VCEK or VLEK says of the chip and firmware that its key is for (tee-evidence 3.3, step 6; AMD 57230).

AMD's extensions stand under 1.3.6.1.4.1.3704.1: `.2` product, `.3.*` patch levels as INTEGER, `.4` the chip, as bare
bytes in real certificates, `.5` the cloud provider of a VLEK.
"""

from dataclasses import dataclass

from cryptography import x509

from confide.evidence.result import quoted
from confide.evidence.snp_chain import Certificate, SnpChainError
from confide.evidence.snp_report import Product, SigningKey, SnpReport, SnpTcb, read_tcb

ARC = "1.3.6.1.4.1.3704.1."
PRODUCT_NAME, CHIP, PROVIDER = f"{ARC}2", f"{ARC}4", f"{ARC}5"
LEVELS = {"bootloader": f"{ARC}3.1", "tee": f"{ARC}3.2", "snp": f"{ARC}3.3", "microcode": f"{ARC}3.8"}
LEVELS_TURIN = LEVELS | {"fmc": f"{ARC}3.9"}

INTEGER, OCTET_STRING, IA5_STRING = 0x02, 0x04, 0x16
CHIP_BYTES = {Product.MILAN: 64, Product.GENOA: 64, Product.TURIN: 8}


@dataclass(frozen=True, kw_only=True)
class Endorsement:
    """`product_name`: "Milan-B0" and the like. `chip`: 64 bytes, 8 on Turin, None in a VLEK. `provider`: VLEK only."""

    product_name: str
    tcb: SnpTcb
    chip: bytes | None
    provider: str | None


def product_called(name: str) -> Product | None:
    """The product that "Milan-B0" and the like is, None for a name that is not known here."""
    line = name.partition("-")[0].lower()
    return next((product for product in Product if product == line), None)


def named_product(leaf: Certificate) -> Product | None:
    """The product in the certificate, None where it names none that is known here."""
    try:
        return product_called(text(leaf, PRODUCT_NAME))
    except SnpChainError:
        return None


def read_endorsement(leaf: Certificate, product: Product) -> Endorsement:
    """Read the extensions as this product has them. Raises SnpChainError."""
    levels = LEVELS_TURIN if product is Product.TURIN else LEVELS
    return Endorsement(
        product_name=text(leaf, PRODUCT_NAME),
        tcb=SnpTcb(**{name: level(leaf, oid) for name, oid in levels.items()}),
        chip=chip_id(leaf, product) if CHIP in leaf.extensions else None,
        provider=text(leaf, PROVIDER) if PROVIDER in leaf.extensions else None,
    )


def endorsement_faults(endorsed: Endorsement, report: SnpReport, product: Product) -> list[str]:
    """Where the certificate is not the one for this report's key, firmware and chip, in words."""
    faults = []
    reported = read_tcb(report.reported_tcb, product)
    if product_called(endorsed.product_name) not in (product, None):  # None: a sibling under the same root, as Siena
        faults.append(f"got a key for {quoted(endorsed.product_name)}, expected {product}")
    if endorsed.tcb != reported:
        faults.append(f"got a key for {endorsed.tcb}, expected that of the reported TCB, {reported}")
    if report.signing_key is SigningKey.VLEK:
        if endorsed.provider is None or endorsed.chip is not None:
            faults.append("got a chip's own key, expected a VLEK as the report names it")
    elif endorsed.chip is None or endorsed.provider is not None:
        faults.append("got a cloud provider's key, expected a VCEK as the report names it")
    elif endorsed.chip.ljust(len(report.chip_id), b"\x00") != report.chip_id:
        faults.append(f"got a key for the chip {endorsed.chip.hex()}, expected {report.chip_id.hex()}")
    return faults


def value(leaf: Certificate, oid: str) -> bytes:
    """The content of the extension."""
    extension = leaf.extensions.get(oid)
    if extension is None or not isinstance(extension.value, x509.UnrecognizedExtension):
        raise SnpChainError(f"the extension {oid} is missing")
    return extension.value.value


def content(oid: str, der: bytes, tag: int) -> bytes:
    """What is in this one DER value of fewer than 128 bytes."""
    if len(der) < 2 or der[0] != tag or der[1] != len(der) - 2 or len(der) > 129:
        raise SnpChainError(f"the extension {oid} holds {der[:16].hex()}, expected one value of type 0x{tag:02x}")
    return der[2:]


def level(leaf: Certificate, oid: str) -> int:
    """A patch level, 0 to 255."""
    number = content(oid, value(leaf, oid), INTEGER)
    patches = int.from_bytes(number, "big", signed=True)
    if not number or not 0 <= patches <= 255:
        raise SnpChainError(f"the extension {oid} holds the integer {number.hex()}, expected 0 to 255")
    return patches


def text(leaf: Certificate, oid: str) -> str:
    """A text of ASCII letters."""
    raw = content(oid, value(leaf, oid), IA5_STRING)
    if not raw.isascii():
        raise SnpChainError(f"the extension {oid} holds {raw.hex()}, expected ASCII text")
    return raw.decode("ascii")


def chip_id(leaf: Certificate, product: Product) -> bytes:
    """The chip's id, bare as AMD writes it or as an OCTET STRING."""
    raw, expected = value(leaf, CHIP), CHIP_BYTES[product]
    chip = raw if len(raw) == expected else content(CHIP, raw, OCTET_STRING)
    if len(chip) != expected:
        raise SnpChainError(f"the chip's id has {len(chip)} bytes, expected {expected} on {product}")
    return chip
