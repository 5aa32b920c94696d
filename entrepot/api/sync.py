"""The sync with other regions: POST /api/sync at the control socket, GET /api/sync on both listeners.

The body of the former is a question of `entrepot.syncasking`, answered with its lines; the latter answers how the peers
stand and who may read from this region.
"""

from __future__ import annotations

import logging

import msgspec
from aiohttp import web

from entrepot.answers import answer, read_body
from entrepot.lines import Lines, stream
from entrepot.syncasking import (
    NOT_YET,
    Outcome,
    Progressed,
    Question,
    SyncFailed,
    SyncOnce,
    SyncPause,
    SyncResume,
    outcome,
    refused,
)
from entrepot.view import VIEW
from entrepot.views import RegionsView, regions_of
from entrepot.wording import words_of
from proxy.oci.errors import RegistryError

_decode = msgspec.json.Decoder(Question).decode
_log = logging.getLogger(__name__)


def add_routes(router: web.UrlDispatcher) -> None:
    """Add the routes to the control socket's application."""
    add_shown(router)
    router.add_post("/api/sync", _answer)


def add_shown(router: web.UrlDispatcher) -> None:
    """Add what is only looked at."""
    router.add_get("/api/sync", _show)


async def _show(request: web.Request) -> web.Response:
    view = request.app[VIEW]
    syncing = view.part.syncing
    return answer(regions_of(view.config, syncing.reports() if syncing is not None else ()) or RegionsView())


async def _answer(request: web.Request) -> web.StreamResponse:
    view = request.app[VIEW]
    question = await read_body(request, _decode, "question about the sync")
    kind = type(question).__name__
    level = logging.INFO if isinstance(question, SyncOnce | SyncPause | SyncResume) else logging.DEBUG
    _log.log(level, "the sync was asked by a command", extra={"question": kind, "peers": list(question.peers)})

    async def work(lines: Lines) -> Outcome:
        syncing = view.part.syncing
        refusal = refused(view.config, question.peers)
        if refusal is not None:
            return refusal
        if syncing is None:
            return SyncFailed(NOT_YET)

        def tell(progressed: Progressed) -> None:
            lines.put(progressed, about="progress")

        try:
            return await outcome(question, syncing, tell)
        except RegistryError as error:
            return SyncFailed(error.message)
        except OSError as error:
            return SyncFailed(words_of(error))
        except Exception:
            _log.exception("a question about the sync could not be answered", extra={"question": kind})
            return SyncFailed("the mirror could not answer; its log has the reason")

    return await stream(request, work)
