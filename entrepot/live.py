"""The document that a page shows and renews every second: the mirror, its traffic, its pulls.

Only the structs live here; who makes them is `entrepot.watching`. No field holds a credential or a client's address.
"""

from __future__ import annotations

import msgspec

from entrepot.views import BucketView, FillView, FleetView, RegionsView, UpstreamView, WorkerView
from metrics.history import Point
from metrics.pulls.model import PullsView
from proxy.store.records import StoreStats
from proxy.store.sweep import SpaceReport


class Totals(msgspec.Struct, frozen=True):
    """Counts and bytes since the start. saved: bytes sent that no upstream had to give, at least 0.

    evicted, evicted_bytes: images that made room for others. verification_failures: downloads that did not fit their
    digest and were not served.
    """

    requests: int
    sent: int
    received: int
    near: int
    saved: int
    evicted: int
    evicted_bytes: int
    verification_failures: int
    lookups: dict[str, int]


class Live(msgspec.Struct, frozen=True):
    """One moment. now, started_at: unix time; uptime in seconds. point: the newest of the history.

    listen: where clients are answered, as URLs. state and reasons: as /readyz has them. space and store are None where
    the disk does not answer.
    """

    now: float
    version: str
    region: str
    state: str
    reasons: tuple[str, ...]
    offline: bool
    started_at: float
    uptime: float
    totals: Totals
    pulls: PullsView
    fills: tuple[FillView, ...]
    upstreams: tuple[UpstreamView, ...]
    space: SpaceReport | None
    store: StoreStats | None
    point: Point | None
    workers: tuple[WorkerView, ...] = ()
    fleet: FleetView | None = None
    bucket: BucketView | None = None
    regions: RegionsView | None = None
    listen: tuple[str, ...] = ()
