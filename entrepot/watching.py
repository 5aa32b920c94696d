"""Who watches the mirror for its page: takes a reading every 5 s, and makes the documents of /api/live while asked to.

One document is made for all who look. What reads the disk (space, the store's numbers, the bucket's queue) is asked at
most once in `STEP_SECONDS`. Points are `metrics.remembering`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic

import msgspec

from entrepot import __version__
from entrepot.answers import Refused
from entrepot.live import Live, totals
from entrepot.status import bucket_of, readiness, running_fills, space_of, store_stats, upstreams_of
from entrepot.view import MirrorView
from entrepot.views import BucketView, regions_of
from metrics import declarations as declared
from metrics.history import HistoryView, Point
from metrics.pulls.model import PullsView, Quantiles
from metrics.remembering import STEP_SECONDS, Reading, Remembering, added
from proxy.cache.once import Background
from proxy.store.records import StoreStats
from proxy.store.sweep import SpaceReport

LIVE_SECONDS = 1.0
SOONEST_SECONDS = 0.2
MOST_STREAMS = 16
HANG_UP_SECONDS = 1.0
PULLS_SECONDS = 3600.0
_SPARED = ("hit", "stale", "joined")
_NO_PULLS = PullsView(Quantiles(PULLS_SECONDS, 0, None, None, None), {}, None, (), (), (), ())
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the disk said at `at` (monotonic); where not the `whole` was asked, of its space alone."""

    at: float
    whole: bool
    space: SpaceReport | None
    store: StoreStats | None
    bucket: BucketView | None


class Watching:
    """A HistoryShown. State: the last hours, what the disk last said, the newest document, and who takes documents."""

    def __init__(self, view: MirrorView) -> None:
        self._view = view
        self._remembering = Remembering()
        self._read = monotonic()
        self._measured: _Measured | None = None
        self._made = asyncio.Condition()
        self._document = b""
        self._number = 0
        self._nudged = asyncio.Event()
        self._wanted = asyncio.Event()
        self._streams = 0
        self._ended = False

    @property
    def newest(self) -> Point | None:
        return self._remembering.newest

    def view(self, seconds: float) -> HistoryView:
        return self._remembering.view(seconds)

    def nudge(self) -> None:
        """Something is new that who looks should see before the next second: a pull began or ended."""
        self._nudged.set()

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[bytes]]:
        if self._streams >= MOST_STREAMS:
            raise Refused(429, f"{MOST_STREAMS} clients read /api/live already; close a page, or ask /api/status")
        self._streams += 1
        self._wanted.set()
        if not self._document:
            self._nudged.set()
        documents = self._documents()
        try:
            yield documents
        finally:
            await documents.aclose()
            self._streams -= 1
            if not self._streams:
                self._wanted.clear()
                self._document = b""
            async with self._made:
                self._made.notify_all()

    async def _documents(self) -> AsyncGenerator[bytes, None]:
        seen = self._number if not self._document else self._number - 1

        def has_news() -> bool:
            return self._ended or self._number != seen

        while True:
            async with self._made:
                await self._made.wait_for(has_news)
            if self._ended:
                return
            seen = self._number
            yield self._document

    async def hang_up(self) -> None:
        self._ended = True
        async with self._made:
            self._made.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_SECONDS):
                    await self._made.wait_for(lambda: not self._streams)

    async def read_on(self) -> None:
        """Take a reading every `STEP_SECONDS`, until cancelled."""
        failed = False
        while True:
            try:
                await self.read()
                failed = False
            except Exception:
                if not failed:
                    _log.exception("the dashboard's history has a gap until the mirror's numbers can be read again")
                failed = True
            await asyncio.sleep(STEP_SECONDS)

    async def read(self) -> None:
        """Take a reading now."""
        measured = await self._measure()
        view, now = self._view, monotonic()
        elapsed, self._read = now - self._read, now
        ended = () if view.pulls is None else view.pulls.ended_within(elapsed)
        self._remembering.take(reading(view, measured.space, time.time(), now), ended)

    async def show_on(self) -> None:
        """Make a document every `LIVE_SECONDS`, and at once when nudged, while somebody takes them; until cancelled."""
        failed = False
        while True:
            await self._wanted.wait()
            self._nudged.clear()
            try:
                document = msgspec.json.encode(await self.live()) + b"\n"
            except Exception:
                if not failed:
                    _log.exception("the dashboard's numbers could not be put together; this is told once")
                failed = True
            else:
                failed = False
                async with self._made:
                    if self._streams:
                        self._document, self._number = document, self._number + 1
                    self._made.notify_all()
            await asyncio.sleep(SOONEST_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LIVE_SECONDS - SOONEST_SECONDS):
                    await self._nudged.wait()

    async def live(self) -> Live:
        """Return how it all stands now."""
        view, measured = self._view, self._measured
        if measured is None or not measured.whole or monotonic() - measured.at >= 2 * STEP_SECONDS:
            measured = await self._measure()
        ready = readiness(view)
        return Live(
            now=time.time(),
            version=__version__,
            region=view.config.region,
            state=ready.status,
            reasons=ready.reasons,
            offline=view.config.offline,
            started_at=view.started_at,
            uptime=monotonic() - view.started_monotonic,
            totals=totals(view.metrics),
            pulls=_NO_PULLS if view.pulls is None else view.pulls.view(),
            fills=running_fills(view),
            upstreams=upstreams_of(view),
            space=measured.space,
            store=measured.store,
            point=self.newest,
            workers=tuple(view.crew.views()) if view.crew is not None else (),
            fleet=view.part.view(),
            bucket=measured.bucket,
            regions=regions_of(view.config, view.part.syncing.reports() if view.part.syncing is not None else ()),
            listen=tuple(view.listen_addresses),
        )

    async def _measure(self) -> _Measured:
        """Ask the disk; what only the page shows is left out while nobody looks."""
        view, at = self._view, monotonic()
        if self._wanted.is_set():
            space, store, bucket = await asyncio.gather(space_of(view), store_stats(view), bucket_of(view))
            measured = _Measured(at, True, space, store, bucket)
        else:
            measured = _Measured(at, False, await space_of(view), None, None)
        self._measured = measured
        return measured


@asynccontextmanager
async def watching(view: MirrorView) -> AsyncIterator[Watching]:
    """Watch `view` for as long as the context lasts."""
    async with Background() as background:
        watched = Watching(view)
        background.create_task(watched.read_on(), name="remember the last hours")
        background.create_task(watched.show_on(), name="make live documents")
        yield watched


def reading(view: MirrorView, space: SpaceReport | None, now: float, at: float) -> Reading:
    """Return what has been counted until `now` (unix time), which is `at` (monotonic)."""
    total = totals(view.metrics)
    by_status = view.metrics.by(declared.REQUESTS, "status")
    return Reading(
        time=now,
        monotonic=at,
        requests=total.requests,
        errors=sum(number for (status,), number in by_status.items() if status.startswith("5")),
        lookups=sum(total.lookups.values()),
        spared=sum(total.lookups.get(outcome, 0) for outcome in _SPARED),
        sent=total.sent,
        received=total.received,
        near=total.near,
        fills=len(running_fills(view)),
        used=None if space is None else space.stored + space.reserved,
        bounds=declared.FIRST_BYTE_SECONDS.buckets,
        first_byte=added(view.metrics.buckets_by(declared.FIRST_BYTE_SECONDS, "outcome").values()),
    )
