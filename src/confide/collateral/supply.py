"""What is kept while it is good, and fetched anew before it is not (tee-evidence 4.1, 4.4).

    kept and fresh            it is given
    kept and due              it is fetched anew; while that fails, the kept one is given until it really expires
    not kept, or expired      it is fetched; where that fails, CannotTell
    offline                   never fetched: what is kept and good is given, else CannotTell names what is missing

After a failure an entry is left alone for a minute, and a service that says how long, for that long. Only what can be
read and is good at `now` is ever kept.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from confide.collateral.cache import Cache, Kept, MemoryCache
from confide.collateral.fetch import Fetcher, Unavailable
from confide.errors import CannotTell

LOCKS = 16  # entries that are fetched at the same time, at most
PAUSE_S = 60  # after a failure
MAX_PAUSES = 1024

T = TypeVar("T")

Failed = Callable[[Unavailable, bool], None]


def unheard(error: Unavailable, is_kept: bool) -> None:
    """Nobody is told of a fetch that failed."""


class Malformed(ValueError):
    """The bytes are not what was asked for. The text is for people."""


@dataclass(frozen=True)
class Item(Generic[T]):
    """Something that can be read. Good from `good_from` until before `good_until`, due for a new one at `due_at`; all
    in Unix seconds, None is never.
    """

    value: T
    good_from: int
    good_until: int | None
    due_at: int | None


@dataclass(frozen=True)
class Wanted(Generic[T]):
    """Something to have. `name`: of its entry. `source`: the service that has it. `what`: in messages.

    `fetch` asks the service, and raises Unavailable; `read` makes something of its content, and raises Malformed.
    """

    name: str
    source: str
    what: str
    fetch: Callable[[Fetcher], Kept]
    read: Callable[[Kept], Item[T]]


class Supply:
    """A cache and a service behind it. Threads may share it: one of them fetches, the others wait or take what is kept.

    `fetcher`: None when offline; then nothing opens a socket. `failed`: called for each fetch that failed, with whether
    one that is kept is given in its place.
    """

    def __init__(self, fetcher: Fetcher | None, cache: Cache, *, failed: Failed = unheard) -> None:
        self._fetcher = fetcher
        self._failed = failed
        self._cache = cache
        self._own = MemoryCache()  # where files cannot be written, a service is still not asked every time
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))
        self._pauses = Pauses()

    def get(self, wanted: Wanted[T], *, now: int, is_fine: Callable[[T], bool] = lambda _: True) -> T:
        """What is wanted, good at `now` (Unix seconds). One that is not `is_fine` is due whatever its age.

        Raises CannotTell.
        """
        kept = self._kept(wanted, now)
        if kept is not None and not is_due(kept, now) and is_fine(kept.value):
            return kept.value
        if self._fetcher is None:
            if kept is None:
                raise missing(wanted.what)
            return kept.value
        lock = self._locks[hash(wanted.name) % LOCKS]
        if not lock.acquire(blocking=kept is None):  # somebody is fetching, and this one is still good
            assert kept is not None
            return kept.value
        try:
            return self._renewed(self._fetcher, wanted, now, is_fine)
        finally:
            lock.release()

    def _kept(self, wanted: Wanted[T], now: int) -> Item[T] | None:
        """What is kept and good; what cannot be read counts as absent."""
        entries = [entry for cache in (self._own, self._cache) if (entry := cache.get(wanted.name)) is not None]
        for entry in sorted(entries, key=lambda entry: entry.fetched_at, reverse=True):
            try:
                item = wanted.read(entry)
            except Malformed:
                continue
            if is_good(item, now):
                return item
        return None

    def _renewed(self, fetcher: Fetcher, wanted: Wanted[T], now: int, is_fine: Callable[[T], bool]) -> T:
        kept = self._kept(wanted, now)  # again: another thread may have fetched it meanwhile
        if kept is not None and not is_due(kept, now) and is_fine(kept.value):
            return kept.value
        try:
            self._pauses.require_over(wanted.name, wanted.source, what=wanted.what, clock_s=fetcher.clock())
            fetched = wanted.fetch(fetcher)
            item = good_at(now, wanted, fetched)
        except Unavailable as error:
            if not isinstance(error, OnPause):
                # A service that says how long wants it for all that it has.
                key, pause_s = wanted.name, PAUSE_S
                if error.retry_after_s is not None:
                    key, pause_s = wanted.source, error.retry_after_s
                self._pauses.begin(key, until_s=fetcher.clock() + pause_s)
                self._failed(error, kept is not None)
            if kept is None:
                raise
            return kept.value
        self._own.put(fetched)
        self._cache.put(fetched)
        if not is_fine(item.value):  # do not ask again at once for what the service does not have
            self._pauses.begin(wanted.name, until_s=fetcher.clock() + PAUSE_S)
        return item.value


class OnPause(Unavailable):
    """It was not asked: it failed a moment ago."""


class Pauses:
    """Until when an entry or a service is left alone, by the fetcher's clock in seconds. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s: dict[str, float] = {}

    def begin(self, key: str, *, until_s: float) -> None:
        """Leave it alone until then. The oldest pause is forgotten when there are too many."""
        with self._lock:
            self._until_s.pop(key, None)
            self._until_s[key] = until_s
            while len(self._until_s) > MAX_PAUSES:
                del self._until_s[next(iter(self._until_s))]

    def require_over(self, *keys: str, what: str, clock_s: float) -> None:
        """Return when none of them is left alone now. Raises OnPause."""
        with self._lock:
            left_s = max(self._until_s.get(key, clock_s) for key in keys) - clock_s
        if left_s > 0:
            raise OnPause(f"{what}: the service failed a moment ago, and is asked again in {left_s:.0f} s")


def is_good(item: Item[T], now: int) -> bool:
    return item.good_from <= now and (item.good_until is None or now < item.good_until)


def is_due(item: Item[T], now: int) -> bool:
    return item.due_at is not None and now >= item.due_at


def good_at(now: int, wanted: Wanted[T], fetched: Kept) -> Item[T]:
    """What was fetched, if it can be read and is good at `now`. Raises Unavailable."""
    try:
        item = wanted.read(fetched)
    except Malformed as error:
        raise Unavailable(f"{wanted.what}: the service's answer cannot be used: {error}") from error
    if not is_good(item, now):
        raise Unavailable(
            f"{wanted.what}: got one that is good from {item.good_from} until {item.good_until}, "
            f"expected one that is at {now} (Unix seconds)",
            remedy="Check the clock; for a time in the past, use collateral that was kept then.",
        )
    return item


def missing(what: str) -> CannotTell:
    """Offline, and it is not kept."""
    return CannotTell(
        f"{what} is not kept on this machine, and offline it cannot be fetched",
        remedy=f"Use collateral that was kept and holds {what}, or fetch it once while there is a network.",
    )
