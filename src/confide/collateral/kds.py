"""AMD's key distribution service (KDS): a chip's certificate, its issuers, and what was revoked (tee-evidence 4.2).

It limits how often it may be asked. A VCEK is one for a chip and the TCB that it reports, so it is kept for as long as
it lives; another TCB has another VCEK. What comes back must fit the report before it is kept.
"""

import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256

import msgspec
from cryptography import x509

from confide.collateral.cache import Cache, Kept
from confide.collateral.fetch import Fetcher, NotKnown, require_base
from confide.collateral.supply import Failed, Item, Malformed, Supply, Wanted, unheard
from confide.errors import CannotTell
from confide.evidence.result import quoted
from confide.evidence.snp_chain import UNREADABLE, SnpChainError, load_certificate, split_certificates
from confide.evidence.snp_report import Product, SigningKey, SnpReport, read_tcb
from confide.evidence.snp_vcek import CHIP_BYTES, endorsement_faults, read_endorsement

AMD_KDS = "https://kdsintf.amd.com"

CRL_DUE_AFTER_S = 24 * 60 * 60
MAX_CERTIFICATES_BYTES = 64 * 1024
MAX_CRL_BYTES = 256 * 1024

# How the parts of a TCB are called there. The order is that of AMD's document; `fmc` is Turin's alone (unverified).
PARTS = {"bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}
HEX = re.compile(r"(?:[0-9a-f]{2})*")
PARTS_TURIN = {"fmc": "fmcSPL"} | PARTS


class SnpCollateral(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What verifies one chip's reports. `product`: "milan", "genoa" or "turin". `vcek`: PEM. `cert_chain`: ASK, then
    ARK, PEM. `crl`: DER in hex, None where there is none. `verify_snp` takes the bytes of the first two as they are.
    """

    product: Product
    vcek: str
    cert_chain: str
    crl: str | None = None

    def __post_init__(self) -> None:
        if self.crl is not None and HEX.fullmatch(self.crl) is None:
            raise ValueError("the CRL is not hex")

    @property
    def crl_der(self) -> bytes | None:
        return None if self.crl is None else bytes.fromhex(self.crl)


@dataclass(frozen=True)
class Chip:
    """Whose key it is, and for which firmware: claims of a report. `spl`: the query, as AMD spells it."""

    product: Product
    chip_id: str
    spl: str

    def __str__(self) -> str:
        return f"the {self.product} chip {self.chip_id[:16]}… at {self.spl}"


def chip_of(report: SnpReport, product: Product | None) -> Chip:
    """Whose VCEK a report needs. Raises CannotTell for a report that does not say so."""
    product = (report.cpuid.product if report.cpuid else None) or product
    if product is None:
        raise CannotTell("the SNP report does not say of which product it is", remedy="Pin the product's root.")
    if report.signing_key is not SigningKey.VCEK or not any(report.chip_id):
        raise CannotTell(
            "the SNP report is not signed by the chip's own key, or hides the chip, so AMD cannot be asked for it",
            remedy="Take the certificates from the host's table (auxblob).",
        )
    levels = read_tcb(report.reported_tcb, product).levels
    parts = PARTS_TURIN if product is Product.TURIN else PARTS
    spl = "&".join(f"{name}={levels[part]}" for part, name in parts.items())
    return Chip(product, report.chip_id[: CHIP_BYTES[product]].hex(), spl)


class SnpCollateralSource:
    """Certificates and revocation lists for SNP reports. Threads may share it.

    `offline`, or no fetcher: no socket is opened, and what is not kept is a CannotTell. `failed`: see Supply.
    """

    def __init__(
        self,
        fetcher: Fetcher | None,
        cache: Cache,
        *,
        base: str = AMD_KDS,
        offline: bool = False,
        failed: Failed = unheard,
    ) -> None:
        """`base`: the service's address without a path. Raises ConfigError unless it is https, or loopback."""
        self._base = require_base(base, "AMD's key distribution service")
        self._supply = Supply(None if offline else fetcher, cache, failed=failed)

    def collateral(self, report: SnpReport, *, now: int, product: Product | None = None) -> SnpCollateral:
        """What verifies this report at `now` (Unix seconds). `product`: for version 2, which does not name it.

        Raises CannotTell where VCEK or chain are not to be had. Without a revocation list `crl` is None, and whether
        that will do the verifier's policy says.
        """
        chip = chip_of(report, product)
        vcek, cert_chain = self.vcek(report, chip, now=now), self.cert_chain(chip.product, now=now)
        try:
            crl = self.crl(chip.product, now=now)
        except CannotTell:
            crl = None
        return SnpCollateral(product=chip.product, vcek=vcek, cert_chain=cert_chain, crl=crl)

    def vcek(self, report: SnpReport, chip: Chip, *, now: int) -> str:
        """The certificate of the chip's key, PEM. Raises CannotTell."""
        url = f"{self._tree(chip.product)}/{chip.chip_id}?{chip.spl}"
        name = self._name("vcek", chip.product, sha256(f"{chip.chip_id}?{chip.spl}".encode()).hexdigest()[:32])
        what = f"the VCEK of {chip}"

        def fetch(fetcher: Fetcher) -> Kept:
            try:
                answer = fetcher.get(url, what=what, limit=MAX_CERTIFICATES_BYTES)
            except NotKnown as error:
                raise NotKnown(
                    f"{what}: AMD's service does not know it (404)",
                    remedy="The report is not of a genuine chip, or of a simulated one, which has its own service.",
                ) from error
            return Kept(name=name, source=url, fetched_at=now, content=pem_of(answer.body))

        def read(kept: Kept) -> Item[str]:
            (der,) = read_pem(kept.content, 1)
            try:
                leaf = load_certificate(der)
                faults = endorsement_faults(read_endorsement(leaf, chip.product), report, chip.product)
            except SnpChainError as error:
                raise Malformed(str(error)) from error
            if faults:
                raise Malformed("; ".join(faults))
            return Item(kept.content, leaf.not_before, leaf.not_after, None)

        return self._supply.get(Wanted(name, self._base, what, fetch, read), now=now)

    def cert_chain(self, product: Product, *, now: int) -> str:
        """ASK, then ARK, PEM. Raises CannotTell."""
        url, what = f"{self._tree(product)}/cert_chain", f"AMD's certificates for {product}"
        name = self._name("ask-ark", product)

        def fetch(fetcher: Fetcher) -> Kept:
            answer = fetcher.get(url, what=what, limit=MAX_CERTIFICATES_BYTES)
            return Kept(name=name, source=url, fetched_at=now, content=pem_of(answer.body))

        def read(kept: Kept) -> Item[str]:
            try:
                loaded = [load_certificate(der) for der in read_pem(kept.content, 2)]
            except SnpChainError as error:
                raise Malformed(str(error)) from error
            begin, end = max(each.not_before for each in loaded), min(each.not_after for each in loaded)
            return Item(kept.content, begin, end, None)

        return self._supply.get(Wanted(name, self._base, what, fetch, read), now=now)

    def crl(self, product: Product, *, now: int) -> str:
        """What the product's root revoked: DER in hex. Asked for daily. Raises CannotTell."""
        url, what = f"{self._tree(product)}/crl", f"AMD's revocation list for {product}"
        name = self._name("crl", product)

        def fetch(fetcher: Fetcher) -> Kept:
            answer = fetcher.get(url, what=what, limit=MAX_CRL_BYTES)
            return Kept(name=name, source=url, fetched_at=now, content=answer.body.hex())

        def read(kept: Kept) -> Item[str]:
            begin, end = crl_window(kept.content)
            return Item(kept.content, begin, end, kept.fetched_at + CRL_DUE_AFTER_S)

        return self._supply.get(Wanted(name, self._base, what, fetch, read), now=now)

    def _tree(self, product: Product) -> str:
        return f"{self._base}/vcek/v1/{product.capitalize()}"

    def _name(self, kind: str, product: Product, *more: str) -> str:
        return "-".join(("snp", kind, product, *more, sha256(self._base.encode()).hexdigest()[:8]))


def pem_of(body: bytes) -> str:
    """Certificates as PEM, whether they came so or as DER; empty for what is neither, which nobody can read then.

    They need not be certificates that every library loads: real VCEKs have the serial number 0.
    """
    try:
        ders = split_certificates(body)
    except SnpChainError:
        return ""
    return "".join(armoured(der) for der in ders)


def armoured(der: bytes) -> str:
    """One certificate in PEM form (RFC 7468)."""
    digits = b64encode(der).decode()
    lines = "\n".join(digits[start : start + 64] for start in range(0, len(digits), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def read_pem(pem: str, count: int) -> tuple[bytes, ...]:
    """So many certificates, as DER. Raises Malformed."""
    try:
        ders = split_certificates(pem.encode())
    except SnpChainError as error:
        raise Malformed(str(error)) from error
    if len(ders) != count:
        raise Malformed(f"got {len(ders)} certificates, expected {count}")
    return ders


def crl_window(der_hex: str) -> tuple[int, int]:
    """From when and until before when a CRL holds, in Unix seconds. Raises Malformed."""
    try:
        crl = x509.load_der_x509_crl(bytes.fromhex(der_hex))
        last, upcoming = crl.last_update_utc, crl.next_update_utc
    except UNREADABLE as error:
        raise Malformed(f"the CRL cannot be read: {quoted(error)}") from error
    if upcoming is None:
        raise Malformed("the CRL does not say when the next one comes")
    return int(last.timestamp()), int(upcoming.timestamp())
