"""What the admin listener and the control socket see of the running mirror; the real one is `entrepot.mirror`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from aiohttp import web

from entrepot.config import Config
from entrepot.pulling import PullingCache
from entrepot.refreshing import RefreshingCache
from entrepot.views import FillView, FleetView, UpstreamView, WorkerView
from metrics.history import HistoryView, Point
from metrics.prometheus import Metrics
from metrics.pulls.model import PullDetail, PullsView
from proxy.cache.fill import FillStatus
from proxy.oci.names import Reference, Repository
from proxy.store.catalog import Catalog
from proxy.store.records import StoreStats, VerifyProgress, VerifyReport
from proxy.store.store import Store

if TYPE_CHECKING:
    from entrepot.syncasking import Syncing
    from proxy.bucket.collector import Turn

State = Literal["starting", "ready", "draining"]


class CacheView(PullingCache, RefreshingCache, Protocol):
    """The cache, as far as it is shown, pulled into and refreshed."""

    def running(self) -> list[FillStatus]: ...

    def said_missing(self, repository: Repository, reference: Reference) -> str | None:
        """Return what an upstream said of what it does not have, while that is remembered."""
        ...


class StoreView(Protocol):
    """The store, as far as it is shown and verified."""

    @property
    def catalog(self) -> Catalog: ...

    async def stats(self) -> StoreStats: ...

    async def verify(self, progress: Callable[[VerifyProgress], None], concurrency: int) -> VerifyReport:
        """Hash everything again; `progress` is called in the event loop."""
        ...


class ReportView(Protocol):
    """What one worker said last."""

    @property
    def fills(self) -> Sequence[FillView]: ...

    @property
    def upstreams(self) -> Sequence[UpstreamView]: ...


class CrewView(Protocol):
    """The workers of a supervisor."""

    def reports(self) -> Sequence[ReportView]: ...

    def views(self) -> Sequence[WorkerView]: ...

    async def refresh(self) -> None:
        """Ask them all how it goes; takes half a second at most."""
        ...


class PartView(Protocol):
    """A part in a fleet, as far as it is shown, or used for a command."""

    @property
    def turn(self) -> Turn | None:
        """The right to collect garbage in the bucket."""
        ...

    @property
    def bucket_problem(self) -> str | None:
        """Why the bucket is not asked now, None while it is or where there is none."""
        ...

    @property
    def syncing(self) -> Syncing | None:
        """The sync with other regions, None where none is configured, or another process has it."""
        ...

    def view(self) -> FleetView | None:
        """Return what people are shown, None where there is no fleet."""
        ...


class PullsShown(Protocol):
    """The pulls that this mirror has seen, from all its processes."""

    def view(self) -> PullsView: ...

    def detail(self, name: str) -> PullDetail | None:
        """Return a pull by its id, None where it is not known any more."""
        ...

    def ended_within(self, seconds: float) -> Sequence[float]:
        """Return the seconds that each pull took which transferred something and ended so lately."""
        ...


class HistoryShown(Protocol):
    """What was counted over the last hours."""

    @property
    def newest(self) -> Point | None: ...

    def view(self, seconds: float) -> HistoryView:
        """Return the points of the last so many seconds, some hundreds of them at most."""
        ...

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Give `entrepot.live.Live` documents as JSON lines, while they are new; a late taker gets the newest only.

        They end when the listener does. Raises Refused where too many take them.
        """
        ...

    async def hang_up(self) -> None:
        """End what is streamed, and wait a moment for those who take it."""
        ...


class MirrorView(Protocol):
    """A mirror between its start and its end."""

    @property
    def config(self) -> Config: ...

    @property
    def cache(self) -> CacheView: ...

    @property
    def store(self) -> Store: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def started_at(self) -> float:
        """When it started, in seconds since the epoch: for people."""
        ...

    @property
    def started_monotonic(self) -> float:
        """When it started, by `time.monotonic`: to measure from."""
        ...

    @property
    def state(self) -> State: ...

    @property
    def listen_addresses(self) -> Sequence[str]:
        """Where clients are answered, as URLs; empty while nobody is."""
        ...

    @property
    def part(self) -> PartView:
        """This process's part in a fleet."""
        ...

    @property
    def crew(self) -> CrewView | None:
        """The processes that answer clients, where this one does not."""
        ...

    @property
    def pulls(self) -> PullsShown | None:
        """The pulls, None where nobody tells them from requests."""
        ...

    @property
    def history(self) -> HistoryShown | None:
        """The last hours, None where nobody writes them down."""
        ...

    def upstream_status(self) -> Sequence[Mapping[str, Any]]:
        """Return one entry for each upstream: `name`, `reachable`, and its `hosts`, the main one first.

        A host has `host`, `answered` (it ever did), `reachable`, `error` (text, None after a success), `quota` (None
        where it told none), `breaker`, `credential_refused`, `credential_error` and `held` (see status.HostView).
        """
        ...


VIEW = web.AppKey("view", MirrorView)
"""Where an application of ours keeps the mirror that it shows."""
