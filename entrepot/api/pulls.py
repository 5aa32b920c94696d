"""The pulls that the mirror has seen: GET /api/pulls, and one of them with its requests at /api/pulls/{id}."""

from __future__ import annotations

from aiohttp import web

from entrepot.answers import answer, refusal
from entrepot.view import VIEW, PullsShown


def add_routes(router: web.UrlDispatcher) -> None:
    """Add the routes to the admin listener's application."""
    router.add_get("/api/pulls", _show_all)
    router.add_get("/api/pulls/{id}", _show_one)


async def _show_all(request: web.Request) -> web.Response:
    pulls = _shown(request)
    return _not_told() if pulls is None else answer(pulls.view())


async def _show_one(request: web.Request) -> web.Response:
    pulls = _shown(request)
    if pulls is None:
        return _not_told()
    found = pulls.detail(request.match_info["id"])
    if found is None:
        return refusal(404, "NOT_FOUND", "no such pull is kept; /api/pulls has those that are")
    return answer(found)


def _shown(request: web.Request) -> PullsShown | None:
    return request.app[VIEW].pulls


def _not_told() -> web.Response:
    return refusal(404, "NOT_FOUND", "nobody tells pulls from requests here")
