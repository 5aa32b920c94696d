"""`Metrics`: events in, exposition out, with a registry of its own.

`observe` is the Emit that core code is given. It runs on the event loop for every request, so the cells
that an event writes are kept under the event's own labels: an event is a look-up and a few additions.
What is declared lives in `metrics.declarations`, the cells in `metrics.families`.
"""

from __future__ import annotations

import operator
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import cast

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from metrics import declarations as declared
from metrics.declarations import METRICS, Metric
from metrics.events import (
    BlobStarted,
    ClosureEvicted,
    Event,
    FillFinished,
    FillJoined,
    FillResumed,
    FillStarted,
    RequestFinished,
    SpaceMeasured,
    StaleServed,
    TagRevalidated,
    UpstreamHealth,
    UpstreamQuota,
    UpstreamRequest,
    UpstreamRetry,
    VerificationFailed,
    WarmFinished,
    ignore,
)
from metrics.families import Distribution, Families, Snapshot, Value
from metrics.pulls.counting import PullCounting
from metrics.regional import RegionalCounting
from metrics.sharing import SharingCounting
from metrics.tallies import Tally

_MAX_KEPT = 4096
_OUTCOMES = ("hit", "joined", "miss", "neighbour", "bucket", "stale", "relayed", "redirected", "error")
_TIMED = frozenset({"manifest", "blob"})


@dataclass(frozen=True, slots=True)
class Quota:
    """What an upstream last said of its quota (P35): requests allowed and left, the window in seconds."""

    limit: int
    remaining: int
    window: int


@dataclass(frozen=True, slots=True)
class _UpstreamCells:
    requests: Value
    duration: Distribution | None


class Metrics:
    """The mirror's numbers. One event loop writes them; `expose` may run in any thread.

    alike: where requests are counted that were given the same kept answer, by its number.
    """

    def __init__(self, *, version: str) -> None:
        self._families = Families(METRICS)
        self._requests: dict[tuple[str, str, int, str, str], Tally] = {}
        self.alike: dict[int, Tally] = {}
        self._bringing = Lock()
        self._upstream_requests: dict[tuple[str, str, str, str], _UpstreamCells] = {}
        self._quotas: dict[str, Quota] = {}
        self._readers: list[tuple[Value, Callable[[], float]]] = []
        self._lag = self._families.distribution(declared.LOOP_LAG_SECONDS)
        self._observers = cast(
            "dict[type[Event], Callable[[Event], None]]",
            {
                BlobStarted: ignore,
                RequestFinished: self._request_finished,
                StaleServed: self._stale_served,
                UpstreamRequest: self._upstream_request,
                UpstreamRetry: self._upstream_retry,
                UpstreamQuota: self._upstream_quota,
                UpstreamHealth: self._upstream_health,
                FillStarted: self._fill_started,
                FillJoined: self._fill_joined,
                FillResumed: self._fill_resumed,
                FillFinished: self._fill_finished,
                VerificationFailed: self._verification_failed,
                TagRevalidated: self._tag_revalidated,
                ClosureEvicted: self._closure_evicted,
                SpaceMeasured: self._space_measured,
                WarmFinished: self._warm_finished,
                **SharingCounting(self._families).observers,
                **RegionalCounting(self._families).observers,
                **PullCounting(self._families).observers,
            },
        )
        self._families.value(declared.BUILD_INFO, version, platform.python_version()).number = 1
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(cast(Collector, self._families))
        ProcessCollector(registry=self._registry)

    def observe(self, event: Event) -> None:
        """Count `event`: the Emit given to core code."""
        self._observers[type(event)](event)

    def observe_lag(self, seconds: float) -> None:
        """Count one measurement of the event loop's lag."""
        self._lag.observe(seconds)

    def set(self, metric: Metric, number: float) -> None:
        """Set an unlabelled gauge."""
        self._families.value(metric).number = number

    def read_from(self, metric: Metric, reader: Callable[[], float]) -> None:
        """Ask `reader` for an unlabelled metric's number whenever it is exposed; it must neither block nor raise."""
        self._readers.append((self._families.value(metric), reader))

    def snapshot(self) -> Snapshot:
        """Return all that was counted in this process."""
        self._bring()
        for value, reader in self._readers:
            value.number = reader()
        return self._families.snapshot()

    def include(self, others: Callable[[], Sequence[Snapshot]]) -> None:
        """Expose what `others` gives, too: what other processes have counted so far."""
        self._families.others = others

    def absorb(self, snapshot: Snapshot) -> None:
        """Keep what a process has counted that is gone now."""
        with self._bringing:
            self._families.absorb(snapshot)

    def worker_up(self, number: int, *, up: bool) -> None:
        """Note whether a worker answers."""
        self._families.value(declared.WORKER_UP, str(number)).number = float(up)
        self._families.value(declared.WORKER_RESTARTS, str(number))  # shown from 0 on: `increase` sees the first

    def worker_restarted(self, number: int) -> None:
        """Note that a worker died and is started again."""
        self._families.value(declared.WORKER_RESTARTS, str(number)).number += 1

    def worker_used(self, number: int, *, resident: int, cpu: float) -> None:
        """Note what a worker's process has taken: bytes of memory, seconds of processor time."""
        self._families.value(declared.WORKER_MEMORY, str(number)).number = resident
        self._families.value(declared.WORKER_CPU, str(number)).number = cpu

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type: OpenMetrics where `accept` asks for it, else Prometheus text."""
        self._bring()
        for value, reader in self._readers:
            value.number = reader()
        encode, content_type = choose_encoder(accept)
        return encode(cast(Collector, self._registry)), content_type

    def totals(self) -> dict[str, int]:
        """Return how often each outcome of a look-up came up since the start (see RequestFinished)."""
        self._bring()
        totals = Counter(dict.fromkeys(_OUTCOMES, 0))
        for (_, _, outcome), number in self._families.items(declared.LOOKUPS):
            totals[outcome] += int(number)
        return dict(totals)

    def by(self, metric: Metric, *names: str) -> Mapping[tuple[str, ...], float]:
        """Return the numbers of a counter or gauge, in all processes, added up by the labels of these names."""
        self._bring()
        places = [metric.labels.index(name) for name in names]
        numbers: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for labels, number in self._families.items(metric):
            numbers[tuple([labels[place] for place in places])] += number
        return numbers

    def buckets_by(self, metric: Metric, name: str) -> dict[str, list[int]]:
        """Return how many fell in each bucket of a histogram, in all processes, added up by the label of this name."""
        self._bring()
        place = metric.labels.index(name)
        buckets: dict[str, list[int]] = {}
        for labels, counts in self._families.distributions(metric):
            known = buckets.get(labels[place])
            buckets[labels[place]] = counts if known is None else [*map(operator.add, known, counts)]
        return buckets

    def quota(self, upstream: str) -> Quota | None:
        """Return what `upstream` last said of its quota, None when it never did."""
        return self._quotas.get(upstream)

    def _request_finished(self, event: RequestFinished) -> None:
        (self.alike.get(event.alike) or self.tally(event)).count(event)

    def tally(self, event: RequestFinished) -> Tally:
        """Return where a request is counted: as `observe` does, for who would rather not make two calls of one."""
        key = (event.kind, event.method, event.status, event.outcome, event.upstream)
        tally = self._requests.get(key)
        if tally is None:
            if len(self._requests) >= _MAX_KEPT:
                self._bring()
                self._requests.clear()
                self.alike.clear()
            tally = self._requests[key] = Tally(key)
        if event.alike:
            if len(self.alike) >= _MAX_KEPT:
                self.alike.clear()
            self.alike[event.alike] = tally
        return tally

    def _bring(self) -> None:
        """Bring what requests counted into the families. An exposition does so in a thread of its own."""
        with self._bringing:
            for tally in list(self._requests.values()):
                tally.bring(self._families)

    def _stale_served(self, event: StaleServed) -> None:
        self._families.distribution(declared.STALE_AGE_SECONDS).observe(event.age)

    def _upstream_request(self, event: UpstreamRequest) -> None:
        key = (event.upstream, event.kind, event.method, event.status)
        cells = self._upstream_requests.get(key)
        if cells is None:
            if len(self._upstream_requests) >= _MAX_KEPT:
                self._upstream_requests.clear()
            cells = self._upstream_requests[key] = _UpstreamCells(
                requests=self._families.value(declared.UPSTREAM_REQUESTS, *key),
                duration=self._families.distribution(declared.UPSTREAM_DURATION_SECONDS, event.upstream, event.kind)
                if event.kind in _TIMED
                else None,
            )
            for health in (declared.UPSTREAM_FAILING, declared.UPSTREAM_CREDENTIAL_REFUSED):
                self._families.value(health, event.upstream)  # shown before it fails
        cells.requests.number += 1
        if cells.duration is not None:
            cells.duration.observe(event.seconds)

    def _upstream_retry(self, event: UpstreamRetry) -> None:
        self._families.value(declared.UPSTREAM_RETRIES, event.upstream, event.reason).number += 1

    def _upstream_quota(self, event: UpstreamQuota) -> None:
        self._quotas[event.upstream] = Quota(event.limit, event.remaining, event.window)
        self._families.value(declared.UPSTREAM_QUOTA_LIMIT, event.upstream).number = event.limit
        self._families.value(declared.UPSTREAM_QUOTA_REMAINING, event.upstream).number = event.remaining
        self._families.value(declared.UPSTREAM_QUOTA_WINDOW_SECONDS, event.upstream).number = event.window

    def _upstream_health(self, event: UpstreamHealth) -> None:
        self._families.value(declared.UPSTREAM_FAILING, event.upstream).number = float(event.failing)
        refused = float(event.credential_refused)
        self._families.value(declared.UPSTREAM_CREDENTIAL_REFUSED, event.upstream).number = refused

    def _fill_started(self, event: FillStarted) -> None:
        self._families.value(declared.FILLS_STARTED, event.upstream).number += 1
        self._families.value(declared.FILLS_RUNNING, event.upstream).number += 1
        self._families.value(declared.RECOVERED_BYTES, event.upstream).number += event.recovered

    def _fill_joined(self, event: FillJoined) -> None:
        self._families.value(declared.FILLS_JOINED, event.upstream).number += 1

    def _fill_resumed(self, event: FillResumed) -> None:
        self._families.value(declared.FILLS_RESUMED, event.upstream, event.source).number += 1

    def _fill_finished(self, event: FillFinished) -> None:
        self._families.value(declared.FILLS_RUNNING, event.upstream).number -= 1
        self._families.value(declared.FILLS_FINISHED, event.upstream, event.outcome).number += 1
        from_near = sum(event.from_near.values())
        self._families.value(declared.RECEIVED_BYTES, event.upstream).number += event.received - from_near
        for source, received in event.from_near.items():
            if received:
                self._families.value(declared.NEAR_BYTES, event.upstream, source).number += received
        if event.outcome == "committed":
            self._families.distribution(declared.FILL_DURATION_SECONDS, event.outcome).observe(event.seconds)
        else:
            self._families.value(declared.FILLS_FAILED, event.upstream, event.reason).number += 1

    def _verification_failed(self, event: VerificationFailed) -> None:
        self._families.value(declared.VERIFICATION_FAILURES, event.upstream, event.source).number += 1

    def _closure_evicted(self, event: ClosureEvicted) -> None:
        self._families.value(declared.EVICTED_CLOSURES, event.reason).number += 1
        self._families.value(declared.EVICTED_BYTES, event.reason).number += event.bytes

    def _space_measured(self, event: SpaceMeasured) -> None:
        self.set(declared.SPACE_HIGH, event.high)
        self.set(declared.SPACE_LOW, event.low)
        self.set(declared.SPACE_USED, event.used)
        self.set(declared.DISK_FREE, event.free)
        self.set(declared.DISK_SIZE, event.size)

    def _tag_revalidated(self, event: TagRevalidated) -> None:
        self._families.value(declared.TAG_REVALIDATIONS, event.upstream, event.outcome).number += 1

    def _warm_finished(self, event: WarmFinished) -> None:
        section = str(event.number)
        self._families.value(declared.WARM_RUNS, section, event.outcome).number += 1
        if event.outcome == "done":
            self._families.value(declared.WARM_LAST_SUCCESS, section).number = event.ended
