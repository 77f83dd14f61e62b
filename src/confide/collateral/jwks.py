"""The keys of NVIDIA's remote attestation service, fetched from where it publishes them (tee-evidence 3.4, 4.3).

They are a trust anchor and nothing signs them: what counts is that we asked, over TLS with the web's roots. So they
come from the service or from a file that the caller names, never from a bundle and never from the peer. They change
about daily; a set is kept for a day at most, and fetched anew, once, for a token whose key it does not have.
"""

from hashlib import sha256

from confide.collateral.cache import Cache, Kept
from confide.collateral.fetch import Fetcher, require_base
from confide.collateral.supply import Item, Malformed, Supply, Wanted
from confide.evidence.nras_keys import MAX_KEY_SET_BYTES, KeySetError, NrasKeys, read_key_set

NRAS_JWKS = "https://nras.attestation.nvidia.com/.well-known/jwks.json"

LIFE_S = 24 * 60 * 60
DUE_AFTER_S = 12 * 60 * 60


class NrasKeySource:
    """The key set at one address. Threads may share it.

    `offline`, or no fetcher: no socket is opened, and where no set is kept it is a CannotTell.
    """

    def __init__(
        self,
        fetcher: Fetcher | None,
        cache: Cache,
        *,
        url: str = NRAS_JWKS,
        simulated: bool = False,
        offline: bool = False,
    ) -> None:
        """`simulated`: the address is a simulator's, and every result will say so. Raises ConfigError unless `url` is
        https, or loopback.
        """
        self._url = require_base(url, "NVIDIA's key set")
        self._simulated = simulated
        self._supply = Supply(None if offline else fetcher, cache)

    def keys(self, *, now: int, kid: str | None = None) -> NrasKeys:
        """The keys, at most a day old at `now` (Unix seconds). `kid`: the key that a token needs; where it is unknown
        the set is fetched anew, once a minute at most, and the newest set is given whether it has it or not.

        Raises CannotTell.
        """
        name = f"nras-jwks-{sha256(self._url.encode()).hexdigest()[:16]}"

        def fetch(fetcher: Fetcher) -> Kept:
            answer = fetcher.get(self._url, what="NVIDIA's key set", limit=MAX_KEY_SET_BYTES)
            return Kept(name=name, source=answer.url, fetched_at=now, content=answer.body.decode(errors="replace"))

        def read(kept: Kept) -> Item[NrasKeys]:
            try:
                found = read_key_set(kept.content.encode(), simulated=self._simulated)
            except KeySetError as error:
                raise Malformed(str(error)) from error
            return Item(found, kept.fetched_at, kept.fetched_at + LIFE_S, kept.fetched_at + DUE_AFTER_S)

        wanted = Wanted(name, self._url, "NVIDIA's key set", fetch, read)
        return self._supply.get(wanted, now=now, is_fine=lambda found: kid is None or kid in found.keys)
