"""Reports through configfs-tsm, the kernel's interface to the platform (tee-evidence 2.2; Linux 6.7 and newer).

A report is a directory: report data is written into it, the platform's answer is read out of it. Any process with the
right to may write into the same directory meanwhile, so each report has a directory of its own with a name that nobody
can guess, and the kernel's write counter is compared afterwards. All of it blocks: call it from a thread.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

DIRECTORY = Path("/sys/kernel/config/tsm/report")

MAX_BLOB_BYTES = 32 * 1024  # the kernel's own limit
MAX_TEXT_BYTES = 4096  # a page, what the kernel gives for an attribute of text
REPORT_DATA_BYTES = 64
TDX, SNP = "tdx_guest", "sev_guest"  # `provider`

# The quoting service is busy, slow or away for a moment, or somebody else wrote meanwhile (EWOULDBLOCK).
PASSING = frozenset({errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.EINTR, errno.EWOULDBLOCK})
ATTEMPTS = 6
FIRST_PAUSE_S = 0.05  # doubled for each further attempt: 1.55 s in all

# What it means when the directory cannot be made.
MISSING = {
    errno.ENOENT: "there is no configfs-tsm",
    errno.ENXIO: "no platform is registered with the kernel",
    errno.EACCES: "this user may not make reports",
    errno.EPERM: "this user may not make reports",
    errno.EROFS: "it is mounted read-only",
}

T = TypeVar("T")


def named(error: OSError) -> str:
    """The kernel's word and its meaning, without the path."""
    code = error.errno or 0
    return f"{errno.errorcode.get(code, 'OSError')}, {os.strerror(code)}"


class TsmError(Exception):
    """No report. The text is for the operator: it names paths and attributes."""


class TsmMissing(TsmError):
    """The interface is not there, not this user's, or has no platform behind it. A retry does not help."""


class TsmBusy(TsmError):
    """The platform was busy each time, or somebody interfered each time. It may answer later."""


class Interfered(Exception):
    """Somebody else wrote into our directory: what was read is not ours."""


class TsmFiles(Protocol):
    """What is done to the file system. All raise OSError, with the kernel's number."""

    def mkdir(self, path: Path) -> None:
        """Make the directory, which must not exist."""

    def write(self, path: Path, data: bytes) -> None:
        """All of `data` in one call."""

    def read(self, path: Path, limit: int) -> bytes:
        """The whole attribute; OSError EFBIG when it has more than `limit` bytes."""

    def rmdir(self, path: Path) -> None:
        """Take the directory away; its attributes go with it."""


class KernelFiles:
    """The machine's own."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def write(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        finally:
            os.close(descriptor)

    def read(self, path: Path, limit: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = bytearray()
            while part := os.read(descriptor, limit + 1):
                content += part
                if len(content) > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return bytes(content)
        finally:
            os.close(descriptor)

    def rmdir(self, path: Path) -> None:
        path.rmdir()


@dataclass(frozen=True)
class TsmReport:
    """What the platform gave, as it gave it. `provider`: "tdx_guest" or "sev_guest". `outblob`: the quote or report,
    perhaps padded. `auxblob`: the certificate table of SNP, empty where there is none.
    """

    provider: str
    outblob: bytes
    auxblob: bytes


class TsmReader:
    """Reads reports below one directory, one at a time."""

    def __init__(
        self,
        files: TsmFiles | None = None,
        directory: Path = DIRECTORY,
        *,
        privlevel: int | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`privlevel`: the VMPL to ask for on SNP, 0 to 3; None leaves it to the kernel. `pause`: waits so many s."""
        self._files = files or KernelFiles()
        self._directory = directory
        self._privlevel = privlevel
        self._pause = pause

    def provider(self) -> str:
        """Which platform answers, without asking it for a report. Raises TsmMissing or TsmBusy."""
        return self._repeated(lambda path: self._text(path, "provider"))

    def report(self, report_data: bytes, *, provider: str) -> TsmReport:
        """A report over exactly 64 bytes, else ValueError. `provider`: the platform that it must come from.

        Raises TsmMissing, TsmBusy, or TsmError for an answer that cannot be one.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"{REPORT_DATA_BYTES} bytes of report data expected, got {len(report_data)}")
        return self._repeated(lambda path: self._once(path, report_data, provider))

    def _repeated(self, reading: Callable[[Path], T]) -> T:
        """What `reading` finds in a directory of its own, a new one each time while the platform is busy."""
        pause_s, last = FIRST_PAUSE_S, "no attempt was made"
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(pause_s)
                pause_s *= 2
            try:
                return self._in_directory(reading)
            except Interfered as error:
                last = str(error)
            except OSError as error:
                if error.errno not in PASSING and error.errno != errno.EEXIST:
                    raise TsmError(f"{named(error)} below {self._directory}") from error
                last = named(error)
        raise TsmBusy(f"{ATTEMPTS} attempts below {self._directory}, the last one: {last}")

    def _in_directory(self, reading: Callable[[Path], T]) -> T:
        path = self._directory / f"confide-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self._files.mkdir(path)
        except OSError as error:
            if (reason := MISSING.get(error.errno or 0)) is not None:
                raise TsmMissing(f"{self._directory}: {reason} ({named(error)})") from error
            raise
        try:
            return reading(path)
        finally:
            with suppress(OSError):  # the report was read or was not; a directory left behind is the lesser harm
                self._files.rmdir(path)

    def _once(self, path: Path, report_data: bytes, provider: str) -> TsmReport:
        """The safe sequence, in the order of tee-evidence 2.2."""
        before = self._generation(path)  # 1
        found = self._text(path, "provider")  # 2
        if found != provider:
            raise TsmError(f"the provider is {found!r}, expected {provider!r}")
        writes = 1
        if self._privlevel is not None and provider == SNP:
            self._files.write(path / "privlevel", str(self._privlevel).encode())
            writes += 1
        self._files.write(path / "inblob", report_data)
        outblob = self._files.read(path / "outblob", MAX_BLOB_BYTES)  # 3
        auxblob = self._auxblob(path)
        after = self._generation(path)  # 4
        if after != before + writes:
            raise Interfered(f"the generation went from {before} to {after}, expected {before + writes}")
        return TsmReport(provider, outblob, auxblob)

    def _auxblob(self, path: Path) -> bytes:
        try:
            return self._files.read(path / "auxblob", MAX_BLOB_BYTES)
        except FileNotFoundError:
            return b""

    def _generation(self, path: Path) -> int:
        text = self._text(path, "generation")
        if not (text.isascii() and text.isdigit()):
            raise TsmError(f"the generation is {text[:40]!r}, expected a number")
        return int(text)

    def _text(self, path: Path, attribute: str) -> str:
        return self._files.read(path / attribute, MAX_TEXT_BYTES).decode("ascii", "replace").strip()
