"""The document that a page shows and renews every second: the mirror, its traffic, its pulls.

The structs live here, and the totals, which come from the metrics alone; the rest is `entrepot.watching`'s. No field
holds a credential or a client's address.
"""

from __future__ import annotations

import msgspec

from entrepot.views import BucketView, FillView, FleetView, RegionsView, UpstreamView, WorkerView
from metrics import declarations as declared
from metrics.history import Point
from metrics.metric import Metric
from metrics.prometheus import Metrics
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


def totals(metrics: Metrics) -> Totals:
    """Return what was counted since the start, in all processes.

    Bytes count when a request, or a download, ends. Received is what downloads brought from upstreams, and what went
    from one straight to a client: what was relayed, and manifests that were not here.
    """
    sent_as = metrics.by(declared.SENT_BYTES, "kind", "outcome")
    straight = sum(sent for kind, sent in sent_as.items() if kind[1] == "relayed" or kind == ("manifest", "miss"))
    sent = int(sum(sent_as.values()))
    received = _total(metrics, declared.RECEIVED_BYTES) + int(straight)
    evicted, evicted_bytes = (
        int(metrics.by(metric, "reason").get(("quota",), 0))
        for metric in (declared.EVICTED_CLOSURES, declared.EVICTED_BYTES)
    )
    return Totals(
        requests=_total(metrics, declared.REQUESTS),
        sent=sent,
        received=received,
        near=_total(metrics, declared.NEAR_BYTES),
        saved=max(0, sent - received),
        evicted=evicted,
        evicted_bytes=evicted_bytes,
        verification_failures=_total(metrics, declared.VERIFICATION_FAILURES),
        lookups=metrics.totals(),
    )


def _total(metrics: Metrics, metric: Metric) -> int:
    return int(sum(metrics.by(metric).values()))
