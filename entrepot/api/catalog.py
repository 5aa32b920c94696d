"""POST /api/catalog at the control socket: a question of `entrepot.asking`, answered with its lines as JSON.

However many lines there are, only a page of them is held: who reads slowly is waited for.
"""

from __future__ import annotations

import logging
from contextlib import aclosing

import msgspec
from aiohttp import web

from entrepot.answers import read_body
from entrepot.asking import Failed, Question, Surroundings, answers
from entrepot.status import status
from entrepot.view import VIEW

_decode = msgspec.json.Decoder(Question).decode
_log = logging.getLogger(__name__)


def add_routes(router: web.UrlDispatcher) -> None:
    """Add the route to the control socket's application."""
    router.add_post("/api/catalog", _answer)


async def _answer(request: web.Request) -> web.StreamResponse:
    view = request.app[VIEW]
    question = await read_body(request, _decode, "question about the catalog")
    cache, observe = view.cache, view.metrics.observe
    syncing = view.part.syncing
    around = Surroundings(
        view.store,
        view.config,
        lambda: status(view),
        cache.said_missing,
        observe,
        syncing.reports if syncing is not None else None,
    )
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        async with aclosing(answers(question, around)) as pages:
            async for page in pages:
                await response.write(b"".join(msgspec.json.encode(line) + b"\n" for line in page))
    except ConnectionError:
        raise
    except Exception:
        _log.exception("a question about the catalog could not be answered", extra={"question": repr(question)})
        failed = Failed("the mirror could not answer; its log has the reason")
        await response.write(msgspec.json.encode(failed) + b"\n")
    await response.write_eof()
    return response
