"""JwksCache: an issuer's public keys, fetched when needed, shared by all who wait, kept while the issuer is away."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from cluster.errors import KeysUnavailable

logger = logging.getLogger(__name__)

K = TypeVar("K")

SOFT_S = 300.0  #: older keys are used, and fetched anew meanwhile
HARD_S = 24 * 3600.0  #: older keys are not used
COOLDOWN_S = 5.0  #: between two fetches, whatever is asked
_RETRY_AFTER_S = 5.0


class JwksCache(Generic[K]):
    """The keys of one issuer by their `kid`.

    `fetch` gives the key set as its bytes, `read` turns it into usable keys; whatever either raises counts as a
    failure, and the last good keys stay. `now` is any clock that only goes forward.
    """

    def __init__(
        self,
        issuer: str,
        fetch: Callable[[], Awaitable[bytes]],
        read: Callable[[bytes], Mapping[str, K]],
        now: Callable[[], float],
    ) -> None:
        self._issuer, self._fetch, self._read, self._now = issuer, fetch, read, now
        self._keys: Mapping[str, K] = {}
        self._fetched_at = self._asked_at = -float("inf")
        self._flight: asyncio.Task[None] | None = None
        self.outcomes: Counter[str] = Counter()  #: of the fetches: `ok`, `failed`

    async def key(self, kid: str) -> K | None:
        """The key, None if the issuer has none of that name; KeysUnavailable when the issuer cannot be asked."""
        found = self._keys.get(kid)
        age_s = self._now() - self._fetched_at
        if found is not None and age_s < HARD_S:
            if age_s >= SOFT_S:
                self._begin()
            return found
        if (flight := self._begin()) is not None:
            await asyncio.wait({flight})
        if self._now() - self._fetched_at >= HARD_S:
            raise KeysUnavailable("The keys to check this token cannot be had now; try again.", None, _RETRY_AFTER_S)
        return self._keys.get(kid)

    def _begin(self) -> asyncio.Task[None] | None:
        """The fetch that runs; a new one if that is allowed, None if it is too early."""
        if self._flight is None and self._now() - self._asked_at >= COOLDOWN_S:
            self._asked_at = self._now()
            self._flight = asyncio.create_task(self._refresh())
        return self._flight

    async def _refresh(self) -> None:
        try:
            self._keys = self._read(await self._fetch())
            self._fetched_at = self._now()
            self.outcomes["ok"] += 1
        except Exception as error:
            self.outcomes["failed"] += 1
            logger.warning(
                "the keys of issuer %s could not be fetched: %s", self._issuer, error or type(error).__name__
            )
        finally:
            self._flight = None
