"""Making room: a task that evicts when the quota is passed, or when somebody waits for room.

Every process that fills runs one (`sweeping`); a step is one transaction that looks at everything again, so that
several may work at the same time. What goes first is the catalog's index (`eviction`), how much is `evict`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from metrics.events import ClosureEvicted, Emit, SpaceMeasured
from proxy.oci.digest import Digest
from proxy.store.errors import StoreClosed
from proxy.store.evict import Watermarks, limits, target, that_fit
from proxy.store.eviction import Evicted, Order, Step
from proxy.store.foresight import foresee
from proxy.store.store import Store

INTERVAL_SECONDS = 60.0
IMPATIENT_SECONDS = 1.0
ORPHAN_SECONDS = 3600.0
TRASH_SECONDS = 60.0
AT_ONCE = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """Bytes: the watermarks, what is stored, what is reserved for downloads under way, what the volume has free."""

    high: int
    low: int
    stored: int
    reserved: int
    free: int


class Sweeper:
    """Make it with `sweeping`. `quota` in bytes, None for four fifths of the volume."""

    def __init__(self, store: Store, quota: int | None, emit: Emit) -> None:
        self._store = store
        self._space = store.space
        self._quota = quota
        self._emit = emit
        self._turn = asyncio.Lock()
        self._emptied = monotonic() - TRASH_SECONDS

    def turn_to(self, quota: int | None) -> None:
        """Keep to another quota from now on."""
        self._quota = quota
        self._space.nudge()

    def nudge(self) -> None:
        """Look at once whether something has to go."""
        self._space.nudge()

    async def measure(self) -> SpaceReport:
        """Look at the volume and the catalog, and hold the watermarks to what was found."""
        volume, usage = await self._store.volume(), await self._store.catalog.usage()
        await self._store.keep_ballast(volume)
        marks = self._space.marks = limits(self._quota, volume, usage.stored)
        report = SpaceReport(marks.high, marks.low, usage.stored, usage.reserved, volume.free)
        self._emit(SpaceMeasured(marks.high, marks.low, usage.used, volume.free, volume.total))
        return report

    async def foresee(self) -> list[Evicted]:
        """Return what `collect` would evict now."""
        report = await self.measure()
        orders = [Order("orphan", until=time.time() - ORPHAN_SECONDS), Order("gc", report.low)]
        return await self._store.catalog.read(lambda connection: foresee(connection, orders))

    async def collect(self) -> list[Evicted]:
        """Evict down to the low watermark now, remove orphans older than an hour, and empty the trash."""
        await self._store.empty_trash(time.time() - TRASH_SECONDS)
        async with self._turn:
            report = await self.measure()
            gone = await self._carry_out(Order("orphan", until=time.time() - ORPHAN_SECONDS))
            return gone + await self._carry_out(Order("gc", report.low))

    async def run(self) -> None:
        """Sweep whenever it is needed, until cancelled."""
        while True:
            try:
                async with self._turn:
                    await self._round()
            except StoreClosed:
                return
            except OSError as error:
                _log.error("nothing could be evicted: %s", error)
                self._space.refuse()
            except Exception:
                _log.exception("nothing could be evicted; the sweeper goes on")
                self._space.refuse()
            await self._space.nudged(IMPATIENT_SECONDS if self._space.wanted else INTERVAL_SECONDS)

    async def _round(self) -> None:
        if monotonic() - self._emptied >= TRASH_SECONDS:
            # Of a process that was killed in the middle of an eviction.
            await self._store.empty_trash(time.time() - TRASH_SECONDS)
            self._emptied = monotonic()
        report = await self.measure()
        wanted = sum(self._space.wanted)
        if report.stored + report.reserved + wanted <= report.high:
            self._space.answer(len(self._space.wanted))
            return
        marks = Watermarks(report.high, report.low)
        await self._carry_out(Order("quota", target(marks, wanted)), marks)
        await self._press(marks)
        if self._space.wanted and not (await self._store.catalog.usage()).reserved:
            self._space.refuse()

    async def _press(self, marks: Watermarks) -> None:
        """For what is wanted now, take also what is being fetched in part, then downloads that wait to be resumed."""
        order = Order("quota", max(0, marks.high - sum(self._space.wanted)), spare=False)
        if not await self._lacking(order.target, marks):
            return
        await self._carry_out(order, marks)
        while await self._lacking(order.target, marks) and await self._store.forget_oldest():
            continue

    async def _lacking(self, most: int, marks: Watermarks) -> bool:
        used = (await self._store.catalog.usage()).used
        self._answer(used, marks)
        return used > most and bool(self._space.wanted)

    async def _carry_out(self, order: Order, marks: Watermarks | None = None) -> list[Evicted]:
        gone: list[Evicted] = []
        following: Order | None = order
        while following is not None:
            step = await self._evict(following)
            tell(step.evicted, self._emit)
            gone += step.evicted
            if marks is not None:
                self._answer(step.usage.used, marks)
            following = step.next
        return gone

    async def _evict(self, order: Order) -> Step:
        try:
            return await self._store.evict(order)
        except OSError:
            if not await self._store.drop_ballast():
                raise
        _log.warning("what an eviction needs on a full volume was given free for this one")
        return await self._store.evict(order)

    def _answer(self, used: int, marks: Watermarks) -> None:
        self._space.answer(that_fit(self._space.wanted, used, marks.high))


async def free(store: Store, digests: Sequence[Digest], emit: Emit) -> list[Evicted]:
    """Evict what was removed by hand, unless something still needs it: pinned, held, or being fetched."""
    gone: list[Evicted] = []
    for start in range(0, len(digests), AT_ONCE):
        order: Order | None = Order("rm", chosen=tuple(map(str, digests[start : start + AT_ONCE])), target=-1)
        while order is not None:
            step = await store.evict(order)
            tell(step.evicted, emit)
            gone += step.evicted
            order = step.next
    return gone


def tell(evicted: Sequence[Evicted], emit: Emit) -> None:
    """Log and count each closure that went."""
    for one in evicted:
        emit(ClosureEvicted(one.reason, one.blobs, one.bytes))
        _log.info(
            "evicted",
            extra={
                "reason": one.reason,
                "repository": one.repository,
                "reference": one.reference,
                "digest": one.root,
                "blobs": one.blobs,
                "bytes": one.bytes,
                "last_use": round(one.last_use, 3),
            },
        )


@asynccontextmanager
async def sweeping(store: Store, quota: int | None, emit: Emit) -> AsyncIterator[Sweeper]:
    """Keep `store` within `quota` bytes (None: four fifths of the volume) for as long as the context lasts."""
    sweeper = Sweeper(store, quota, emit)
    await sweeper.measure()
    task = asyncio.create_task(sweeper.run(), name="sweeper")
    try:
        yield sweeper
    finally:
        task.cancel()
        await asyncio.wait([task])
        store.space.close()
