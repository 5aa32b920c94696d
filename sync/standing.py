"""How the work on one peer stands, and how far a pass is: what is told of it, kept while it runs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from metrics.events import Emit, PeerStanding
from proxy.cache.fill import Arriving
from proxy.oci.digest import Digest
from proxy.store.catalog import Catalog
from proxy.store.remote import Counts, count_waiting
from sync.plan import retry_after
from sync.reports import Progress, State, Told
from sync.selection import Rules

MEASURE_SECONDS = 5.0
LONGEST_LINK_RETRY = 300.0
TELL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Times:
    """now: in seconds since the epoch. chance: of [0, 1), spreads what is tried again."""

    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class PeerRules:
    """What is taken over from a peer. removal_grace: in seconds; removal_share: of what is known from there."""

    rules: Rules
    removal_grace: float = 600.0
    removal_share: float = 0.25


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What `PeerReport` tells of the work on a peer; the fields are the same."""

    state: State
    error: str | None
    seconds_behind: float
    images_behind: int
    bytes_behind: int
    removals: int
    removals_refused: str | None
    refused_clock: int
    failures: int
    rate: float


class Standing:
    """arriving: how far the download of a digest is.

    State: what was counted last, what of the images under way is missing, what failed, and when the link may be tried
    again.
    """

    def __init__(
        self, name: str, catalog: Catalog, arriving: Callable[[Digest], Arriving | None], emit: Emit, times: Times
    ) -> None:
        self.phase: State = "starting"
        self.error: str | None = None
        self.refused: str | None = None
        self.failures = 0
        self.retry_at = 0.0
        self._name = name
        self._catalog = catalog
        self._arriving = arriving
        self._emit = emit
        self._times = times
        self._missing: dict[Digest, int] = {}
        self._counts = Counts(0, 0, 0, None)
        self._measured_at = 0.0
        self._link_tries = 0
        self._fetched = 0
        self._began = 0.0

    async def measure(self, *, now: bool = False) -> Counts:
        """Count what waits, if that was not done a moment ago or has to be `now`, and tell of it."""
        moment = self._times.now()
        if now or not self._measured_at <= moment < self._measured_at + MEASURE_SECONDS:
            self._counts = await self._catalog.read(lambda connection: count_waiting(connection, self._name, moment))
            self._measured_at = moment
            counts = self._counts
            self._emit(PeerStanding(self._name, self.seconds, counts.images, self.bytes_behind, counts.removals))
        return self._counts

    @property
    def seconds(self) -> float:
        """For how long something of the peer has not been here."""
        oldest = self._counts.oldest
        return 0.0 if oldest is None else max(0.0, self._times.now() - oldest)

    def begin(self) -> None:
        """A pass begins."""
        self._fetched, self._began = 0, self._times.now()

    def wants(self, missing: Mapping[Digest, int]) -> int:
        """These are missing, with their sizes; return how many bytes more are known to be."""
        new = {digest: size for digest, size in missing.items() if digest not in self._missing}
        self._missing |= new
        return sum(new.values())

    def got(self, digest: Digest) -> int:
        """Something is here; return its size where it was known to be missing."""
        return self._missing.pop(digest, 0)

    def forget(self) -> None:
        """Nothing is under way."""
        self._missing.clear()

    @property
    def coming(self) -> Arriving:
        """How much of what is missing has come of it, in downloads that run."""
        there = before = 0
        for digest, size in self._missing.items():
            arriving = self._arriving(digest)
            if arriving is not None:
                there += min(size, arriving.there)
                before += min(size, arriving.before)
        return Arriving(there, before)

    @property
    def bytes_behind(self) -> int:
        """Bytes that are known to be missing."""
        return max(0, sum(self._missing.values()) - self.coming.there)

    def fetched(self, size: int) -> None:
        """So many bytes came."""
        self._fetched += size

    def link_failed(self) -> float:
        """Note that nobody answers; return for how many seconds nothing is tried."""
        seconds = min(LONGEST_LINK_RETRY, retry_after(self._link_tries, self._times.chance()))
        self._link_tries += 1
        self.failures += 1
        self.retry_at = self._times.now() + seconds
        return seconds

    def link_answered(self) -> None:
        """Note that somebody answers."""
        self._link_tries, self.retry_at, self.error = 0, 0.0, None

    def report(self, held: str | None) -> EngineReport:
        """Return how it stands now."""
        elapsed = self._times.now() - self._began
        fetching = self.phase == "fetching" and elapsed > 0
        coming = self.coming
        return EngineReport(
            state="held" if held else self.phase,
            error=self.error,
            seconds_behind=self.seconds,
            images_behind=self._counts.images,
            bytes_behind=self.bytes_behind,
            removals=self._counts.removals,
            removals_refused=self.refused,
            refused_clock=self._counts.ahead,
            failures=self.failures,
            rate=(self._fetched + coming.there - coming.before) / elapsed if fetching else 0.0,
        )


class Tally:
    """How far a pass over some peers is. `telling` hands it on while its context lasts, the latest state only."""

    def __init__(self, told: Told | None, times: Times) -> None:
        self._told = told
        self._times = times
        self._began = times.now()
        self._changed = asyncio.Event()
        self._images = self._total_images = self._bytes = self._total_bytes = 0
        self._under_way: list[Standing] = []

    def watches(self, standing: Standing) -> None:
        """What is coming to a peer's images counts before it is here."""
        self._under_way.append(standing)

    def expects(self, images: int) -> None:
        """So many images and tags wait."""
        self._total_images += images
        self._changed.set()

    def did(self, images: int) -> None:
        """So many of them are done."""
        self._images += images
        self._total_images = max(self._total_images, self._images)
        self._changed.set()

    def wants(self, size: int) -> None:
        """So many more bytes are known to be missing."""
        self._total_bytes += size
        self._changed.set()

    def got(self, size: int) -> None:
        """So many of them are here."""
        self._bytes += size
        self._changed.set()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        elapsed = max(self._times.now() - self._began, 0.001)
        coming = [standing.coming for standing in self._under_way]
        there = self._bytes + sum(one.there for one in coming)
        rate = (there - sum(one.before for one in coming)) / elapsed
        left = (self._total_bytes - there) / rate if rate else None
        return Progress(
            images=self._images,
            total_images=self._total_images,
            bytes=there,
            total_bytes=self._total_bytes,
            rate=rate,
            seconds_left=left,
        )

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tell whoever wants to hear, as fast as they listen, each second at the latest; at the end once more."""
        if self._told is None:
            yield
            return
        task = asyncio.create_task(self._tell(self._told), name="sync progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        await self._told(self.progress)

    async def _tell(self, told: Told) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            await told(self.progress)
