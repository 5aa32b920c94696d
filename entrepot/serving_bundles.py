"""`entrepot serve --from`: a read-only mirror straight from the medium. Nothing is extracted, nothing is written.

It composes what `entrepot.serve` does without a store: the bundles, the listeners, the drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from entrepot import __version__
from entrepot.access import open_access, rules_of
from entrepot.admin import guarded, showing
from entrepot.answering import addresses_of, bound, taking
from entrepot.answers import answer
from entrepot.config import Config
from entrepot.dashboard import add_no_dashboard
from entrepot.descriptors import raise_limit
from entrepot.loops import keep_start, told_to_end
from entrepot.status import Readiness
from entrepot.trusting import trust_of
from entrepot.view import State
from metrics.declarations import REQUESTS_IN_PROGRESS
from metrics.events import Emit
from metrics.looplag import watch_lag
from metrics.prometheus import Metrics
from proxy.app import Face
from proxy.clients import Clients
from proxy.oci.errors import RegistryError
from proxy.oci.names import DOCKER_HUB
from sync.bundle.errors import Refused
from sync.bundle.opened import Bundle, open_bundles
from sync.bundle.plan import reference_of
from sync.bundle.served import ServedBundles
from sync.bundle.source import BundleSource

READERS = 8
"""Threads that read the medium."""
CHUNK = 128 << 10
"""What is read at once for one client, who holds two of them at most."""
PROBE_SECONDS = 5.0
log = logging.getLogger(__name__)


class BundleView(msgspec.Struct, frozen=True):
    """A bundle that is served. plan: its name; signed_by: the name of the trusted key; missing: volumes not at hand."""

    plan: str
    series: str
    region: str
    created: str
    signed_by: str | None
    images: int
    volumes: int
    missing: tuple[int, ...]
    bytes: int


class ServingStatus(msgspec.Struct, frozen=True):
    """The document of /api/status. `uptime` in seconds; `images`: how many there are, and can be `served`."""

    version: str
    pid: int
    state: str
    reasons: tuple[str, ...]
    serve_from: str
    started_at: str
    uptime: float
    listen: tuple[str, ...]
    images: int
    served: int
    bundles: tuple[BundleView, ...]
    totals: dict[str, int]


@dataclass
class Serving:
    """What is served. State: `state` and `listen_addresses`, and the look at the medium that is under way."""

    config: Config
    metrics: Metrics
    source: BundleSource
    served: ServedBundles
    signers: dict[str, str | None]
    state: State = "starting"
    listen_addresses: Sequence[str] = ()
    started_monotonic: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    _looking: asyncio.Task[list[str]] | None = None

    async def readiness(self) -> Readiness:
        """Tell whether requests may be sent here: not while a volume cannot be read."""
        if self.state == "draining":
            return Readiness("draining", ("the mirror is shutting down and takes no new requests",))
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self.source.problems(), name="look at the medium")
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                problems = await asyncio.shield(self._looking)
        except RegistryError as error:
            problems = [error.message]
        except TimeoutError:
            problems = [f"the medium does not answer within {PROBE_SECONDS:.0f} s"]
        return Readiness("damaged" if problems else "ready", tuple(problems))

    async def status(self) -> ServingStatus:
        """Return what an operator asks first."""
        ready = await self.readiness()
        served, images = self.served.counted()
        return ServingStatus(
            version=__version__,
            pid=os.getpid(),
            state=ready.status,
            reasons=ready.reasons,
            serve_from=str(self.config.serve_from),
            started_at=_moment(self.started_at),
            uptime=round(time.monotonic() - self.started_monotonic, 3),
            listen=tuple(self.listen_addresses),
            images=images,
            served=served,
            bundles=tuple(_view(bundle, self.signers[bundle.name]) for bundle in self.source.bundles),
            totals=self.metrics.totals(),
        )

    async def aclose(self) -> None:
        """End what is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])


async def serve_bundles(config: Config, metrics: Metrics, emit: Emit) -> None:
    """Serve what `config.serve_from` names until SIGTERM or SIGINT.

    Raises BundleError for bundles that cannot be served, OSError for files and addresses.
    """
    assert config.serve_from is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _ignore_hang_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(told_to_end(signal.SIGTERM, signal.SIGINT))
        serving = await stack.enter_async_context(opened(config, config.serve_from, metrics))
        await stack.enter_async_context(watch_lag(metrics.observe_lag))
        await stack.enter_async_context(showing(config.admin, admin_app(serving)))
        sockets = stack.enter_context(bound(config.listen))
        access = await stack.enter_async_context(open_access(config, {}))
        upstreams = {repository.upstream for repository in serving.source.repositories}
        face = Face(
            serving.served,
            frozenset(upstreams | {upstream.name for upstream in config.upstreams}),
            default_of(config, upstreams),
            emit,
            Clients(config.trusted_proxies, config.client_concurrency),
            catalog=config.catalog,
            access=access,
            rules=rules_of(config),
            hosts=config.hosts,
        )
        server = await stack.enter_async_context(taking(config, sockets, face))
        metrics.read_from(REQUESTS_IN_PROGRESS, lambda: server.in_progress)
        serving.listen_addresses = addresses_of(sockets, tls=config.tls is not None)
        keep_start()
        serving.state = "ready"
        stack.callback(_drains, serving)
        _tell(serving)
        await stop.wait()


@asynccontextmanager
async def opened(config: Config, place: Path, metrics: Metrics) -> AsyncIterator[Serving]:
    """Give the bundles at `place`, none of which the configured trust refuses. Raises BundleError, OSError."""
    raise_limit()
    bundles = await asyncio.to_thread(open_bundles, [place])
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="bundle")
    try:
        signers = await asyncio.to_thread(_judged, config, bundles)
        source = BundleSource(bundles, threads=threads, chunk=CHUNK)
        try:
            served = await ServedBundles.open(source)
        except RegistryError as error:
            raise Refused(error.message) from error
        serving = Serving(config, metrics, source, served, signers)
        try:
            yield serving
        finally:
            await serving.aclose()
    finally:
        # Nobody may read from a file whose number is another's by then.
        await asyncio.to_thread(partial(threads.shutdown, cancel_futures=True))
        for bundle in bundles:
            bundle.close()


def default_of(config: Config, upstreams: set[str]) -> str:
    """Return which upstream is meant where a name has none: the configured one if it is here, docker.io, any."""
    for name in (config.default_upstream, DOCKER_HUB):
        if name in upstreams:
            return name
    return min(upstreams, default=config.default_upstream)


def admin_app(serving: Serving) -> web.Application:
    """Return the application of the admin listener."""
    app = guarded(serving)

    async def readyz(_: web.Request) -> web.Response:
        ready = await serving.readiness()
        return answer(ready, status=200 if ready.serving else 503)

    async def exposed(request: web.Request) -> web.Response:
        body, kind = await asyncio.to_thread(serving.metrics.expose, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    async def status(_: web.Request) -> web.Response:
        return answer(await serving.status())

    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposed)
    app.router.add_get("/api/status", status)
    add_no_dashboard(app.router)
    return app


def _judged(config: Config, bundles: Sequence[Bundle]) -> dict[str, str | None]:
    """Return the name of the trusted key of each bundle. Raises Untrusted, Refused."""
    trust = trust_of(config)
    signers: dict[str, str | None] = {}
    for bundle in bundles:
        verdict = trust.judge(bundle.sealed, bundle.signature)
        if verdict.note is not None:
            log.warning(verdict.note, extra=_told(bundle))
        outside = next((name for name in bundle.plan.names if not verdict.scope.admits(name)), None)
        if outside is not None:
            raise Refused(
                f"the bundle of {bundle.plan.series} brings {outside}, which the key {verdict.key} may not: add it to "
                "that key's repositories, or ask for a bundle without it"
            )
        signers[bundle.name] = verdict.key
    return signers


def _tell(serving: Serving) -> None:
    for bundle in serving.source.bundles:
        if bundle.missing:
            log.warning(
                "volumes are missing: what is whole is served", extra=_told(bundle) | {"missing": bundle.missing}
            )
    for bundle, image in serving.served.lacking(most=20):
        log.warning(
            "an image is not served: parts of it are in none of the bundles, or damaged",
            extra=_told(bundle) | {"image": reference_of(bundle.plan, image)},
        )
    served, images = serving.served.counted()
    extra = {"listen": serving.listen_addresses, "from": str(serving.config.serve_from)}
    log.info("serving", extra=extra | {"images": f"{served} of {images}"})


def _told(bundle: Bundle) -> dict[str, object]:
    return {"series": bundle.plan.series, "plan": bundle.name, "bases": [base.label for base in bundle.plan.bases]}


def _view(bundle: Bundle, signer: str | None) -> BundleView:
    plan = bundle.plan
    return BundleView(
        plan=str(bundle.name),
        series=plan.series,
        region=plan.region,
        created=_moment(plan.created),
        signed_by=signer,
        images=len(plan.images),
        volumes=len(plan.volumes),
        missing=tuple(bundle.missing),
        bytes=plan.size,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _ignore_hang_up() -> None:
    log.warning("SIGHUP is ignored: a bundle is served as it was found; restart to serve another")


def _drains(serving: Serving) -> None:
    serving.state = "draining"
    log.info("draining", extra={"seconds": serving.config.drain_timeout})
