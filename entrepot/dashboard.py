"""The page at /dashboard: its files, read once, and how they are answered. What it shows comes from /api.

Nothing of it is secret, so that whoever reaches the admin listener gets it. It loads nothing from elsewhere and runs
no script or style but its own files; its policy says so to the browser.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web
from aiohttp.helpers import ETAG_ANY

from entrepot.answers import refusal

INDEX = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_WITHOUT = "a mirror that serves from bundles has no dashboard; /api/status and /metrics tell how it stands"


@dataclass(frozen=True, slots=True)
class Page:
    """One file of the page; `tag` is its strong entity tag, without quotes."""

    body: bytes
    kind: str
    tag: str


def pages() -> dict[str, Page]:
    """Return the page's files by their path under /dashboard/. Blocks for milliseconds: call it before serving."""
    return dict(_found(files("entrepot") / "web", ""))


def add_dashboard(router: web.UrlDispatcher) -> None:
    """Add the page to an admin application."""
    known = pages()

    async def shown(request: web.Request) -> web.StreamResponse:
        page = known.get(request.match_info["name"] or INDEX)
        if page is None:
            raise web.HTTPNotFound
        return _answered(request, page)

    router.add_get("/dashboard", _moved)
    router.add_get("/dashboard/{name:.*}", shown)


def add_no_dashboard(router: web.UrlDispatcher) -> None:
    """Let an application that has none say so."""
    router.add_get("/dashboard{name:(/.*)?}", _absent)


def _found(folder: Traversable, prefix: str) -> list[tuple[str, Page]]:
    found: list[tuple[str, Page]] = []
    for one in folder.iterdir():
        if one.is_dir():
            found += _found(one, f"{prefix}{one.name}/")
        elif (kind := _TYPES.get(one.name[one.name.rfind(".") :])) is not None:
            body = one.read_bytes()
            found.append((prefix + one.name, Page(body, kind, hashlib.sha256(body).hexdigest()[:32])))
    return found


def _answered(request: web.Request, page: Page) -> web.Response:
    headers = {**_HEADERS, "ETag": f'"{page.tag}"'}
    given = request.if_none_match or ()
    if any(tag.value in (page.tag, ETAG_ANY) for tag in given):
        return web.Response(status=304, headers=headers)
    return web.Response(body=page.body, headers=headers | {"Content-Type": page.kind})


async def _moved(request: web.Request) -> web.Response:
    return web.Response(status=308, headers={"Location": "dashboard/"})


async def _absent(request: web.Request) -> web.Response:
    return refusal(404, "NOT_FOUND", _WITHOUT)
