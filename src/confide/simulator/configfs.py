"""The SIMULATED configfs-tsm: the kernel's report directory, in this process, before a platform that does not exist.

It follows the kernel's rules (tee-evidence 2.2, 5.6): a report is a directory, its attributes have fixed access, the
report data goes in first, every write moves the generation. What can go wrong is an argument.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform

INBLOB_BYTES = 64
MAX_OUTBLOB_BYTES = 32 * 1024
TDX, SNP = "tdx_guest", "sev_guest"


def refused(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


@dataclass
class SimulatedReport:
    """One directory. `generation`: writes so far."""

    inblob: bytes = b""
    privlevel: int | None = None
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class ConfigfsFaults:
    """What goes wrong. `busy`: so many reads fail with `busy_with`. `interference`: so many times somebody else writes
    between our write and our read. `padding`: zero bytes behind each outblob. `refuses`: what making a directory fails
    with, such as EROFS, EACCES or ENOENT.
    """

    busy: int = 0
    busy_with: int = errno.EBUSY
    interference: int = 0
    padding: int = 0
    refuses: int | None = None


class SimulatedConfigfs:
    """The file operations that a reader is given in place of the machine's own."""

    def __init__(
        self,
        produce: Callable[[bytes], bytes],
        *,
        provider: str | None,
        auxblob: bytes | None = None,
        faults: ConfigfsFaults | None = None,
    ) -> None:
        """`produce`: 64 bytes of report data to what the platform makes of them. `provider`: None where no platform is
        registered. `auxblob`: None where the attribute is absent.
        """
        faults = faults or ConfigfsFaults()
        self._produce = produce
        self._provider = provider
        self._auxblob = auxblob
        self._faults = faults
        self._busy = faults.busy
        self._interference = faults.interference
        self.reports: dict[Path, SimulatedReport] = {}
        self.made: list[Path] = []

    @classmethod
    def tdx(cls, platform: SimulatedTdxPlatform, faults: ConfigfsFaults | None = None) -> "SimulatedConfigfs":
        """In a TDX guest."""
        return cls(platform.quote, provider=TDX, faults=faults)

    @classmethod
    def snp(
        cls, platform: SimulatedSnpPlatform, faults: ConfigfsFaults | None = None, *, has_certificates: bool = True
    ) -> "SimulatedConfigfs":
        """In an SNP guest. `has_certificates`: whether the host filled in the table."""
        table = platform.certificate_table() if has_certificates else b""
        return cls(platform.report, provider=SNP, auxblob=table, faults=faults)

    def mkdir(self, path: Path) -> None:
        """A report of its own, at generation 0."""
        if self._faults.refuses is not None:
            raise refused(self._faults.refuses, path)
        if self._provider is None:
            raise refused(errno.ENXIO, path)
        if path in self.reports:
            raise refused(errno.EEXIST, path)
        self.reports[path] = SimulatedReport()
        self.made.append(path)

    def write(self, path: Path, data: bytes) -> None:
        """Set an option of the report."""
        report = self._report(path)
        match path.name:
            case "inblob":
                if not 0 < len(data) <= INBLOB_BYTES:
                    raise refused(errno.EINVAL, path)
                report.inblob = data
            case "privlevel" if self._provider == SNP:
                if data.strip() not in (b"0", b"1", b"2", b"3"):
                    raise refused(errno.EINVAL, path)
                report.privlevel = int(data)
            case "outblob" | "auxblob" | "provider" | "generation":
                raise refused(errno.EACCES, path)
            case _:
                raise refused(errno.ENOENT, path)
        report.generation += 1

    def read(self, path: Path, limit: int) -> bytes:
        """An attribute; EFBIG beyond `limit`."""
        content = self._content(self._report(path), path)
        if len(content) > limit:
            raise refused(errno.EFBIG, path)
        return content

    def rmdir(self, path: Path) -> None:
        if self.reports.pop(path, None) is None:
            raise refused(errno.ENOENT, path)

    def _report(self, path: Path) -> SimulatedReport:
        report = self.reports.get(path.parent)
        if report is None:
            raise refused(errno.ENOENT, path)
        return report

    def _content(self, report: SimulatedReport, path: Path) -> bytes:
        match path.name:
            case "provider":
                return f"{self._provider}\n".encode()
            case "generation":
                return b"%d\n" % report.generation
            case "outblob":
                return self._outblob(report, path)
            case "auxblob" if self._auxblob is not None:
                return self._auxblob
            case "inblob":
                raise refused(errno.EACCES, path)
            case _:
                raise refused(errno.ENOENT, path)

    def _outblob(self, report: SimulatedReport, path: Path) -> bytes:
        if not report.inblob:
            raise refused(errno.EINVAL, path)
        if self._busy:
            self._busy -= 1
            raise refused(self._faults.busy_with, path)
        if self._interference:
            self._interference -= 1
            report.inblob = b"\xee" * INBLOB_BYTES
            report.generation += 1
        outblob = self._produce(report.inblob) + bytes(self._faults.padding)
        if len(outblob) > MAX_OUTBLOB_BYTES:
            raise refused(errno.EFBIG, path)
        return outblob
