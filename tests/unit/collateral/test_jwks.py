"""NVIDIA's key set: kept for a day at most, fetched anew once for an unknown key, trusted for where it came from."""

from collections.abc import Callable
from pathlib import Path

import pytest

from confide.collateral.cache import FileCache, MemoryCache
from confide.collateral.fetch import Unavailable
from confide.collateral.jwks import NRAS_JWKS, NrasKeySource
from confide.errors import CannotTell, ConfigError
from confide.simulator.nras import KEY_ID, SimulatedNras
from confide.simulator.pccs import PccsFault
from vendors import NOW, Vendors

HOUR_S = 60 * 60
DAY_S = 24 * HOUR_S
Start = Callable[..., Vendors]


def source_of(vendors: Vendors, cache: FileCache | MemoryCache | None = None) -> NrasKeySource:
    url = f"{vendors.url}/.well-known/jwks.json"
    return NrasKeySource(vendors.fetcher, cache or MemoryCache(), url=url, simulated=True)


def test_the_keys_are_an_anchor_that_says_whose_they_are(start: Start) -> None:
    found = source_of(start()).keys(now=NOW)
    assert list(found.keys) == [KEY_ID]
    assert found.anchor.simulated
    assert found.anchor.name == f"sim:{found.anchor.sha256}"


def test_they_are_kept_for_a_day_at_most(start: Start, tmp_path: Path) -> None:
    vendors = start()
    source_of(vendors, FileCache(tmp_path)).keys(now=NOW)
    source_of(vendors, FileCache(tmp_path)).keys(now=NOW + 12 * HOUR_S - 1)
    assert len(vendors.asked) == 1
    vendors.services.fault = PccsFault.FAILING
    source_of(vendors, FileCache(tmp_path)).keys(now=NOW + DAY_S - 1)
    with pytest.raises(CannotTell, match="NVIDIA's key set"):
        source_of(vendors, FileCache(tmp_path)).keys(now=NOW + DAY_S)
    with pytest.raises(CannotTell):  # from the future, as a clock that was set back sees it
        source_of(vendors, FileCache(tmp_path)).keys(now=NOW - 1)


def test_for_an_unknown_key_they_are_fetched_anew_once(start: Start) -> None:
    vendors = start()
    source = source_of(vendors)
    old = source.keys(now=NOW, kid=KEY_ID)
    vendors.services.nras = SimulatedNras(b"\x22" * 32)  # the same id: what counts is that the set was fetched anew
    for _ in range(5):
        assert "another" not in source.keys(now=NOW, kid="another").keys
    assert len(vendors.asked) == 2
    assert source.keys(now=NOW, kid=KEY_ID).anchor != old.anchor
    vendors.clock_s += 61
    source.keys(now=NOW, kid="another")
    assert len(vendors.asked) == 3


def test_while_the_service_is_away_an_unknown_key_stays_unknown(start: Start) -> None:
    vendors = start()
    source = source_of(vendors)
    kept = source.keys(now=NOW)
    vendors.services.fault = PccsFault.FAILING
    assert source.keys(now=NOW, kid="another").anchor == kept.anchor


@pytest.mark.parametrize("fault", [PccsFault.MALFORMED, PccsFault.ELSEWHERE, PccsFault.ENDLESS, PccsFault.HUNG])
def test_another_answer_is_no_key_set(start: Start, fault: PccsFault) -> None:
    cache = MemoryCache()
    with pytest.raises(Unavailable):
        source_of(start(fault=fault), cache).keys(now=NOW)
    assert cache.names == ()


def test_a_file_that_others_may_write_is_no_anchor(start: Start, tmp_path: Path) -> None:
    vendors = start()
    source_of(vendors, FileCache(tmp_path)).keys(now=NOW)
    (file,) = tmp_path.iterdir()
    file.chmod(0o622)
    offline = NrasKeySource(None, FileCache(tmp_path), url=f"{vendors.url}/.well-known/jwks.json")
    with pytest.raises(CannotTell, match="is not kept"):
        offline.keys(now=NOW)


def test_keys_of_one_address_are_not_those_of_another(start: Start) -> None:
    vendors, cache = start(), MemoryCache()
    source_of(vendors, cache).keys(now=NOW)
    with pytest.raises(CannotTell, match="is not kept"):
        NrasKeySource(None, cache, url=NRAS_JWKS).keys(now=NOW)


def test_an_address_in_the_clear_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected an https URL"):
        NrasKeySource(None, MemoryCache(), url="http://nras.example/jwks.json")
