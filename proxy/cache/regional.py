"""The fleet with the other regions behind it: content that no node and no bucket gives is asked of them.

    who is near → regions that have it → upstream → regions that can fetch it from their own upstream

The last only where the upstream did not give it. What another node or region waits for is asked of no region (Via).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from proxy.cache.near import Asker, Fleet, Flight, Kind, NearSource, Regions, TagFlight
from proxy.cache.plan import PROGRESS
from proxy.oci.digest import Digest
from proxy.oci.errors import NotFound, RegistryError
from proxy.oci.names import Reference, Repository, Tag

IMAGE_SECONDS = 2.0


class RegionalFlight:
    """A Flight. State: whom the present round still offers, whether the last round has begun, who did not answer."""

    def __init__(self, flight: Flight, regions: Regions, repository: Repository) -> None:
        self._flight = flight
        self._regions = regions
        self._repository = repository
        self._given: NearSource | None = None
        self._last = False
        self._paused = False
        self._failed = ""
        self._offered: Iterator[NearSource] = iter(regions.sources(repository, start=False))

    @property
    def following(self) -> bool:
        return self._flight.following

    @property
    def shared(self) -> bool:
        return self._flight.shared

    @property
    def lost(self) -> bool:
        return self._flight.lost

    @property
    def more(self) -> bool:
        return self._flight.more or (not self._last and bool(self._regions.sources(self._repository, start=True)))

    @property
    def unheard(self) -> str:
        """See `near.Flight`: one that failed to answer, or is left alone because it did."""
        return self._failed or self._regions.silent(self._repository)

    async def next(self) -> NearSource | None:
        """See `near.Flight`. None sends the fill to its upstream; who comes back from there begins the last round."""
        source = await self._flight.next()
        self._given = None
        if source is not None:
            return source
        if self._paused:
            self._begin_last()
        self._given = next(self._offered, None)
        self._paused = self._given is None
        return self._given

    def last_resort(self) -> bool:
        """See `near.Flight`."""
        return self._flight.last_resort() or self._begin_last()

    def failed(self, source: NearSource, error: RegistryError, received: int) -> None:
        """See `near.Flight`. A region that gave something worth it goes on from there, ahead of the others."""
        if source is not self._given:
            self._flight.failed(source, error, received)
            return
        if not isinstance(error, NotFound):
            self._failed = source.name
        if received >= PROGRESS:
            rest = self._offered
            self._offered = iter([source, *rest])

    def stored(self) -> None:
        """See `near.Flight`."""
        self._flight.stored()

    def _begin_last(self) -> bool:
        """Offer the regions once more, who may now ask their upstreams; False where that was done."""
        if self._last:
            return False
        self._last, self._paused = True, False
        offered = self._regions.sources(self._repository, start=True)
        self._offered = iter(offered)
        return bool(offered)


class RegionalFleet:
    """A Fleet: `fleet` with `regions` behind it."""

    alone = False

    def __init__(self, fleet: Fleet, regions: Regions) -> None:
        self._fleet = fleet
        self._regions = regions

    @asynccontextmanager
    async def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AsyncIterator[Flight]:
        """See `near.Fleet`."""
        async with self._fleet.flight(digest, repository, asker) as flight:
            yield RegionalFlight(flight, self._regions, repository) if asker is Asker.CLIENT else flight

    async def keepers(self, repository: Repository, digest: Digest) -> Sequence[NearSource]:
        """See `near.Fleet`."""
        return await self._fleet.keepers(repository, digest)

    def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AbstractAsyncContextManager[TagFlight]:
        """See `near.Fleet`."""
        return self._fleet.tag_flight(repository, tag, max_age)

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> NotFound | None:
        """See `near.Fleet`."""
        return await self._fleet.missing(kind, repository, reference)

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        """See `near.Fleet`."""
        self._fleet.note_missing(kind, repository, reference, said, seconds)

    async def has_image(self, repository: Repository, digest: Digest, asker: Asker = Asker.CLIENT) -> bool:
        """See `near.Fleet`."""
        if await self._fleet.has_image(repository, digest, asker):
            return True
        if asker is not Asker.CLIENT:
            return False
        for source in self._regions.sources(repository, start=False):
            try:
                async with asyncio.timeout(IMAGE_SECONDS):
                    if (await source.manifest(repository, digest)).servable:
                        return True
            except (RegistryError, TimeoutError):
                continue
        return False
