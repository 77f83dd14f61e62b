"""One line of `confide doctor`: what was looked at, what was found, and what to do about it."""

from typing import Literal

import msgspec

from confide.errors import ConfideError

Status = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """ "fail": the service cannot start or be trusted so. "warn": it starts, and somebody should know."""

    check: str
    status: Status
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, remedy: str | None = None) -> Finding:
    return Finding(check, "warn", found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "fail", found, remedy)


def refused(check: str, error: ConfideError) -> Finding:
    """What a room of the service raised when it was asked to do what it does at start."""
    return Finding(check, "fail", error.message, error.remedy)


def size(size_bytes: int) -> str:
    """Decimal, as disks count."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
