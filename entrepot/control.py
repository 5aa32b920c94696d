"""The control socket `DATA/run/control.sock`: commands reach the running mirror here, over HTTP.

GET /api/status answers one JSON document; POST /api/pull and POST /api/verify answer JSON lines, the last
of which is `done` or `error`. Whoever may open the socket (mode 0600) may do all of it. The work itself is
in `entrepot.pulling` and `entrepot.verifying`; what else may be asked for is in `entrepot.api`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from entrepot.answers import answer, errors_as_json, read_body, refusal
from entrepot.api import catalog, gc, refresh, sync
from entrepot.lines import Lines, own_work, stream
from entrepot.pulling import BlobProgress, PullError, PullEvent, PullLine, pull
from entrepot.status import status
from entrepot.unixsocket import Listening
from entrepot.verifying import VerifyError, VerifyLine, verify
from entrepot.view import VIEW, MirrorView
from proxy.oci.errors import RegistryError
from proxy.oci.references import parse_full

SOCKET = "control.sock"
BODY_BYTES = 64 << 10
SHUTDOWN_SECONDS = 1.0

VERIFYING = web.AppKey("verifying", asyncio.Lock)
_log = logging.getLogger(__name__)


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /api/pull; `platforms` as `entrepot.pulling.pull` takes them."""

    reference: str
    platforms: list[str] | None = None


_decode_pull = msgspec.json.Decoder(PullRequest).decode


@asynccontextmanager
async def open_control(view: MirrorView) -> AsyncIterator[None]:
    """Answer at the control socket of `view` for as long as the context lasts.

    A socket that an earlier process left is replaced. Raises OSError when the place of the socket is taken by
    something else or the folder cannot be written.
    """
    listening = await asyncio.to_thread(Listening.bind, view.config.data / "run", SOCKET)
    try:
        # A command that was interrupted must not leave its work behind: its handler is cancelled.
        runner = web.AppRunner(
            control_app(view), handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None
        )
        await runner.setup()
        try:
            assert runner.server is not None
            server = await asyncio.get_running_loop().create_unix_server(runner.server, sock=listening.socket)
            try:
                yield
            finally:
                server.close()
        finally:
            await runner.cleanup()
    finally:
        await asyncio.to_thread(listening.close)


def control_app(view: MirrorView) -> web.Application:
    """Return the application behind the socket."""
    app = web.Application(middlewares=[errors_as_json], client_max_size=BODY_BYTES)
    app[VIEW] = view
    app[VERIFYING] = asyncio.Lock()
    own_work(app)
    app.router.add_get("/api/status", _status)
    app.router.add_post("/api/pull", _pull)
    app.router.add_post("/api/verify", _verify)
    refresh.add_routes(app.router)
    catalog.add_routes(app.router)
    gc.add_routes(app.router)
    sync.add_routes(app.router)
    return app


async def _status(request: web.Request) -> web.Response:
    return answer(await status(request.app[VIEW]))


async def _pull(request: web.Request) -> web.StreamResponse:
    view = request.app[VIEW]
    wanted = await read_body(request, _decode_pull, "pull request")
    _log.info("pull asked for by a command", extra={"image": wanted.reference, "platforms": wanted.platforms})

    async def work(lines: Lines) -> PullLine:
        try:
            return await _pulled(view, wanted, lines)
        except RegistryError as error:
            return PullError(error.code, error.message)
        except Exception:
            _log.exception("pull failed", extra={"image": wanted.reference})
            return PullError("UNKNOWN", f"the pull of {wanted.reference} failed in the mirror; its log has the reason")

    return await stream(request, work)


async def _pulled(view: MirrorView, wanted: PullRequest, lines: Lines) -> PullLine:
    names = frozenset(upstream.name for upstream in view.config.upstreams)
    repository, reference = parse_full(wanted.reference, names, view.config.default_upstream)

    def report(event: PullEvent) -> None:
        lines.put(event, about=event.digest if isinstance(event, BlobProgress) else None)

    return await pull(view.cache, repository, reference, wanted.platforms, report)


async def _verify(request: web.Request) -> web.StreamResponse:
    view, turn = request.app[VIEW], request.app[VERIFYING]
    if turn.locked():
        return refusal(409, "UNSUPPORTED", "a verification is running already; wait for it to end")
    async with turn:
        _log.info("verification asked for by a command")

        async def work(lines: Lines) -> VerifyLine:
            try:
                return await verify(view.store, lambda event: lines.put(event, about="progress"))
            except Exception:
                _log.exception("verification failed")
                return VerifyError("the verification failed in the mirror; its log has the reason")

        return await stream(request, work)
