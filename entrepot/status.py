"""What a mirror says of itself: the documents of /readyz and /api/status, made from a `MirrorView`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from entrepot import __version__
from entrepot.live import Totals, totals
from entrepot.view import MirrorView
from entrepot.views import (
    BaseView,
    BucketView,
    FillView,
    FleetView,
    HostView,
    RegionsView,
    UpstreamView,
    WorkerView,
    merged,
    refusals,
    regions_of,
)
from entrepot.warm import WarmView, read_runs, views
from metrics import declarations as declared
from metrics.pulls.model import PullsBrief
from metrics.redaction import redact_text
from proxy.cache.fill import FillStatus
from proxy.cache.following import ANOTHER
from proxy.store import holding
from proxy.store.records import StoreStats
from proxy.store.sweep import SpaceReport, Sweeper
from proxy.store.uploading import backlog
from sync.bundle.waiting import Waiting, waiting_imports

STATS_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Readiness(msgspec.Struct, frozen=True):
    """`status`: ready, degraded (it serves what it can, see `reasons`), starting, draining, damaged (see them too)."""

    status: str
    reasons: tuple[str, ...] = ()

    @property
    def serving(self) -> bool:
        """Requests may be sent here. A degraded mirror still serves: taking it out would drain a whole fleet."""
        return self.status in ("ready", "degraded")


class Status(msgspec.Struct, frozen=True):
    """The document of /api/status. Sizes are bytes, `uptime` seconds, `store` None when it does not answer."""

    version: str
    pid: int
    state: str
    reasons: tuple[str, ...]
    region: str
    offline: bool
    started_at: str
    uptime: float
    listen: tuple[str, ...]
    upstreams: tuple[UpstreamView, ...]
    store: StoreStats | None
    space: SpaceReport | None
    fills: tuple[FillView, ...]
    totals: dict[str, int]
    warm: tuple[WarmView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    fleet: FleetView | None = None
    bucket: BucketView | None = None
    regions: RegionsView | None = None
    bases: tuple[BaseView, ...] = ()
    imports: tuple[Waiting, ...] = ()
    traffic: Totals | None = None
    pulls: PullsBrief | None = None


def readiness(view: MirrorView) -> Readiness:
    """Tell whether requests may be sent to this mirror."""
    if view.state == "starting":
        return Readiness("starting", ("the store or the listener is not open yet",))
    if view.state == "draining":
        return Readiness("draining", ("the mirror is shutting down and takes no new requests",))
    if view.store.catalog.damaged is not None:
        return Readiness("damaged", (view.store.catalog.damaged,))
    reasons = [] if view.store.recovering is None else [_recovery(view.store.recovering)]
    if not view.config.offline:
        reasons += [complaint for upstream in upstreams_of(view) for complaint in _complaints(upstream)]
    reasons += _of_fleet(view.part.view())
    if view.part.bucket_problem is not None:
        reasons.append(f"the bucket is out of reach, and uploads wait: {view.part.bucket_problem}")
    if view.crew is not None:
        silent = [worker for worker in view.crew.views() if not worker.answers]
        reasons += [f"worker {worker.number} (pid {worker.pid}) does not answer its supervisor" for worker in silent]
    return Readiness("degraded" if reasons else "ready", tuple(reasons))


async def status(view: MirrorView) -> Status:
    """Return everything that an operator asks first."""
    if view.crew is not None:
        await view.crew.refresh()
    stats, space = await store_stats(view), await space_of(view)
    ready = readiness(view)
    return Status(
        version=__version__,
        pid=os.getpid(),
        state=ready.status,
        reasons=ready.reasons,
        region=view.config.region,
        offline=view.config.offline,
        started_at=datetime.fromtimestamp(view.started_at, UTC).isoformat(timespec="seconds"),
        uptime=round(time.monotonic() - view.started_monotonic, 3),
        listen=tuple(view.listen_addresses),
        upstreams=upstreams_of(view),
        store=stats,
        space=space,
        fills=running_fills(view),
        totals=view.metrics.totals(),
        warm=await _warm(view),
        workers=tuple(view.crew.views()) if view.crew is not None else (),
        fleet=view.part.view(),
        bucket=await bucket_of(view),
        regions=regions_of(view.config, view.part.syncing.reports() if view.part.syncing is not None else ()),
        bases=await _bases(view),
        imports=await asyncio.to_thread(waiting_imports, view.config.data / "bundles" / "imports"),
        traffic=totals(view.metrics),
        pulls=_pulls(view),
    )


def _pulls(view: MirrorView) -> PullsBrief | None:
    if view.pulls is None:
        return None
    pulls = view.pulls.view()
    return PullsBrief(pulls.latency, pulls.outcomes, pulls.had_share)


async def _warm(view: MirrorView) -> tuple[WarmView, ...]:
    if not view.config.warm:
        return ()
    return views(view.config, await asyncio.to_thread(read_runs, view.config.data), time.time())


async def store_stats(view: MirrorView) -> StoreStats | None:
    """Return the store's numbers and note them as metrics, None when it fails or takes over `STATS_SECONDS`."""
    try:
        async with asyncio.timeout(STATS_SECONDS):
            stats = await view.store.stats()
    except Exception as error:
        _log.warning("the store gives no numbers; look at its disk", extra={"error": repr(error)})
        return None
    for metric, number in (
        (declared.STORE_BYTES, stats.bytes),
        (declared.STORE_BLOBS, stats.blobs),
        (declared.STORE_MANIFESTS, stats.manifests),
        (declared.STORE_REPOSITORIES, stats.repositories),
        (declared.STORE_TAGS, stats.tags),
        (declared.STORE_SPOOLS, stats.spools),
    ):
        view.metrics.set(metric, number)
    return stats


def upstreams_of(view: MirrorView) -> tuple[UpstreamView, ...]:
    """Return the upstreams as all processes together see them."""
    ours = host_views(view.upstream_status())
    return ours if view.crew is None else merged(ours, [report.upstreams for report in view.crew.reports()])


def running_fills(view: MirrorView) -> tuple[FillView, ...]:
    """Return each running download once, as who leads it sees it; readers are everybody's."""
    told = [*fill_views(view.cache.running())]
    if view.crew is not None:
        told += [fill for report in view.crew.reports() for fill in report.fills]
    fills: dict[str, FillView] = {}
    for fill in sorted(told, key=lambda fill: fill.source == ANOTHER):
        known = fills.get(fill.digest)
        readers = fill.readers + (known.readers if known else 0)
        fills[fill.digest] = msgspec.structs.replace(known or fill, readers=readers)
    return tuple(fills.values())


def host_views(upstreams: Sequence[Mapping[str, Any]]) -> tuple[UpstreamView, ...]:
    """Return what a mirror knows of its upstreams; nothing in it is secret."""
    return tuple(
        UpstreamView(name=upstream["name"], reachable=upstream["reachable"], hosts=tuple(map(_host, upstream["hosts"])))
        for upstream in upstreams
    )


def fill_views(fills: Sequence[FillStatus]) -> tuple[FillView, ...]:
    """Return the downloads that run in this process."""
    return tuple(map(_fill, fills))


def _host(host: Mapping[str, Any]) -> HostView:
    error = host["error"]
    return HostView(
        host=redact_text(host["host"]),
        answered=host["answered"],
        reachable=host["reachable"],
        error=None if error is None else redact_text(str(error)),
        quota=host["quota"],
        breaker=host["breaker"],
        credential_refused=host["credential_refused"],
        credential_error=host["credential_error"],
        held=host["held"],
    )


async def space_of(view: MirrorView) -> SpaceReport | None:
    """Return how much of the quota is used, None when the store does not answer."""
    try:
        async with asyncio.timeout(STATS_SECONDS):
            return await Sweeper(view.store, view.config.quota, view.metrics.observe).measure()
    except (OSError, TimeoutError) as error:
        _log.warning("the volume cannot be measured; look at its disk", extra={"error": repr(error)})
        return None


async def bucket_of(view: MirrorView) -> BucketView | None:
    """Return how the bucket does, None where there is none or the catalog does not answer."""
    url = view.config.store
    if url is None:
        return None
    try:
        async with asyncio.timeout(STATS_SECONDS):
            waiting, age = await view.store.catalog.read(lambda connection: backlog(connection, time.time()))
    except (OSError, TimeoutError) as error:
        _log.warning("the queue of uploads cannot be read; look at the disk", extra={"error": repr(error)})
        return None
    return BucketView(url, view.part.bucket_problem, waiting, round(age, 1))


async def _bases(view: MirrorView) -> tuple[BaseView, ...]:
    """Return what is kept as bases of bundles, nothing where the catalog does not answer."""
    try:
        async with asyncio.timeout(STATS_SECONDS):
            found = await view.store.catalog.read(holding.kept)
    except (OSError, TimeoutError) as error:
        _log.warning("the holds cannot be read; look at the disk", extra={"error": repr(error)})
        return ()
    return tuple(BaseView(series, digests) for series, digests in found)


def _fill(fill: FillStatus) -> FillView:
    return FillView(
        digest=str(fill.digest),
        repository=str(fill.repository),
        size=fill.size,
        received=fill.received,
        readers=fill.readers,
        source=fill.source,
    )


def _of_fleet(fleet: FleetView | None) -> list[str]:
    if fleet is None:
        return []
    reasons = [] if fleet.problem is None else [f"this node works alone, without Redis: {fleet.problem}"]
    return reasons + [f"node {url} speaks another fleet protocol: upgrade the older one" for url in fleet.incompatible]


def _recovery(why: str) -> str:
    return f"the catalog was {why} and has been replaced: stored blobs are being compared with it, see the log"


def _complaints(upstream: UpstreamView) -> list[str]:
    complaints = []
    if not upstream.reachable:
        error = next((host.error for host in upstream.hosts if host.error), "it does not answer")
        complaints.append(f"upstream {upstream.name} fails: {error}")
    for host in upstream.hosts:
        complaints += [f"upstream {upstream.name}: {words}" for words in refusals(host)]
    return complaints
