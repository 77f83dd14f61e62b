"""The simulated provisioning service, asked by another program than ours: the verification library's own fetcher."""

import subprocess
import sys

import httpx2
import pytest

from confide.simulator.pccs import PccsFault, SimulatedPccs
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform
from vendors import NOW, SEED, serving

# In a process of its own that ends at once: the library may crash an interpreter that ends in order (tee-evidence 3.2).
FETCH_AND_VERIFY = """
import asyncio, os, sys
import dcap_qvl
url, quote, root, now = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3]), int(sys.argv[4])

async def main():
    return await dcap_qvl.get_collateral(url, quote)

try:
    collateral = asyncio.run(main())
    said = dcap_qvl.verify_with_root_ca(quote, collateral, root, now).status
except Exception as error:
    said = f"error: {error}"
print(said, flush=True)
os._exit(0)
"""


def status(url: str, platform: SimulatedTdxPlatform) -> str:
    arguments = (url, platform.quote(bytes(64)).hex(), platform.root_der.hex(), str(NOW))
    done = subprocess.run(
        [sys.executable, "-c", FETCH_AND_VERIFY, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("form", QuoteForm)
def test_the_librarys_own_fetcher_takes_it_for_one(form: QuoteForm) -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW, form=form)
    with serving(SimulatedPccs(platform, now=NOW)) as vendors:
        assert status(vendors.url, platform) == "UpToDate"
        assert len(vendors.asked) == 4


@pytest.mark.parametrize("fault", [PccsFault.NOT_FOUND, PccsFault.EXPIRED, PccsFault.WRONG_CHAIN, PccsFault.MALFORMED])
def test_its_faults_are_faults_to_others_too(fault: PccsFault) -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW)
    with serving(SimulatedPccs(platform, now=NOW, fault=fault)) as vendors:
        assert status(vendors.url, platform).startswith("error: ")


@pytest.mark.parametrize(
    "path",
    [
        "/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
        "/tdx/certification/v4/tcb?fmspc=00806F050000",
        "/tdx/certification/v4/tcb",
        "/vcek/v1/Milan/crl",
        "/.well-known/jwks.json",
    ],
)
def test_what_it_does_not_have_is_404(path: str) -> None:
    with serving(SimulatedPccs(SimulatedTdxPlatform(SEED, now=NOW), now=NOW)) as vendors:
        assert httpx2.get(vendors.url + path, trust_env=False).status_code == 404
