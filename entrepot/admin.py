"""The admin listener and its application: /metrics, /healthz, /readyz, the page at /dashboard, and what /api shows.

Everything here is read-only. /metrics, the probes and the page are for whoever reaches the listener; /api tells
names of repositories and is given to this machine alone, or to who has the admin token.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address
from typing import Protocol as Kind

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from entrepot.admintoken import AdminToken
from entrepot.answering import bound
from entrepot.answers import answer, errors_as_json, refusal
from entrepot.api import live, pulls, sync
from entrepot.config import Address, Config
from entrepot.dashboard import add_dashboard
from entrepot.status import readiness, status, store_stats
from entrepot.view import VIEW, MirrorView
from proxy.server import Protocol, listen

CONNECTIONS = 160
"""A browser holds six for each page: those of all who may read /api/live leave room for probes and scrapes."""
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
_FOREIGN = ("cross-site", "same-site")


class Configured(Kind):
    """What is shown, as far as its configuration says who may see it."""

    @property
    def config(self) -> Config: ...


CONFIGURED = web.AppKey("configured", Configured)


@asynccontextmanager
async def administering(view: MirrorView) -> AsyncIterator[list[socket.socket]]:
    """Show `view` on the admin listener, as `showing` does."""
    async with showing(view.config.admin, admin_app(view)) as sockets:
        yield sockets


@asynccontextmanager
async def showing(address: Address, app: web.Application) -> AsyncIterator[list[socket.socket]]:
    """Answer at `address`, at most `CONNECTIONS` at once, with the deadlines of clients' connections (P45).

    Gives its sockets. Raises OSError that names the address when it cannot be bound.
    """
    with bound(address) as sockets:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        listening: list[asyncio.Server] = []
        try:
            server, loop = runner.server, asyncio.get_running_loop()
            assert server is not None

            def accept() -> Protocol:
                return Protocol(server, lambda: len(server.connections) <= CONNECTIONS, loop=loop)

            for one in sockets:
                listening.append(await listen(accept, one))
            yield sockets
        finally:
            for each in listening:
                each.close()
            await runner.cleanup()


def admin_app(view: MirrorView) -> web.Application:
    """Return the application that shows `view`."""
    app = guarded(view)
    app[VIEW] = view
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/api/status", _status)
    sync.add_shown(app.router)
    pulls.add_routes(app.router)
    live.add_routes(app)
    add_dashboard(app.router)
    return app


def guarded(shown: Configured) -> web.Application:
    """Return an application with /healthz, whose /api is for this machine, or for who has the admin token."""
    app = web.Application(middlewares=[errors_as_json, _local_api], client_max_size=1024)
    app[CONFIGURED] = shown
    app.router.add_get("/healthz", _healthz)
    return app


async def _healthz(request: web.Request) -> web.Response:
    """200 for as long as the loop turns."""
    return answer({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    view = request.app[VIEW]
    await store_stats(view)
    ready = readiness(view)
    return answer(ready, status=200 if ready.serving else 503)


async def _metrics(request: web.Request) -> web.Response:
    view = request.app[VIEW]
    await store_stats(view)
    if view.crew is not None:
        await view.crew.refresh()
    body, content_type = await asyncio.to_thread(view.metrics.expose, request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _status(request: web.Request) -> web.Response:
    return answer(await status(request.app[VIEW]))


@web.middleware
async def _local_api(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path == "/api" or request.path.startswith("/api/"):
        reason = why_no_api(request.remote, request.host, request.headers)
        if reason is not None and (closed := await _closed(request, reason)) is not None:
            return closed
    return await handler(request)


async def _closed(request: web.Request, reason: str) -> web.Response | None:
    """Return the refusal of a request from elsewhere, None where it has the admin token."""
    token = AdminToken(request.app[CONFIGURED].config)
    if not token.configured:
        return refusal(403, "DENIED", reason)
    if await token.opens(request.headers.get("Authorization")):
        return None
    response = refusal(401, "UNAUTHORIZED", f"{reason}; or send the admin token as a Bearer credential")
    response.headers["WWW-Authenticate"] = 'Bearer realm="entrepot"'
    return response


def why_no_api(peer: str | None, host: str, headers: Mapping[str, str]) -> str | None:
    """Return why a request may not use /api, None when it may.

    It is for this machine only: not for another `peer` address, not through a reverse proxy on this machine,
    not for a page of another site that has made its name resolve to us (DNS rebinding), which `host` gives away,
    nor for one that asks what it cannot read (Fetch Metadata) and so would hold places. A link may lead here.
    """
    if not _is_loopback(peer):
        return "/api answers only on the mirror's own machine; run `entrepot status` there"
    if any(name in headers for name in _FORWARDED):
        return "/api is not given through a reverse proxy; ask it on the mirror's own machine"
    if not _names_this_machine(host):
        return "/api is asked by address or as localhost, not under another host name"
    if headers.get("Sec-Fetch-Site") in _FOREIGN and headers.get("Sec-Fetch-Dest") != "document":
        return "/api is not given to pages of other sites; open the mirror's own at /dashboard/"
    return None


def _is_loopback(peer: str | None) -> bool:
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _names_this_machine(host: str) -> bool:
    """Tell whether a Host header is a literal address or localhost: a page of another site cannot make it so."""
    try:
        name = URL(f"http://{host}").host or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
